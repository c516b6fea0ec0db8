"""Today's vLLM as a stopwatch: brings it into the state of a point and times whole `LLMEngine.step()` calls.

The step-policy scheduler is told which requests each step has, so that every kind of step can be timed by itself:
prefills, decodes, and decodes with pieces of prompts beside them. The only module here that imports today's vLLM.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from neusim.profiling.grid import Point
from neusim.profiling.memory import GIB, MemoryPlan
from neusim.profiling.settings import Settings, SettingsError
from neustream.capacity import MAX_SEQS
from neustream.catalog.llms import LlmShape
from neustream.plan import IDLE, Limits, Piece, StepPlan
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import STEP_TOKENS
from vllm_plugin import engine

FIRST_TOKEN = 5
MODULES = ("prefill", "decode", "mixed")
PAST_THE_PROMPT = 8
"""Tokens that a partly processed prompt has left at least after a timed piece, so that the piece does not end it."""


def load_engine(model: LlmShape, settings: Settings, dtype: str, plan: MemoryPlan) -> Any:
    """An LLMEngine with random weights, configured as the experiments configure theirs. Raises SettingsError."""
    import os

    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(plan.cache_bytes // GIB, 1))
    try:
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            Path(folder, "config.json").write_text(json.dumps(model.config(plan.depth)))
            return engine.load_engine(
                Path(folder),
                dtype=dtype,
                tensor_parallel_size=settings.tp,
                max_model_len=min(model.max_positions, STEP_TOKENS),
                max_num_batched_tokens=STEP_TOKENS,
                max_num_seqs=MAX_SEQS,
                enforce_eager=settings.device == "cpu",
                enable_prefix_caching=False,
            )
    except engine.EngineUnavailable as error:
        raise SettingsError(str(error)) from error


class Script:
    """A policy that plans what it was told last."""

    def __init__(self) -> None:
        self.next: Callable[[Streams], StepPlan] = lambda streams: IDLE

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """The next step."""
        return self.next(streams)


class EngineTimer:
    """Times points on one engine. Between points the engine is empty.

    What leads to a timed step (the prompts of those that decode) is processed with the model's layers left out: what
    the cache holds does not change what a step costs.
    """

    decode_steps = 4

    def __init__(self, engine_: Any, vocabulary: int) -> None:
        self.engine = engine_
        self.vocabulary = vocabulary
        self.scheduler = engine.scheduler_of(engine_)
        self.script = Script()
        self.scheduler.step_policy = self.script
        self._ids = count()

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.cache_blocks * self.block_size

    @property
    def cache_blocks(self) -> int:
        """Blocks of the KV cache."""
        return int(self.scheduler.cache_config.num_gpu_blocks)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.scheduler.block_size)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.scheduler.max_model_len)

    def run(self, point: Point) -> list[float]:
        """Seconds of each timed step of this point."""
        if point.module == PREFILL:
            return [self._prefill(point.lengths)]
        if point.module == DECODE:
            return self._decode(point.lengths)
        return [self._mixed(point.lengths, point.pieces)]

    def _prefill(self, lengths: Sequence[int]) -> float:
        with self._requests(lengths):
            return self._timed(lambda streams: StepPlan(PREFILL, tuple(streams[PREFILL])), sum(lengths))

    def _decode(self, contexts: Sequence[int]) -> list[float]:
        """Steps whose contexts have these lengths on average; one more, which is dropped, goes first."""
        before = 2 + self.decode_steps // 2
        with self._requests([max(context - before, 1) for context in contexts]):
            self._process_prompts()
            decode: Callable[[Streams], StepPlan] = lambda streams: StepPlan(DECODE, tuple(streams[DECODE]))  # noqa: E731
            return [self._timed(decode, len(contexts)) for _ in range(self.decode_steps + 1)][1:]

    def _mixed(self, contexts: Sequence[int], pieces: Sequence[tuple[int, int]]) -> float:
        """A step that decodes these contexts beside pieces of `(tokens, tokens of that prompt before it)`."""
        with self._requests([max(context - 1, 1) for context in contexts]):
            self._process_prompts()
            lengths = [done + tokens + PAST_THE_PROMPT for tokens, done in pieces]
            with self._requests(lengths) as names:
                begun = {name: done for name, (_, done) in zip(names, pieces, strict=True) if done}
                with self._without_layers():
                    for name, done in begun.items():
                        self._step(lambda streams, n=name, d=done: self._piece(streams, n, d))  # type: ignore[misc]
                work = {name: tokens for name, (tokens, _) in zip(names, pieces, strict=True)}

                def mixed(streams: Streams) -> StepPlan:
                    parts = tuple([Piece(_found(streams, name), tokens) for name, tokens in work.items()])
                    return StepPlan(DECODE, tuple(streams[DECODE]), pieces=parts)

                return self._timed(mixed, len(contexts) + sum(work.values()))

    def _piece(self, streams: Streams, name: str, tokens: int) -> StepPlan:
        return StepPlan(PREFILL, pieces=(Piece(_found(streams, name), tokens),))

    def _process_prompts(self) -> None:
        with self._without_layers():
            while self.scheduler.books.streams[PREFILL]:
                self._step(_as_many_as_fit)

    def _step(self, plan: Callable[[Streams], StepPlan]) -> int:
        self.script.next = plan
        before = self.scheduler.num_stalls + self.scheduler.num_errors
        self.engine.step()
        if self.scheduler.num_stalls + self.scheduler.num_errors != before:
            raise RuntimeError("a step could not run as it was planned")
        return int(self._last_tokens)

    def _timed(self, plan: Callable[[Streams], StepPlan], tokens: int) -> float:
        start = time.perf_counter()
        ran = self._step(plan)
        seconds = time.perf_counter() - start
        if ran != tokens:
            raise RuntimeError(f"a step of {tokens} tokens ran {ran}")
        return seconds

    @contextmanager
    def _requests(self, lengths: Sequence[int]) -> Iterator[list[str]]:
        """Requests with prompts of these lengths, waiting; gone, blocks and all, at the end. Gives their ids."""
        names = [f"p{next(self._ids)}" for _ in lengths]
        room = self.vocabulary - FIRST_TOKEN
        for i, (name, length) in enumerate(zip(names, lengths, strict=True)):
            prompt = [FIRST_TOKEN + (31 * i + 7 * j) % room for j in range(length)]
            self.engine.add_request(name, {"prompt_token_ids": prompt}, engine.sampling(STEP_TOKENS))
        self.scheduler.books.on_step = self._keep
        try:
            yield names
        finally:
            self.engine.abort_request(names)

    def _keep(self, record: Any) -> None:
        self._last_tokens = record.extra["tokens"]

    @contextmanager
    def _without_layers(self) -> Iterator[None]:
        """Steps inside schedule, allocate and sample as always; the layers' output is made up."""
        import torch

        model = self.engine.model_executor.driver_worker.worker.model_runner.model
        hidden = int(self.engine.model_config.get_hidden_size())
        dtype = self.engine.model_config.dtype

        def pretend(input_ids: Any = None, positions: Any = None, *others: Any, **named: Any) -> Any:
            return torch.zeros((len(positions), hidden), dtype=dtype, device=positions.device)

        model.forward = pretend
        try:
            yield
        finally:
            del model.forward


def _as_many_as_fit(streams: Streams) -> StepPlan:
    chosen: list[Request] = []
    tokens = 0
    for request in streams[PREFILL]:
        tokens += request.pending
        if chosen and tokens > STEP_TOKENS:
            break
        chosen.append(request)
    return StepPlan(PREFILL, tuple(chosen))


def _found(streams: Streams, name: str) -> Any:
    """The request of that name: vLLM adds to the ids that it is given."""
    return next(r for r in streams[PREFILL] if r.request_id == name or r.request_id.startswith(f"{name}-"))


def versions() -> str:
    """`torch 2.13.0+cpu, vllm 0.32.0`, for a table's source."""
    from importlib.metadata import version

    return f"torch {version('torch')}, vllm {engine.installed_version()}"
