"""The most requests that any schedule serves, by trying all of them. For instances of a few requests and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from itertools import chain, combinations, product
from typing import Literal, NamedTuple, TypeVar

from neustream import LatencyTable, Piece, Request, Shape, StepPlan
from neustream.capacity import largest_batch
from neustream.cost import gpu_demand, step_seconds

SLACK = 1e-9
Item = TypeVar("Item")
State = TypeVar("State", bound=Hashable)


def subsets(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Every subset that is not empty."""
    return chain.from_iterable(combinations(items, size) for size in range(1, len(items) + 1))


Moves = Callable[[float, State], Iterator[tuple[float, State]]]
"""From a time and a state, all that can be begun then: the time at which it has ended, and the state then."""


def most_served(
    requests: Sequence[Request],
    start: State,
    moves: Moves[State],
    is_good: Callable[[int, State], bool],
    due: Callable[[int, State], float],
) -> int:
    """Explore every state that can be reached; a step starts when the one before it ends, or when a request arrives.

    `due` says when a request that is not good yet must have its next unit to become so. Whom that is no hope for
    still counts as a member of steps, as long as there is hope for somebody.
    """
    arrivals = sorted({request.arrival for request in requests})

    @cache
    def best(now: float, state: State) -> int:
        good = [is_good(i, state) for i in range(len(requests))]
        hoped = sum(done or now < due(i, state) + SLACK for i, done in enumerate(good))
        served = sum(good)
        later = [moment for moment in arrivals if moment > now]
        if later and served < hoped:
            served = max(served, best(later[0], state))
        for end, after in moves(now, state):
            if served == hoped:
                break
            served = max(served, best(round(end, 9), after))
        return served

    return best(arrivals[0], start)


# Images.

Visits = tuple[int, ...]
"""Of each request: how many visits it has made; -1 for one that was late."""


