"""Slots: where the tensors of the requests in flight lie, so that a batch is gathered by index."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Field = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of what one request has of a field."""


class SlotPool:
    """One tensor per field, of shape (slots, *field shape), on the device. Doubles when every slot is taken."""

    def __init__(self, fields: Mapping[str, Field], device: torch.device, num_slots: int = 16) -> None:
        self.device = device
        self.tensors = {
            name: torch.zeros((num_slots, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in fields.items()
        }
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    def __getitem__(self, field: str) -> Tensor:
        return self.tensors[field]

    @property
    def num_taken(self) -> int:
        return self.num_slots - len(self._free)

    def acquire(self) -> int:
        """A free slot, from now on taken. Its tensors hold what the last owner left."""
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
