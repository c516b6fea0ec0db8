"""Between vLLM's scheduler and the core: sequence groups become requests, plans become step decisions.

One core request per sequence group, kept in `seq_group.policy_state` from arrival to end; nothing is rebuilt
per step. Both sides use `time.time()`, the clock of vLLM's arrival times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from vllm.core.step_policy import StepCapacity, StepDecision, StepRecord
from vllm.sequence import SequenceGroup, SequenceStatus

from neustream.history import StepHistory
from neustream.ledger import Ledger, catch_up
from neustream.plan import IDLE, Limits, StepPlan
from neustream.policies.base import StepPolicy, seats_taken
from neustream.request import OnMiss, Outcome, Request
from neustream.route import DECODE, PREFILL
from neustream.slo import NO_DEADLINES
from neustream.streams import Streams
from neustream.tables import LatencyTable
from vllm_patch.engine import TOLD_TOKENS

CAN_SPLIT = False
"""Whether pieces of prompts may ride along with a batch: vLLM 0.5.4 has no such step under a step policy."""
ENDED_BADLY = {
    SequenceStatus.FINISHED_TIMEOUT: Outcome.REJECTED,
    SequenceStatus.FINISHED_ABORTED: Outcome.ABORTED,
    SequenceStatus.FINISHED_IGNORED: Outcome.FAILED,
}


def told_tokens(slo: Any, max_tokens: int | None) -> tuple[Any, int | None]:
    """`(the SLO without it, what the policy takes for max_tokens)`: an SLO may bring `max_tokens`, for experiments.

    Its text then ends after the sampling parameters' `max_tokens`, which the policy does not know. Raises ValueError
    for what is no number of tokens.
    """
    if not isinstance(slo, Mapping) or TOLD_TOKENS not in slo:
        return slo, max_tokens
    told = slo[TOLD_TOKENS]
    if not isinstance(told, int) or told < (max_tokens or 1):
        raise ValueError(f"an SLO's {TOLD_TOKENS} must be at least {max_tokens or 1} tokens, got {told!r}")
    return {key: value for key, value in slo.items() if key != TOLD_TOKENS}, told


class GroupRequest(Request):
    """A core request, its sequence group, and the stream it is in (None while it is swapped out)."""

    __slots__ = ("group", "place")
    group: SequenceGroup
    place: str | None


class Adapter:
    """A core policy in the shape of vLLM's step-policy protocol (`vllm/core/step_policy.py`).

    `default_slo` (outside form, as `parse_slo` reads it) is for requests that bring none; `on_end` is told of
    every request that has ended, with its outcome and its units on time.
    """

    def __init__(
        self,
        policy: StepPolicy,
        table: LatencyTable | None,
        *,
        max_model_len: int,
        default_slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "reject",
    ) -> None:
        self.policy = policy
        self.table = table
        self.max_model_len = max_model_len
        self.on_end: Callable[[Request], None] | None = None
        self.streams = Streams((PREFILL, DECODE))
        self.ledger: Ledger[GroupRequest] = Ledger(default_slo, table, on_miss=on_miss, kind=GroupRequest)
        self.history = StepHistory(table)
        self._num_planned = 0
        """Requests in the step that was planned last."""

    def reset_history(self) -> None:
        """Forget what steps took and how long texts were, so that another run on this engine starts afresh."""
        self.history = StepHistory(self.table)

    def on_add(self, group: SequenceGroup) -> None:
        """Make the group's request. Raises ValueError for an SLO that cannot be understood and for an id in use."""
        self._add(group)

    def _add(self, group: SequenceGroup) -> GroupRequest:
        length = group.seqs[0].get_prompt_len()
        params = group.sampling_params
        if params is None:
            raise ValueError(f"request {group.request_id!r} asks for an embedding: a step policy serves texts")
        # vLLM stops a text once it is longer than the model's length: the token that makes it so comes out too.
        most = max(self.max_model_len - length + 1, 1)
        slo, asked = told_tokens(group.slo, params.max_tokens)
        request = self.ledger.add(
            group.request_id,
            group.metrics.arrival_time,
            length,
            min(asked or most, most),
            width=params.best_of,
            slo=slo,
        )
        self.streams.add(request)
        request.place = PREFILL
        request.group = group
        group.policy_state = request
        return request

    def on_finish(self, group: SequenceGroup) -> None:
        """Close the group's request, and put the deadlines of its units on its output."""
        request: GroupRequest | None = group.policy_state
        if request is None:
            return
        group.policy_state = None
        catch_up(request, request.group.metrics.token_times)
        self._move(request, None)
        outcome = next((ENDED_BADLY[seq.status] for seq in group.seqs if seq.status in ENDED_BADLY), None)
        if request.deadlines is not NO_DEADLINES:
            units = request.units + (outcome is Outcome.REJECTED)
            group.metrics.deadlines = [request.deadlines.at(unit) for unit in range(1, units + 1)]
        reason = str(group.seqs[0].stop_reason) if outcome is Outcome.REJECTED else None
        ended_at = request.last_unit_at if outcome is None else None
        self.ledger.end(request.request_id, time.time() if ended_at is None else ended_at, outcome, reason)
        self.history.finished(request)
        if self.on_end is not None:
            self.on_end(request)

    def on_step(self, record: StepRecord) -> None:
        """Remember how long the last step of each module took.

        Nothing is learnt of the drift where vLLM ran less than was planned, or what came back from swap space besides.
        """
        if record.num_seq_groups != self._num_planned:
            self.history.planned(IDLE)
        if record.kind in (PREFILL, DECODE):
            self.history.ended(record.kind, record.seconds)

    def decide(
        self,
        now: float,
        waiting: Collection[SequenceGroup],
        running: Collection[SequenceGroup],
        swapped: Collection[SequenceGroup],
        capacity: StepCapacity,
    ) -> StepDecision:
        """Bring the requests up to date, ask the policy, translate its plan."""
        self._num_planned = 0
        impossible = self._sync(waiting, running, swapped, capacity)
        limits = Limits(
            # vLLM prefills nothing while a group is swapped out: no seat is free.
            max_resident=seats_taken(self.streams[DECODE]) if swapped else capacity.max_num_seqs,
            max_work=capacity.max_num_batched_tokens,
            free_blocks=capacity.num_free_blocks,
            block_size=capacity.block_size,
            spare_blocks=capacity.watermark_blocks,
            total_blocks=capacity.num_total_blocks,
            can_split=CAN_SPLIT,
        )
        plan = self.policy.plan(now, self.streams, self.history.limits(limits))
        self.history.planned(plan)
        self._num_planned = len(plan.members)
        if swapped and plan.module == PREFILL:  # it will not run, so that nobody need lose memory for it
            plan = replace(plan, preempted=())
        return self._translate(plan, impossible)

    def _sync(
        self,
        waiting: Collection[SequenceGroup],
        running: Collection[SequenceGroup],
        swapped: Collection[SequenceGroup],
        capacity: StepCapacity,
    ) -> list[SequenceGroup]:
        """Move every request to the stream of its group's queue; returns groups that can never be prefilled."""
        impossible = []
        preempted = False
        most_blocks = capacity.num_total_blocks - capacity.watermark_blocks
        most = min(most_blocks * capacity.block_size, capacity.max_num_batched_tokens)
        for group in waiting:
            request: GroupRequest = group.policy_state or self._add(group)
            if request.size > most:
                self._move(request, None)
                impossible.append(group)
            elif request.stage or request.place is None:
                catch_up(request, request.group.metrics.token_times)
                self._move(request, None)
                request.preempt()
                preempted = True
        if preempted:  # they stand at the head of vLLM's queue, and so they shall here
            for group in waiting:
                if group.policy_state.size <= most:
                    self._move(group.policy_state, None)
                    self._move(group.policy_state, PREFILL)
        for group in running:
            request = group.policy_state or self._add(group)
            catch_up(request, request.group.metrics.token_times)
            if request.place != DECODE:
                self._move(request, DECODE)
                request.is_resident = True  # also one that came back from swap space
        for group in swapped:
            request = group.policy_state or self._add(group)
            if request.place is not None:
                catch_up(request, request.group.metrics.token_times)
                self._move(request, None)
                request.is_resident = False
        return impossible

    def _move(self, request: GroupRequest, place: str | None) -> None:
        if request.place is not None:
            self.streams.remove(request, request.place)
        if place is not None:
            self.streams.add(request)
        request.place = request.module if place is not None else None

    def _translate(self, plan: StepPlan, impossible: list[SequenceGroup]) -> StepDecision:
        if plan.pieces:
            raise ValueError("this policy splits prompts over steps, which vLLM 0.5.4 does not do with a step policy")
        reject = []
        for rejection in plan.rejected:
            if rejection.request.on_miss == "demote":
                self.streams.demote(rejection.request)
            else:
                reject.append((rejection.request.request_id, rejection.reason))
        batch = [request.group for request in plan.batch]  # type: ignore[attr-defined]
        preempt = [request.group for request in plan.preempted]  # type: ignore[attr-defined]
        if plan.module == PREFILL:
            return StepDecision(prefill=[*impossible, *batch], reject=reject, preempt=preempt)
        decode = None if len(batch) == len(self.streams[DECODE]) else batch
        return StepDecision(prefill=impossible, decode=decode, reject=reject, wake=plan.wake, preempt=preempt)
