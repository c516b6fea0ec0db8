"""One denoising step of a mixed batch: one forward pass and a handful of tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.schedules import Column
from diffusion_plugin.state import Batch, DeviceState


def denoise(pipeline: Pipeline, state: DeviceState, batch: Batch) -> None:
    """Take each request of the batch one step further, every one at its own timestep of its own schedule.

    The formula is that of `diffusion_plugin.schedules`. Nothing here waits for the device, and nothing loops
    over the requests. A step changes its requests' latents in its last operation, so one that fails can be
    repeated.
    """
    pool = state.pool
    rows = state.table.rows.index_select(0, batch.rows)
    columns = rows.t()[..., None, None, None]
    x = pool["latent"].index_select(0, batch.slots)
    seen = x * columns[Column.SCALE] if batch.is_scaled else x
    model_out, variance = pipeline.predict(pool, batch, seen, rows[:, Column.TIMESTEP])
    new = torch.addcmul(x * columns[Column.X], model_out, columns[Column.M])
    if batch.is_clipped:
        x0 = torch.addcmul(x * columns[Column.X0_X], model_out, columns[Column.X0_M])
        clip = columns[Column.CLIP]
        new.addcmul_(x0.clamp(-clip, clip).sub_(x0), columns[Column.K])
    if batch.is_noisy:
        new.addcmul_(torch.exp(log_variance(columns, variance).mul_(0.5)), state.noise(batch))
    pool["latent"].index_copy_(0, batch.slots, pipeline.restore_known(pool, batch, new))


def log_variance(columns: Tensor, predicted: Tensor | None) -> Tensor:
    """Log-variance of a step's noise: analytic, or between its two bounds where the network says (−1…1) how far."""
    low = columns[Column.LO]
    if predicted is None:
        return low.clone()
    return torch.addcmul(low, (predicted + 1) / 2, columns[Column.SPAN])
