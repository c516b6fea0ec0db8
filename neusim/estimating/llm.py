"""Estimated prefill and decode of the OPT family in vLLM, from the shapes of its layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neusim.estimating.roofline import BYTES, Kernel, Roofline, product
from neustream.catalog.llms import VOCABULARY, OptShape
from neustream.latency import ContextLatency, LatencyModel, TokensLatency

DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
PREFILL_TOKENS = tuple(range(32, 2049, 32))
LONG_PREFILL = tuple(range(2560, 8193, 512))
MAX_PROMPT = 2048
SAMPLER_PASSES = 10
"""Times that the sampler reads or writes the float32 logits (sort, softmax, masks, draw)."""


class OptCost:
    """Seconds of one engine step, `roofline.tp` devices sharing every layer (Megatron's split)."""

    def __init__(self, shape: OptShape, roofline: Roofline, dtype: str) -> None:
        if shape.num_heads % roofline.tp:
            raise ValueError(f"{shape.name} has {shape.num_heads} heads, which --tp {roofline.tp} does not divide")
        self.shape = shape
        self.roofline = roofline
        self.width = BYTES[dtype]

    def decode(self, batch: int) -> float:
        """Seconds of a decode step of `batch` sequences without the part that grows with their context.

        vLLM replays a CUDA graph, so kernels are back to back.
        """
        layer = self.roofline.queued(self._layer(batch)) + 2 * self._all_reduce(batch)
        return self.shape.num_layers * layer + self._ends(batch) + self._host(batch)

    def context(self) -> float:
        """Seconds per token of context: its keys and values are read once per layer."""
        moved = 2 * self.shape.hidden * self.width * self.shape.num_layers / self.roofline.tp
        return moved / self.roofline.bandwidth

    def prefill(self, tokens: int) -> float:
        """Seconds of a prefill of `tokens` tokens, as one prompt, or as many of MAX_PROMPT as they need.

        Prefill runs eagerly: its kernels wait for the host where they are shorter than a launch.
        """
        prompt = min(tokens, MAX_PROMPT)
        prompts = -(-tokens // prompt)
        attention = 4.0 * tokens * prompt / 2 * self.shape.hidden / self.roofline.tp  # causal: half of the scores
        moved = 4 * tokens * self.shape.hidden * self.width / self.roofline.tp
        kernels = [*self._layer(tokens), Kernel(attention, moved)]
        layer = self.roofline.eager(kernels * self.shape.num_layers)
        reduces = 2 * self.shape.num_layers * self._all_reduce(tokens)
        return layer + reduces + self._ends(prompts) + self._host(prompts)

    def _layer(self, tokens: int) -> Iterator[Kernel]:
        hidden, ffn, tp, width = self.shape.hidden, self.shape.ffn, self.roofline.tp, self.width
        row = tokens * hidden * width
        yield Kernel(moved=2 * row)  # layer norm
        yield product(tokens, 3 * hidden / tp, hidden, width)
        yield Kernel(moved=4 * row / tp)  # keys and values into the cache
        yield product(tokens, hidden, hidden / tp, width)
        yield Kernel(moved=3 * row)  # residual
        yield Kernel(moved=2 * row)  # layer norm
        yield product(tokens, ffn / tp, hidden, width)
        yield Kernel(moved=2 * tokens * ffn / tp * width)  # activation
        yield product(tokens, hidden, ffn / tp, width)
        yield Kernel(moved=3 * row)  # residual

    def _ends(self, rows: int) -> float:
        """Output layer over the vocabulary and the sampler, for `rows` sequences."""
        logits = product(rows, VOCABULARY / self.roofline.tp, self.shape.embed, self.width)
        sampler = Kernel(moved=SAMPLER_PASSES * 4 * rows * VOCABULARY)
        return self.roofline.queued((logits, sampler))

    def _all_reduce(self, tokens: int) -> float:
        return self.roofline.all_reduce(tokens * self.shape.hidden * self.width)

    def _host(self, sequences: int) -> float:
        assume = self.roofline.assume
        return assume.llm_step_host_s + sequences * assume.llm_sequence_host_s


def opt_modules(shape: OptShape, roofline: Roofline, dtype: str) -> dict[str, LatencyModel]:
    """The modules of an OPT model's table. Raises ValueError where its heads cannot be split over the devices."""
    cost = OptCost(shape, roofline, dtype)
    seconds = [cost.prefill(tokens) for tokens in PREFILL_TOKENS]
    long = [cost.prefill(tokens) for tokens in LONG_PREFILL]
    base = [cost.decode(batch) for batch in DECODE_BATCHES]
    return {
        "prefill": TokensLatency(
            _quadratic((*PREFILL_TOKENS, *LONG_PREFILL), (*seconds, *long)), PREFILL_TOKENS, tuple(seconds)
        ),
        "decode": ContextLatency((base[0], cost.context()), DECODE_BATCHES, tuple(base)),
    }


def _quadratic(tokens: tuple[int, ...], seconds: tuple[float, ...]) -> tuple[float, float, float]:
    """a, b, c of a + b·Σlen + c·Σlen², least squares of the relative error; beyond MAX_PROMPT several prompts."""
    x = np.array(tokens, dtype=float)
    squares = np.minimum(x, MAX_PROMPT) * x
    y = np.array(seconds)
    columns = np.stack([np.ones_like(x), x, squares], axis=1)
    a, b, c = np.linalg.lstsq(columns / y[:, None], np.ones_like(y), rcond=None)[0]
    return float(a), float(b), float(c)
