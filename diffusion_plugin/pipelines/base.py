"""What every pipeline is: the forward pass of a denoising step and its hooks, and the modules around the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import ImageRequest, check_size
from diffusion_plugin.state import Batch
from neustream.catalog.images import ModelSpec


class Pipeline(ABC):
    """The modules of one model on one device. It holds networks and nothing of any request.

    `dtype` is that of the networks; latents are float32 always.
    """

    has_learned_variance = False
    picture_field = "image"
    """The field of a request's slot in which its picture is when it is done."""
    flag_field: str | None = None
    """The field that says whether the picture was flagged as unsafe, where the pipeline has one."""

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
        self.runners: dict[str, Callable[[SlotPool, Batch], None]] = {}
        """What runs each module but the denoising step, by its name."""

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
    def example(self, index: int) -> dict[str, Any]:
        """What a synthetic workload asks for in its request number `index`: arguments of `ImageRequest`."""

    def first_fields(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """What is written to a request's slot when it joins: its inputs and its first latent, of unit variance.

        Inputs and generator are on the pipeline's device.
        """
        return {**inputs, "latent": torch.randn(self.latent_shape, generator=generator, device=self.device)}

    def restore_known(self, pool: SlotPool, batch: Batch, new: Tensor) -> Tensor:
        """The latents after a step, given what the schedule made of them: with what is known of them put back."""
        return new

    def finished(self, picture: Tensor) -> Tensor:
        """The image in 0…1, of shape (3, H, W), of a picture that was copied to the host; may overwrite it."""
        return picture

    def run(self, module: str, pool: SlotPool, batch: Batch) -> None:
        """Run a module on a batch; any but the denoising step, which is `diffusion_plugin.denoise`."""
        self.runners[module](pool, batch)

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
