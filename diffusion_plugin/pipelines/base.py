"""What every pipeline is: modules that run a batch of slots, and the two hooks of a denoising step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.denoise import denoise
from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import ImageRequest, check_size
from diffusion_plugin.state import Batch, State
from neustream.catalog.images import ModelSpec


class Pipeline(ABC):
    """The modules of one model on one device. It holds networks and nothing of any request.

    `dtype` is that of the networks; latents are float32 always.
    """

    has_learned_variance = False

    def __init__(
        self,
        spec: ModelSpec,
        networks: Mapping[str, Any],
        *,
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        scheduler: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.spec = spec
        self.networks = networks
        self.size = size
        self.device = device
        self.dtype = dtype
        self.scheduler = scheduler
        self.folder = folder
        self.runners: dict[str, Callable[[State, Batch], None]] = {"denoise": denoise}

    @property
    def modules(self) -> tuple[str, ...]:
        """Module names, in pipeline order."""
        return self.spec.modules

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one request's latent: (channels, height, width)."""

    @abstractmethod
    def fields(self) -> dict[str, Field]:
        """What a request keeps on the device beside its latent and its noise."""

    @abstractmethod
    def prepare(self, request: ImageRequest) -> dict[str, Tensor]:
        """A request's inputs, on the CPU, from its prompt, label or image. Raises ValueError for bad ones."""

    @abstractmethod
    def predict(self, pool: SlotPool, batch: Batch, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """One forward pass for latents `x` (batch, C, H, W) at `timesteps` (batch,), float32 both.

        Returns the guided noise estimate, and the predicted variance where the network has one, in float32.
        """

    @abstractmethod
    def images(self, pool: SlotPool, slots: Tensor) -> tuple[Tensor, Tensor | None]:
        """Finished images in 0…1, of shape (n, 3, H, W), and which of them were flagged as unsafe."""

    @abstractmethod
    def example(self, index: int) -> dict[str, Any]:
        """What a synthetic workload asks for in its request number `index`: arguments of `ImageRequest`."""

    def start(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """What is written to a request's slot when it joins: its inputs and its first latent, of unit variance.

        Inputs and generator are on the pipeline's device.
        """
        return {**inputs, "latent": torch.randn(self.latent_shape, generator=generator, device=self.device)}

    def keep(self, pool: SlotPool, batch: Batch, new: Tensor) -> Tensor:
        """The latents after a step, given what the schedule made of them."""
        return new

    def run(self, module: str, state: State, batch: Batch) -> None:
        """Run one module on a batch."""
        self.runners[module](state, batch)

    def check(self, request: ImageRequest) -> None:
        """Raises ValueError for what no request to this pipeline can ask."""
        check_size(request.size, self.spec.multiple)
        if request.size is not None and request.size != self.size:
            raise ValueError(f"this pipeline makes images of {self.size} pixels a side, got size {request.size}")
        if request.schedule is not None and request.schedule not in self.spec.schedules:
            known = ", ".join(self.spec.schedules)
            raise ValueError(f"{self.spec.name} has no schedule {request.schedule!r}; it has {known}")

    def refuse(self, request: ImageRequest, *fields: str) -> None:
        """Raises ValueError where the request sets one of these fields, which mean nothing to this model."""
        for name in fields:
            if getattr(request, name) is not None:
                raise ValueError(f"{self.spec.name} takes no {name}")
