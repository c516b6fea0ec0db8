"""Core requests for the requests of vLLM's scheduler: what they wait for, what came out of them, how they ended.

It knows nothing of vLLM but the few fields of its requests that it reads. One `PlannedRequest` per request, from its
arrival to its end. It stands in the stream of what it will do next, also while a step that it is in still runs
(`Request.move` at planning, `deliver` when the token comes out).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from neustream.cost import step_price, step_seconds
from neustream.history import StepHistory
from neustream.ledger import Ledger
from neustream.plan import Piece, StepPlan
from neustream.records import StepRecord
from neustream.request import OnMiss, Outcome, Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable
from vllm_plugin.slo import read_slo


class PlannedRequest(Request):
    """A core request and vLLM's own."""

    __slots__ = ("engine", "num_stale", "place")
    engine: Any
    place: str | None
    """The stream that it is in; None where its last token is on its way."""
    num_stale: int
    """Tokens on their way from steps before it was preempted. They still come out."""


@dataclass(slots=True)
class Step:
    """A step that was planned and has not ended."""

    started: float
    kind: str
    request_ids: tuple[str, ...]
    rejected: tuple[str, ...]
    rest: tuple[float, ...]
    num_waiting: int
    num_tokens: int
    expected: float | None
    """Seconds by the table; None where it cannot say."""
    deciding: float
    scheduling: float


