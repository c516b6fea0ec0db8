"""The tensors of all requests in flight, and the index tensors by which one step's batch finds its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_plugin.pool import SlotPool
from diffusion_plugin.request import ImageRequest, Job
from diffusion_plugin.schedules import CoefficientTable
from neustream import Request
from neustream.route import LOOP_MODULE

if TYPE_CHECKING:
    from diffusion_plugin.pipelines.base import Pipeline

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


class State:
    """Slots, coefficient rows and noise of one device."""

    def __init__(self, pipeline: Pipeline, num_slots: int = 16) -> None:
        self.pipeline = pipeline
        latent = pipeline.latent_shape
        numel = latent[0] * latent[1] * latent[2]
        self.block = max(1, min(MAX_NOISE_STEPS, NOISE_ELEMENTS // numel))
        fields = {
            "latent": (latent, torch.float32),
            "noise": ((self.block, *latent), torch.float32),
            **pipeline.fields(),
        }
        self.pool = SlotPool(fields, pipeline.device, num_slots)
        self.table = CoefficientTable(
            pipeline.scheduler, pipeline.device, learned_variance=pipeline.has_learned_variance
        )

    def job(self, asked: ImageRequest, request: Request) -> Job:
        """The job of a request: its inputs and its schedule. Touches nothing shared, so any thread may call it.

        Raises ValueError, one line, for what the pipeline cannot make.
        """
        inputs = self.pipeline.prepare(asked)
        return Job(
            request=request,
            asked=asked,
            inputs=inputs,
            schedule=self.table.schedule(asked.schedule or self.pipeline.spec.schedules[0], asked.steps),
            is_guided="guidance" in inputs and float(inputs["guidance"]) > 1.0,
            loop_stage=self.pipeline.modules.index(LOOP_MODULE),
        )

    def join(self, job: Job) -> None:
        """Give the job a slot and write its first latent and its inputs there."""
        slot = self.pool.acquire()
        try:
            device = self.pool.device
            job.generator = torch.Generator(device).manual_seed(job.asked.seed)
            inputs = {name: value.to(device) for name, value in job.inputs.items()}
            values = self.pipeline.start(inputs, job.generator)
            values["latent"] = values["latent"] * job.schedule.init_sigma
            self.pool.write(slot, values)
        except BaseException:
            self.pool.release(slot)
            raise
        job.noise_at = job.noise_len = 0
        job.first_row = self.table.first_row(job.schedule)
        job.slot = slot

    def leave(self, job: Job) -> None:
        """Free the job's slot, where it has one."""
        if job.slot is not None:
            self.pool.release(job.slot)
            job.slot = None

    def batch(self, jobs: Sequence[Job], *, denoising: bool = True) -> Batch:
        """The index tensors of a step of these jobs; the only copy to the device that a step makes.

        A job that has none yet gets a slot; one that has used up its noise gets the next block of it.
        """
        for job in jobs:
            if job.slot is None:
                self.join(job)
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

    def check_integrity(self, jobs: Sequence[Job]) -> None:
        """Assert that exactly these jobs' slots are in use."""
        self.pool.check_integrity([job.slot for job in jobs if job.slot is not None])
