"""The real vLLM engine as a stopwatch: brings it into the state of a point and times whole `LLMEngine.step()` calls.

The only module here that imports vLLM and torch.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from neusim.profiling.grid import Point
from neusim.profiling.memory import GIB, MemoryPlan
from neusim.profiling.settings import Settings, SettingsError
from neustream.capacity import MAX_SEQS
from neustream.catalog.llms import LlmShape
from neustream.tables import STEP_TOKENS
from vllm_patch import engine

MODULES = ("prefill", "decode")
"""What is timed on this engine."""
TOKEN = 5
"""What stands for a generated token where the forward pass is skipped; any id that is not special."""


def load_engine(model: LlmShape, settings: Settings, dtype: str, plan: MemoryPlan) -> Any:
    """An LLMEngine with random weights, configured as the experiments configure theirs, no policy set.

    Raises SettingsError where vLLM is missing or was built for the other kind of device.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            Path(folder, "config.json").write_text(json.dumps(model.config(plan.depth)))
            return engine.load_engine(
                Path(folder),
                device=settings.device,
                dtype=dtype,
                tensor_parallel=settings.tp,
                cache_gib=plan.cache_bytes // GIB,
                max_model_len=min(model.max_positions, STEP_TOKENS),
                max_num_batched_tokens=STEP_TOKENS,
                max_num_seqs=MAX_SEQS,
                enforce_eager=settings.device == "cpu" or plan.layers is not None,
            )
    except engine.EngineUnavailable as error:
        raise SettingsError(str(error)) from error


class EngineTimer:
    """Times points on one engine. Between points the engine is empty.

    A decode point does not run the prefills that would lead to it: the scheduler and the block manager do
    their part, and the forward pass is skipped. What the cache holds does not change what a step costs.
    """

    def __init__(self, engine: Any, vocabulary: int, *, decode_steps: int = 4) -> None:
        self.engine = engine
        self.vocabulary = vocabulary
        self.decode_steps = decode_steps
        self._ids = count()
        self._layers: list[Any] | None = None

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.cache_blocks * self.block_size

    @property
    def cache_blocks(self) -> int:
        """Blocks of the KV cache."""
        return int(self.engine.cache_config.num_gpu_blocks)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.engine.cache_config.block_size)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.engine.model_config.max_model_len)

    def run(self, point: Point) -> list[float]:
        """Seconds of each timed step of this point."""
        self._set_depth(point.num_layers)
        return self.prefill(point.lengths) if point.module == "prefill" else self.decode(point.lengths)

    def prefill(self, lengths: Sequence[int]) -> list[float]:
        """Seconds of the one step that prefills prompts of these lengths."""
        with self._requests(lengths):
            seconds, outputs = self._timed_step()
        if outputs != len(lengths):
            raise RuntimeError(f"a prefill of {len(lengths)} prompts ran {outputs} of them")
        return [seconds]

    def decode(self, contexts: Sequence[int]) -> list[float]:
        """Seconds of each of `decode_steps` decode steps whose contexts have these lengths on average.

        One step more, which is dropped, goes first.
        """
        before = 2 + self.decode_steps // 2
        with self._requests([max(context - before, 1) for context in contexts]):
            with self._skipped_forward():
                while self.engine.scheduler[0].waiting:
                    self.engine.step()
            steps = [self._timed_step() for _ in range(self.decode_steps + 1)]
        if {outputs for _, outputs in steps} != {len(contexts)}:
            raise RuntimeError(f"decodes of {len(contexts)} sequences ran {[outputs for _, outputs in steps]}")
        return [seconds for seconds, _ in steps[1:]]

    def _timed_step(self) -> tuple[float, int]:
        start = time.perf_counter()
        outputs = self.engine.step()
        return time.perf_counter() - start, len(outputs)

    @contextmanager
    def _requests(self, lengths: Sequence[int]) -> Iterator[None]:
        """Requests with prompts of these lengths in the engine's queue; gone, blocks and all, at the end."""
        from vllm import SamplingParams

        endless = SamplingParams(temperature=0.0, max_tokens=STEP_TOKENS, ignore_eos=True, detokenize=False)
        ids = [str(next(self._ids)) for _ in lengths]
        for i, (request_id, length) in enumerate(zip(ids, lengths, strict=True)):
            prompt = [TOKEN + (31 * i + 7 * j) % (self.vocabulary - TOKEN) for j in range(length)]
            self.engine.add_request(request_id, {"prompt_token_ids": prompt}, endless)
        try:
            yield
        finally:
            self.engine.abort_request(ids)
            self.engine.model_executor.stop_remote_worker_execution_loop()

    @contextmanager
    def _skipped_forward(self) -> Iterator[None]:
        """Steps inside schedule, allocate and append one token as always, and run no model."""
        from vllm.sequence import CompletionSequenceGroupOutput, Logprob, SamplerOutput, SequenceOutput

        def pretend(execute_model_req: Any) -> list[Any]:
            groups = [
                CompletionSequenceGroupOutput([SequenceOutput(sequence, TOKEN, {TOKEN: Logprob(0.0)})], None)
                for group in execute_model_req.seq_group_metadata_list
                for sequence in group.seq_data
            ]
            return [SamplerOutput(outputs=groups)]

        executor = self.engine.model_executor
        executor.execute_model = pretend
        try:
            yield
        finally:
            del executor.execute_model

    def _set_depth(self, num_layers: int) -> None:
        """Let the model run its first `num_layers` layers only. All of them are loaded, so this costs nothing."""
        if self._layers is None and num_layers == self.engine.model_config.hf_text_config.num_hidden_layers:
            return
        decoder = _decoder(self.engine.model_executor.driver_worker.model_runner.model)
        if self._layers is None:
            self._layers = list(decoder.layers)
        if len(decoder.layers) != num_layers:
            decoder.layers = type(decoder.layers)(self._layers[:num_layers])


def _decoder(model: Any) -> Any:
    """The module of vLLM's OPT, Llama or LLaVA whose `layers` are the decoder's."""
    text = getattr(model, "language_model", None) or model.model
    return getattr(text, "decoder", text)


def versions() -> str:
    """`torch 2.13.0+cpu, vllm 0.5.4+cpu`, for a table's source."""
    from importlib.metadata import version

    return f"torch {version('torch')}, vllm {version('vllm')}"
