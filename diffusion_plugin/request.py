"""What a user asks for (`ImageRequest`), what comes back (`ImageResult`), and what is kept in between (`Job`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion_plugin.schedules import MAX_STEPS, Schedule
from neustream import AbsoluteSlo, Outcome, Request, ScaleSlo, Slo
from neustream.request import OnMiss
from neustream.slo import MS_PER_S

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to make. What a model does not use (a prompt for DiT, say) is refused, not ignored.

    The SLO is `slo_ms` where given, else `slo_scale` × the request's standalone latency; both from its arrival.
    Raises ValueError for a value out of any model's range; the pipeline checks the rest.
    """

    steps: int
    seed: int = 0
    prompt: str | None = None
    negative_prompt: str | None = None
    class_label: int | None = None
    image: Any = None
    """Palette's input: a path, a PIL image, or a float tensor (3, H, W) in 0…1."""
    mask: Any = None
    """Palette's hole, white where the image is to be made up: path, PIL image or tensor (H, W); default: the centre."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 or less switches it off. Default: the model's."""
    schedule: str | None = None
    """Noise schedule: ddpm, ddim or, for Stable Diffusion, euler. Default: the model's."""
    size: int | None = None
    """Side in pixels; where given, it must be the pipeline's."""
    slo_scale: float = 3.0
    slo_ms: float | None = None
    on_miss: OnMiss = "reject"
    request_id: str | None = None

    def __post_init__(self) -> None:
        steps, seed = self.steps, self.seed
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps must be a whole number in 1…{MAX_STEPS}, got {steps!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be a whole number in 0…{MAX_SEED}, got {seed!r}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance!r}")
        if self.on_miss not in ("reject", "demote"):
            raise ValueError(f"on_miss must be 'reject' or 'demote', got {self.on_miss!r}")
        check_size(self.size)
        self.slo()

    def slo(self) -> Slo:
        """Its objective. Raises ValueError for a scale below 1 or a time not above 0."""
        if self.slo_ms is not None:
            return AbsoluteSlo(e2el=self.slo_ms / MS_PER_S)
        return ScaleSlo(self.slo_scale)


def check_size(size: int | None, multiple: int = 8) -> None:
    """Raises ValueError for a side that is not a positive multiple of `multiple` pixels."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or size < multiple or size % multiple:
        raise ValueError(f"size must be a multiple of {multiple} pixels, got {size!r}")


@dataclass(slots=True)
class Job:
    """A request on its way: its progress (`request`, the core's), and where its tensors are."""

    request: Request
    asked: ImageRequest
    inputs: dict[str, Tensor]
    """What the pipeline prepared from the prompt, label or image; on the CPU, written to the slot when it joins."""
    schedule: Schedule
    is_guided: bool
    loop_stage: int
    """Index of the denoising stage in its route."""
    slot: int | None = None
    first_row: int = 0
    """Row of its schedule's first step in the coefficient table; set when it gets its slot."""
    generator: torch.Generator | None = None
    """The source of its noise, on the device; made from its seed when it gets its slot."""
    noise_at: int = 0
    """Step whose noise is the first in its slot's block."""
    noise_len: int = 0
    """Steps whose noise its slot's block holds, from `noise_at` on."""
    image: Tensor | None = None
    is_flagged: bool = False

    @property
    def step(self) -> int:
        """Denoising steps done."""
        return self.schedule.num_steps - self.request.left[self.loop_stage]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What became of a request. Times are in seconds on the server's monotonic clock."""

    request_id: str
    outcome: Outcome
    reason: str | None
    """Why it was rejected, failed or aborted."""
    image: Tensor | None
    """Float tensor (3, H, W) in 0…1 on the CPU, where it finished."""
    is_flagged: bool
    """Whether the safety checker blackened it."""
    steps: int
    arrival: float
    deadline: float
    ended_at: float

    @property
    def met(self) -> bool:
        """Whether it met its SLO."""
        return self.outcome is Outcome.MET

    @property
    def latency(self) -> float:
        """Seconds from arrival to end."""
        return self.ended_at - self.arrival

    def pil(self) -> Image.Image:
        """The image for PIL. Raises ValueError where there is none."""
        if self.image is None:
            raise ValueError(f"request {self.request_id!r} has no image: {self.outcome} ({self.reason})")
        return to_pil(self.image)


def to_pil(image: Tensor) -> Image.Image:
    """A PIL image of a float tensor (3, H, W) in 0…1."""
    pixels = (torch.nan_to_num(image.float()) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
