"""The most requests that any schedule serves, by trying all of them. For instances of a few requests and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, combinations, product
from typing import TypeVar

from neustream import LatencyTable, Piece, Request, Shape, StepPlan
from neustream.cost import step_seconds

SLACK = 1e-9
Item = TypeVar("Item")


def subsets(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Every subset that is not empty."""
    return chain.from_iterable(combinations(items, size) for size in range(1, len(items) + 1))


State = tuple[tuple[int, ...], ...]
Moves = Callable[[float, State], Iterator[tuple[float, State]]]


def most_served(requests: Sequence[Request], start: State, moves: Moves, is_good: Callable[[int, State], bool]) -> int:
    """Explore every state that can be reached; a step starts when the one before it ends, or when a request arrives."""
    arrivals = sorted({request.arrival for request in requests})

    @cache
    def best(now: float, state: State) -> int:
        served = sum(is_good(i, state) for i in range(len(requests)))
        for end, after in moves(now, state):
            served = max(served, best(round(end, 9), after))
        later = [moment for moment in arrivals if moment > now]
        return max(served, best(later[0], state)) if later else served

    return best(arrivals[0], start)


def serve_images(requests: Sequence[Request], table: LatencyTable, *, max_batch: int | None = None) -> int:
    """The best of all schedules that interleave the modules of a pipeline on one device."""
    routes = [tuple(stage.module for stage in request.route for _ in range(stage.visits)) for request in requests]
    due = [request.deadlines.at(1) for request in requests]

    def moves(now: float, state: State) -> Iterator[tuple[float, State]]:
        for module in table.modules:
            waiting = [
                i
                for i, (done,) in enumerate(state)
                if 0 <= done < len(routes[i]) and routes[i][done] == module and requests[i].arrival <= now
            ]
            for batch in subsets(waiting):
                if max_batch is None or len(batch) <= max_batch:
                    end = now + table[module].predict(Shape(len(batch)))
                    yield end, tuple((_visit(i, done, end, i in batch),) for i, (done,) in enumerate(state))

    def _visit(i: int, done: int, end: float, is_in: bool) -> int:
        if not is_in:
            return done
        is_late = done + 1 == len(routes[i]) and end > due[i] + SLACK
        return -1 if is_late else done + 1

    return most_served(requests, ((0,),) * len(requests), moves, lambda i, state: state[i] == (len(routes[i]),))


def serve_text(requests: Sequence[Request], table: LatencyTable) -> int:
    """The best of all schedules of prefills, decodes, and steps that mix decodes with pieces of prompts."""

    def moves(now: float, state: State) -> Iterator[tuple[float, State]]:
        here = [i for i, request in enumerate(requests) if request.arrival <= now]
        waiting = [i for i in here if state[i][0] < requests[i].size]
        running = [i for i in here if 0 < state[i][1] < requests[i].max_units]
        for batch in subsets(waiting):
            if all(state[i][0] == 0 for i in batch):
                yield _after(now, state, "prefill", batch, {i: requests[i].size for i in batch}, is_whole=True)
        for batch in chain([()], subsets(running)):
            for pieces in product(*(range(requests[i].size - state[i][0] + 1) for i in waiting)):
                chunks = {i: work for i, work in zip(waiting, pieces, strict=True) if work}
                if batch or chunks:
                    yield _after(now, state, "decode", batch, chunks)

    @cache
    def seconds(module: str, batch: State, chunks: State) -> float:
        members = tuple(_at(*member) for member in batch)
        return step_seconds(table, StepPlan(module, members, pieces=tuple(Piece(_at(*c[:3]), c[3]) for c in chunks)))

    def _at(i: int, processed: int, units: int) -> Request:
        original = requests[i]
        request = Request(original.request_id, 0.0, original.deadlines, original.route, original.size)
        request.units = units
        request.processed = processed
        return request

    def _after(
        now: float,
        state: State,
        module: str,
        batch: tuple[int, ...],
        chunks: dict[int, int],
        *,
        is_whole: bool = False,
    ) -> tuple[float, State]:
        members = tuple((i, *state[i][:2]) for i in batch)
        riding = () if is_whole else tuple((i, *state[i][:2], work) for i, work in chunks.items())
        end = now + seconds(module, members, riding)
        after = list(state)
        for i in {*batch, *chunks}:
            processed, units, is_late = state[i]
            processed += chunks.get(i, 0)
            if processed == requests[i].size:
                units += 1
                is_late |= end > requests[i].deadlines.at(units) + SLACK
            after[i] = (processed, units, is_late)
        return end, tuple(after)

    def is_good(i: int, state: State) -> bool:
        return state[i][1] == requests[i].max_units and not state[i][2]

    return most_served(requests, ((0, 0, 0),) * len(requests), moves, is_good)
