"""An engine with the face of the patched vLLM's LLMEngine, and nothing behind it: one token per request and step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from neustream import LatencyTable
from neustream.latency import ContextLatency, TokensLatency

TABLE = LatencyTable(
    "opt-125m",
    "desk",
    {"prefill": TokensLatency((0.01, 0.001, 0.0)), "decode": ContextLatency((0.02, 0.0))},
    {"dtype": "float32"},
)
"""Prefill of n tokens: 10 + n ms; decode: 20 ms."""


class FakePolicy:
    """What a driver asks of the hook in the scheduler; `resets` counts how often a history began anew."""

    def __init__(self) -> None:
        self.policy = self
        self.wake: float | None = None
        self.resets = 0

    def reset_history(self) -> None:
        self.resets += 1


class FakeVllm:
    """Prefills one waiting request per step, else decodes all running. `reject` names requests that time out.

    Whoever is in `preempted` is prefilled once more.
    """

    def __init__(self, reject: Iterable[str] = (), seconds: float = 0.001, has_policy: bool = True) -> None:
        self.reject = set(reject)
        self.preempted: set[str] = set()
        self.seconds = seconds
        self.scheduler = [SimpleNamespace(on_step=None, step_policy=FakePolicy() if has_policy else None)]
        self.added: dict[str, dict[str, Any]] = {}
        self.aborted: list[str] = []
        self.live: dict[str, SimpleNamespace] = {}

    def add_request(self, request_id: str, inputs: dict[str, Any], params: int, **options: Any) -> None:
        self.added[request_id] = options
        metrics = SimpleNamespace(token_times=[], deadlines=None)
        self.live[request_id] = SimpleNamespace(request_id=request_id, metrics=metrics, left=params)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.live.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    def step(self) -> list[Any]:
        start = time.time()
        rejected = [request for name, request in self.live.items() if name in self.reject]
        again = self.preempted
        waiting = [r for name, r in self.live.items() if not r.metrics.token_times or name in again]
        waiting = [request for request in waiting if request not in rejected]
        batch = waiting[:1] or [request for request in self.live.values() if request not in rejected]
        self.preempted -= {request.request_id for request in batch}
        time.sleep(self.seconds)
        now = time.time()
        for request in batch:
            request.metrics.token_times.append(now)
            request.left -= 1
        ended = [request for request in batch if request.left == 0]
        for request in [*rejected, *ended]:
            del self.live[request.request_id]
        self.scheduler[0].on_step(self._record(start, waiting, batch, rejected))
        outputs = [output(request.request_id, request.metrics, request in ended, "length") for request in batch]
        return outputs + [output(request.request_id, request.metrics, True, "timeout") for request in rejected]

    def _record(self, start: float, waiting: list[Any], batch: list[Any], rejected: list[Any]) -> SimpleNamespace:
        return SimpleNamespace(
            start=start,
            kind="prefill" if waiting else "decode" if batch else "idle",
            num_seq_groups=len(batch),
            num_tokens=len(batch),
            seconds=time.time() - start,
            schedule_seconds=1e-6,
            decision_seconds=1e-7,
            num_waiting=len(waiting),
            num_running=len(batch),
            num_swapped=0,
            num_preempted=0,
            request_ids=[request.request_id for request in batch],
            rejected=[(request.request_id, "hopeless") for request in rejected],
            error=None,
        )


def output(request_id: str, metrics: Any, finished: bool, reason: str) -> SimpleNamespace:
    """A RequestOutput, as far as the ledger looks at it."""
    token_ids = tuple(range(10, 10 + len(metrics.token_times)))
    completion = SimpleNamespace(finish_reason=reason if finished else None, stop_reason=None, token_ids=token_ids)
    return SimpleNamespace(request_id=request_id, metrics=metrics, finished=finished, outputs=[completion])
