"""Noise schedules as rows of coefficients, so that a step of requests at different timesteps is one expression.

Every supported step has the form, with `x` the latent, `m` the network's (guided) output and `n` unit noise,

    x' = X·x + M·m  +  K·(clamp(x0, −C, C) − x0)  +  exp((LO + f·SPAN) / 2)·n,      x0 = X0_X·x + X0_M·m

whose second term is there where the schedule clips the predicted image, and whose third where it adds noise;
`f` is (v + 1)/2 of the variance v that the network predicts, 0 where it predicts none. The coefficients are
those of diffusers' own `DDPMScheduler`, `DDIMScheduler` (η = 0) and `EulerDiscreteScheduler`, computed from
their tables in their precision: Ho et al. (2020), Nichol & Dhariwal (2021, learned variance), Song et al.
(2021), Karras et al. (2022, algorithm 2 without churn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from torch import Tensor

MAX_STEPS = 1000
NO_NOISE = -1000.0
"""A log-variance whose standard deviation is 0 in float32."""


class Column(IntEnum):
    """The columns of a schedule's rows."""

    TIMESTEP = 0
    SCALE = 1
    X = 2
    M = 3
    X0_X = 4
    X0_M = 5
    CLIP = 6
    K = 7
    LO = 8
    SPAN = 9


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one (schedule, step count): `rows` is float32 of shape (steps, columns), on the CPU."""

    kind: str
    rows: Tensor
    init_sigma: float
    """Standard deviation of the first latent."""
    is_noisy: bool
    is_clipped: bool
    is_scaled: bool
    """Whether the network sees the latent scaled by SCALE."""

    @property
    def num_steps(self) -> int:
        return int(self.rows.shape[0])


def build_schedule(kind: str, steps: int, config: Mapping[str, Any], *, learned_variance: bool = False) -> Schedule:
    """The rows of `steps` steps of `kind` (ddpm, ddim, euler) for a scheduler of that `config`.

    With `learned_variance`, a DDPM step takes its variance from the network, between the two analytic bounds.
    Raises ValueError for an unknown kind, a step count outside 1…1000, or a config that no row can express.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be a whole number in 1…{MAX_STEPS}, got {steps!r}")
    for name, wanted in (("prediction_type", "epsilon"), ("thresholding", False)):
        if config.get(name, wanted) != wanted:
            raise ValueError(f"a scheduler with {name} {config[name]!r} cannot be served; {wanted!r} can")
    if steps == MAX_STEPS and config.get("steps_offset"):
        config = {**config, "steps_offset": 0}  # every timestep is visited: there is none to shift to
    if kind == "ddpm":
        return _ddpm(steps, config, learned_variance)
    if kind == "ddim":
        return _ddim(steps, config)
    if kind == "euler":
        return _euler(steps, config)
    raise ValueError(f"unknown schedule {kind!r}; there are ddpm, ddim, euler")


def _clip_range(scheduler: Any) -> float:
    return float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else float("inf")


def _affine(x0_x: Tensor, x0_m: Tensor, k: Tensor, c_x: Tensor, c_m: Tensor) -> dict[Column, Tensor]:
    """The columns of x' = c_x·x + c_m·m + k·x0, the image's part folded into X and M."""
    return {
        Column.X: c_x + k * x0_x,
        Column.M: c_m + k * x0_m,
        Column.X0_X: x0_x,
        Column.X0_M: x0_m,
        Column.K: k,
    }


def _schedule(
    kind: str,
    timesteps: Tensor,
    columns: Mapping[Column, Tensor],
    *,
    init_sigma: float = 1.0,
    clip: float = float("inf"),
) -> Schedule:
    rows = torch.zeros(len(timesteps), len(Column))
    rows[:, Column.TIMESTEP] = timesteps.float()
    rows[:, Column.SCALE] = 1.0
    rows[:, Column.CLIP] = clip
    rows[:, Column.LO] = NO_NOISE
    for column, values in columns.items():
        rows[:, column] = values.float()
    return Schedule(
        kind,
        rows,
        init_sigma,
        is_noisy=bool((rows[:, Column.LO] != NO_NOISE).any()),
        is_clipped=clip != float("inf"),
        is_scaled=bool((rows[:, Column.SCALE] != 1.0).any()),
    )


