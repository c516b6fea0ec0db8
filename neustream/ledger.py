"""The ledger: core requests for an engine that runs elsewhere and tells of tokens and ends in its own words.

A vLLM adapter keeps one beside its streams. Whoever only watches an engine keeps one alone. Both judge alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from neustream.cost import shape_of
from neustream.request import OnMiss, Outcome, Request
from neustream.route import Route, llm_route
from neustream.slo import NO_DEADLINES, Deadlines, parse_slo
from neustream.tables import LatencyTable

R = TypeVar("R", bound=Request)


class Ledger(Generic[R]):
    """The requests of one engine that have not ended, in `open`, from `add` to `end`.

    `slo` (outside form, as `parse_slo` reads it) and `on_miss` are for requests that bring none; an SLO given as a
    scale needs `table`. `kind` is the class of the requests. Times are in seconds on the engine's clock.
    Raises ValueError for a default SLO that cannot be understood.
    """

    def __init__(
        self,
        slo: Mapping[str, Any] | None = None,
        table: LatencyTable | None = None,
        *,
        on_miss: OnMiss = "reject",
        kind: type[R] = Request,  # type: ignore[assignment]
    ) -> None:
        self.slo, self.on_miss = split_slo(slo, on_miss)
        self.table = table
        self.kind = kind
        self.open: dict[str, R] = {}
        if self.slo:
            parse_slo(self.slo)

    def add(
        self,
        request_id: str,
        arrival: float,
        size: int,
        max_tokens: int,
        *,
        width: int = 1,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss | None = None,
        slo_class: str = "",
    ) -> R:
        """Open a request: a prompt of `size` tokens that asks for at most `max_tokens`; returns it.

        An `on_miss` among the SLO's fields goes before the argument. Raises ValueError for an id that is open, for an
        SLO that cannot be understood, and for numbers out of range; nothing is opened then.
        """
        if request_id in self.open:
            raise ValueError(f"request id {request_id!r} is in use")
        fields, on_miss = split_slo(slo, on_miss or self.on_miss)
        route = llm_route(max_tokens)
        deadlines = self._bind(request_id, fields if slo is not None else self.slo, arrival, route, size)
        request = self.kind(
            request_id, arrival, deadlines, route, size, on_miss=on_miss, width=width, slo_class=slo_class
        )
        self.open[request_id] = request
        return request

    def _bind(self, request_id: str, slo: Mapping[str, Any], arrival: float, route: Route, size: int) -> Deadlines:
        if not slo:
            return NO_DEADLINES
        try:
            return parse_slo(slo).bind(arrival, route, size, self.table)
        except (TypeError, OverflowError) as error:  # an arrival that is no point in time
            raise ValueError(f"request {request_id!r}: its deadlines cannot be made: {error}") from error

    def deliver(self, request_id: str, times: Sequence[float]) -> R:
        """Take in the times of all tokens that came out so far; returns the request. Raises KeyError if not open."""
        request = self.open[request_id]
        catch_up(request, times)
        return request

    def preempt(self, request_id: str) -> None:
        """It lost its memory and starts over; tokens that came out stay. Nothing happens where it is not open."""
        request = self.open.get(request_id)
        if request is not None and (request.stage or request.is_resident):
            request.preempt()

    def end(self, request_id: str, at: float, outcome: Outcome | None = None, reason: str | None = None) -> R:
        """Close a request at `at`; without `outcome` it finished. Raises KeyError if not open."""
        request = self.open[request_id]
        request.end(at, outcome, reason)
        del self.open[request_id]
        return request

    def end_all(self, at: float, outcome: Outcome, reason: str) -> list[R]:
        """Close whatever is open; returns it, oldest first."""
        return [self.end(request_id, at, outcome, reason) for request_id in list(self.open)]

    def predict(self, module: str, request_ids: Iterable[str]) -> float | None:
        """Seconds that the table says a step with these requests takes, before its tokens are delivered.

        None where there is no table, it does not know the module, or none of the requests is open.
        """
        batch = [self.open[request_id] for request_id in request_ids if request_id in self.open]
        if not batch or self.table is None or module not in self.table:
            return None
        return self.table[module].predict(shape_of(batch))


def catch_up(request: Request, times: Sequence[float]) -> None:
    """Advance the request by the tokens of `times` (all that came out so far) that it does not know yet."""
    while request.units < len(times):
        request.advance(times[request.units])


def split_slo(slo: Mapping[str, Any] | None, on_miss: OnMiss) -> tuple[dict[str, Any], OnMiss]:
    """`(SLO fields, what to do on a miss)` of an SLO in its outside form. Raises ValueError for what is no mapping."""
    if slo is not None and not isinstance(slo, Mapping):
        raise ValueError(f"slo must be a mapping such as {{'ttft_ms': 500, 'tpot_ms': 50}}, got a {type(slo).__name__}")
    fields = dict(slo or {})
    chosen = fields.pop("on_miss", on_miss)
    if chosen not in ("reject", "demote"):
        shown = repr(chosen[:80]) if isinstance(chosen, str) else f"a {type(chosen).__name__}"
        raise ValueError(f"on_miss must be 'reject' or 'demote', got {shown}")
    return fields, chosen
