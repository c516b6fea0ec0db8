"""Prompts: random tokens of log-normal lengths, or of the lengths of a ShareGPT data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from exp.llm.model import Model
from neustream.cli.arguments import BadInput
from neustream.files import read_json
from neustream.workload import MAX_PROMPT, gamma_arrivals, prompt_lengths
from neustream.workload.traces import TOKENS_PER_WORD, TracedRequest, read_trace, sharegpt_turns, window

FIRST_TOKEN = 4
"""Ids below it are OPT's special tokens."""
MIN_TOKENS = 4
MAX_TOKENS = 1024
"""Conversations outside these prompt lengths are left out, as vLLM's own benchmark does."""
SAMPLE = 1000
"""Prompts whose mean length the capacity is computed for."""


class Prompts:
    """Where prompts come from. The same seed gives the same prompts, whatever the policy and the rate.

    With random weights what the tokens say does not matter, only how many there are.
    """

    def __init__(self, vocabulary: int, dataset: Sequence[int] | None = None, source: str = "log-normal") -> None:
        self.vocabulary = vocabulary
        self.dataset = dataset
        self.source = source

    def lengths(self, count: int, seed: int) -> list[int]:
        """Prompt lengths in tokens. From a data set they are drawn without replacement while it lasts."""
        if self.dataset is None:
            return [int(length) for length in prompt_lengths(count, seed)]
        chosen = np.random.RandomState(seed).choice(self.dataset, count, replace=count > len(self.dataset))
        return [int(length) for length in chosen]

    def arrivals(self, rate: float, cv: float, count: int, seed: int) -> Sequence[float]:
        """When each request is sent, in seconds; gamma-distributed gaps."""
        return [float(offset) for offset in gamma_arrivals(rate, cv, count, seed)]

    def outputs(self, count: int, seed: int, max_tokens: int) -> Sequence[int]:
        """Tokens after which each output ends; where that is before `max_tokens`, nobody knows beforehand."""
        return [max_tokens] * count

    def mean_output(self, max_tokens: int) -> int:
        """Mean length of an output in tokens."""
        return max_tokens

    def mean_length(self, seed: int) -> int:
        """Mean prompt length in tokens, of a large sample."""
        return round(fmean(self.lengths(SAMPLE, seed)))

    def longest(self) -> int:
        """The longest prompt that may be sent, in tokens."""
        return MAX_PROMPT if self.dataset is None else max(self.dataset)

    def make(self, count: int, seed: int) -> list[list[int]]:
        """Token ids of `count` prompts."""
        lengths = self.lengths(count, seed)
        tokens = np.random.RandomState(seed).randint(FIRST_TOKEN, self.vocabulary, sum(lengths))
        return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


class TracedPrompts(Prompts):
    """Requests of a trace, in its order: lengths, and gaps stretched to the rate. Seed s begins s × `count` rows on."""

    def __init__(self, vocabulary: int, rows: Sequence[TracedRequest], source: str) -> None:
        super().__init__(vocabulary, [row.prompt for row in rows], source)
        self.rows = rows

    def _chosen(self, count: int, seed: int) -> list[TracedRequest]:
        start = seed * count
        return [self.rows[(start + i) % len(self.rows)] for i in range(count)]

    def lengths(self, count: int, seed: int) -> list[int]:
        """Prompt lengths in tokens."""
        return [row.prompt for row in self._chosen(count, seed)]

    def outputs(self, count: int, seed: int, max_tokens: int) -> Sequence[int]:
        """Where the trace's outputs end."""
        return [row.output for row in self._chosen(count, seed)]

    def mean_output(self, max_tokens: int) -> int:
        """Mean length of the trace's outputs in tokens."""
        return max(round(fmean(row.output for row in self.rows)), 1)

    def arrivals(self, rate: float, cv: float, count: int, seed: int) -> Sequence[float]:
        """The trace's own gaps, stretched to a mean rate of `rate`; of a trace without times, gaps by `cv`."""
        chosen = self._chosen(count, seed)
        gaps = [(b.offset or 0.0) - (a.offset or 0.0) for a, b in pairwise(chosen)]
        gaps = [max(gap, 0.0) for gap in gaps]  # 0 where the trace begins anew
        if not any(gaps):
            return super().arrivals(rate, cv, count, seed)
        stretch = len(gaps) / rate / sum(gaps)
        return [0.0, *accumulate(gap * stretch for gap in gaps)]


def read_traced(
    path: Path, window_of: tuple[float, float] | None, factors: Sequence[float], model: Model, max_tokens: int
) -> TracedPrompts:
    """The requests that `--trace` asks for: lengths × `factors`, outputs cut at `max_tokens`, prompts at the model's.

    Raises BadInput.
    """
    most = model.shape.max_positions - max_tokens
    if most < 1:
        positions = f"{model.name} has {model.shape.max_positions} positions"
        raise BadInput(f"--max-tokens {max_tokens} leaves no room for a prompt: {positions}")
    try:
        rows = read_trace(path)
        if window_of is not None:
            rows = window(rows, *window_of)
    except ValueError as error:
        raise BadInput(str(error)) from error
    made = [
        row._replace(
            prompt=min(max(round(row.prompt * factors[0]), 1), most),
            output=min(max(round(row.output * factors[1]), 1), max_tokens),
        )
        for row in rows
    ]
    return TracedPrompts(model.shape.vocabulary, made, f"{path.name} ({len(made)} requests)")


def read_prompts(dataset: Path | None, model: Model) -> Prompts:
    """The prompts that `--dataset` asks for. Raises BadInput for a file that is missing or of another format."""
    if dataset is None:
        return Prompts(model.shape.vocabulary)
    texts = read_sharegpt(dataset)
    count, how = token_counter(model)
    lengths = [length for length in map(count, texts) if MIN_TOKENS <= length <= MAX_TOKENS]
    if not lengths:
        raise BadInput(
            f"{dataset}: none of its {len(texts)} conversations begins with {MIN_TOKENS} to {MAX_TOKENS} tokens"
        )
    return Prompts(model.shape.vocabulary, lengths, f"{dataset.name} ({len(lengths)} prompts, {how})")


def token_counter(model: Model) -> tuple[Callable[[str], int], str]:
    """Counts the tokens of a text, and how: with the model's own tokenizer, or by words."""
    if model.has_tokenizer:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(str(model.folder))
        return lambda text: len(tokenizer(text).input_ids), "counted with its tokenizer"
    return lambda text: round(len(text.split()) * TOKENS_PER_WORD), "tokens estimated as 4/3 of the words"


def read_sharegpt(path: Path) -> list[str]:
    """The first human turn of each conversation of a ShareGPT JSON file. Raises BadInput."""
    try:
        return [question for question, _ in sharegpt_turns(path, read_json(path, BadInput))]
    except ValueError as error:
        raise BadInput(str(error)) from error
