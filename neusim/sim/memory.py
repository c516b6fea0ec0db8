"""The KV-cache blocks of a simulated language-model device, and whom vLLM would preempt when they run out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from neustream.plan import UNLIMITED
from neustream.request import Request


class KvMemory:
    """Counts blocks as vLLM 0.5.4 does: a prompt takes its blocks at once, a decode step one more as it grows."""

    def __init__(self, total: int | None, block_size: int, watermark: float) -> None:
        self.total = UNLIMITED if total is None else total
        self.block_size = block_size
        self.spare = 0 if total is None else int(watermark * total)
        self.free = self.total
        self.held: dict[str, int] = {}
        """Blocks by request id."""
        self._holders: dict[str, Request] = {}

    def blocks(self, units: int) -> int:
        """Blocks that a context of `units` occupies."""
        return -(-units // self.block_size)

    def can_ever_hold(self, request: Request) -> bool:
        """Whether the request fits with nothing else there, from its prompt to its last unit."""
        return self.blocks(request.size + request.max_units) <= self.total - self.spare

    def take(self, request: Request, units: int) -> None:
        """Give the request all the blocks that a context of `units` needs beyond those that it holds."""
        more = self.blocks(units) - self.holding(request)
        if more <= 0 and request.request_id in self._holders:
            return
        if more > self.free:
            raise ValueError(f"{request!r} was given {more} blocks, {self.free} are free")
        self.free -= more
        self.held[request.request_id] = self.held.get(request.request_id, 0) + more
        self._holders[request.request_id] = request

    def holding(self, request: Request) -> int:
        """Blocks that the request holds, those that it shares included."""
        return self.held.get(request.request_id, 0)

    def admit(self, request: Request) -> bool:
        """Give a request that holds nothing the blocks of its context; False, and nothing given, where they lack."""
        self.take(request, request.context)
        return True

    def refresh(self, waiting: Iterable[Request]) -> None:
        """Tell those that wait what of their input the memory has already: nothing here."""

    def fill(self, request: Request, tokens: int) -> None:
        """So many tokens of its input are processed with the step that begins. Nobody else can use them here."""

    def certain(self, waiting: Iterable[Request]) -> int:
        """Blocks that may be planned with, whoever of those waiting is admitted."""
        return self.free

    @property
    def num_shared(self) -> int:
        """Blocks in use that belong to no single request."""
        return 0

    def release(self, request: Request) -> None:
        """Take back what the request holds, if anything."""
        self.free += self.held.pop(request.request_id, 0)
        self._holders.pop(request.request_id, None)

    def grow(self, batch: Sequence[Request]) -> list[Request]:
        """Make room for one decode step of `batch`; returns those who lose their memory for it, in that order.

        As vLLM does: each in turn needs a free block (`can_append_slots`). While there is none, whoever was admitted
        last loses theirs: first of those that the step leaves out, then of the batch.
        """
        if self.free >= len(batch):
            for request in batch:
                if request.request_id in self._holders:
                    self.take(request, request.context)
            return []
        names = {request.request_id for request in batch}
        left_out = [holder for name, holder in self._holders.items() if name not in names]
        in_order = batch if left_out else [holder for name, holder in self._holders.items() if name in names]
        queue = deque(request for request in in_order if request.request_id in self._holders)
        preempted: list[Request] = []
        while queue:
            request = queue.popleft()
            while not self.free and request.request_id in self._holders:
                victim = left_out.pop() if left_out else queue.pop() if queue else request
                self.release(victim)
                preempted.append(victim)
            if request.request_id in self._holders:
                self.take(request, request.context)
        return preempted

    def check_integrity(self) -> None:
        """Assert that every block is either free or held by someone."""
        assert self.free >= 0, self.free
        assert self.free + sum(self.held.values()) + self.num_shared == self.total, (self.free, self.held)
        assert self.held.keys() == self._holders.keys()
