"""The executor: runs the plans of the core's step loop on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import Job
from diffusion_plugin.state import State
from neustream import Limits, Request, StepPlan, StepResult
from neustream.policies.base import MAX_BATCH


class DiffusionExecutor:
    """Runs one module's batch per step, to its end; keeps the tensors of the requests in flight.

    A batch that raises fails its own requests, with the reason. One that runs out of memory halves the
    module's batch cap, for good, and is run again in parts; a request that does not fit alone fails.
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
        self.state = State(pipeline, num_slots)
        self.jobs: dict[str, Job] = {}
        self.max_batch = dict.fromkeys(pipeline.modules, max_batch)

    def add(self, job: Job) -> None:
        """Take in a request; its tensors are made when a step first runs it."""
        self.jobs[job.request.request_id] = job

    def release(self, request: Request) -> Job:
        """Forget a request that has ended and free its tensors. To be called between steps."""
        job = self.jobs.pop(request.request_id)
        self.state.leave(job)
        return job

    def limits(self) -> Limits:
        return Limits(max_batch=self.max_batch)

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.module is not None
        jobs = [self.jobs[request.request_id] for request in plan.batch]
        failed: dict[str, str] = {}
        with torch.inference_mode():
            self._run(plan.module, jobs, failed)
        return StepResult(failed)

    def _run(self, module: str, jobs: Sequence[Job], failed: dict[str, str]) -> None:
        """Run the batch, in parts where the module's cap is smaller or has to become so."""
        waiting = list(jobs)
        while waiting:
            size = min(len(waiting), self.max_batch[module])
            reason, is_memory = self._try(module, waiting[:size])
            if is_memory and size > 1:
                self.max_batch[module] = size // 2
                continue
            if reason is not None:
                failed.update((job.request.request_id, reason) for job in waiting[:size])
            waiting = waiting[size:]

    def _try(self, module: str, jobs: Sequence[Job]) -> tuple[str | None, bool]:
        """Run one batch; returns why it failed, if it did, and whether that was for want of memory."""
        try:
            self._step(module, jobs)
            return None, False
        except Exception as error:
            reason = f"{module}: {type(error).__name__}: {error}"
            is_memory = out_of_memory(error)
        # The traceback is gone here, and with it the references to the failed step's tensors.
        if is_memory and self.pipeline.device.type == "cuda":
            torch.cuda.empty_cache()
        return reason, is_memory

    def _step(self, module: str, jobs: Sequence[Job]) -> None:
        state = self.state
        batch = state.batch(jobs, denoising=module == "denoise")
        self.pipeline.run(module, state, batch)
        done = [i for i, job in enumerate(jobs) if is_last_visit(job.request)]
        if done:
            slots = batch.slots if len(done) == len(jobs) else batch.slots[torch.tensor(done)]
            images, flagged = self.pipeline.images(state.pool, slots)
            on_host = images.float().cpu()
            flags = flagged.cpu().tolist() if flagged is not None else [False] * len(done)
            for i, image, flag in zip(done, on_host, flags, strict=True):
                jobs[i].image, jobs[i].is_flagged = image.clone(), flag
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the device: once, at the end of a step."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.current_stream(self.pipeline.device).synchronize()

    def check_integrity(self) -> None:
        """Assert that the slots taken are those of the requests in flight."""
        self.state.check_integrity(list(self.jobs.values()))


def is_last_visit(request: Request) -> bool:
    """Whether the visit under way is the last one of the request's route."""
    return request.left[request.stage] == 1 and not any(request.left[request.stage + 1 :])


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, or on the host."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
