"""The patched vLLM as a `Driver` (neustream/driver.py): with a step policy, or stock under a ledger that judges it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neustream.driver import Ask, Progress
from neustream.ledger import Ledger
from neustream.records import StepRecord
from neustream.request import OnMiss, Outcome, Request
from neustream.route import PREFILL
from neustream.tables import LatencyTable
from vllm_patch.engine import TOLD_TOKENS, sampling

TOLERANCE = 1e-6
"""Seconds by which two sums of the same deadline may differ."""

BAD_ENDS = {"timeout": Outcome.REJECTED, "abort": Outcome.ABORTED}


class VllmDriver:
    """Serves requests on an LLMEngine that is idle. The payload of an `Ask` is `(prompt_token_ids, max_tokens)`,
    or `(prompt_token_ids, max_tokens, ends_after)` where the text ends earlier than the policy is told.

    `slo` (outside form) and `on_miss` are for asks that bring none; `table` is needed for an SLO given as a scale, and
    for `predicted_seconds`. The engine hears of SLOs only if it has a step policy. The driver judges by its own ledger
    either way, so that stock vLLM and a policy are judged alike. Where the policy has deadlines of its own, they are
    checked against the ledger's. `params` makes vLLM's sampling parameters of a number of tokens.

    A policy's history begins anew with the driver. `close` leaves the engine itself to whoever loaded it, unless
    `owns_engine`.
    """

    def __init__(
        self,
        engine: Any,
        *,
        table: LatencyTable | None = None,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "reject",
        params: Callable[[int], Any] = sampling,
        owns_engine: bool = False,
    ) -> None:
        if engine.has_unfinished_requests():
            raise ValueError("the engine is not idle: one driver serves it at a time")
        self.engine = engine
        self.params = params
        self.owns_engine = owns_engine
        self.ledger: Ledger[Request] = Ledger(slo, table, on_miss=on_miss)
        self.scheduler = engine.scheduler[0]
        self.step_policy = self.scheduler.step_policy
        self.has_failed = False
        """Whether a step of the engine has raised: then nobody asks it for anything any more."""
        self._ended: list[Request] = []
        self._results: dict[str, tuple[int, ...]] = {}
        self._taken: dict[str, tuple[int, ...]] = {}
        self._grown: dict[str, Any] = {}
        self._num_told: dict[str, int] = {}
        self._ends_after: dict[str, int] = {}
        """Tokens after which the texts of open requests end, which is the ledger's maximum or less."""
        self._record: Any = None
        self.scheduler.on_step = self._keep_record
        if self.step_policy is not None and hasattr(self.step_policy.policy, "reset_history"):
            self.step_policy.policy.reset_history()

    def submit(self, ask: Ask) -> None:
        """Take a request. Raises ValueError for an SLO or a payload that cannot be served."""
        try:
            prompt, max_tokens, *rest = ask.payload
            size, ends_after = len(prompt), min(rest[0] if rest else max_tokens, max_tokens)
        except (TypeError, ValueError) as error:
            raise ValueError(f"request {ask.request_id!r}: its payload is no (prompt_token_ids, max_tokens)") from error
        request = self.ledger.add(ask.request_id, ask.arrival, size, max_tokens, slo=ask.slo, on_miss=ask.on_miss)
        told: dict[str, Any] = {}
        if self.step_policy is not None:
            fields = self.ledger.slo if ask.slo is None else ask.slo
            told = {"slo": {**fields, "on_miss": request.on_miss}}
            if ends_after < max_tokens:
                told["slo"][TOLD_TOKENS] = max_tokens
        try:
            inputs = {"prompt_token_ids": prompt}
            self.engine.add_request(ask.request_id, inputs, self.params(ends_after), arrival_time=ask.arrival, **told)
        except BaseException:
            del self.ledger.open[ask.request_id]
            raise
        self._ends_after[ask.request_id] = ends_after

    def step(self) -> StepRecord | None:
        """Run one step. A step that only gave requests up has a record of kind `idle`.

        Raises RuntimeError where the policy worked with other deadlines than the ledger's, after everything else of
        the step is accounted for; that request stays open. An error of the engine comes through as it is.
        """
        if not self.ledger.open:
            return None
        self._record = None
        try:
            outputs = self.engine.step()
        except BaseException:
            self.has_failed = True
            raise
        record = self._translated(self._record) if self._record is not None else None
        errors = []
        for output in outputs:
            try:
                self._account(output)
            except RuntimeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return record

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        self._taken, self._results = self._results, {}
        return ended

    def take_result(self, request_id: str) -> tuple[int, ...] | None:
        """The token ids of a request of the last `take_ended`; None for one that did not finish."""
        return self._taken.get(request_id)

    def take_progress(self) -> list[Progress]:
        """The live requests that have new token ids since the last call."""
        grown, self._grown = self._grown, {}
        news = []
        for name, token_ids in grown.items():
            told = self._num_told.get(name, 0)
            if len(token_ids) > told:
                self._num_told[name] = len(token_ids)
                news.append(Progress(name, len(token_ids), tuple(token_ids[told:])))
        return news

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request; nothing happens where no such request is live."""
        self._abort([request_id] if request_id in self.ledger.open else [], reason)

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended. An engine that has failed is not asked."""
        self._abort(list(self.ledger.open), reason)

    def _abort(self, request_ids: list[str], reason: str) -> None:
        try:
            if request_ids and not self.has_failed:
                self.engine.abort_request(request_ids)
        finally:
            now = time.time()
            self._ended += [self._end(name, now, Outcome.ABORTED, reason) for name in request_ids]

    @property
    def num_unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self.ledger.open)

    @property
    def wake(self) -> float | None:
        """After a step with nothing to run: when the policy wants to be asked again at the latest."""
        if self.step_policy is None or not self.ledger.open:
            return None
        wake: float | None = getattr(self.step_policy, "wake", None)
        return wake

    def close(self) -> None:
        """Withdraw whatever has not ended, and let the engine go."""
        self.abort_all("closed")
        self.scheduler.on_step = None
        if self.owns_engine:
            self.engine.model_executor.shutdown()

    def _keep_record(self, record: Any) -> None:
        self._record = record

    def _translated(self, step: Any) -> StepRecord:
        """vLLM's record of a step as the core's, before the step's tokens are taken in."""
        if step.kind == PREFILL:  # who is prefilled again was preempted
            for request_id in step.request_ids:
                self.ledger.preempt(request_id)
        extra = {
            "tokens": step.num_tokens,
            "num_running": step.num_running,
            "num_swapped": step.num_swapped,
            "num_preempted": step.num_preempted,
        }
        if step.error is not None:
            extra["error"] = step.error
        return StepRecord(
            time=step.start,
            kind=step.kind,
            request_ids=tuple(step.request_ids),
            seconds=step.seconds,
            decision_seconds=step.decision_seconds,
            schedule_seconds=step.schedule_seconds,
            predicted_seconds=self.ledger.predict(step.kind, step.request_ids),
            num_waiting=step.num_waiting,
            rejected=tuple(request_id for request_id, _ in step.rejected),
            extra=extra,
        )

    def _account(self, output: Any) -> None:
        """Take in a vLLM RequestOutput; a request that has ended with it leaves the ledger, if nothing is wrong."""
        name, times = output.request_id, output.metrics.token_times
        request = self.ledger.deliver(name, times)
        if not output.finished:
            self._grown[name] = output.outputs[0].token_ids
            return
        check_deadlines(request, output.metrics.deadlines)
        completion = output.outputs[0]
        outcome, reason = BAD_ENDS.get(completion.finish_reason), None
        if outcome is not None:
            reason = str(completion.stop_reason or completion.finish_reason)
        elif not times or (completion.finish_reason == "length" and request.units < self._ends_after[name]):
            outcome, reason = Outcome.FAILED, f"ended after {request.units} tokens ({completion.finish_reason})"
        at = times[-1] if outcome is None else time.time()
        if outcome is None:
            self._results[name] = tuple(completion.token_ids)
        self._ended.append(self._end(name, at, outcome, reason))

    def _end(self, name: str, at: float, outcome: Outcome | None, reason: str | None) -> Request:
        self._grown.pop(name, None)
        self._num_told.pop(name, None)
        self._ends_after.pop(name, None)
        return self.ledger.end(name, at, outcome, reason)


def check_deadlines(request: Request, deadlines: Sequence[float] | None) -> None:
    """Raise RuntimeError if the engine worked with other deadlines (k-th entry: token k) than the request's."""
    for unit, theirs in enumerate(deadlines or (), start=1):
        ours = request.deadlines.at(unit)
        if abs(ours - theirs) > TOLERANCE:
            raise RuntimeError(
                f"request {request.request_id}: the policy took token {unit} to be due {theirs - ours:+.6f} s "
                "from what is accounted"
            )
