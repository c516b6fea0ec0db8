"""One simulated process: the streams in front of its modules, its policy, and the step it is running."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from neusim.sim.memory import KvMemory
from neustream.cost import begun
from neustream.history import StepHistory
from neustream.loop import preempt
from neustream.plan import Limits, StepPlan
from neustream.policies import StepPolicy
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams


class ProcessStreams(Streams):
    """The streams of one process. A request that is done here and needs another process goes to `outbox`."""

    def __init__(self, modules: Iterable[str]) -> None:
        super().__init__(modules)
        self.outbox: list[Request] = []

    def add(self, request: Request) -> None:
        if request.module in self._streams:
            super().add(request)
        else:
            self.outbox.append(request)


@dataclass(slots=True)
class RunningStep:
    """A step under way. `left` is its work on the GPU, in seconds of the GPU to itself; contention stretches it."""

    plan: StepPlan
    started: float
    left: float
    demand: float
    """Share of the step's time in which it keeps the GPU busy."""
    version: int = 0
    """Counts the revisions of its end; an end event of an older version is void."""
    is_computing: bool = False
    """Whether its work on the GPU has begun: the host's comes first."""
    is_alone: bool = True
    """Whether no step of another process has been on the GPU at the same time."""


@dataclass(slots=True)
class Process:
    """One process of a device."""

    streams: ProcessStreams
    policy: StepPolicy
    limits: Limits
    """What the device holds and its past; the parts that `history` filled in are live."""
    history: StepHistory
    memory: KvMemory | None = None
    inbox: list[Request] = field(default_factory=list)
    """Who has come since the step under way was planned: they were not passed over by it."""
    step: RunningStep | None = None
    is_short: bool = False
    """Whether the last plan got no memory for anybody: the next is told of no block that somebody may yet take."""
    is_plan_due: bool = False
    """Whether a planning event is queued for this instant already."""

    def allocate(self, plan: StepPlan) -> tuple[StepPlan, bool]:
        """Give a step its memory: `(the plan without those who were preempted for it, whether there were any)`.

        First those go whom the plan itself preempts; then, for a decode step, whoever vLLM would preempt.
        """
        preempt(self.streams, plan)
        if self.memory is None:
            return plan, bool(plan.preempted)
        for request in plan.preempted:
            self.memory.release(request)
        lost: set[str] = set()
        if plan.module == DECODE:
            for request in self.memory.grow(plan.batch):
                self.streams.preempt(request)
                lost.add(request.request_id)
            if lost:
                batch = tuple(request for request in plan.batch if request.request_id not in lost)
                pieces = tuple(piece for piece in plan.pieces if piece.request.request_id not in lost)
                plan = replace(plan, module=DECODE if batch or pieces else None, batch=batch, pieces=pieces)
        return self._admit(plan, self.memory), bool(lost) or bool(plan.preempted)

    def _admit(self, plan: StepPlan, memory: KvMemory) -> StepPlan:
        """Memory for those whose input the step processes; the plan without the last of them where it is too little.

        Only where prompts share blocks may it be: no policy is told whose blocks are idle, and so count as free.
        """
        whole = plan.batch if plan.module != DECODE else ()
        given = 0
        for request in (*whole, *(piece.request for piece in plan.pieces)):
            if not request.is_resident and not memory.admit(request):
                break
            given += 1
        for piece in plan.pieces[: max(given - len(whole), 0)]:
            memory.fill(piece.request, begun(piece.request) + piece.work)
        for request in whole[:given]:
            memory.fill(request, request.size)
        if given == len(whole) + len(plan.pieces):
            self.is_short = False
            return plan
        batch = whole[:given] if plan.module != DECODE else plan.batch
        pieces = plan.pieces[: max(given - len(whole), 0)]
        module = plan.module if batch or pieces else None
        self.is_short = module is None
        return replace(plan, module=module, batch=batch, pieces=pieces)

    def limits_now(self) -> Limits:
        """What the device holds at this moment; those that wait are told what a prefix cache spares them."""
        if self.memory is None:
            return self.limits
        waiting = self.streams[PREFILL]
        self.memory.refresh(waiting)
        return replace(self.limits, free_blocks=self.memory.certain(waiting) if self.is_short else self.memory.free)
