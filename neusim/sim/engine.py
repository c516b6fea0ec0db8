"""The step loops of a device's processes in virtual time: plan, run, commit, as in `neustream.loop`.

Where several processes run at once they share the GPU. Each step keeps the GPU busy for a share of its time, its
demand; while the demands of the steps under way add up to more than 1, all of them slow down by that sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from neusim.sim.device import Device, demand_law
from neusim.sim.events import EventQueue, Priority
from neusim.sim.prefixes import Prefix, PrefixMemory, make_memory
from neusim.sim.process import Process, ProcessStreams, RunningStep
from neustream.driver import Observer
from neustream.history import StepHistory
from neustream.loop import DONE, StepResult, commit, reject, step_record
from neustream.plan import UNLIMITED, Limits, StepPlan
from neustream.policies import StepPolicy, is_llm
from neustream.request import Outcome, Request
from neustream.tables import LatencyTable

MIN_JITTER = 0.1
"""No step is shorter than this share of what the table says, however the dice fall."""

Handler = Callable[[float], None]


class Engine:
    """Runs requests through a device in virtual time; `observer` hears of each step and each end.

    It consists of handlers of events: whoever made the queue of `events` runs it, and hands requests to `submit`.
    Several engines may share one queue. `neusim.sim.driver` runs a single one step by step.

    `num_units` says how many units a request's output really has, which no policy knows: it ends there, or with its
    route. Without it every output is as long as its route. `prefix` names the blocks of a prompt, for a device with a
    prefix cache.
    """

    def __init__(
        self,
        table: LatencyTable,
        device: Device,
        make_policy: Callable[[], StepPolicy],
        observer: Observer,
        *,
        events: EventQueue[Handler],
        seed: int = 0,
        num_units: Callable[[Request], int] | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        self.table = table
        self.device = device
        self.observer = observer
        self._prefix = prefix if device.prefix_cache else None
        self.num_live = 0
        self._random = np.random.default_rng(seed)
        self._num_units = num_units
        self._events = events
        self._processes = [self._process(modules, make_policy()) for modules in device.processes(table)]
        self._by_module = {module: p for p in self._processes for module in p.streams.modules}
        self._is_shared = len(self._processes) > 1
        self._rate = 1.0
        """Seconds of progress per second of every step under way, since `_shared_at`."""
        self._shared_at = 0.0
        self._demand = demand_law(table, device.contention)

    @property
    def is_running(self) -> bool:
        """Whether a step is under way in any process."""
        return any(process.step is not None for process in self._processes)

    def check_integrity(self) -> None:
        """Assert the invariants of the processes' streams and memory."""
        for process in self._processes:
            process.streams.check_integrity()
            assert not process.inbox + process.streams.outbox
            if process.memory is not None:
                process.memory.check_integrity()

    def _process(self, modules: tuple[str, ...], policy: StepPolicy) -> Process:
        device = self.device
        history = StepHistory(self.table)
        if not is_llm(self.table):
            return Process(ProcessStreams(modules), policy, history.limits(Limits()), history)
        memory = make_memory(device, self._prefix)
        held = Limits(
            max_resident=device.max_num_seqs,
            max_work=device.max_num_batched_tokens,
            free_blocks=memory.total if memory else UNLIMITED,
            block_size=device.block_size,
            spare_blocks=memory.spare if memory else 0,
            total_blocks=memory.total if memory else UNLIMITED,
            can_split=device.can_split,
        )
        return Process(ProcessStreams(modules), policy, history.limits(held), history, memory)

    @property
    def spared(self) -> float | None:
        """Share of the admitted prompts' tokens whose blocks were there already; None without a prefix cache."""
        asked = spared = 0
        for process in self._processes:
            if isinstance(process.memory, PrefixMemory):
                asked += process.memory.num_asked
                spared += process.memory.num_spared
        return spared / asked if asked else None

    # Requests come in.

    def submit(self, request: Request, now: float) -> None:
        """A request comes, `now` being the time of the event that brings it."""
        self.num_live += 1
        self._enter(request, now)

    def abort(self, request: Request, now: float, reason: str = "aborted") -> None:
        """Withdraw a request that has not ended; if it is in the step under way, that goes on without its result."""
        process = self._by_module[request.module]  # on its way to another process it is in neither's streams
        if request in process.inbox:
            process.inbox.remove(request)
        elif process.streams.get(request.request_id) is request:
            process.streams.remove(request)
        request.end(now, Outcome.ABORTED, reason)
        self._finish(process, request)
        self._ask(process, now)

    def _enter(self, request: Request, now: float) -> None:
        if request.outcome is not None:  # withdrawn on its way from one process to the next
            return
        process = self._by_module.get(request.module)
        if process is None:
            raise ValueError(f"{request!r}: the table of {self.table.model} has no module {request.module!r}")
        if process.memory is not None and not process.memory.can_ever_hold(request):
            request.end(now, Outcome.FAILED, "its context does not fit into the KV cache")
            self._finish(process, request)
            return
        process.inbox.append(request)
        self._ask(process, now)

    def _finish(self, process: Process, request: Request) -> None:
        process.history.finished(request)
        if process.memory is not None:
            process.memory.release(request)
        self.num_live -= 1
        self.observer.on_end(request)

    # A process plans, runs, commits.

    def _ask(self, process: Process, when: float) -> None:
        """Have an idle process plan at `when`."""
        if process.step is None and not process.is_plan_due:
            process.is_plan_due = True
            self._events.push(when, Priority.PLANS, lambda now: self._plan(process, now))

    def _plan(self, process: Process, now: float) -> None:
        process.is_plan_due = False
        if process.step is not None:
            return
        for request in process.inbox:
            process.streams.add(request)
        process.inbox.clear()
        if not len(process.streams):
            return
        plan = process.policy.plan(now, process.streams, process.limits_now())
        for request in reject(process.streams, plan, now):
            self._finish(process, request)
        plan, has_preempted = process.allocate(plan)
        if plan.module is not None:
            self._start(process, plan, now)
        elif plan.rejected or has_preempted or process.is_short:
            self._ask(process, now)
        elif plan.wake is not None:
            assert plan.wake > now, f"asked to be woken at {plan.wake}, it is {now}"
            self._events.push(plan.wake, Priority.PLANS, lambda then: self._plan(process, then))

    def _start(self, process: Process, plan: StepPlan, now: float) -> None:
        assert plan.module is not None
        process.history.planned(plan)
        assert process.history.expected is not None
        seconds = process.history.expected * self.device.slowed(now)
        if self.device.jitter:
            seconds *= max(1.0 + self.device.jitter * self._random.standard_normal(), MIN_JITTER)
        demand = self._demand(plan.module, len(plan.batch)) if self._is_shared else 1.0
        step = process.step = RunningStep(plan, now, seconds, demand)
        if self.device.overhead:  # the host's time: nothing of it is on the GPU
            self._events.push(now + self.device.overhead, Priority.STEP_ENDS, partial(self._compute, step))
        else:
            self._compute(step, now)

    def _compute(self, step: RunningStep, now: float) -> None:
        """The step's work on the GPU begins."""
        step.is_computing = True
        self._share(now, step)

    def _result(self, plan: StepPlan) -> StepResult:
        """What comes of a step: whose output is complete with the unit that it delivers."""
        if self._num_units is None:
            return DONE
        emitting = (r for r in plan.members if r.route[r.stage].emits)
        return StepResult(stopped=frozenset(r.request_id for r in emitting if r.units + 1 >= self._num_units(r)))

    def _share(self, now: float, started: RunningStep | None = None) -> None:
        """Divide the GPU anew among the steps under way, now that one has started or ended."""
        elapsed = (now - self._shared_at) * self._rate
        steps = [(process, process.step) for process in self._processes if process.step is not None]
        running = [(process, step) for process, step in steps if step.is_computing]
        for _, step in running:
            step.is_alone = step.is_alone and len(running) == 1
            if step is not started:
                step.left -= elapsed
        rate = 1.0 / max(1.0, sum(step.demand for _, step in running))
        for process, step in running:
            if step is started or rate != self._rate:
                step.version += 1
                end = partial(self._end, process, step, step.version)
                self._events.push(now + max(step.left, 0.0) / rate, Priority.STEP_ENDS, end)
        self._rate, self._shared_at = rate, now

    def _end(self, process: Process, step: RunningStep, version: int, now: float) -> None:
        if version != step.version:
            return  # contention has moved its end
        plan = step.plan
        assert plan.kind is not None
        process.step = None
        seconds = now - step.started
        record = step_record(
            process.streams,
            plan,
            step.started,
            seconds,
            expected=process.history.expected,
            scheduling=self.device.overhead,
        )
        process.history.ended(plan.kind, seconds, learns=step.is_alone)
        self._share(now)
        for request in commit(process.streams, plan, self._result(plan), now):
            self._finish(process, request)
        for request in process.streams.outbox:
            self._events.push(now + self.device.handover, Priority.ENTERS, partial(self._enter, request))
        process.streams.outbox.clear()
        self.observer.on_step(record)
        self._ask(process, now)
