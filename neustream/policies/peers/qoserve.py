"""qoserve: the slack of those that decode is spent on larger pieces of prompts; who is hopeless goes to the back."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext, above, is_true, not_negative
from neustream.policies.mixed_step import MixedStep, own_due
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

CHUNKS: tuple[int, ...] = (128, *range(256, 2049, 256), 2552)
"""Tokens of a step that the authors' code chooses among."""
LONG_SHARE = 0.977
"""The authors take the mean plus two standard deviations of a class's outputs; of a normal one this share is below."""
CAUTION = 1.2


class QoServe:
    """QoServe, first called Niyama (ASPLOS'26; arXiv 2503.22562), by its code's `deadline_scheduler.py`.

    Every step has all decodes. Its tokens are the largest of `CHUNKS` for which `caution` times the predicted seconds
    are within the least time until a decode's next deadline. Prompts go by deadline plus `alpha` seconds for each token
    that is left, `calm_alpha` where all can be in time. A prompt that cannot make its deadline at the mean rate of
    prompts goes behind all others; none is rejected.

    Departures: the mean rate is that of the largest steps by the table, not a running mean. Load is high where, in
    order of deadline, some prompt would be late at that rate. The authors' predictor is the table's price. Their bound
    on steps where memory is short is left out: it is a number of tokens that fits their card. They never send a prompt
    to the back that has begun (`relegates_begun=False`), which is worse by 8 points of requests on bursts of code.
    """

    def __init__(
        self,
        table: LatencyTable,
        context: PolicyContext = USUAL,
        *,
        alpha: float = 0.008,
        calm_alpha: float = 0.001,
        caution: float = CAUTION,
        late_hold: bool = False,
        own_pace: bool = False,
        relegates_begun: bool = True,
    ) -> None:
        self.price = StepPrice(table)
        self.alpha = not_negative("alpha", alpha)
        self.calm_alpha = not_negative("calm_alpha", calm_alpha)
        self.caution = above("caution", caution, 0)
        self.late_hold = is_true("late_hold", late_hold)
        """Whether a decode that is late leaves no time, and so keeps the step at its smallest; else it has no say."""
        self.relegates_begun = is_true("relegates_begun", relegates_begun)
        self.own_pace = is_true("own_pace", own_pace)
        """Whether nobody's lead is spent beyond one pace a unit from its first one."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        running, waiting = streams[DECODE], streams[PREFILL]
        step = MixedStep(self.price, streams, limits, running)
        if waiting:
            tokens = self._tokens(now, step) - step.sums.decodes
            step.fill(self._queue(now, step, waiting, limits), max(tokens, 0 if running else 1))
        return step.plan()

    def _tokens(self, now: float, step: MixedStep) -> int:
        """Tokens of the step, decodes included."""
        dues = [own_due(r) if self.own_pace else r.next_deadline for r in step.batch]
        left = min([due for due in dues if self.late_hold or due >= now], default=math.inf) - now
        decodes = step.sums.decodes
        fits = step.largest(left / self.caution, CHUNKS[-1] - decodes) + decodes
        return CHUNKS[max(bisect_right(CHUNKS, fits), 1) - 1]

    def _queue(self, now: float, step: MixedStep, waiting: Collection[Request], limits: Limits) -> list[Request]:
        """Those that can be in time by deadline and length, then the hopeless in the same order."""
        most = max(min(CHUNKS[-1], limits.max_work) - step.sums.decodes, 1)
        per_token = step.seconds_with(most) / most
        entries = [(r.next_deadline, r.pending + self._rest(r, limits), r) for r in waiting]
        entries.sort(key=itemgetter(0))
        end, is_loaded = now, False
        hopeless = set()
        for due, _, request in entries:
            if (self.relegates_begun or not request.is_resident) and now + request.pending * per_token > due:
                hopeless.add(request.request_id)
                continue
            end += request.pending * per_token
            is_loaded = is_loaded or end > due
        alpha = self.alpha if is_loaded or hopeless else self.calm_alpha
        entries.sort(key=lambda entry: (entry[2].request_id in hopeless, entry[0] + alpha * entry[1]))
        return [request for _, _, request in entries]

    def _rest(self, request: Request, limits: Limits) -> int:
        """Tokens still to come, by its class's past, of a request with a deadline for its last one only; else 0."""
        deadlines = request.deadlines
        if deadlines.pace is not None or math.isinf(deadlines.last):
            return 0
        known, most = limits.lengths.get(request.slo_class), sum(request.left)
        likely = known.quantile(LONG_SHARE, request.units) if known is not None else None
        return min(likely - request.units, most) if likely is not None else most


class QosOwn(QoServe):
    """QoServe's rule at its best on this project's training windows.

    Against the published form: `alpha` is 2 ms and `caution` 1.1; and no lead is spent beyond
    `first token + k × pace`, so that few requests miss their mean time per token. Tuned on azure-conv 5000 and 11000,
    azure-code 2500 and 5500, SLO kinds A, B, C, loads 0.7 and 1.1 (docs/peers.md).
    """

    def __init__(
        self,
        table: LatencyTable,
        context: PolicyContext = USUAL,
        *,
        alpha: float = 0.002,
        calm_alpha: float = 0.001,
        caution: float = 1.1,
        late_hold: bool = False,
        own_pace: bool = True,
        relegates_begun: bool = True,
    ) -> None:
        super().__init__(
            table,
            context,
            alpha=alpha,
            calm_alpha=calm_alpha,
            caution=caution,
            late_hold=late_hold,
            own_pace=own_pace,
            relegates_begun=relegates_begun,
        )
