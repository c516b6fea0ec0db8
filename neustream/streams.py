"""Streams: the requests that wait in front of each module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, ValuesView

from neustream.request import Request


class Streams:
    """One stream per module; each holds its requests in the order in which they entered it.

    Joining and leaving take constant time. A request is in exactly one stream, that of `request.module`.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._streams: dict[str, dict[str, Request]] = {module: {} for module in modules}
        self.num_demoted = 0

    def __getitem__(self, module: str) -> ValuesView[Request]:
        """The requests in front of `module`, oldest entry first. Raises KeyError for an unknown module."""
        return self._streams[module].values()

    def __len__(self) -> int:
        return sum(len(stream) for stream in self._streams.values())

    def __iter__(self) -> Iterator[Request]:
        for stream in self._streams.values():
            yield from stream.values()

    @property
    def modules(self) -> tuple[str, ...]:
        """Module names, in pipeline order."""
        return tuple(self._streams)

    def add(self, request: Request) -> None:
        """Put it into the stream of its current module. Raises ValueError if it is there already."""
        stream = self._streams.get(request.module)
        if stream is None:
            known = ", ".join(self._streams)
            raise ValueError(f"request {request.request_id!r} needs module {request.module!r}; there are {known}")
        if request.request_id in stream:
            raise ValueError(f"request id {request.request_id!r} is in use")
        stream[request.request_id] = request
        self.num_demoted += request.demoted

    def remove(self, request: Request, module: str | None = None) -> None:
        """Take it out of `module`'s stream (its current module's by default). Raises KeyError if absent."""
        del self._streams[module or request.module][request.request_id]
        self.num_demoted -= request.demoted

    def preempt(self, request: Request) -> None:
        """Send it back to its first stage, foremost in that stream: it must make all of its state anew."""
        self.remove(request)
        request.preempt()
        stream = self._streams[request.module]
        others = dict(stream)
        stream.clear()
        self.add(request)
        stream.update(others)

    def demote(self, request: Request) -> None:
        """Mark it as one to be served when nothing else needs the device."""
        self.num_demoted += not request.demoted
        request.demoted = True

    def split(self) -> tuple[Streams, Streams]:
        """`(live, demoted)`: the same requests, in the same order, in two sets of streams."""
        live, demoted = Streams(self._streams), Streams(self._streams)
        for module, stream in self._streams.items():
            shown, hidden = live._streams[module], demoted._streams[module]
            for request_id, request in stream.items():
                if request.demoted:
                    hidden[request_id] = request
                else:
                    shown[request_id] = request
        demoted.num_demoted = self.num_demoted
        return live, demoted

    def get(self, request_id: str) -> Request | None:
        """The request of that id, wherever it waits."""
        for stream in self._streams.values():
            if request_id in stream:
                return stream[request_id]
        return None

    def check_integrity(self) -> None:
        """Assert that every request is live and waits in front of the module that it needs."""
        demoted = 0
        for module, stream in self._streams.items():
            for request_id, request in stream.items():
                assert request.request_id == request_id, (module, request_id, request)
                assert request.module == module, (module, request)
                assert request.outcome is None, (module, request)
                demoted += request.demoted
        assert demoted == self.num_demoted, (demoted, self.num_demoted)
