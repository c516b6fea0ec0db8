"""The campaign on a GPU machine, model by model: see docs/gpu.md. `gpu.sh` starts this with a Python that has PyTorch.

Each model is measured in a process of its own (`gpu_model.py`), which loads it once. What is done is not done again: a
campaign that was stopped goes on where it was with the same command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_arguments import QUICK_MINUTES, BadInput, parser
from gpu_wheels import WheelsError, check_modules, collect, install

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


LEAST_SECONDS = 5.0
"""A model is not begun with less time."""
GRACE = 15.0
"""Seconds that a model's process may take beyond its time before it is stopped."""
INTERRUPTED = 130


def check(options: argparse.Namespace) -> None:
    """Raises BadInput for models, policies or steps that are not there, or a device that this machine has not."""
    from neustream.catalog.images import model_spec
    from neustream.catalog.machine import device_slug
    from neustream.cli.arguments import step_range
    from neustream.policies import POLICIES as KNOWN

    try:
        for model in options.models:
            model_spec(model)
        device_slug(options.device)
        if options.steps is not None:
            step_range(options.steps)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise BadInput(str(error)) from error
    known = [name for name, entry in KNOWN.items() if entry.loop]
    for policy in options.policies:
        if policy not in known:
            raise BadInput(f"unknown policy {policy!r}; there are {', '.join(known)}")


def check_folder(options: argparse.Namespace) -> None:
    """Raises BadInput for a folder that holds other things, or a campaign of other settings."""
    path = options.out / "settings.json"
    try:
        if path.exists():
            before = json.loads(path.read_text())
            if any(before.get(name) != value for name, value in settings_of(options).items()):
                raise BadInput(f"{options.out} holds a campaign of other settings, {before}; name another OUT")
        elif options.out.exists() and any(entry.name != "packages" for entry in options.out.iterdir()):
            raise BadInput(f"{options.out} is not empty and holds no campaign; name another OUT")
        else:
            options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, json.JSONDecodeError) as error:
        raise BadInput(f"cannot use the folder {options.out}: {error}") from error


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a campaign keeps from its first call to its last."""
    return {name: getattr(options, name) for name in ("device", "quick", "requests", "steps")}


def claim(options: argparse.Namespace) -> None:
    """Keep the settings, and on which device, for later calls. Raises BadInput for a campaign of another device."""
    from neustream.catalog.machine import device_slug

    path, slug = options.out / "settings.json", device_slug(options.device)
    before = json.loads(path.read_text())["machine"] if path.exists() else slug
    if before != slug:
        raise BadInput(f"{options.out} holds a campaign on {before}, and this is {slug}; name another OUT")
    path.write_text(json.dumps({**settings_of(options), "machine": slug}) + "\n")


def run_model(model: str, options: argparse.Namespace, seconds: float) -> int:
    """Measure one model in a process of its own for up to `seconds`; returns its exit code."""
    command = [sys.executable, str(HERE / "gpu_model.py"), str(options.out), "--model", model]
    command += ["--device", options.device, "--policies", ",".join(options.policies)]
    command += ["--quick"] if options.quick else []
    command += ["--until", str(time.time() + seconds)] if math.isfinite(seconds) else []
    command += ["--requests", str(options.requests)] if options.requests else []
    command += ["--steps", options.steps] if options.steps else []
    process = subprocess.Popen(command, env=environment_of(options.out))
    try:
        return process.wait(seconds + GRACE if math.isfinite(seconds) else None)
    except subprocess.TimeoutExpired:
        print(f"gpu.sh: {model} is stopped: its time is over", file=sys.stderr)
        return stop(process)
    except KeyboardInterrupt:  # the terminal has told the model's process too
        stop(process, signal.SIGINT)
        raise
    except SystemExit:
        stop(process)
        raise


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Let a process finish its step and write what there is; kill it where that takes too long."""
    try:
        if number != signal.SIGINT:
            process.send_signal(number)
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def environment_of(out: Path) -> dict[str, str]:
    """What the campaign's processes run in: they import this checkout, and the wheels that are installed in `out`."""
    path = [str(out / "packages"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": str(out / ".matplotlib"),
    }  # fmt: skip


def draw(out: Path) -> str:
    """Draw the figures of the runs, if that can be done here; returns a line that says what came of it."""
    if not any(out.glob("runs/*/summary.json")):
        return "no figures: no setting has ended"
    if find_spec("matplotlib") is None:
        return "no figures: matplotlib is not installed"
    command = [sys.executable, str(HERE / "gpu_figures.py"), str(out)]
    done = subprocess.run(command, env=environment_of(out), capture_output=True, text=True)
    if done.returncode:
        return f"no figures: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return f"figures are in {out / 'figures'}"


def campaign(options: argparse.Namespace) -> int:
    """Measure what is missing, write `gpu.json` after each model; returns the exit code."""
    from gpu_report import missing_parts, print_report, write_report

    minutes = options.minutes or (QUICK_MINUTES if options.quick else math.inf)
    until = time.monotonic() + 60 * minutes
    todo = [model for model in options.models if missing_parts(options.out, model, options)]
    for index, model in enumerate(todo):
        seconds = (until - time.monotonic()) / (len(todo) - index)
        if seconds < LEAST_SECONDS:
            break
        try:
            run_model(model, options, seconds)
        finally:
            write_report(options.out, options)
    report = write_report(options.out, options)
    print_report(report)
    print(draw(options.out))
    left = {model: parts for model in options.models if (parts := missing_parts(options.out, model, options))}
    for model, parts in left.items():
        print(f"gpu.sh: {model} lacks {', '.join(parts)}; the same command goes on", file=sys.stderr)
    print(
        f"everything is in {options.out / 'gpu.json'}" if not left else f"what there is, is in {options.out}/gpu.json"
    )
    return int(bool(left))


def main() -> int:
    """The command; returns its exit code."""
    command = parser()
    options = command.parse_args()
    sys.path.insert(0, str(ROOT))
    try:
        if options.collect_wheels is not None:
            print(collect(options.collect_wheels))
            return 0
        if options.out is None:
            raise BadInput("give the campaign's folder: bash bench/gpu.sh OUT")
        options.out = options.out.resolve()
        has_numpy = find_spec("numpy") is not None  # else it comes with the wheels, and the core needs it
        if has_numpy:
            check(options)
        check_folder(options)
        if options.wheels is not None:
            install(options.wheels, options.out / "packages")
        check_modules(options.out / "packages")
        if not has_numpy:
            check(options)
        claim(options)
    except (BadInput, WheelsError) as error:
        command.error(str(error))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return campaign(options)
    except KeyboardInterrupt:
        print("\ngpu.sh: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
