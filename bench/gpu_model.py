"""Measures one model of a campaign on a GPU machine: its table, its step share, its goodput. `gpu_campaign.py` runs it.

The model is loaded once, and only if something is left to measure. Every part is a file of its own, written when it is
complete. What a stopped process has measured of a table is kept too.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_step import step_share
from gpu_report import plan_file, read, run_folder, settings_left, share_file, table_file

from exp.diffusion.__main__ import KIND
from exp.harness.folder import create_run_folder
from exp.harness.program import header, make_parser
from exp.harness.report import goodput_columns
from exp.harness.runner import run_settings
from exp.harness.settings import default_rates
from neusim.profiling.diffusion import check, profile_loaded
from neusim.profiling.settings import make_settings
from neusim.profiling.visits import Partial, partial_path
from neustream.capacity import pipeline_capacity
from neustream.catalog.images import model_spec
from neustream.catalog.machine import device_slug
from neustream.catalog.paper import paper_rates
from neustream.cli.arguments import step_range
from neustream.files import write_atomically
from neustream.latency import Shape
from neustream.route import LOOP_MODULE
from neustream.tables import LatencyTable, load_table, save_table

if TYPE_CHECKING:
    from diffusion_plugin.measure import ModuleTimer

LOADS = (1.0, 2.0)
"""Multiples of the capacity where the paper has no rates, and in the quick form."""
SLO_SCALE = 3.0
REQUESTS = 500
QUICK_ALONE = 0.6
"""Seconds that a request alone may take in the quick form: it has fewer denoising steps where it took more."""
QUICK_ARRIVALS = 4.0
"""Seconds of arrivals at the highest rate in the quick form."""
LEAST_REQUESTS, LEAST_STEPS = 20, 4
SHARE_BATCH = 8
SHARE_REPEATS, QUICK_SHARE_REPEATS = 300, 100
SHARE_SECONDS, QUICK_SHARE_SECONDS = 60.0, 8.0
STARTING = 2.0
"""Seconds that a setting takes besides its arrivals and its last request."""
OUT_OF_TIME = 3


class Campaign:
    """One model of a campaign; what it needs is loaded when it is first used."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.spec = model_spec(options.model)
        self.settings, _ = make_settings(
            self.spec.name,
            device=options.device,
            quick=options.quick,
            out=table_file(self.out, self.spec.name),
            progress=sys.stderr.isatty(),
        )
        self.dtype = check(self.settings)
        self.is_warm = False

    @cached_property
    def threads(self) -> int:
        from diffusion_plugin.build import set_threads

        return set_threads(self.spec, self.options.device)

    @cached_property
    def timer(self) -> ModuleTimer:
        """The loaded pipeline, in a timer."""
        import torch

        from diffusion_plugin.build import load_pipeline
        from diffusion_plugin.measure import ModuleTimer

        print(f"loading {self.spec.name} on {self.settings.slug} …", file=sys.stderr, flush=True)
        assert self.threads
        pipeline = load_pipeline(self.spec.name, device=self.options.device, dtype=getattr(torch, self.dtype))
        where = {"python": sys.version.split()[0], "cuda": torch.version.cuda}
        if self.options.device == "cuda":
            where["gpu"] = torch.cuda.get_device_name()
        write_json(self.out / "machine.json", where)
        gc.collect()
        gc.freeze()
        return ModuleTimer(pipeline)

    def measure_table(self) -> None:
        """The latency table, from the visits that are kept on."""
        if read(self.settings.out) is None:
            save_table(profile_loaded(self.settings, self.timer, self.dtype, self.threads), self.settings.out)
            Partial(partial_path(self.settings.out), {}).discard()
            self.is_warm = True

    def measure_share(self) -> None:
        """What a step of 8 requests costs outside the forward pass."""
        path = share_file(self.out, self.spec.name)
        if read(path) is None:
            quick = self.options.quick
            repeats, seconds = (QUICK_SHARE_REPEATS, QUICK_SHARE_SECONDS) if quick else (SHARE_REPEATS, SHARE_SECONDS)
            found = step_share(self.timer.pipeline, SHARE_BATCH, repeats, seconds=seconds)
            write_json(path, {**found._asdict(), "share": found.share})

    def measure_goodput(self) -> None:
        """The settings that are left, for as long as there is time."""
        table = load_table(self.settings.out, model=self.spec.name)
        plan = read(plan_file(self.out, self.spec.name))
        if plan is None:
            plan = self.make_plan(table)
            write_json(plan_file(self.out, self.spec.name), plan)
        for rate, policy in settings_left(self.out, self.spec.name, self.options.policies):
            expected = plan["requests"] / rate + SLO_SCALE * plan["alone"] + STARTING
            if time.time() + expected > self.options.until:
                print(
                    f"{self.spec.name}: no time for {policy} at {rate:g} req/s, about {expected:.0f} s", file=sys.stderr
                )
                sys.exit(OUT_OF_TIME)
            self.run_setting(table, plan, policy, rate)

    def make_plan(self, table: LatencyTable) -> dict[str, Any]:
        """Rates, requests and steps: the paper's, or fewer in the quick form and where it has none."""
        options, spec = self.options, self.spec
        steps = options.steps or spec.steps
        alone = self.seconds_alone(table, steps)
        if options.quick and options.steps is None and alone > QUICK_ALONE:
            lowest = max(LEAST_STEPS, round(steps[0] * QUICK_ALONE / alone))
            steps = lowest, max(lowest + 1, round(steps[1] * QUICK_ALONE / alone))
            alone = self.seconds_alone(table, steps)
        capacity = pipeline_capacity(table, self.visits(steps), SLO_SCALE)
        published = None if options.quick else paper_rates(device_slug(options.device), spec.name)
        rates = published or default_rates(capacity, LOADS)
        requests = options.requests or REQUESTS
        if options.quick and options.requests is None:
            requests = min(max(math.ceil(QUICK_ARRIVALS * rates[-1]), LEAST_REQUESTS), REQUESTS)
        return {"rates": rates, "requests": requests, "steps": steps, "alone": alone, "capacity": capacity}

    def visits(self, steps: tuple[int, int]) -> dict[str, float]:
        """Mean visits to each module."""
        return {module: sum(steps) / 2 - 0.5 if module == LOOP_MODULE else 1.0 for module in self.spec.modules}

    def seconds_alone(self, table: LatencyTable, steps: tuple[int, int]) -> float:
        """What a request of a mean number of steps takes alone."""
        return sum(table[module].predict(Shape(1)) * count for module, count in self.visits(steps).items())

    def run_setting(self, table: LatencyTable, plan: dict[str, Any], policy: str, rate: float) -> None:
        """One setting, as `python -m exp.diffusion` would run it, into a folder of its own."""
        from exp.diffusion.bench import DiffusionBench

        path = run_folder(self.out, self.spec.name, policy, rate)
        shutil.rmtree(path, ignore_errors=True)  # what a stopped process has left of it
        low, high = plan["steps"]
        flags = {
            "policy": policy, "device": self.options.device, "table": self.settings.out, "dtype": self.dtype,
            "rate": rate, "slo-scale": SLO_SCALE, "requests": plan["requests"], "steps": f"{low}:{high}", "out": path,
        }  # fmt: skip
        arguments = [self.spec.name, *(text for flag, value in flags.items() for text in (f"--{flag}", str(value)))]
        options = KIND.options(make_parser(KIND).parse_args(arguments))
        scope = KIND.scope(options, table)
        pipeline = self.timer.pipeline
        if not self.is_warm:
            self.timer.warm_up()
            self.is_warm = True
        bench = DiffusionBench(pipeline, table, policy=policy, num_requests=scope.num_requests, steps=options.steps)
        head = header(KIND, options, table, self.settings.out, scope)
        columns = goodput_columns(list(scope.settings[0].values), KIND.unit)
        with create_run_folder(str(path), policy, self.spec.name) as folder:
            code = run_settings(bench, scope.settings, folder, head, best_by=KIND.best_by, columns=columns)
        if code:
            sys.exit(code)


