"""Drives vLLM's scheduler without a model, through the code that the engine uses for outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from vllm.config import CacheConfig, LoRAConfig, SchedulerConfig
from vllm.core.scheduler import Scheduler
from vllm.core.step_policy import StepCapacity, StepDecision, StepRecord
from vllm.engine.output_processor.single_step import SingleStepOutputProcessor
from vllm.engine.output_processor.stop_checker import StopChecker
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.sequence import (
    CompletionSequenceGroupOutput,
    Logprob,
    Sequence,
    SequenceGroup,
    SequenceOutput,
    SequenceStatus,
)
from vllm.utils import Counter

BLOCK = 4
Queue = Collection[SequenceGroup]


class Scripted:
    """A policy whose decisions come from a function of the queues; it writes down what it is told."""

    def __init__(self, decide: Callable[[Queue, Queue, Queue], StepDecision]) -> None:
        self._decide = decide
        self.added: list[str] = []
        self.finished: list[str] = []
        self.steps: list[StepRecord] = []

    def decide(
        self, now: float, waiting: Queue, running: Queue, swapped: Queue, capacity: StepCapacity
    ) -> StepDecision:
        return self._decide(waiting, running, swapped)

    def on_add(self, group: SequenceGroup) -> None:
        self.added.append(group.request_id)

    def on_finish(self, group: SequenceGroup) -> None:
        self.finished.append(group.request_id)

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


def build(scheduler_config: Any, cache_config: Any, config: dict[str, Any]) -> Any:
    """The factory that tests name; the policy itself comes in the configuration."""
    return config["policy"]


def stock(waiting: Queue, running: Queue, swapped: Queue) -> StepDecision:
    """What vLLM does without a policy."""
    return StepDecision(prefill=list(waiting))


class Bench:
    """A scheduler, and an executor whose every token is known: sequence k's n-th token is 10 + n."""

    def __init__(
        self,
        policy: Any = None,
        *,
        blocks: int = 100,
        cpu_blocks: int = 0,
        max_seqs: int = 32,
        max_tokens: int = 256,
        v2: bool = False,
        max_loras: int = 0,
        prefix_caching: bool = False,
        factory: str = f"{__name__}:build",
        config: dict[str, Any] | None = None,
        scheduler_class: type[Scheduler] = Scheduler,
    ) -> None:
        options: dict[str, Any] = {}
        if policy is not None or config is not None:
            options = {"step_policy": factory, "step_policy_config": config or {"policy": policy}}
        scheduler_config = SchedulerConfig(max_tokens, max_seqs, max_tokens, use_v2_block_manager=v2, **options)
        cache_config = CacheConfig(BLOCK, 1.0, 1, "auto", enable_prefix_caching=prefix_caching)
        cache_config.num_gpu_blocks, cache_config.num_cpu_blocks = blocks, cpu_blocks
        lora_config = LoRAConfig(max_lora_rank=8, max_loras=max_loras) if max_loras else None
        self.scheduler = scheduler_class(scheduler_config, cache_config, lora_config)
        self.blocks = blocks
        self.ids = Counter()
        self.clock: Callable[[], float] = time.time
        self.execute: Callable[[list[SequenceGroup]], None] = lambda batch: None
        self.outputs: dict[str, RequestOutput] = {}
        self.cached: dict[str, int] = {}
        """Blocks of each request that the prefix cache spared in its last prefill."""
        checker = StopChecker(max_tokens, lambda seq: None)
        self.processor = SingleStepOutputProcessor(scheduler_config, None, [self.scheduler], self.ids, checker)

    @property
    def num_errors(self) -> int:
        assert self.scheduler.step_policy is not None
        return int(self.scheduler.step_policy.num_errors)

    def add(
        self,
        name: str,
        length: int,
        max_tokens: int = 4,
        *,
        slo: Any = None,
        lora: Any = None,
        ago: float = 0.0,
        **sampling: Any,
    ) -> None:
        """A request of `length` prompt tokens that runs to `max_tokens` tokens and arrived `ago` seconds ago."""
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling)
        inputs = {"prompt_token_ids": list(range(length)), "prompt": None}
        seq = Sequence(next(self.ids), inputs, BLOCK, lora_request=lora)
        group = SequenceGroup(name, [seq], self.clock() - ago, params, lora_request=lora, slo=slo)
        self.scheduler.add_seq_group(group)

    def step(self) -> tuple[str, list[str]]:
        """One engine step; returns its kind and the requests in its batch."""
        metadata, outputs = self.scheduler.schedule()
        scheduled = list(outputs.scheduled_seq_groups)
        self.execute([entry.seq_group for entry in scheduled])
        now = self.clock()
        for entry, meta in zip(scheduled, metadata, strict=True):
            group = entry.seq_group
            if meta.is_prompt:
                self.cached[group.request_id] = len(meta.computed_block_nums or ())
            group.update_num_computed_tokens(entry.token_chunk_size)
            self.processor.process_outputs(group, [_sample(group, meta.is_prompt)])
            group.record_token_times(now)
        self.scheduler.free_finished_seq_groups()
        for group in [entry.seq_group for entry in scheduled] + outputs.ignored_seq_groups:
            output = RequestOutput.from_seq_group(group)
            if output.finished:
                assert group.request_id not in self.outputs, f"{group.request_id} ended twice"
                self.outputs[group.request_id] = output
        if hasattr(self.scheduler, "step_done"):
            self.scheduler.step_done()
        ids = [entry.seq_group.request_id for entry in scheduled]
        return ("prefill" if outputs.num_prefill_groups else "decode" if ids else "idle", ids)

    def run(self, most: int = 2000) -> list[tuple[str, list[str]]]:
        """Step until nothing is left; returns the trace. Fails if that takes more than `most` steps."""
        trace = []
        while self.scheduler.has_unfinished_seqs():
            trace.append(self.step())
            assert len(trace) < most, f"no end after {most} steps: {trace[-5:]}"
        return trace

    def reasons(self) -> dict[str, str | None]:
        """How each request ended."""
        return {name: output.outputs[0].finish_reason for name, output in sorted(self.outputs.items())}

    def names(self, queue: str) -> list[str]:
        """The requests in one of the scheduler's queues."""
        return [group.request_id for group in getattr(self.scheduler, queue)]

    def free_blocks(self) -> int:
        return int(self.scheduler.block_manager.get_num_free_gpu_blocks())


def _sample(group: SequenceGroup, is_prompt: bool) -> CompletionSequenceGroupOutput:
    """Next tokens for each running sequence: as many as its sampling parameters make vLLM's sampler return."""
    params = group.sampling_params
    samples = []
    for seq in group.get_seqs(status=SequenceStatus.RUNNING):
        token = 10 + seq.get_output_len()
        many = 2 * params.best_of if params.use_beam_search else params.best_of if is_prompt else 1
        for k in range(many):
            choice = token if many == 1 else token + 100 * k
            samples.append(SequenceOutput(seq.seq_id, choice, {choice: Logprob(-1.0 - k)}))
    return CompletionSequenceGroupOutput(samples, prompt_logprobs=None)


def only(names: Iterable[str], queue: Queue) -> list[SequenceGroup]:
    """The groups of those names, in the order of the names."""
    by_name = {group.request_id: group for group in queue}
    return [by_name[name] for name in names if name in by_name]
