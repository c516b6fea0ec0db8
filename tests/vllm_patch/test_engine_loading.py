"""What is checked before an engine is loaded, and that Ctrl-C leaves its workers to finish their step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_patch import engine
from vllm_patch.engine import EngineUnavailable, check_device, load_engine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("version", "built"), [("0.5.4+cpu", "cpu"), ("0.5.4", "cuda")])
def test_an_engine_of_the_other_device_is_refused_in_a_line(
    version: str, built: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "version", lambda name: version)
    check_device(built)
    other = {"cpu": "cuda", "cuda": "cpu"}[built]
    with pytest.raises(EngineUnavailable, match=f"built for {built}, asked for is device {other}") as caught:
        load_engine(tmp_path, device=other)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unpatched_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="is not patched"):
        load_engine(tmp_path, device=engine.built_for())

    def missing(name: str) -> str:
        raise engine.PackageNotFoundError(name)

    monkeypatch.setattr(engine, "version", missing)
    with pytest.raises(EngineUnavailable, match="is not installed"):
        check_device("cpu")


@pytest.mark.parametrize("program", ["exp.llm", "neusim.profile"])
def test_commands_refuse_the_other_device_before_anything_is_loaded(program: str, tmp_path: Path) -> None:
    """A driver that lists a GPU, and a vLLM for the CPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\ncase $* in *memory*) echo 80000 MiB;; *) echo NVIDIA A100;; esac\n")
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", program, "--model", "opt-125m", "--device", "cuda", "--quick"]
    command += ["--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert "this vLLM was built for cpu, asked for is device cuda" in result.stderr
    assert result.stderr.count("\n") == 1


RUN = """
import multiprocessing, os, signal, sys
from contextlib import nullcontext, suppress
from vllm_patch.engine import sigint_kept_from_children


def work(pipe):
    # As vLLM's worker: SIGINT ends its loop.
    try:
        pipe.send("ready")
        while True:
            pipe.send(2 * pipe.recv())
    except KeyboardInterrupt:
        pipe.send("gone")


if __name__ == "__main__":
    method, kept = sys.argv[1:]
    interrupted = []
    context = multiprocessing.get_context(method)
    with sigint_kept_from_children() if kept == "kept" else nullcontext():
        workers = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs,), daemon=True)
            context.Semaphore()  # vLLM's queues hold some, which the resource tracker minds
            worker.start()
            workers.append((worker, ours))
        assert [pipe.recv() for _, pipe in workers] == ["ready", "ready"]
        signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted == [signal.SIGINT]
    for worker, pipe in workers:
        os.kill(worker.pid, signal.SIGINT)
        with suppress(BrokenPipeError):
            pipe.send(7)
        print(pipe.recv())
        worker.terminate()
        worker.join(20)
        assert not worker.is_alive()
    print(len(interrupted))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(("kept", "answer"), [("kept", "14"), ("not kept", "gone")])
def test_ctrl_c_does_not_reach_workers_that_were_started_so(
    method: str, kept: str, answer: str, tmp_path: Path
) -> None:
    """Worker processes answer after SIGINT, and still end by SIGTERM; the parent hears of its own SIGINT."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script), method, kept], capture_output=True, text=True, env=environment, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [answer, answer, "1"]