def write_json(path: Path, value: Any) -> None:
    """Write a file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value) + "\n")


def run_part(name: str, part: Callable[[], None], options: argparse.Namespace) -> bool:
    """Measure a part; returns whether it is there. Why it failed is kept in OUT/failed/MODEL."""
    model = options.model
    if time.time() > options.until:
        print(f"{model}: no time for its {name}", file=sys.stderr)
        return False
    path = options.out / "failed" / model / f"{name}.txt"
    path.unlink(missing_ok=True)
    try:
        part()
    except Exception as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)))
        print(f"{model}: {name} failed: {type(error).__name__}: {error}; see {path}", file=sys.stderr)
        return False
    return True


def end_with_parent() -> None:
    """Let this process be told to stop where the campaign that started it is killed, so that no two ever measure."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def main() -> int:
    """The process; its exit code is 0 where every part is there, 3 where time was short."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--policies", required=True, type=lambda text: tuple(text.split(",")))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds since the epoch")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--steps", type=step_range)
    options = parser.parse_args()
    end_with_parent()
    campaign = Campaign(options)
    if not run_part("table", campaign.measure_table, options):
        return 1
    has_share = run_part("step-share", campaign.measure_share, options)
    has_goodput = run_part("goodput", campaign.measure_goodput, options)
    return int(not (has_share and has_goodput))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
