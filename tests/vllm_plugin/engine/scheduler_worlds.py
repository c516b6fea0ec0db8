"""A scheduler without a model: what it schedules is answered by made-up tokens, one or two steps behind."""

from __future__ import annotations

import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_plugin.scheduler import StepPolicyScheduler

BLOCK = 16
EOS = 2


def make_scheduler(
    folder: Path,
    config: dict[str, Any] | None,
    *,
    num_blocks: int = 200,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 128,
    async_scheduling: bool = False,
    caching: bool = True,
) -> StepPolicyScheduler:
    """A scheduler of its own, configured as an engine would configure it."""
    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="float32", seed=0, max_model_len=512)
    scheduler = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=512,
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
        async_scheduling=async_scheduling,
    )
    cache = CacheConfig(block_size=BLOCK, gpu_memory_utilization=0.5, enable_prefix_caching=caching)
    vllm_config = VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        cache_config=cache,
        parallel_config=ParallelConfig(),
        additional_config={} if config is None else {"neustream": config},
    )
    cache.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return StepPolicyScheduler(
        vllm_config=vllm_config,
        kv_cache_config=kv,
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=BLOCK,
        log_stats=True,
    )


def make_request(
    name: str, prompt: list[int], max_tokens: int, *, slo: dict[str, Any] | None = None, ignore_eos: bool = False
) -> Request:
    """A request as the engine's front end would hand it over."""
    init_none_hash(sha256)
    extra = {f"slo_{key}": value for key, value in (slo or {}).items()}
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos, extra_args=extra or None)
    params.update_from_generation_config({}, EOS)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


class World:
    """Runs a scheduler; `depth` 2 schedules a step before the last one has come back, as asynchronous engines do."""

    def __init__(
        self, scheduler: StepPolicyScheduler, *, depth: int = 1, eos_share: float = 0.0, seed: int = 0
    ) -> None:
        self.scheduler = scheduler
        self.depth = depth
        self.eos_share = eos_share
        self.random = random.Random(seed)
        self.under_way: deque[Any] = deque()
        self.tokens: dict[str, int] = {}
        self.finished: dict[str, Any] = {}
        """The output with which each request ended, by id."""
        self.batches: list[dict[str, int]] = []

    def step(self) -> None:
        """Schedule one step, and take in the oldest under way where as many are as may be."""
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self.batches.append(dict(output.num_scheduled_tokens))
            self.under_way.append((output, self._sampled(output)))
        if self.under_way and (len(self.under_way) >= self.depth or not self.scheduler.has_requests()):
            self._take(*self.under_way.popleft())
        self.check()

    def run(self, most: int = 20_000) -> None:
        """Until everything has ended."""
        for _ in range(most):
            if not self.scheduler.has_requests() and not self.under_way:
                return
            self.step()
        raise AssertionError(f"{len(self.scheduler.requests)} requests never end")

    def _sampled(self, output: Any) -> list[str]:
        """The requests for which this step samples a token."""
        return [name for name in output.num_scheduled_tokens if not self.scheduler.requests[name].is_prefill_chunk]

    def _take(self, output: Any, sampled: list[str]) -> None:
        names = list(output.num_scheduled_tokens)
        chosen = set(sampled)
        tokens = [[self._token()] if name in chosen else [] for name in names]
        answer = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=tokens
        )
        for group in self.scheduler.update_from_output(output, answer).values():
            for item in group.outputs:
                self.tokens[item.request_id] = self.tokens.get(item.request_id, 0) + len(item.new_token_ids)
                if item.finish_reason is not None:
                    assert item.request_id not in self.finished, f"{item.request_id} ended twice"
                    self.finished[item.request_id] = item

    def _token(self) -> int:
        return EOS if self.random.random() < self.eos_share else self.random.randrange(5, 1000)

    def check(self) -> None:
        """The books agree with vLLM's own state."""
        scheduler, books = self.scheduler, self.scheduler.books
        books.streams.check_integrity()
        assert books.ledger.open.keys() == scheduler.requests.keys()
        placed = 0
        for name, request in scheduler.requests.items():
            planned = books.ledger.open[name]
            assert planned.units == request.num_output_tokens, name
            placed += planned.place is not None
            if planned.place is None:
                continue
            assert planned.place == planned.module, name
            if request.status == RequestStatus.RUNNING and planned.module == "prefill":
                assert planned.processed == request.num_computed_tokens, name
        assert placed == len(books.streams)
        queued = [*scheduler.running, *scheduler.waiting]
        assert sorted(r.request_id for r in queued) == sorted(scheduler.requests), "a request was hidden and lost"
