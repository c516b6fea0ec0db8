"""Runs of a sweep in worker processes, or here where one process is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def outcomes(run: Callable[[Task], Outcome], tasks: Sequence[Task], processes: int) -> Iterator[tuple[int, Outcome]]:
    """Position and outcome of each task, as they come. Whatever ends the loop also ends the tasks that have not begun.

    `run` and the tasks cross to the workers, so that both must be picklable.
    """
    if processes == 1 or len(tasks) == 1:
        for i, task in enumerate(tasks):
            yield i, run(task)
        return
    with ProcessPoolExecutor(min(processes, len(tasks))) as pool:
        futures = {pool.submit(run, task): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
