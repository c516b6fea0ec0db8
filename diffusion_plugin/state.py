"""The tensors of all requests in flight, and the index tensors by which one step's batch finds its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import Job
from diffusion_plugin.schedules import CoefficientTable

NOISE_ELEMENTS = 1 << 20
"""Size of a request's block of noise that is drawn ahead; at least one step's, at most 32 steps'."""
MAX_NOISE_STEPS = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a step's requests have their tensors: index tensors of shape (batch,) on the device, and what
    its requests have need of."""

    slots: Tensor
    rows: Tensor
    noise: Tensor
    """Row of each request's noise in the noise field seen as (slots × block, *latent)."""
    is_guided: bool = False
    is_noisy: bool = False
    is_clipped: bool = False
    is_scaled: bool = False


class DeviceState:
    """Slots, coefficient rows and noise of one device.

    `fields` is what a request keeps there beside its latent and its noise, `latent_shape` is (channels, height,
    width), and `scheduler` holds the arguments of diffusers' schedulers.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        latent_shape: tuple[int, int, int],
        scheduler: Mapping[str, Any],
        device: torch.device,
        *,
        learned_variance: bool = False,
        num_slots: int = 16,
    ) -> None:
        channels, height, width = latent_shape
        self.block = max(1, min(MAX_NOISE_STEPS, NOISE_ELEMENTS // (channels * height * width)))
        own: dict[str, Field] = {
            "latent": (latent_shape, torch.float32),
            "noise": ((self.block, *latent_shape), torch.float32),
        }
        self.pool = SlotPool({**own, **fields}, device, num_slots)
        self.table = CoefficientTable(scheduler, device, learned_variance=learned_variance)

    def join(self, job: Job, values: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Give the job a slot and write its first latent and its inputs there; `generator` draws its noise."""
        slot = self.pool.acquire()
        try:
            self.pool.write(slot, values)
            job.first_row = self.table.first_row(job.schedule)
        except BaseException:
            self.pool.release(slot)
            raise
        job.generator = generator
        job.noise_at = job.noise_len = 0
        job.slot = slot

    def leave(self, job: Job) -> None:
        """Free the job's slot, where it has one."""
        if job.slot is not None:
            self.pool.release(job.slot)
            job.slot = None

    def shrink(self, jobs: Iterable[Job]) -> None:
        """Give back slots that a busy time has left; `jobs` are all that may hold one, and some of them may move."""
        moves = self.pool.shrink()
        for job in jobs:
            if job.slot is not None:
                job.slot = moves.get(job.slot, job.slot)

    def batch(self, jobs: Sequence[Job], *, denoising: bool = True) -> Batch:
        """The index tensors of a step of these jobs; the only copy to the device that a step makes.

        Each of them has a slot. One that has used up its noise gets the next block of it.
        """
        for job in jobs:
            if denoising and job.schedule.is_noisy and not job.noise_at <= job.step < job.noise_at + job.noise_len:
                self._draw(job)
        slots = [job.slot for job in jobs]
        if not denoising:
            index = torch.tensor(slots).to(self.pool.device, non_blocking=True)
            return Batch(index, index, index)
        rows = [job.first_row + job.step for job in jobs]
        noisy = any(job.schedule.is_noisy for job in jobs)
        lists = [slots, rows]
        if noisy:
            block = self.block
            lists.append([(job.slot or 0) * block + (job.step - job.noise_at) % block for job in jobs])
        index = torch.tensor(lists).to(self.pool.device, non_blocking=True)
        return Batch(
            slots=index[0],
            rows=index[1],
            noise=index[-1],
            is_guided=any(job.is_guided for job in jobs),
            is_noisy=noisy,
            is_clipped=any(job.schedule.is_clipped for job in jobs),
            is_scaled=any(job.schedule.is_scaled for job in jobs),
        )

    def noise(self, batch: Batch) -> Tensor:
        """Unit noise for this step, each request's from its own seed; shape (batch, *latent)."""
        return self.pool["noise"].flatten(0, 1).index_select(0, batch.noise)

    def _draw(self, job: Job) -> None:
        """The noise of the job's next steps, one draw a step: the order in which diffusers' pipelines draw it."""
        assert job.slot is not None
        assert job.generator is not None
        assert job.step == job.noise_at + job.noise_len, "steps are taken in order"
        count = min(self.block, job.schedule.num_steps - job.step)
        for noise in self.pool["noise"][job.slot, :count]:
            noise.normal_(generator=job.generator)
        job.noise_at, job.noise_len = job.step, count

    def check_integrity(self, jobs: Iterable[Job]) -> None:
        """Assert that exactly these jobs' slots are in use."""
        self.pool.check_integrity([job.slot for job in jobs if job.slot is not None])