class Images:
    """The ways of image requests, and which batches there can be."""

    def __init__(self, requests: Sequence[Request], table: LatencyTable, max_batch: int | None) -> None:
        self.routes = [[stage.module for stage in request.route for _ in range(stage.visits)] for request in requests]
        self.due = [request.deadlines.at(1) for request in requests]
        self.largest = {module: min(largest_batch(table, module), max_batch or 9) for module in table.modules}

    def batches(self, module: str, state: Visits, here: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Every batch of this module that can be made of those who are there."""
        waiting = [i for i in here if 0 <= state[i] < len(self.routes[i]) and self.routes[i][state[i]] == module]
        return (batch for batch in subsets(waiting) if len(batch) <= self.largest[module])

    def after(self, state: Visits, batch: Sequence[int], end: float) -> Visits:
        """The state when a step of this batch has ended."""
        made = list(state)
        for i in batch:
            is_late = state[i] + 1 == len(self.routes[i]) and end > self.due[i] + SLACK
            made[i] = -1 if is_late else state[i] + 1
        return tuple(made)

    def is_good(self, i: int, state: Visits) -> bool:
        """Whether the request has come out on time."""
        return state[i] == len(self.routes[i])

    def by(self, i: int, state: Visits) -> float:
        """When it must have come out to become good."""
        return self.due[i] if state[i] >= 0 else -math.inf


def serve_images(requests: Sequence[Request], table: LatencyTable, *, max_batch: int | None = None) -> int:
    """The best of all schedules that interleave the modules of a pipeline on one device."""
    images = Images(requests, table, max_batch)

    def moves(now: float, state: Visits) -> Iterator[tuple[float, Visits]]:
        here = [i for i, request in enumerate(requests) if request.arrival <= now]
        for module in table.modules:
            for batch in images.batches(module, state, here):
                end = now + table[module].predict(Shape(len(batch)))
                yield end, images.after(state, batch, end)

    return most_served(requests, (0,) * len(requests), moves, images.is_good, images.by)


class Step(NamedTuple):
    """A step under way in some process."""

    module: str
    batch: tuple[int, ...]
    left: float
    """Seconds of the GPU to itself."""


class Processes(NamedTuple):
    """What the processes of a device are doing."""

    visits: Visits
    ready: tuple[float, ...]
    """When each request can be in a step: its arrival, the end of its hand-over."""
    steps: tuple[Step | None, ...]
    """Of each process."""


def serve_in_processes(
    requests: Sequence[Request],
    table: LatencyTable,
    groups: Sequence[Sequence[str]],
    *,
    handover: float = 0.0,
    contention: Literal["table", "full", "none"] = "none",
) -> int:
    """The best of all schedules in which a step begins when another ends, or when a request comes to its process."""
    images = Images(requests, table, None)
    group_of = {module: k for k, group in enumerate(groups) for module in group}

    def share(step: Step) -> float:
        return {"none": 0.0, "full": 1.0}.get(contention, gpu_demand(table, step.module, len(step.batch)))

    def choices(now: float, state: Processes, process: int) -> list[Step | None]:
        if state.steps[process] is not None:
            return [state.steps[process]]
        free = [i for i in range(len(requests)) if state.ready[i] <= now]
        return [None] + [
            Step(module, batch, table[module].predict(Shape(len(batch))))
            for module in groups[process]
            for batch in images.batches(module, state.visits, free)
        ]

    def ended(now: float, state: Processes, process: int) -> Processes:
        step = state.steps[process]
        assert step is not None
        visits, ready = images.after(state.visits, step.batch, now), list(state.ready)
        for i in step.batch:
            rest = images.routes[i][max(visits[i], 0) :]
            ready[i] = round(now + (handover if rest and group_of[rest[0]] != process else 0.0), 9)
        steps = tuple(None if k == process else other for k, other in enumerate(state.steps))
        return Processes(visits, tuple(ready), steps)

    @cache
    def best(now: float, state: Processes) -> int:
        good = [images.is_good(i, state.visits) for i in range(len(requests))]
        hoped = sum(done or now < images.by(i, state.visits) + SLACK for i, done in enumerate(good))
        served = sum(good)
        for steps in product(*(choices(now, state, process) for process in range(len(groups)))):
            if served == hoped:
                break
            running = [step for step in steps if step is not None]
            members = [i for step in running for i in step.batch]
            moments = [moment for moment in state.ready if moment > now]
            rate = 1.0 / max(1.0, sum(share(step) for step in running))
            moments += [now + step.left / rate for step in running]
            if not moments or len(set(members)) < len(members):
                continue
            then = round(min(moments), 9)
            moved = tuple(step and step._replace(left=round(step.left - (then - now) * rate, 9)) for step in steps)
            after = state._replace(steps=moved)
            for process, step in enumerate(moved):
                if step is not None and step.left <= SLACK:
                    after = ended(then, after, process)
            served = max(served, best(then, after))
        return served

    ready = tuple(request.arrival for request in requests)
    return best(min(ready), Processes((0,) * len(requests), ready, (None,) * len(groups)))


# Text.


class Text(NamedTuple):
    """Where a text stands."""

    done: int = 0
    """Tokens of its context that this prefill has processed."""
    units: int = 0
    is_held: bool = False
    """Whether all of its context is in memory, so that it can decode."""
    is_late: bool = False


Texts = tuple[Text, ...]


def serve_text(
    requests: Sequence[Request],
    table: LatencyTable,
    *,
    max_batch: int | None = None,
    kv_blocks: int | None = None,
    block_size: int = 16,
) -> int:
    """The best of all schedules of prefills, decodes, and steps that mix decodes with pieces of prompts.

    A text may also lose its memory at any time; then all of its context is processed again, which delivers its next
    token. `max_batch` bounds the decodes of a step.
    """

    def moves(now: float, state: Texts) -> Iterator[tuple[float, Texts]]:
        here = [i for i, request in enumerate(requests) if request.arrival <= now]
        live = [i for i in here if state[i].units < requests[i].max_units]
        waiting = [i for i in live if not state[i].is_held]
        running = [i for i in live if state[i].is_held]
        for i in live:
            if state[i].is_held:
                yield now, _with(state, {i: Text(0, state[i].units, False, state[i].is_late)})
        for batch in subsets([i for i in waiting if not state[i].done]):
            pieces = {i: requests[i].size + state[i].units for i in batch}
            if _fits(state, (), pieces):
                yield _after(now, state, "prefill", batch, pieces, is_whole=True)
        for batch in chain([()], subsets(running)):
            if max_batch is not None and len(batch) > max_batch:
                continue
            room = (range(requests[i].size + state[i].units - state[i].done + 1) for i in waiting)
            for works in product(*room):
                pieces = {i: work for i, work in zip(waiting, works, strict=True) if work}
                if (batch or pieces) and _fits(state, batch, pieces):
                    yield _after(now, state, "decode", batch, pieces)

    def _fits(state: Texts, batch: tuple[int, ...], pieces: dict[int, int]) -> bool:
        """Whether memory holds the step: what each has processed, and what this step adds."""
        if kv_blocks is None:
            return True
        taken = 0
        for i, (request, text) in enumerate(zip(requests, state, strict=True)):
            tokens = request.size + text.units - 1 if text.is_held else text.done
            if text.units < request.max_units:
                taken += -(-(tokens + (i in batch) + pieces.get(i, 0)) // block_size)
        return taken <= kv_blocks

    @cache
    def seconds(module: str, members: tuple[tuple[int, int], ...], chunks: tuple[tuple[int, ...], ...]) -> float:
        return step_seconds(
            table,
            StepPlan(
                module,
                tuple(_at(i, 0 if module == "prefill" else requests[i].size, units) for i, units in members),
                pieces=tuple(Piece(_at(i, done, units), work) for i, units, done, work in chunks),
            ),
        )

    def _at(i: int, processed: int, units: int) -> Request:
        original = requests[i]
        request = Request(original.request_id, 0.0, original.deadlines, original.route, original.size)
        request.units = units
        request.processed = processed
        return request

    def _with(state: Texts, changed: dict[int, Text]) -> Texts:
        return tuple(changed.get(i, text) for i, text in enumerate(state))

    def _after(
        now: float, state: Texts, module: str, batch: tuple[int, ...], pieces: dict[int, int], *, is_whole: bool = False
    ) -> tuple[float, Texts]:
        members = tuple((i, state[i].units) for i in batch)
        riding = () if is_whole else tuple((i, state[i].units, state[i].done, work) for i, work in pieces.items())
        end = now + seconds(module, members, riding)
        after = {}
        for i in {*batch, *pieces}:
            text = state[i]
            done = text.done + pieces.get(i, 0)
            if text.is_held or done == requests[i].size + text.units:
                is_late = text.is_late or end > requests[i].deadlines.at(text.units + 1) + SLACK
                after[i] = Text(0, text.units + 1, True, is_late)
            else:
                after[i] = text._replace(done=done)
        return end, _with(state, after)

    def is_good(i: int, state: Texts) -> bool:
        return state[i].units == requests[i].max_units and not state[i].is_late

    def due(i: int, state: Texts) -> float:
        return -math.inf if state[i].is_late else requests[i].deadlines.at(state[i].units + 1)

    return most_served(requests, (Text(),) * len(requests), moves, is_good, due)
