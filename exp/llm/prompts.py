"""Prompts: random tokens of log-normal lengths, or of the lengths of a ShareGPT data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from exp.llm.model import Model
from neustream.cli.arguments import BadInput
from neustream.files import read_json
from neustream.workload import MAX_PROMPT, prompt_lengths
from neustream.workload.traces import TOKENS_PER_WORD, sharegpt_turns

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
