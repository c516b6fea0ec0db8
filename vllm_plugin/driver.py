"""Today's vLLM as a `Driver` (neustream/driver.py), its engine core in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from neustream.driver import Ask, Progress
from neustream.ledger import Ledger, split_slo
from neustream.records import StepRecord
from neustream.request import OnMiss, Outcome, Request
from neustream.tables import LatencyTable
from vllm_plugin.engine import sampling, scheduler_of
from vllm_plugin.slo import ON_MISS, PREFIX


class PluginDriver:
    """Serves requests on an engine of `vllm_plugin.engine.load_engine` that is idle.

    The payload of an `Ask` is `(prompt_token_ids, max_tokens)`, or `(prompt_token_ids, max_tokens, ends_after)` where
    the text ends earlier than anybody but the engine knows. `slo` (outside form) and `on_miss` are for asks that bring
    none; `table` is needed for an SLO given as a scale. Outcomes are judged by a ledger of its own, by the clock after
    the engine's step, under whichever scheduler. A policy's history begins anew with the driver.
    """

    def __init__(
        self,
        engine: Any,
        *,
        table: LatencyTable | None = None,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "reject",
        owns_engine: bool = False,
    ) -> None:
        if engine.has_unfinished_requests():
            raise ValueError("the engine is not idle: one driver serves it at a time")
        self.engine = engine
        self.scheduler = scheduler_of(engine)
        self.owns_engine = owns_engine
        self.ledger: Ledger[Request] = Ledger(slo, table, on_miss=on_miss)
        self.has_failed = False
        self._ended: list[Request] = []
        self._results: dict[str, tuple[int, ...]] = {}
        self._taken: dict[str, tuple[int, ...]] = {}
        self._grown: dict[str, Any] = {}
        self._num_told: dict[str, int] = {}
        self._cut: dict[str, int] = {}
        """Tokens after which a text ends, where that is before its maximum."""
        self._record: StepRecord | None = None
        self.books = getattr(self.scheduler, "books", None)
        if self.books is not None:
            self.books.on_step = self._keep
            self.books.reset_history()

    def submit(self, ask: Ask) -> None:
        """Take a request. Raises ValueError for an SLO or a payload that cannot be served."""
        try:
            prompt, max_tokens, *rest = ask.payload
            size, ends_after = len(prompt), (rest[0] if rest else None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"request {ask.request_id!r}: its payload is no (prompt_token_ids, max_tokens)") from error
        request = self.ledger.add(ask.request_id, ask.arrival, size, max_tokens, slo=ask.slo, on_miss=ask.on_miss)
        told: dict[str, Any] = {}
        if getattr(self.scheduler, "step_policy", None) is not None:  # nobody else would know what to do with it
            fields, _ = split_slo(ask.slo if ask.slo is not None else self.ledger.slo, request.on_miss)
            told = {key if key == "slo_scale" else PREFIX + key: value for key, value in fields.items()}
            told |= {ON_MISS: request.on_miss} if told else {}
        try:
            params = sampling(max_tokens, ends_after, told)
            self.engine.add_request(
                ask.request_id, {"prompt_token_ids": list(prompt)}, params, arrival_time=ask.arrival
            )
        except BaseException:
            del self.ledger.open[ask.request_id]
            raise
        if ends_after is not None and ends_after < max_tokens:
            self._cut[ask.request_id] = ends_after

    def step(self) -> StepRecord | None:
        """Run one step; None where nothing ran."""
        if not self.ledger.open:
            return None
        self._record = None
        try:
            outputs = self.engine.step()
        except BaseException:
            self.has_failed = True
            raise
        now = time.time()
        for output in outputs:
            self._account(output, now)
        return self._record

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
        return self.scheduler.wake if self.books is not None and self.ledger.open else None

    def close(self) -> None:
        """Withdraw whatever has not ended, and let the engine go."""
        self.abort_all("closed")
        if self.books is not None:
            self.books.on_step = None
        if self.owns_engine:
            self.engine.engine_core.shutdown()

    def _keep(self, record: StepRecord) -> None:
        self._record = record

    def _account(self, output: Any, now: float) -> None:
        name, completion = output.request_id, output.outputs[0]
        request = self.ledger.open.get(name)
        if request is None:
            return
        token_ids = completion.token_ids
        self.ledger.deliver(name, [now] * len(token_ids))
        if not output.finished:
            self._grown[name] = token_ids
            return
        outcome, reason = None, None
        if completion.finish_reason == "abort":
            reason = str(completion.stop_reason or "aborted")
            outcome = Outcome.FAILED if reason.startswith("slo: ") else Outcome.REJECTED
        elif not token_ids or request.units < min(request.max_units, self._cut.get(name, request.max_units)):
            outcome, reason = Outcome.FAILED, f"ended after {request.units} tokens ({completion.finish_reason})"
        if outcome is None:
            self._results[name] = tuple(token_ids)
        self._ended.append(self._end(name, now, outcome, reason))

    def _end(self, name: str, at: float, outcome: Outcome | None, reason: str | None) -> Request:
        for kept in (self._grown, self._num_told, self._cut):
            kept.pop(name, None)
        return self.ledger.end(name, at, outcome, reason)
