"""Estimated modules of an image pipeline: every network of diffusers that it uses, traced and costed per batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from neusim.estimating.kernels import trace
from neusim.estimating.roofline import Kernel, Roofline
from neustream.catalog.images import VAE_SCALE, ModelSpec
from neustream.latency import BatchLatency
from neustream.route import LOOP_MODULE

BATCHES = (*range(1, 33), *range(36, 65, 4))
MEMORY_SHARE = 0.9
"""Share of a device's memory that weights and activations may take."""
LIVE_TENSORS = 2
"""Activations that are alive beside those of the widest kernel: skip connections and workspace, as a multiple."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Module(NamedTuple):
    """One module's kernels at batch sizes 1, 2 and 3, and the bytes of its weights."""

    traces: tuple[list[Kernel], list[Kernel], list[Kernel]]
    weights: int

    def kernels(self, batch: int) -> list[Kernel]:
        """The kernels of a step of `batch` requests: from 2 on every figure of a kernel is linear in the batch."""
        one, two, three = self.traces
        if batch == 1:
            return one
        return [
            Kernel(*(a + (batch - 2) * (b - a) for a, b in zip(*pair, strict=True)))
            for pair in zip(two, three, strict=True)
        ]


def image_modules(spec: ModelSpec, roofline: Roofline, dtype: str) -> dict[str, BatchLatency]:
    """The modules of the model's table, in pipeline order.

    Batch sizes end where the device's memory does. Raises ValueError where not even one image fits.
    """
    parts = {name: trace_on_meta(spec, name, DTYPES[dtype]) for name in spec.modules}
    room = MEMORY_SHARE * roofline.device.memory_bytes - sum(part.weights for part in parts.values())
    return {name: _latency(spec, name, part, roofline, room) for name, part in parts.items()}


def _latency(spec: ModelSpec, name: str, part: Module, roofline: Roofline, room: float) -> BatchLatency:
    assume = roofline.assume
    around = [Kernel()] * (assume.guidance_kernels if name == LOOP_MODULE else 0)
    sizes: list[int] = []
    seconds: list[float] = []
    for batch in BATCHES:
        kernels = part.kernels(batch)
        if LIVE_TENSORS * max(kernel.moved for kernel in kernels) > room:
            break
        sizes.append(batch)
        seconds.append(roofline.eager([*kernels, *around]) + assume.loop_step_host_s)
    if not sizes:
        raise ValueError(f"{spec.name}: {name} of one image does not fit {roofline.device.title}")
    return BatchLatency(tuple(sizes), tuple(seconds))


@contextmanager
def on_meta(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have shapes and `dtype`, but no memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


Call = Callable[[Any, int], Any]
"""Runs a network on a batch of so many requests."""


def build_on_meta(spec: ModelSpec, name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, Call]:
    """The network behind a module, without memory, and how a batch runs through it."""
    with on_meta(dtype):
        network, call = _BUILD[name](spec)
        return network.to("meta", dtype).eval(), call


def trace_on_meta(spec: ModelSpec, name: str, dtype: torch.dtype) -> Module:
    """The kernels and weights of the network behind a module."""
    network, call = build_on_meta(spec, name, dtype)
    weights = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    with on_meta(dtype):
        return Module((trace(call, network, 1), trace(call, network, 2), trace(call, network, 3)), weights)


def _long(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.long)


def _denoise(spec: ModelSpec) -> tuple[torch.nn.Module, Call]:
    """One forward pass; with guidance every request is in it twice, with and without its condition."""
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

    copies = 2 if spec.guidance > 1 else 1
    side = spec.size if spec.family == "palette" else spec.size // VAE_SCALE
    if spec.family == "dit":
        transformer = DiTTransformer2DModel(**spec.networks["transformer"])

        def run_transformer(net: Any, batch: int) -> Any:
            rows = copies * batch
            return net(torch.empty(rows, 4, side, side), timestep=_long(rows), class_labels=_long(rows))

        return transformer, run_transformer
    if spec.family == "sd":
        config = spec.networks["unet"]
        tokens = spec.networks["text_encoder"]["max_position_embeddings"]

        def run_unet(net: Any, batch: int) -> Any:
            rows = copies * batch
            prompt = torch.empty(rows, tokens, config["cross_attention_dim"])
            return net(torch.empty(rows, config["in_channels"], side, side), _long(rows), prompt)

        return UNet2DConditionModel(**config), run_unet
    config = spec.networks["unet"]

    def run_palette(net: Any, batch: int) -> Any:
        rows = copies * batch
        return net(torch.empty(rows, config["in_channels"], side, side), _long(rows))

    return UNet2DModel(**config), run_palette


def _text_encoder(spec: ModelSpec) -> tuple[torch.nn.Module, Call]:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**spec.networks["text_encoder"])
    return CLIPTextModel(config), lambda net, batch: net(_long(2 * batch, config.max_position_embeddings))


def _vae(spec: ModelSpec) -> tuple[torch.nn.Module, Call]:
    from diffusers import AutoencoderKL

    side = spec.size // VAE_SCALE
    network = AutoencoderKL(**spec.networks["vae"])
    # Only the decoder serves requests; the encoder's weights stay out of the sum.
    network.encoder = torch.nn.Identity()
    return network, lambda net, batch: net.decode(torch.empty(batch, net.config.latent_channels, side, side))


def _safety(spec: ModelSpec) -> tuple[torch.nn.Module, Call]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**spec.networks["safety_checker"])
    network = CLIPVisionModelWithProjection(config)
    return network, lambda net, batch: net(torch.empty(batch, 3, config.image_size, config.image_size))


_BUILD: dict[str, Callable[[ModelSpec], tuple[torch.nn.Module, Call]]] = {
    "text_encoder": _text_encoder,
    "denoise": _denoise,
    "vae": _vae,
    "safety": _safety,
}
