"""Estimated prefill and decode of a language model in vLLM, from the shapes of its layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neusim.estimating.roofline import BYTES, Kernel, Roofline, product
from neustream.catalog.shapes import ClipShape, LlavaShape, LlmShape
from neustream.latency import ContextLatency, LatencyModel, TokensLatency

DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
PREFILL_TOKENS = tuple(range(32, 2049, 32))
LONG_PREFILL = tuple(range(2560, 8193, 512))
MAX_PROMPT = 2048
PICTURE_HOST_S = 8e-3
"""Scaling, cutting and normalising a picture of 640 × 480 for a tower of 336 × 336, on one core of the host."""
SAMPLER_PASSES = 10
"""Times that the sampler reads or writes the float32 logits (sort, softmax, masks, draw)."""


class LlmCost:
    """Seconds of one engine step, `roofline.tp` devices sharing every layer (Megatron's split)."""

    def __init__(self, shape: LlmShape, roofline: Roofline, dtype: str) -> None:
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
        moved = self.shape.kv_elements(self.shape.num_layers) * self.width / self.roofline.tp
        return moved / self.roofline.bandwidth

    def prefill(self, tokens: int) -> float:
        """Seconds of a prefill of `tokens` tokens, as one prompt, or as many of MAX_PROMPT as they need.

        Prefill runs eagerly: its kernels wait for the host where they are shorter than a launch.
        """
        prompt = min(tokens, MAX_PROMPT)
        prompts = -(-tokens // prompt)
        attention = 4.0 * tokens * prompt / 2 * self.shape.hidden / self.roofline.tp  # causal: half of the scores
        moved = 2 * tokens * (self.shape.hidden + self.shape.kv_hidden) * self.width / self.roofline.tp
        kernels = [*self._layer(tokens), Kernel(attention, moved)]
        layer = self.roofline.eager(kernels * self.shape.num_layers)
        reduces = 2 * self.shape.num_layers * self._all_reduce(tokens)
        return layer + reduces + self._ends(prompts) + self._host(prompts)

    def picture(self) -> float:
        """Seconds of one picture in the vision tower and the projector, every device doing all of it; 0 for none."""
        if not isinstance(self.shape, LlavaShape):
            return 0.0
        vision, width = self.shape.vision, self.width
        patches, hidden = vision.num_patches, self.shape.hidden
        kernels = [product(patches, vision.hidden, 3 * vision.patch_size**2, width)]
        kernels += list(_clip_layer(vision, width)) * vision.layers_used
        kernels += [product(patches, hidden, vision.hidden, width), Kernel(moved=2 * patches * hidden * width)]
        kernels += [product(patches, hidden, hidden, width)]
        return PICTURE_HOST_S + self.roofline.eager(kernels)

    def _layer(self, tokens: int) -> Iterator[Kernel]:
        hidden, kv, tp, width = self.shape.hidden, self.shape.kv_hidden, self.roofline.tp, self.width
        row = tokens * hidden * width
        inner = self.shape.ffn / tp
        halves = 2 if self.shape.is_gated else 1
        yield Kernel(moved=2 * row)  # layer norm
        yield product(tokens, (hidden + 2 * kv) / tp, hidden, width)
        if self.shape.is_gated:
            yield Kernel(moved=2 * tokens * (hidden + kv) * width / tp)  # positions into queries and keys
        yield Kernel(moved=4 * tokens * kv * width / tp)  # keys and values into the cache
        yield product(tokens, hidden, hidden / tp, width)
        yield Kernel(moved=3 * row)  # residual
        yield Kernel(moved=2 * row)  # layer norm
        yield product(tokens, halves * inner, hidden, width)
        yield Kernel(moved=(halves + 1) * tokens * inner * width)  # activation
        yield product(tokens, hidden, inner, width)
        yield Kernel(moved=3 * row)  # residual

    def _ends(self, rows: int) -> float:
        """Output layer over the vocabulary and the sampler, for `rows` sequences."""
        logits = product(rows, self.shape.vocabulary / self.roofline.tp, self.shape.output_width, self.width)
        sampler = Kernel(moved=SAMPLER_PASSES * 4 * rows * self.shape.vocabulary)
        return self.roofline.queued((logits, sampler))

    def _all_reduce(self, tokens: int) -> float:
        return self.roofline.all_reduce(tokens * self.shape.hidden * self.width)

    def _host(self, sequences: int) -> float:
        assume = self.roofline.assume
        return assume.llm_step_host_s + sequences * assume.llm_sequence_host_s


def _clip_layer(vision: ClipShape, width: int) -> Iterator[Kernel]:
    """One layer of the tower on one picture: queries, keys and values apart, attention in three kernels."""
    tokens, hidden, ffn = vision.num_patches + 1, vision.hidden, vision.ffn
    row = tokens * hidden * width
    scores = vision.num_heads * tokens * tokens * width
    yield Kernel(moved=2 * row)  # layer norm
    for _ in range(3):
        yield product(tokens, hidden, hidden, width)
    yield product(tokens, tokens, hidden // vision.num_heads, width, vision.num_heads)
    yield Kernel(moved=2 * scores)  # softmax
    yield product(tokens, hidden // vision.num_heads, tokens, width, vision.num_heads)
    yield product(tokens, hidden, hidden, width)
    yield Kernel(moved=3 * row)  # residual
    yield Kernel(moved=2 * row)  # layer norm
    yield product(tokens, ffn, hidden, width)
    yield Kernel(moved=2 * tokens * ffn * width)  # activation
    yield product(tokens, hidden, ffn, width)
    yield Kernel(moved=3 * row)  # residual


def llm_modules(shape: LlmShape, roofline: Roofline, dtype: str) -> dict[str, LatencyModel]:
    """The modules of a language model's table. Where it takes pictures, each prompt has one.

    Raises ValueError where its heads cannot be split over the devices.
    """
    cost = LlmCost(shape, roofline, dtype)
    seconds = [cost.prefill(tokens) for tokens in PREFILL_TOKENS]
    long = [cost.prefill(tokens) for tokens in LONG_PREFILL]
    base = [cost.decode(batch) for batch in DECODE_BATCHES]
    return {
        "prefill": TokensLatency(
            _quadratic((*PREFILL_TOKENS, *LONG_PREFILL), (*seconds, *long)),
            PREFILL_TOKENS,
            tuple(seconds),
            per_prompt=cost.picture(),
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
