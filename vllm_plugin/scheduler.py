"""vLLM's scheduler under a step policy: `--scheduler-cls vllm_plugin.scheduler.StepPolicyScheduler`.

At each step the policy says who runs, with how many tokens, and who is given up. The scheduler then hides all others
from vLLM's own `schedule`, calls it, and puts them back. What vLLM does with those that it sees is its own business:
blocks, prefixes, adapters, grammars. `AsyncScheduler` is right whether a step is scheduled while another runs or not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request as EngineRequest
from vllm.v1.request import RequestStatus

from neustream.plan import IDLE, Limits, StepPlan
from neustream.policies.base import seats_taken
from neustream.request import Outcome
from neustream.route import DECODE, PREFILL
from vllm_plugin.bookkeeping import Bookkeeping, PlannedRequest
from vllm_plugin.config import PluginConfig, check_engine, check_version, read_config

logger = init_logger(__name__)

PROBE_AGE = 1.0
"""Seconds for which the length of a cached prefix is taken to hold."""
ENDS = {RequestStatus.FINISHED_ABORTED: Outcome.ABORTED, RequestStatus.FINISHED_IGNORED: Outcome.FAILED}


class StepPolicyScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler, whose steps a policy of the core chooses. Without a policy vLLM's own, and watched.

    Its configuration stands in vLLM's additional configuration (`vllm_plugin.config`). Raises ValueError for a bad
    one, for a version of vLLM that is not known, and for what a step policy does not go with.
    """

    running: Any
    waiting: Any
    max_num_scheduled_tokens: Any
    max_num_active_reqs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_version(vllm.__version__)
        super().__init__(*args, **kwargs)
        config: PluginConfig = read_config(self.vllm_config.additional_config)
        if config.policy is not None:
            check_engine(self.vllm_config)
        self.step_policy = config.policy
        self.books = Bookkeeping(config.table, config.slo, config.on_miss, config.classes)
        self.num_errors = 0
        """Steps that vLLM scheduled by itself, because the policy failed."""
        self.num_stalls = 0
        """Steps that ran nothing of what was planned."""
        self._given_up: list[tuple[EngineRequest, str]] = []
        """Requests that have ended outside of a step, and why; their clients have not been told yet."""
        self._is_stalled = False
        self.wake: float | None = None
        """Where the last plan ran nothing: when the policy wants to be asked again at the latest."""
        self._probed: dict[str, float] = {}
        self._watermark = int(getattr(self.scheduler_config, "watermark", 0.0) * self.cache_config.num_gpu_blocks)

    # --- What vLLM calls --------------------------------------------------------------------------------------------

    def add_request(self, request: EngineRequest) -> None:
        """Take a request. One whose SLO cannot be understood ends at once, for the reason that its stop reason says."""
        is_known = request.request_id in self.requests
        super().add_request(request)
        if is_known or request.sampling_params is None or request.resumable:
            return
        try:
            self.books.add(request, self.max_model_len - request.num_prompt_tokens)
        except ValueError as error:
            self._give_up(request, f"slo: {error}")

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> Any:
        """End requests from outside a step, as vLLM does; their books are closed."""
        if request_ids is None:
            named: Iterable[str] = list(self.requests)
        else:
            named = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        finished = super().finish_requests(request_ids, finished_status)
        outcome, now = ENDS.get(finished_status, Outcome.ABORTED), time.time()
        for request_id in named:
            self._forget(request_id, now, outcome, str(finished_status).removeprefix("RequestStatus.").lower())
        return finished

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step: planned by the policy, scheduled by vLLM."""
        asked = time.time()
        plan, rejected = None, []
        if self.step_policy is not None and self._pause_state == PauseState.UNPAUSED:
            try:
                plan = self._plan(asked)
                self.wake = plan.wake
                rejected = [rejection.request.request_id for rejection in plan.rejected]
                self._carry_out(plan)
            except Exception:  # a policy's fault must not end the engine
                plan = None
                self.num_errors += 1
                logger.exception("the step policy failed (%d times); vLLM schedules this step", self.num_errors)
        decided = time.time()
        if plan is None or self._is_stalled:
            self._is_stalled = False
            output = super().schedule(*args, **kwargs)
        else:
            with self._only(plan):
                output = super().schedule(*args, **kwargs)
            # vLLM found no room for any of it. The same would be planned again, so it schedules the next step itself.
            self._is_stalled = plan.module is not None and not output.total_num_scheduled_tokens
            self.num_stalls += self._is_stalled
        self._account(output, asked, rejected, decided - asked if self.step_policy is not None else 0.0)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        """Take in what a step brought; the clients of those given up are told with it."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        now = time.time()
        finished = []
        for group in outputs.values():
            for output in group.outputs:
                self.books.delivered(output.request_id, len(output.new_token_ids), now)
                if output.finish_reason is not None:
                    finished.append((output.request_id, output.finish_reason))
        self.books.ended(now)
        for request_id, why in finished:
            is_bad = why in (FinishReason.ABORT, FinishReason.ERROR)
            self._forget(request_id, now, Outcome.FAILED if is_bad else None, str(why) if is_bad else None)
        for request, reason in self._given_up:
            group = outputs.setdefault(request.client_index, EngineCoreOutputs())
            group.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=FinishReason.ABORT,
                    stop_reason=reason,
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                )
            )
        self._given_up = []
        return outputs

    def has_requests(self) -> bool:
        """Whether the engine must go on: also while a client has not been told that its request was given up."""
        return bool(self._given_up) or super().has_requests()

    # --- Planning ---------------------------------------------------------------------------------------------------

    def _plan(self, asked: float) -> StepPlan:
        """Ask the policy, with everything brought up to date."""
        assert self.step_policy is not None
        books = self.books
        self._sync(asked)
        if not len(books.streams):
            return IDLE
        now = asked
        under_way = [step for step in books.under_way if step is not None]
        for step in under_way:  # what is planned now begins when they have ended
            now = max(now, step.started) + (step.expected or 0.0) * books.history.drift.get(step.kind, 1.0)
        pool = self.kv_cache_manager.block_pool
        limits = Limits(
            max_resident=self.max_num_active_reqs - self._num_unplanned_running(),
            max_work=self.max_num_scheduled_tokens,
            free_blocks=pool.get_num_free_blocks(),
            block_size=self.block_size,
            spare_blocks=self._watermark,
            total_blocks=pool.num_gpu_blocks - 1,  # one is vLLM's own
            can_split=True,
            num_under_way=len(under_way),
        )
        return self.step_policy.plan(now, books.streams, books.history.limits(limits))

    def _num_unplanned_running(self) -> int:
        return sum(self.books.get(request.request_id) is None for request in self.running)

    def _sync(self, now: float) -> None:
        """What vLLM did by itself: preempted requests, grammars that became ready, prefixes that were cached."""
        books = self.books
        for request in self.waiting:
            planned = books.get(request.request_id)
            if planned is None:
                continue
            if request.status == RequestStatus.PREEMPTED and (planned.stage or planned.processed):
                books.preempted(planned)
            if self._is_blocked_waiting_status(request.status) and not self._handle_blocked_waiting_request(request):
                if planned.place is not None:
                    books.hide(planned)
                continue
            if planned.place is None and not planned.in_flight:
                books.show(planned)
            if self.cache_config.enable_prefix_caching and self._probed.get(request.request_id, 0.0) < now - PROBE_AGE:
                self._probed[request.request_id] = now
                planned.cached = self.kv_cache_manager.get_computed_blocks(request)[1]

    def _carry_out(self, plan: StepPlan) -> None:
        """Rejections and preemptions of the plan, before its step."""
        for rejection in plan.rejected:
            request = rejection.request
            assert isinstance(request, PlannedRequest)
            if request.on_miss == "demote":
                self.books.streams.demote(request)
                continue
            self._give_up(request.engine, rejection.reason, Outcome.REJECTED)
        for request in plan.preempted:
            assert isinstance(request, PlannedRequest)
            self._preempt(request.engine)

    def _give_up(self, request: EngineRequest, reason: str, outcome: Outcome = Outcome.FAILED) -> None:
        """End a request; its client hears of it with the next output."""
        self._forget(request.request_id, time.time(), outcome, reason)
        super().finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
        self._given_up.append((request, reason))

    def _forget(self, request_id: str, at: float, outcome: Outcome | None, reason: str | None) -> None:
        self._probed.pop(request_id, None)
        self.books.end(request_id, at, outcome, reason)

    def _preempt(self, request: EngineRequest) -> None:
        """Take a running request's memory; it goes to the front of the queue."""
        if request.status != RequestStatus.RUNNING:
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        planned = self.books.get(request.request_id)
        if planned is not None:
            self.books.preempted(planned)

    # --- Hide, schedule, restore ------------------------------------------------------------------------------------

    @contextmanager
    def _only(self, plan: StepPlan) -> Iterator[None]:
        """While it is open vLLM sees the plan's members alone, in the plan's order, and as many tokens as planned.

        Requests that no policy plans (an input that streams in) are always seen.
        """
        members = {request.request_id for request in plan.members}
        pieces = [request for request in plan.members if request.module == PREFILL]
        order = {request.request_id: place for place, request in enumerate(pieces)}
        budget, seats, waiting = self.max_num_scheduled_tokens, self.max_num_active_reqs, self.waiting
        others = {request.request_id for request in (*self.running, *waiting)} - self.books.ledger.open.keys()
        members |= others
        seen = [request for request in self.running if request.request_id in members]
        self._make_room(seen, [request for request in self.running if request.request_id not in members])
        running = self.running  # less those that made room
        held = {request for request in running if request.request_id not in members}
        # Decodes first, each its token; then the pieces, in the policy's order: the last one may get less than all.
        seen.sort(key=lambda request: order.get(request.request_id, -1))
        entering = [request for request in waiting if request.request_id in members]
        entering.sort(key=lambda request: order.get(request.request_id, -1))
        waiting.remove_requests(entering)
        shown = create_request_queue(self.policy)
        for request in entering:
            shown.add_request(request)
        self.running, self.waiting = seen, shown
        if not others and not self.kv_holding_waiting:
            self.max_num_scheduled_tokens = min(budget, num_tokens(plan))
        self.max_num_active_reqs = seats - len(held)
        try:
            yield
        finally:
            self.max_num_scheduled_tokens, self.max_num_active_reqs = budget, seats
            for request in reversed(list(self.waiting)):  # preempted just now, or not admitted after all
                waiting.prepend_request(request)
            now_running = set(self.running) | held
            before = set(running)
            entered = [request for request in self.running if request not in before]
            self.running = [request for request in running if request in now_running] + entered
            self.waiting = waiting

    def _make_room(self, seen: list[EngineRequest], held: list[EngineRequest]) -> None:
        """Preempt from among those that are left out, last come first, where the members lack blocks for a token each.

        vLLM itself would look for a victim among the members alone.
        """
        size = self.block_size
        needed = sum(request.num_computed_tokens % size == 0 for request in seen if not request.is_prefill_chunk)
        pool = self.kv_cache_manager.block_pool
        while needed > pool.get_num_free_blocks() and held:
            self._preempt(held.pop())

    def _account(self, output: Any, asked: float, rejected: list[str], deciding: float) -> None:
        for request_id in output.preempted_req_ids or ():
            planned = self.books.get(request_id)
            if planned is not None and planned.engine.status == RequestStatus.PREEMPTED:
                self.books.preempted(planned)
        tokens = output.num_scheduled_tokens
        step = self.books.started(self.books.ran(tokens), tokens, asked, rejected, deciding)
        if step is not None:
            step.scheduling = time.time() - asked


def num_tokens(plan: StepPlan) -> int:
    """Tokens of the plan's step, at least 1: vLLM takes no budget of none."""
    pieces = sum(piece.work for piece in plan.pieces)
    if plan.module == DECODE:
        return max(seats_taken(plan.batch) + pieces, 1)
    return max(sum(request.pending for request in plan.batch) + pieces, 1)
