"""What a denoising step costs outside the network's forward pass.

    python bench/diffusion_step.py [--model dit-nano] [--device cpu] [--batch 8] [--repeats 300] [--schedule ddim]

Times, in turns: a step as the executor runs it (index tensors, gathers, guidance, the schedule's arithmetic,
scatter, the wait for the device), and the same network's forward pass alone on tensors of the same shapes.
Requests are at mixed timesteps of mixed step counts. Prints the medians and the share
(step − forward) / forward. With `--max-share` it exits with 1 where the share is larger.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from neustream import Request, StepPlan
from neustream.route import LOOP_MODULE, pipeline_route
from neustream.slo import NO_DEADLINES

if TYPE_CHECKING:
    from diffusion_plugin import Pipeline
    from diffusion_plugin.executor import DiffusionExecutor

WARM_UP = 20
LEAST_REPEATS = 5


def make_plan(pipeline: Pipeline, executor: DiffusionExecutor, batch: int, schedule: str | None) -> StepPlan:
    """A step of `batch` requests, each with its own step count and at its own step."""
    from diffusion_plugin import ImageRequest

    stage = pipeline.modules.index(LOOP_MODULE)
    requests = []
    for i in range(batch):
        steps = 200 + 3 * i
        asked = ImageRequest(steps=steps, seed=i, schedule=schedule, **pipeline.example(i))
        request = Request(f"{i}", 0.0, NO_DEADLINES, pipeline_route(pipeline.modules, steps))
        request.stage = stage
        executor.add(executor.make_job(asked, request))
        requests.append(request)
    return StepPlan(LOOP_MODULE, tuple(requests))


def capture_forward(pipeline: Pipeline, executor: DiffusionExecutor, plan: StepPlan) -> Callable[[], object]:
    """The network's call of one step, to be repeated on the same tensors."""
    network = pipeline.networks["transformer" if "transformer" in pipeline.networks else "unet"]
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    executor.run(plan)
    hook.remove()
    args, kwargs = calls[0]
    return lambda: network(*args, **kwargs)


class StepShare(NamedTuple):
    """What steps of one batch size took, in seconds."""

    batch: int
    repeats: int
    step: float
    """Median of a whole step."""
    forward: float
    """Median of the network's forward pass alone."""
    outside: float
    """Median of the differences of neighbours: a slow spell of the machine is in both."""

    @property
    def share(self) -> float:
        """What a step costs outside the forward pass, as a share of the pass."""
        return self.outside / self.forward


def step_share(
    pipeline: Pipeline, batch: int, repeats: int, schedule: str | None = None, seconds: float = math.inf
) -> StepShare:
    """Time steps and forward passes in turns, `repeats` times or until `seconds` have passed, 5 times at least.

    Raises ValueError for a schedule that the pipeline has not.
    """
    import torch

    from diffusion_plugin.executor import DiffusionExecutor

    executor = DiffusionExecutor(pipeline)
    plan = make_plan(pipeline, executor, batch, schedule)
    steps: list[float] = []
    forwards: list[float] = []
    until = time.perf_counter() + seconds
    with torch.inference_mode():
        forward = capture_forward(pipeline, executor, plan)
        for i in range(repeats + WARM_UP):
            began = time.perf_counter()
            executor.run(plan)
            middle = time.perf_counter()
            forward()
            executor.synchronize()
            ended = time.perf_counter()
            if i >= WARM_UP:
                steps.append(middle - began)
                forwards.append(ended - middle)
            if ended > until and len(steps) >= LEAST_REPEATS:
                break
    outside = statistics.median(a - b for a, b in zip(steps, forwards, strict=True))
    return StepShare(batch, len(steps), statistics.median(steps), statistics.median(forwards), outside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit-nano")
    parser.add_argument("--device")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--schedule")
    parser.add_argument("--threads", type=int, help="CPU threads of a step (default: those of serving)")
    parser.add_argument("--max-share", type=float)
    options = parser.parse_args()
    import torch

    from diffusion_plugin.build import load_pipeline, set_threads

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        pipeline = load_pipeline(options.model, device=options.device)
        if not options.threads:
            set_threads(pipeline.spec, pipeline.device)
        found = step_share(pipeline, options.batch, options.repeats, options.schedule)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"{options.model} on {pipeline.device}, {pipeline.dtype}, batch {found.batch}, {found.repeats} repeats")
    seconds = f"step {found.step * 1e3:.3f} ms, forward pass {found.forward * 1e3:.3f} ms"
    print(f"{seconds}, outside it {found.outside * 1e3:.3f} ms")
    print(f"share outside the forward pass: {found.share:.1%} of it")
    return int(options.max_share is not None and found.share > options.max_share)


if __name__ == "__main__":
    sys.exit(main())
