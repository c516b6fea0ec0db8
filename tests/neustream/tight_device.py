"""A device short of memory and seats in virtual time, on which texts end early and drivers preempt at random."""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from neusim.sim.memory import KvMemory
from neusim.sim.process import Process, ProcessStreams
from neustream import Limits, Request, StepPlan, StepPolicy, StepResult
from neustream.cost import step_seconds
from neustream.history import StepHistory
from neustream.loop import commit, reject
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

MAX_STEPS = 4000


class TightDevice:
    """Serves prompts step by step, checking each plan against what the device can do."""

    def __init__(
        self,
        policy: StepPolicy,
        table: LatencyTable,
        limits: Limits,
        *,
        stops: Mapping[str, int] | None = None,
        num_preemptions: int = 0,
    ) -> None:
        self.table = table
        self.stops = stops or {}
        self.num_preemptions = num_preemptions
        self.random = random.Random(0)
        self.now = 0.0
        history = StepHistory(table)
        memory = KvMemory(limits.total_blocks, limits.block_size, 0.0)
        memory.spare = limits.spare_blocks
        self.process = Process(ProcessStreams(table.modules), policy, history.limits(limits), history, memory)
        self.ended: list[Request] = []
        self.plans: list[StepPlan] = []

    @property
    def limits(self) -> Limits:
        assert self.process.memory is not None
        return replace(self.process.limits, free_blocks=self.process.memory.free)

    def place(self, request: Request) -> None:
        """Put a request on the device, with the memory of what it has done so far."""
        assert self.process.memory is not None
        self.process.streams.add(request)
        if request.is_resident:
            self.process.memory.take(request, request.context - 1)

    def serve(self, requests: Iterable[Request]) -> None:
        """Serve these and those that were placed until all have ended. Fails where that takes for ever."""
        arrivals = [(request.arrival, i, request) for i, request in enumerate(requests)]
        heapq.heapify(arrivals)
        streams = self.process.streams
        while arrivals or len(streams):
            while arrivals and arrivals[0][0] <= self.now:
                streams.add(heapq.heappop(arrivals)[2])
            if not self._step():
                assert arrivals, f"idle for ever with {list(streams)}"
                self.now = max(self.now, arrivals[0][0])
            assert len(self.plans) < MAX_STEPS, f"no end with {list(streams)}"
            self._preempt()

    def _step(self) -> bool:
        """One step; returns whether anything happened."""
        process, limits = self.process, self.limits
        plan = process.policy.plan(self.now, process.streams, limits)
        self.check(plan, limits)
        self.plans.append(plan)
        self._finish(reject(process.streams, plan, self.now))
        plan, has_preempted = process.allocate(plan)
        if plan.module is None:
            return bool(plan.rejected) or has_preempted
        seconds = step_seconds(self.table, plan)
        self.now += seconds
        assert plan.kind is not None
        process.history.ended(plan.kind, seconds)
        due = {r.request_id for r in plan.members if r.units + 1 >= self.stops.get(r.request_id, r.max_units)}
        partial = {piece.request.request_id for piece in plan.pieces if piece.work < piece.request.pending}
        self._finish(commit(process.streams, plan, StepResult(stopped=frozenset(due - partial)), self.now))
        process.streams.check_integrity()
        assert process.memory is not None
        process.memory.check_integrity()
        return True

    def _finish(self, requests: Collection[Request]) -> None:
        assert self.process.memory is not None
        for request in requests:
            self.process.memory.release(request)
            self.process.history.finished(request)
            self.ended.append(request)

    def _preempt(self) -> None:
        """Now and then the driver takes the memory of a running request, for reasons of its own."""
        running = list(self.process.streams[DECODE])
        if running and self.num_preemptions and self.random.random() < 0.2:
            self.num_preemptions -= 1
            victim = self.random.choice(running)
            assert self.process.memory is not None
            self.process.memory.release(victim)
            self.process.streams.preempt(victim)

    def check(self, plan: StepPlan, limits: Limits) -> None:
        """Assert that the plan is well-formed and that the device can run it."""
        streams = self.process.streams
        members = list(plan.members)
        assert len({request.request_id for request in members}) == len(members)
        assert not {r.request.request_id for r in plan.rejected} & {request.request_id for request in members}
        assert all(rejection.reason for rejection in plan.rejected)
        assert all(request.is_resident for request in plan.preempted)
        assert not set(plan.preempted) & set(members)
        assert all(request.module == plan.module for request in plan.batch)
        if plan.pieces:
            assert limits.can_split
            assert all(piece.request.stage == 0 and 0 < piece.work <= piece.request.pending for piece in plan.pieces)
            assert all(piece.work == piece.request.pending for piece in plan.pieces[:-1])
        new = [request for request in members if not request.is_resident]
        gone = set(plan.preempted)
        stay = [request for request in streams if request.is_resident and request not in gone]
        assert not new or sum(request.width for request in [*stay, *new]) <= limits.max_resident
        held = self.process.memory.held if self.process.memory is not None else {}
        free = limits.free_blocks + sum(held.get(request.request_id, 0) for request in gone)
        assert not new or sum(limits.blocks(request.pending) for request in new) <= free - limits.spare_blocks
        work = sum(r.pending if plan.module == PREFILL else r.width for r in plan.batch)
        work += sum(piece.work for piece in plan.pieces)
        assert work <= limits.max_work or len(members) == 1 or plan.module == DECODE
