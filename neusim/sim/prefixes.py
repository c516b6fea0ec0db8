"""KV-cache blocks that requests share: those of prompts that begin alike, kept for as long as nobody needs the room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from neusim.sim.device import Device
from neusim.sim.memory import KvMemory
from neustream.request import Request
from neustream.workload.traces import PREFIX_TOKENS

Prefix = Callable[[Request], Sequence[int]]
"""The names of a prompt's blocks, front to back: two prompts agree as far as these agree."""


class PrefixMemory(KvMemory):
    """Blocks of a device that keeps prompts' blocks after their requests have ended, as vLLM's prefix cache does.

    A named block holds `prefix_tokens` tokens of a prompt. It is filled when these are processed, and is shared by
    all requests whose prompts begin with the same names. With nobody left to use it, it stays as idle memory: `free`
    counts it, and whoever needs room takes the one that has been idle for longest, the end of a prompt before its
    front. Output has no names.
    """

    def __init__(
        self, total: int | None, block_size: int, watermark: float, prefix: Prefix, prefix_tokens: int
    ) -> None:
        """Raises ValueError where a named block is no whole number of the device's."""
        super().__init__(total, block_size, watermark)
        if prefix_tokens % block_size:
            raise ValueError(f"prefix blocks of {prefix_tokens} tokens cannot be made of blocks of {block_size}")
        self.prefix_tokens = prefix_tokens
        self.per_name = prefix_tokens // block_size
        """Blocks of the device in a named one."""
        self.num_asked = 0
        """Tokens of the prompts that were admitted, preempted ones anew."""
        self.num_spared = 0
        """Of these, those whose blocks were there."""
        self._prefix = prefix
        self._users: dict[int, int] = {}
        """By name, how many requests use the block; 0: idle."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """The idle ones, longest idle first."""
        self._shared: dict[str, list[int]] = {}
        """Names that a request uses."""
        self._filled: dict[str, int] = {}
        """How many of its prompt's names a request has dealt with."""
        self._version = 0
        """Rises whenever a block is filled or lost: only then hits change."""
        self._seen: dict[str, int] = {}
        """The version for which a waiting request's hits were counted."""

    def refresh(self, waiting: Iterable[Request]) -> None:
        """Tell those that hold no memory how much of their prompts is there: sets `cached`."""
        for request in waiting:
            if request.is_resident or self._seen.get(request.request_id) == self._version:
                continue
            self._seen[request.request_id] = self._version
            self._tell(request, self._hits(request))

    def certain(self, waiting: Iterable[Request]) -> int:
        """Free blocks without the idle ones that those waiting would use: nobody's admission takes more than these."""
        wanted = {name for request in waiting if not request.is_resident for name in self._hits(request)}
        return self.free - self.per_name * sum(1 for name in wanted if self._users[name] == 0)

    def admit(self, request: Request) -> bool:
        """Give a request that holds nothing all the blocks of its context, those that are there included.

        False, and nothing given, where they are not free.
        """
        hits = self._hits(request)
        idle = sum(1 for name in hits if self._users[name] == 0)
        own = self.blocks(request.context) - len(hits) * self.per_name
        if own + idle * self.per_name > self.free:
            return False
        self._tell(request, hits)  # who was admitted before it may have taken the room of some
        for name in hits:
            self._use(name)
        self._shared[request.request_id] = list(hits)
        self._filled[request.request_id] = len(hits)
        self.num_asked += request.size
        self.num_spared += request.cached
        self.take(request, request.context)
        return True

    def fill(self, request: Request, tokens: int) -> None:
        """`tokens` tokens of its prompt are processed with the step that begins: its full blocks get their names."""
        names = self._names(request)
        for name in names[self._filled[request.request_id] : tokens // self.prefix_tokens]:
            self._filled[request.request_id] += 1
            if name not in self._users:  # else somebody else has just made the same: then it is its own
                self._users[name] = 1
                self._shared[request.request_id].append(name)
                self.held[request.request_id] -= self.per_name
                self._version += 1

    def holding(self, request: Request) -> int:
        return super().holding(request) + self.per_name * len(self._shared.get(request.request_id, ()))

    def take(self, request: Request, units: int) -> None:
        super().take(request, units)
        self._evict()

    def release(self, request: Request) -> None:
        super().release(request)
        self._filled.pop(request.request_id, None)
        self._seen.pop(request.request_id, None)
        for name in reversed(self._shared.pop(request.request_id, ())):
            self._users[name] -= 1
            if self._users[name] == 0:
                self._idle[name] = None
                self.free += self.per_name

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self._idle.keys() == {name for name, users in self._users.items() if users == 0}
        assert self.per_name * len(self._idle) <= self.free
        users: dict[int, int] = {}
        for names in self._shared.values():
            for name in names:
                users[name] = users.get(name, 0) + 1
        assert users == {name: count for name, count in self._users.items() if count}

    @property
    def num_shared(self) -> int:
        return self.per_name * (len(self._users) - len(self._idle))

    def _names(self, request: Request) -> Sequence[int]:
        """Names of the full blocks of its prompt."""
        return self._prefix(request)[: request.size // self.prefix_tokens]

    def _hits(self, request: Request) -> Sequence[int]:
        """The names of its prompt, from the front, whose blocks are there."""
        names = self._names(request)
        for i, name in enumerate(names):
            if name not in self._users:
                return names[:i]
        return names

    def _tell(self, request: Request, hits: Sequence[int]) -> None:
        # The last token is processed in any case: its result is the first token of the output.
        request.cached = min(len(hits) * self.prefix_tokens, request.size - 1)

    def _use(self, name: int) -> None:
        if self._users[name] == 0:
            del self._idle[name]
            self.free -= self.per_name
        self._users[name] += 1

    def _evict(self) -> None:
        """Give up idle blocks until those that are counted as free and hold nothing cover what was taken."""
        while self.per_name * len(self._idle) > self.free:
            name, _ = self._idle.popitem(last=False)
            del self._users[name]
            self._version += 1


def make_memory(device: Device, prefix: Prefix | None = None) -> KvMemory | None:
    """The memory of a language model's device; None where it is unbounded and nothing is shared."""
    if prefix is not None:
        return PrefixMemory(device.kv_blocks, device.block_size, device.watermark, prefix, PREFIX_TOKENS)
    return KvMemory(device.kv_blocks, device.block_size, device.watermark) if device.kv_blocks else None