class Bookkeeping:
    """The requests of one scheduler. Times are in seconds on `time.time()`'s clock, as vLLM's arrival times are.

    `slo` and `on_miss` are for requests that bring none and name no class. `on_step` and `on_end` are told of every
    step that ran something and of every end.
    """

    def __init__(
        self,
        table: LatencyTable | None = None,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "reject",
        classes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.table = table
        self.classes = classes or {}
        self.ledger: Ledger[PlannedRequest] = Ledger(slo, table, on_miss=on_miss, kind=PlannedRequest)
        self.streams = Streams((PREFILL, DECODE))
        self.history = StepHistory(table)
        self._price = step_price(table) if table is not None else None
        self.under_way: deque[Step | None] = deque()
        """Steps that have not ended, oldest first; None for one that runs nothing."""
        self.on_step: Callable[[StepRecord], None] | None = None
        self.on_end: Callable[[Request], None] | None = None
        self._last_end = 0.0

    def reset_history(self) -> None:
        """Forget what steps took and how long texts were, so that another run on this engine starts afresh."""
        self.history = StepHistory(self.table)

    def get(self, request_id: str) -> PlannedRequest | None:
        """The core's side of a live request; None for one that no policy plans."""
        return self.ledger.open.get(request_id)

    def add(self, engine: Any, most: int) -> PlannedRequest:
        """Open a request of vLLM's; at most `most` tokens can come out of it.

        Raises ValueError, one line, for an SLO that cannot be understood; nothing is opened then.
        """
        stated = read_slo(engine.sampling_params.extra_args, self.classes)
        request = self.ledger.add(
            engine.request_id,
            engine.arrival_time,
            engine.num_prompt_tokens,
            max(min(stated.max_tokens or engine.max_tokens, most), 1),
            slo=stated.slo,
            slo_class=stated.slo_class,
        )
        request.engine = engine
        request.num_stale = 0
        request.place = None
        self._move(request, PREFILL)
        return request

    def end(self, request_id: str, at: float, outcome: Outcome | None, reason: str | None = None) -> None:
        """Close a request; without `outcome` it finished. Nothing happens for one that is not open."""
        request = self.get(request_id)
        if request is None:
            return
        self._move(request, None)
        if outcome is None and not request.units:
            outcome, reason = Outcome.FAILED, "ended without a token"
        ended_at = request.last_unit_at if outcome is None else None
        self.ledger.end(request_id, at if ended_at is None else ended_at, outcome, reason)
        self.history.finished(request)
        if self.on_end is not None:
            self.on_end(request)

    def hide(self, request: PlannedRequest) -> None:
        """It cannot be planned now (its grammar is not ready): no policy sees it until `show`."""
        self._move(request, None)

    def show(self, request: PlannedRequest) -> None:
        """It can be planned again."""
        self._move(request, request.module)

    def preempted(self, request: PlannedRequest) -> None:
        """It has lost its memory. Tokens on their way still come out of it."""
        if not (request.stage or request.processed or request.in_flight):
            return
        on_the_way = request.in_flight
        self._move(request, None)
        request.preempt()
        request.num_stale += on_the_way
        self._move(request, PREFILL)
        self._to_the_front(request)

    def _to_the_front(self, request: PlannedRequest) -> None:
        others = [other for other in self.streams[PREFILL] if other is not request]
        for other in others:
            self.streams.remove(other, PREFILL)
        for other in others:
            self.streams.add(other)

    def ran(self, tokens: Mapping[str, int]) -> StepPlan:
        """The plan of what vLLM scheduled: tokens by request. Requests that no policy plans are left out."""
        decodes, whole, pieces = [], True, []
        for request_id, num in tokens.items():
            request = self.get(request_id)
            if request is None:
                continue
            if request.module == DECODE:
                decodes.append(request)
            else:
                if not request.processed:  # what vLLM found in its prefix cache when it admitted the request
                    request.cached = request.engine.num_computed_tokens - num
                pieces.append(Piece(request, num))
                whole = whole and request.processed <= request.cached and num >= request.pending
        if decodes:
            return StepPlan(DECODE, tuple(decodes), pieces=tuple(pieces))
        if not pieces:
            return StepPlan()
        if whole:
            return StepPlan(PREFILL, tuple([piece.request for piece in pieces]))
        return StepPlan(PREFILL, pieces=tuple(pieces))

    def started(
        self, plan: StepPlan, tokens: Mapping[str, int], asked: float, rejected: Iterable[str], deciding: float
    ) -> Step | None:
        """vLLM has scheduled these tokens, which `plan` says in the core's words (`ran`); its requests move.

        `asked` is when scheduling began; `deciding` the seconds of it that the policy took.
        """
        if plan.kind is None:
            self.under_way.append(None)
            return None
        assert plan.module is not None
        expected = None
        if self.table is not None and plan.module in self.table:
            expected = step_seconds(self.table, plan, self._price)
        members = plan.members
        step = Step(
            started=asked,
            kind=plan.kind,
            request_ids=tuple([request.request_id for request in members]),
            rejected=tuple(rejected),
            rest=tuple([request.next_deadline - asked for request in members]),
            num_waiting=len(self.streams) - len(members),
            num_tokens=sum(tokens.values()),
            expected=expected,
            deciding=deciding,
            scheduling=0.0,
        )
        self.under_way.append(step)
        for request in plan.batch:
            self._visited(request)  # type: ignore[arg-type]
        for piece in plan.pieces:
            self._processed(piece.request)  # type: ignore[arg-type]
        return step

    def _processed(self, request: PlannedRequest) -> None:
        done = request.engine.num_computed_tokens
        if done >= request.context:
            self._visited(request)
        else:
            request.processed = done
            request.is_resident = True

    def _visited(self, request: PlannedRequest) -> None:
        module = request.module
        is_over = request.move()
        if is_over:
            self.streams.remove(request, module)
            request.place = None
        elif request.module != module:
            self.streams.remove(request, module)
            self.streams.add(request)
            request.place = request.module

    def delivered(self, request_id: str, num: int, at: float) -> None:
        """So many tokens of a request came out at `at`."""
        request = self.get(request_id)
        if request is None:
            return
        for _ in range(num):
            if request.num_stale:  # planned before it was preempted: its visit was given back then
                request.num_stale -= 1
                self._spare_a_visit(request)
            request.deliver(at)

    def _spare_a_visit(self, request: PlannedRequest) -> None:
        if request.left[1]:
            request.left[1] -= 1
        elif request.place is not None:
            self._move(request, None)

    def ended(self, at: float) -> None:
        """The oldest step under way has ended at `at`; its tokens have been delivered."""
        step = self.under_way.popleft() if self.under_way else None
        if step is None:
            return
        # A step that was scheduled while another ran began when that one had ended.
        seconds = at - max(step.started, self._last_end)
        self._last_end = at
        self.history.ended_as(step.kind, seconds, step.expected)
        if self.on_step is not None:
            self.on_step(
                StepRecord(
                    time=step.started,
                    kind=step.kind,
                    request_ids=step.request_ids,
                    seconds=seconds,
                    decision_seconds=step.deciding,
                    schedule_seconds=step.scheduling,
                    predicted_seconds=step.expected,
                    num_waiting=step.num_waiting,
                    rejected=step.rejected,
                    rest_seconds=step.rest,
                    extra={"tokens": step.num_tokens},
                )
            )

    def _move(self, request: PlannedRequest, place: str | None) -> None:
        if request.place is not None:
            self.streams.remove(request, request.place)
        if place is not None:
            self.streams.add(request)
        request.place = place
