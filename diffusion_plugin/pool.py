"""Slots: where the tensors of the requests in flight lie, so that a batch is gathered by index."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Field = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of what one request has of a field."""


class SlotPool:
    """One tensor per field, of shape (slots, *field shape), on the device.

    It doubles when every slot is taken. `shrink` gives back what a busy time has left, never below the initial size.
    """

    def __init__(self, fields: Mapping[str, Field], device: torch.device, num_slots: int = 16) -> None:
        self.device = device
        self.tensors = {
            name: torch.zeros((num_slots, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in fields.items()
        }
        self.num_slots = self.least_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    def __getitem__(self, field: str) -> Tensor:
        return self.tensors[field]

    @property
    def num_taken(self) -> int:
        return self.num_slots - len(self._free)

    def acquire(self) -> int:
        """A free slot, from now on taken. Its tensors hold what the last owner left.

        Where every slot is taken the pool grows. It stays as it is where memory runs out for that, and the error
        is the device's.
        """
        if not self._free:
            self._grow()
        return self._free.pop()

    def write(self, slot: int, values: Mapping[str, Tensor]) -> None:
        """Copy one request's values into its slot."""
        for name, value in values.items():
            self.tensors[name][slot].copy_(value)

    def release(self, slot: int) -> None:
        """Give the slot back."""
        assert slot not in self._free, slot
        self._free.append(slot)

    def shrink(self) -> dict[int, int]:
        """Halve the pool where less than a quarter of it is taken; returns the slots that moved, old → new.

        It stays as it is, and nothing moves, where memory runs out for the copy: the error is the device's.
        """
        half = self.num_slots // 2
        if half < self.least_slots or self.num_taken * 4 >= self.num_slots:
            return {}
        free = set(self._free)
        targets = sorted(slot for slot in free if slot < half)
        high = [slot for slot in range(half, self.num_slots) if slot not in free]
        moves = dict(zip(high, targets, strict=False))
        kept = list(range(half))
        for old, new in moves.items():
            kept[new] = old
        index = torch.tensor(kept, device=self.device)
        self.tensors = {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}
        self.num_slots = half
        self._free = targets[len(moves) :][::-1]
        return moves

    def _grow(self) -> None:
        """Twice the slots; all or nothing where memory runs out."""
        grown = {name: torch.cat([tensor, torch.zeros_like(tensor)]) for name, tensor in self.tensors.items()}
        self._free.extend(range(2 * self.num_slots - 1, self.num_slots - 1, -1))
        self.num_slots *= 2
        self.tensors = grown

    def check_integrity(self, taken: Collection[int]) -> None:
        """Assert that exactly the slots `taken` are in use, each once."""
        slots = list(taken)
        assert len(set(slots)) == len(slots), slots
        assert sorted(self._free + slots) == list(range(self.num_slots)), (self._free, slots)
