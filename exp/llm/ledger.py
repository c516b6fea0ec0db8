"""Judges what the engine delivers: vLLM's outputs become the core's requests, on time or not.

The same code accounts for stock vLLM, which knows no SLO, and for a policy; and it is the core's own, so a
simulated run is judged alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from neustream.cost import shape_of
from neustream.latency import Shape
from neustream.request import Outcome, Request
from neustream.route import llm_route
from neustream.slo import Slo
from neustream.tables import LatencyTable

TOLERANCE = 1e-6
"""Seconds by which two sums of the same deadline may differ."""

BAD_ENDS = {"timeout": Outcome.REJECTED, "abort": Outcome.ABORTED}


class Ledger:
    """The requests that an engine has and has not ended, as the core sees them."""

    def __init__(self, slo: Slo, table: LatencyTable, max_tokens: int) -> None:
        self.slo = slo
        self.table = table
        self.route = llm_route(max_tokens)
        self.open: dict[str, Request] = {}

    def add(self, request_id: str, arrival: float, prompt_len: int) -> None:
        """A request was handed to the engine."""
        deadlines = self.slo.bind(arrival, self.route, prompt_len, self.table)
        self.open[request_id] = Request(request_id, arrival, deadlines, self.route, prompt_len)

    def update(self, output: Any) -> Request | None:
        """Take in a vLLM RequestOutput; returns the request if it has ended with it.

        Raises RuntimeError if the engine worked with other deadlines than these.
        """
        request = self.open[output.request_id]
        times = output.metrics.token_times
        for moment in times[request.units :]:
            request.deliver(moment)
        if not output.finished:
            return None
        del self.open[output.request_id]
        self._check_deadlines(request, output.metrics.deadlines)
        completion = output.outputs[0]
        outcome = BAD_ENDS.get(completion.finish_reason)
        if outcome is not None:
            request.end(time.time(), outcome, str(completion.stop_reason or completion.finish_reason))
        elif request.units < request.max_units:
            request.end(time.time(), Outcome.FAILED, f"ended after {request.units} tokens ({completion.finish_reason})")
        else:
            request.end(times[-1])
        return request

    def abort_all(self) -> list[Request]:
        """End whatever is open."""
        left = list(self.open.values())
        self.open.clear()
        for request in left:
            request.end(time.time(), Outcome.ABORTED, "the run ended before it did")
        return left

    def predict(self, module: str, request_ids: Iterable[str]) -> float | None:
        """Seconds that the table predicts for a step with these requests, before its tokens are delivered."""
        batch = [self.open[request_id] for request_id in request_ids if request_id in self.open]
        if not batch or module not in self.table:
            return None
        shape: Shape = shape_of(batch)
        return self.table[module].predict(shape)

    def _check_deadlines(self, request: Request, deadlines: list[float] | None) -> None:
        for unit, theirs in enumerate(deadlines or (), start=1):
            ours = request.deadlines.at(unit)
            if abs(ours - theirs) > TOLERANCE:
                raise RuntimeError(
                    f"request {request.request_id}: the policy took token {unit} to be due {theirs - ours:+.6f} s "
                    "from what is accounted"
                )
