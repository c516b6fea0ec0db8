"""Bad input is refused with one line and exit code 2, before any model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from fake_vllm import TABLE

from exp.harness.options import num_requests
from exp.harness.program import make_parser
from exp.harness.settings import default_rates
from exp.llm.__main__ import CPU_SECONDS, KIND, LEAST_REQUESTS, header
from exp.llm.config import LlmOptions, pace_scale, sweep_axes
from neustream.tables import save_table, table_to_json

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good table, a damaged one, one of another model, and a file where a folder should be."""
    folder = tmp_path_factory.mktemp("input")
    save_table(TABLE, folder / "good.json")
    data = table_to_json(TABLE)
    (folder / "damaged.json").write_text(json.dumps(data)[:100])
    (folder / "other.json").write_text(json.dumps(data | {"model": "opt-13b"}))
    (folder / "image.json").write_text(
        json.dumps(data | {"modules": {"denoise": {"kind": "batch", "batch": [1], "seconds": [0.1]}}})
    )
    (folder / "run").mkdir()
    (folder / "run" / "kept").touch()
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model gpt-5", "unknown model 'gpt-5'; there are opt-125m"),
        ("--model llava-nano", "llava-nano reads pictures"),
        ("--policy best", "unknown policy 'best'; there are vllm, "),
        ("--policy clockwork", "unknown policy 'clockwork'"),
        ("--policy chunked", "splits prompts over several steps, which vLLM 0.5.4 cannot do; fcfs, "),
        ("--rate 0", "--rate: must be above 0, got 0"),
        ("--rate 1,-2", "--rate: must be above 0, got -2"),
        ("--rate nan", "--rate: must be above 0, got nan"),
        ("--cv 0", "--cv: must be between 1e-06 and 1e+06, got 0"),
        ("--pslo 0.9", "--pslo: must be at least 1, got 0.9"),
        ("--dslo 0.5", "--dslo: must be at least 1, got 0.5"),
        ("--requests 0", "--requests: must be at least 1, got 0"),
        ("--mean-output 5", "--mean-output needs --lengths lognormal"),
        ("--max-tokens 0", "--max-tokens: must be at least 1, got 0"),
        ("--max-tokens 1700", "--max-tokens may be at most 1648"),
        ("--goodput ttft:0", "--goodput takes ttft:MS"),
        ("--goodput ttft:100 --dslo 2", "give it or --pslo and --dslo, not both"),
        ("--tp 5", "--tp must divide the 12 heads of opt-125m, got 5"),
        ("--device cpu --tp 2", "--tp must be 1 on this CPU, got 2"),
        ("--device tpu", "unknown device 'tpu'; there are cpu, cuda"),
        ("--dataset FILES/none.json", "none.json: cannot be read (No such file or directory)"),
        ("--table FILES/none.json", "none.json: cannot be read"),
        ("--table FILES/damaged.json", "damaged.json: is not JSON"),
        ("--table FILES/other.json", "other.json: model is 'opt-13b', expected 'opt-125m'"),
        ("--table FILES/image.json", "has modules denoise; opt-125m needs prefill, decode"),
        ("--table FILES/good.json --dtype bfloat16", "dtype is float32, but --dtype is bfloat16"),
        ("--table FILES/good.json --out FILES/good.json/run", "cannot write the output folder"),
        ("--table FILES/good.json --out FILES/run", "exists and is not empty"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_is_refused_in_one_line(flags: str, message: str, files: Path) -> None:
    result = python("-m", "exp.llm", *flags.replace("FILES", str(files)).split())
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("exp.llm: ")
    assert message in line
    assert result.stdout == ""


@pytest.mark.parametrize("kind", ["llm", "diffusion"])
def test_checking_imports_no_framework_and_nothing_that_serving_does_not_need(kind: str) -> None:
    heavy = "{'torch', 'vllm', 'transformers', 'diffusers', 'pandas', 'pydantic', 'matplotlib'}"
    result = python("-c", f"import sys, exp.{kind}.__main__; sys.exit(bool({heavy} & set(sys.modules)))")
    assert result.returncode == 0, result.stderr


def test_scripts_pass_their_flags_on_and_name_their_policy() -> None:
    for script, policy in (("neurun.sh", "neustream"), ("vllmrun.sh", "vllm")):
        text = (ROOT / "exp" / script).read_text()
        assert f'-m exp.llm --policy {policy} "$@"' in text
        assert subprocess.run(["bash", "-n", ROOT / "exp" / script]).returncode == 0


def options(*flags: str) -> LlmOptions:
    return KIND.options(make_parser(KIND).parse_args(["--device", "cpu", *flags]))


def test_an_absolute_slo_replaces_the_scales() -> None:
    slo = {"ttft_ms": 200, "tpot_ms": 50}
    given = options("--goodput", "ttft:200", "tpot:50")
    assert given.absolute_slo == slo
    assert header(given)["slo"] == {"kind": "absolute", **slo}
    assert sweep_axes(given, (1.0,)) == {"rate": (1.0,), "cv": (1.0,)}
    assert header(options())["slo"] == {"kind": "scale"}
    assert pace_scale(TABLE, slo, 1.5, context=100) == pytest.approx(2.5)
    assert pace_scale(TABLE, {"ttft_ms": 200.0}, 1.5, context=100) == 1.5
    assert pace_scale(TABLE, None, 2.0, context=100) == 2.0


def test_log_normal_lengths_are_half_the_maximum_in_the_mean_unless_told() -> None:
    given = options("--lengths", "lognormal", "--max-tokens", "60")
    assert (given.max_tokens, given.mean_output, given.tokens) == (60, 30.0, 30)
    assert {key: header(given)[key] for key in ("max_tokens", "lengths", "mean_output")} == {
        "max_tokens": 60,
        "lengths": "lognormal",
        "mean_output": 30.0,
    }
    told = options("--lengths", "lognormal", "--max-tokens", "60", "--mean-output", "90")
    assert (told.mean_output, told.tokens) == (90.0, 60)
    assert (options().mean_output, options().tokens) == (None, options().max_tokens)
    assert "lengths" not in header(options())


def test_the_number_of_requests_follows_from_the_capacity_on_a_cpu() -> None:
    common = options().common
    capacities = (0.01, 1.0, 2.0, 1000.0)
    assert [num_requests(common, default_rates(capacity), CPU_SECONDS, LEAST_REQUESTS) for capacity in capacities] == [
        30,
        44,
        88,
        500,
    ]
    assert num_requests(options("--quick").common, (1.0,), CPU_SECONDS, LEAST_REQUESTS) == 20
    assert num_requests(options("--requests", "7").common, (1.0,), CPU_SECONDS, LEAST_REQUESTS) == 7


def test_options_are_frozen_and_hold_what_the_command_line_says() -> None:
    given = options("--rate", "1,2", "--tp", "1", "--max-tokens", "9", "--seed", "3")
    assert (given.common.rate, given.max_tokens, given.common.seed, given.pslo) == ((1.0, 2.0), 9, 3, (3.0,))
    with pytest.raises(FrozenInstanceError):
        given.common.seed = 4  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        given.max_tokens = 4  # type: ignore[misc]
