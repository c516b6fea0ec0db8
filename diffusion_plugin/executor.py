"""The executor: runs the plans of the core's step loop on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from diffusion_plugin.denoise import denoise
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, Job
from diffusion_plugin.state import DeviceState
from neustream import Limits, Request, StepPlan, StepResult
from neustream.capacity import MAX_BATCH
from neustream.plan import UNLIMITED
from neustream.route import LOOP_MODULE


class DiffusionExecutor:
    """Runs one module's batch per step, to its end; keeps the tensors of the requests in flight.

    A batch that raises fails its own requests, with the reason. Memory may run out in three places:

    - for a request's slot, before its first step: the request waits on while others hold slots, and until half of
      those are free again the policy is told of no more seats than there are;
    - in a module: its batch cap is halved, for good, and the batch run again in parts, as no module changes anything
      before its last operation; a request that does not fit alone fails;
    - for a finished image, which is copied off the device after its last step: no step is repeated for it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        num_slots: int = 16,
        max_batch: int = MAX_BATCH,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.pipeline = pipeline
        self.state = DeviceState(
            pipeline.fields(),
            pipeline.latent_shape,
            pipeline.scheduler,
            pipeline.device,
            learned_variance=pipeline.has_learned_variance,
            num_slots=num_slots,
        )
        self.jobs: dict[str, Job] = {}
        self.max_batch = dict.fromkeys(pipeline.modules, max_batch)
        self.seats = UNLIMITED
        """Requests that may hold slots at once; below UNLIMITED after one was refused."""

    def make_job(self, asked: ImageRequest, request: Request) -> Job:
        """The job of a request: its inputs and its schedule. Touches nothing shared, so any thread may call it.

        Raises ValueError, one line, for what the pipeline cannot make.
        """
        pipeline = self.pipeline
        inputs = pipeline.prepare(asked)
        return Job(
            request=request,
            asked=asked,
            inputs=inputs,
            schedule=self.state.table.schedule(asked.schedule or pipeline.spec.schedules[0], asked.steps),
            is_guided="guidance" in inputs and float(inputs["guidance"]) > 1.0,
            loop_stage=pipeline.modules.index(LOOP_MODULE),
        )

    def add(self, job: Job) -> None:
        """Take in a request; it gets a slot when a step first runs it."""
        self.jobs[job.request.request_id] = job

    def release(self, request: Request) -> Job:
        """Forget a request that has ended and free its tensors. To be called between steps."""
        job = self.jobs.pop(request.request_id)
        self.state.leave(job)
        if 2 * self.state.pool.num_taken <= self.seats:
            self.seats = UNLIMITED
        with torch.inference_mode():
            self._try("slots", partial(self.state.shrink, self.jobs.values()))
        return job

    def limits(self) -> Limits:
        return Limits(max_batch=self.max_batch, max_resident=self.seats)

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.module is not None
        assert not plan.preempted, "an image is not sent back to its first step"
        jobs = [self.jobs[request.request_id] for request in plan.batch]
        failed: dict[str, str] = {}
        with torch.inference_mode():
            seated = self._seat(jobs, failed)
            self._run(plan.module, seated, failed)
        for job in seated:
            if job.request.request_id not in failed and is_last_visit(job.request):
                self._finish(job, failed)
        deferred = {job.request.request_id for job in jobs} - {job.request.request_id for job in seated} - failed.keys()
        return StepResult(failed, deferred=frozenset(deferred))

    def _seat(self, jobs: Sequence[Job], failed: dict[str, str]) -> list[Job]:
        """Give a slot to those of the jobs that have none; returns all that have one then."""
        has_room = True
        for job in jobs:
            if job.slot is None and has_room:
                reason, is_memory = self._try("slots", partial(self._join, job))
                taken = self.state.pool.num_taken
                if is_memory and taken:
                    self.seats, has_room = taken, False
                elif reason is not None:
                    failed[job.request.request_id] = reason
        return [job for job in jobs if job.slot is not None]

    def _join(self, job: Job) -> None:
        device = self.pipeline.device
        generator = torch.Generator(device).manual_seed(job.asked.seed)
        inputs = {name: value.to(device) for name, value in job.inputs.items()}
        values = self.pipeline.first_fields(inputs, generator)
        values["latent"] = values["latent"] * job.schedule.init_sigma
        self.state.join(job, values, generator)

    def _run(self, module: str, jobs: Sequence[Job], failed: dict[str, str]) -> None:
        """Run the batch, in parts where the module's cap is smaller or has to become so."""
        waiting = list(jobs)
        while waiting:
            size = min(len(waiting), self.max_batch[module])
            part = waiting[:size]
            reason, is_memory = self._try(module, partial(self._step, module, part))
            if is_memory and size > 1:
                self.max_batch[module] = size // 2
                continue
            if reason is None:
                reason, _ = self._try(module, self.synchronize)
            if reason is not None:
                failed.update((job.request.request_id, reason) for job in part)
            waiting = waiting[size:]

    def _step(self, module: str, jobs: Sequence[Job]) -> None:
        batch = self.state.batch(jobs, denoising=module == LOOP_MODULE)
        if module == LOOP_MODULE:
            denoise(self.pipeline, self.state, batch)
        else:
            self.pipeline.run(module, self.state.pool, batch)

    def _finish(self, job: Job, failed: dict[str, str]) -> None:
        """Copy the finished image off the device; tried once more where memory ran out."""
        reason, is_memory = self._try("image", partial(self._fetch, job))
        if is_memory:
            reason, _ = self._try("image", partial(self._fetch, job))
        if reason is not None:
            failed[job.request.request_id] = reason

    def _fetch(self, job: Job) -> None:
        """One copy of one field from the device; the rest is arithmetic on the host."""
        assert job.slot is not None
        pool, pipeline = self.state.pool, self.pipeline
        job.image = pipeline.finished(pool[pipeline.picture_field][job.slot].to("cpu", copy=True).float())
        job.is_flagged = pipeline.flag_field is not None and bool(pool[pipeline.flag_field][job.slot])

    def _try(self, what: str, action: Callable[[], None]) -> tuple[str | None, bool]:
        """Do it; returns why that failed, if it did, and whether it was for want of memory."""
        try:
            action()
            return None, False
        except Exception as error:
            reason = f"{what}: {type(error).__name__}: {error}"
            is_memory = out_of_memory(error)
        # The traceback is gone here, and with it the references to the failed action's tensors.
        if is_memory and self.pipeline.device.type == "cuda":
            torch.cuda.empty_cache()
        return reason, is_memory

    def synchronize(self) -> None:
        """Wait for the device: once, at the end of a step."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.current_stream(self.pipeline.device).synchronize()

    def close(self) -> None:
        """Free the device's memory; nothing can run after it."""
        assert not self.jobs, list(self.jobs)
        self.state.pool.tensors.clear()
        if self.pipeline.device.type == "cuda":
            torch.cuda.empty_cache()

    def check_integrity(self) -> None:
        """Assert that the slots taken are those of the requests in flight."""
        self.state.check_integrity(self.jobs.values())


def is_last_visit(request: Request) -> bool:
    """Whether the visit under way is the last one of the request's route."""
    return request.left[request.stage] == 1 and not any(request.left[request.stage + 1 :])


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, or on the host."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
