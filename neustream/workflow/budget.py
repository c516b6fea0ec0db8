"""Budget rules: how one end-to-end deadline becomes the deadlines of each call, and when a workflow is given up.

docs/workflows.md compares them. A rule is pure but for the forecast that it reads; the coordinator asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from neustream.slo import Deadlines, ScaleSlo
from neustream.workflow.forecast import Forecast
from neustream.workflow.run import Run

LEAST_PACE = 1.0
"""No call is asked to be faster than alone on an idle device."""
LENT = 0.4
"""Share of the later stages' spare time that a call may use up: tuned, see docs/workflows.md."""
COUNTED = 0.6
"""Share of the queues ahead that counts at the front door: many of those ahead drop out, and a workflow that is lost in
front of the scarce pool has cost that pool nothing. Tuned, see docs/workflows.md."""


class Budget(Protocol):
    """Divides a workflow's time among its calls."""

    def bind(self, now: float, run: Run, forecast: Forecast) -> Deadlines:
        """The deadlines of the call under way, which is made at `now`."""
        ...

    def why_hopeless(self, now: float, run: Run, forecast: Forecast, waiting: float) -> str | None:
        """Why the workflow should be given up now, in one line; None while it should not.

        `waiting` says for how many seconds it has to queue at least, at its own and at later pools.
        """
        ...

    def why_stop(self, now: float, run: Run) -> str | None:
        """Why a workflow ends with the stage that it has just finished; None where it goes on."""
        ...


class Carry:
    """The artifact's rule: each stage has its own SLO, and what a stage leaves of it is carried to the next.

    Since budgets add up, a stage is bound to the sum of the stages' SLOs so far, counted from the arrival. A workflow
    ends with the first stage that is late by that sum. Nothing is looked at ahead.
    """

    def bind(self, now: float, run: Run, forecast: Forecast) -> Deadlines:
        assert run.node is not None
        return forecast.nodes[run.node.name].stage.deadlines(run.granted_until, run.visit.size)

    def why_hopeless(self, now: float, run: Run, forecast: Forecast, waiting: float) -> str | None:
        return None

    def why_stop(self, now: float, run: Run) -> str | None:
        late = now - run.granted_until
        return f"its stage ended {late:.3f} s after the stages' SLOs so far" if late > 0 else None


class Proportional:
    """Every stage gets the share of the time left that its standalone seconds have in all that is left.

    The call's first unit and its pace are stretched alike.
    """

    def bind(self, now: float, run: Run, forecast: Forecast) -> Deadlines:
        assert run.node is not None
        history, size = forecast.nodes[run.node.name], run.visit.size
        own = history.stage.alone(size, history.units()) if run.node.kind != "tool" else history.alone()
        left = max(forecast.deadline(run) - now, 0.0)
        scale = max(left / (own + _rest_alone(run, forecast)), LEAST_PACE)
        if run.node.kind != "llm":
            return Deadlines(now + scale * own)
        return ScaleSlo(scale, scale).bind(now, history.stage.route(), size, history.stage.table)

    def why_hopeless(self, now: float, run: Run, forecast: Forecast, waiting: float) -> str | None:
        return _why_late(now, run, forecast, 0.0)

    def why_stop(self, now: float, run: Run) -> str | None:
        return _why_over(now, run)


class Lookahead:
    """Each call gets its own SLO, and a share of what the stages after it are not expected to need of theirs.

    What a stage may be later than by `carry` is `LENT` of that spare time: the rest is kept for stages that take
    longer than expected. Where the deadline leaves less than the stages' SLOs, a call is due earlier by all that lacks.

    The deadline of the whole is estimated anew as stages finish. A workflow is given up as soon as it is not expected
    to make it: at the front door, with the queues ahead; while it waits, at the pace at which stages run these days;
    while a call runs, only where it would be late even on idle devices.
    """

    def __init__(self, *, gate: bool = True) -> None:
        self.gate = gate

    def bind(self, now: float, run: Run, forecast: Forecast) -> Deadlines:
        assert run.node is not None
        history, size = forecast.nodes[run.node.name], run.visit.size
        stage = history.stage
        own = stage.deadlines(run.granted_until, size)
        units = history.units()
        spare = forecast.deadline(run) - own.at(units) - forecast.rest_seconds(run.node.name)
        shift = LENT * spare if spare > 0 else spare
        first = max(own.first + shift, now + stage.alone(size, 1))
        return replace(own, first=first, last=own.last + shift)

    def why_hopeless(self, now: float, run: Run, forecast: Forecast, waiting: float) -> str | None:
        return _why_late(now, run, forecast, COUNTED * waiting if self.gate else 0.0)

    def why_stop(self, now: float, run: Run) -> str | None:
        return _why_over(now, run)


BUDGETS: Mapping[str, Callable[[], Budget]] = {
    "carry": Carry,
    "proportional": Proportional,
    "lookahead": Lookahead,
}


def make_budget(name: str) -> Budget:
    """The budget rule of that name. Raises ValueError, naming the known ones, for any other."""
    if name not in BUDGETS:
        raise ValueError(f"unknown budget rule {name!r}; there are {', '.join(BUDGETS)}")
    return BUDGETS[name]()


def _rest_alone(run: Run, forecast: Forecast) -> float:
    """Standalone seconds that the stages after the call under way are expected to take."""
    assert run.node is not None
    visits = forecast.visits_after(run.node.name)
    return sum(share * forecast.nodes[name].alone() for name, share in visits.items())


def _why_late(now: float, run: Run, forecast: Forecast, waiting: float) -> str | None:
    """Late by what is expected of the rest: stretched for a call that waits, alone for one that runs."""
    assert run.node is not None
    history, visit = forecast.nodes[run.node.name], run.visit
    is_running = visit.first_unit_at is not None
    if run.node.kind == "llm":
        own = history.stage.alone(visit.size, history.units(visit.units))
        own -= history.stage.alone(visit.size, visit.units) if visit.units else 0.0
    else:
        own = history.alone()
    rest = _rest_alone(run, forecast) if is_running else forecast.rest_seconds(run.node.name)
    needed = waiting + own * (1.0 if is_running else history.stretch) + rest
    left = forecast.deadline(run) - now
    return f"due in {left:.3f} s, it needs {needed:.3f} s more" if needed > left else None


def _why_over(now: float, run: Run) -> str | None:
    """A deadline that the user stated has passed; a sum of stages is judged when the last of them has ended."""
    if run.deadline is not None and now > run.deadline:
        return f"its deadline passed {now - run.deadline:.3f} s ago"
    return None