def _alphas(scheduler: Any, timesteps: Tensor, previous: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ at each timestep and at the one that its step leads to (`final` where that is before 0)."""
    table = scheduler.alphas_cumprod
    return table[timesteps], torch.where(previous >= 0, table[previous.clamp(min=0)], final)


def _ddpm(steps: int, config: Mapping[str, Any], learned_variance: bool) -> Schedule:
    scheduler = DDPMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    previous = torch.tensor([int(scheduler.previous_timestep(t)) for t in timesteps])
    alpha, alpha_prev = _alphas(scheduler, timesteps, previous, scheduler.one)
    beta, beta_prev = 1 - alpha, 1 - alpha_prev
    ratio = alpha / alpha_prev
    columns = _affine(
        x0_x=1 / alpha**0.5,
        x0_m=-(beta**0.5) / alpha**0.5,
        k=alpha_prev**0.5 * (1 - ratio) / beta,
        c_x=ratio**0.5 * beta_prev / beta,
        c_m=torch.zeros_like(alpha),
    )
    small = torch.log((beta_prev / beta * (1 - ratio)).clamp(min=1e-20))
    large = torch.log(1 - ratio)
    kind = scheduler.config.variance_type
    if learned_variance:
        low, span = small, large - small
    elif kind in ("fixed_small", "fixed_small_log"):
        low, span = small, torch.zeros_like(small)
    elif kind == "fixed_large":
        low, span = large, torch.zeros_like(large)
    else:
        raise ValueError(f"variance_type {kind!r} needs a network that predicts the variance")
    last = timesteps == 0
    columns[Column.LO] = torch.where(last, NO_NOISE, low)
    columns[Column.SPAN] = torch.where(last, 0.0, span)
    return _schedule("ddpm", timesteps, columns, clip=_clip_range(scheduler))


def _ddim(steps: int, config: Mapping[str, Any]) -> Schedule:
    scheduler = DDIMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    previous = timesteps - scheduler.config.num_train_timesteps // steps
    alpha, alpha_prev = _alphas(scheduler, timesteps, previous, scheduler.final_alpha_cumprod)
    columns = _affine(
        x0_x=1 / alpha**0.5,
        x0_m=-((1 - alpha) ** 0.5) / alpha**0.5,
        k=alpha_prev**0.5,
        c_x=torch.zeros_like(alpha),
        c_m=(1 - alpha_prev) ** 0.5,
    )
    return _schedule("ddim", timesteps, columns, clip=_clip_range(scheduler))


def _euler(steps: int, config: Mapping[str, Any]) -> Schedule:
    scheduler = EulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    sigma, sigma_next = scheduler.sigmas[:-1], scheduler.sigmas[1:]
    columns = {Column.SCALE: 1 / (sigma**2 + 1) ** 0.5, Column.X: torch.ones_like(sigma), Column.M: sigma_next - sigma}
    return _schedule("euler", scheduler.timesteps, columns, init_sigma=float(scheduler.init_noise_sigma))


class CoefficientTable:
    """The rows of every schedule asked for so far, in one tensor on the device: shape (rows, columns), float32."""

    def __init__(self, config: Mapping[str, Any], device: torch.device, *, learned_variance: bool = False) -> None:
        self.config = config
        self.learned_variance = learned_variance
        self.rows = torch.empty(0, len(Column), device=device)
        self._schedules: dict[tuple[str, int], Schedule] = {}
        self._first: dict[tuple[str, int], int] = {}

    def schedule(self, kind: str, steps: int) -> Schedule:
        """The schedule of that kind and step count, made once. Leaves the device alone; any thread may call it."""
        found = self._schedules.get((kind, steps))
        if found is None:
            found = build_schedule(kind, steps, self.config, learned_variance=self.learned_variance)
            self._schedules[kind, steps] = found
        return found

    def first_row(self, schedule: Schedule) -> int:
        """Where the schedule's rows begin: step i of it is row `first_row + i`. New ones are appended."""
        key = schedule.kind, schedule.num_steps
        first = self._first.get(key)
        if first is None:
            first = len(self.rows)
            self.rows = torch.cat([self.rows, schedule.rows.to(self.rows.device)])
            self._first[key] = first
        return first
