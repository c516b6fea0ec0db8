"""What the pages say can be typed: every command is accepted as it stands, quick forms run, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neusim.sim import LlmWorkload, default_device, simulate
from neustream import Limits, ScaleSlo, StepPlan, Streams
from neustream.policies.base import num_fitting
from neustream.tables import LatencyTable, find_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "patches" / "README.md"])
SCRIPTS = {
    "exp/neurun.sh": ("exp.llm", "--policy neustream"),
    "exp/vllmrun.sh": ("exp.llm", "--policy vllm"),
    "exp/diffusion/run_neustream.sh": ("exp.diffusion", "--policy neustream"),
    "exp/diffusion/run_clockwork.sh": ("exp.diffusion", "--policy clockwork"),
    "exp/figures.sh": ("exp.figures", ""),
}
"""Shell scripts that hand their arguments to a program."""
SHELL_ONLY = ("install.sh", "tests/run.sh", "bench/gpu.sh")
"""Shell scripts that read their flags themselves; their own tests hold them to their pages."""
QUICK = {
    "neusim.simulate": "--requests 12 --no-bound --processes 1",
    "neusim.estimate": "--out {tmp}",
}
"""Programs that are run, with what makes them quick."""


def commands() -> list[tuple[str, str]]:
    """`(page, command)` of every line in a code block that starts a program of this repository."""
    found = []
    for page in PAGES:
        is_fenced = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                is_fenced = not is_fenced
            if not (is_fenced or line.startswith("    ")):
                continue
            text = re.sub(r"\s{2,}#.*", "", line.strip()).removesuffix("\\").strip()
            if re.match(r"(bash|python|neustream|\.venv/bin/(python|neustream))\s", text):
                found.append((page.name, text))
    return found


def program(command: str) -> tuple[str, list[str]]:
    """`(dotted module or script, arguments)` of a documented command."""
    name, *rest = shlex.split(command)
    if name == "bash":
        script, *arguments = rest
        module, flags = SCRIPTS.get(script, (script, ""))
        return module, [*flags.split(), *arguments]
    if name.endswith("neustream"):
        command_name, *arguments = rest
        groups = re.findall(rf'^{command_name} = "([\w.]+):main"', (ROOT / "pyproject.toml").read_text(), re.M)
        return groups[0].removesuffix(".__main__"), arguments
    if rest[0] == "-m":
        return rest[1], rest[2:]
    return rest[0].removesuffix(".py").replace("/", "."), rest[1:]


class Accepted(Exception):
    """A command line was parsed without an objection."""


def entry(module: str):
    """The function that runs a program."""
    path = ROOT / Path(*module.split("."))
    if path.is_dir():
        return importlib.import_module(f"{module}.__main__").main
    if module.startswith("bench."):
        spec = importlib.util.spec_from_file_location(module, path.with_suffix(".py"))
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded  # where its dataclasses look for it
        spec.loader.exec_module(loaded)
        return loaded.main
    return importlib.import_module(module).main


def test_pages_name_commands():
    assert len(commands()) > 25
    assert {name for name, _ in commands()} >= {"README.md", "simulator.md", "experiments.md", "diffusion.md"}


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_of_the_pages_is_accepted(page, command, monkeypatch, capsys):
    module, arguments = program(command)
    if module in SHELL_ONLY:
        assert (ROOT / module).exists()
        return
    parse = argparse.ArgumentParser.parse_args

    def accept(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Accepted):
        entry(module)()


@pytest.mark.parametrize(
    ("page", "command"), [(page, command) for page, command in commands() if program(command)[0] in QUICK]
)
def test_quick_forms_of_the_pages_commands_run(page, command, tmp_path):
    module, arguments = program(command)
    if "--tables" in arguments:
        pytest.skip("needs tables that are not part of the repository")
    arguments = [argument if argument != "DIR" else str(tmp_path) for argument in arguments]
    quick = QUICK[module].format(tmp=tmp_path).split()
    command_line = [sys.executable, "-m", module, *arguments, *quick]
    result = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_every_script_that_starts_a_program_is_run_by_the_pages_under_its_own_name():
    for script, (module, flags) in SCRIPTS.items():
        text = (ROOT / script).read_text()
        assert f"-m {module}" in text
        assert flags in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_policy_of_the_readme_serves():
    """The example under "Write a policy" is taken as it stands and runs in the simulator."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (example,) = [block for block in blocks if "class ShortestFirst" in block]
    scope = {"LatencyTable": LatencyTable, "Streams": Streams, "Limits": Limits, "StepPlan": StepPlan}
    scope["num_fitting"] = num_fitting
    exec(example, scope)  # the page's own code
    table = find_table(ROOT / "neusim" / "tables", "a6000", "opt-13b")
    workload = LlmWorkload(0.5, 1.0, ScaleSlo(3.0, 1.5), max_tokens=20, num_requests=20)
    result = simulate(table, lambda: scope["ShortestFirst"](table), workload, default_device(table))
    assert result.summary["requests"] == 20
    assert result.good > 0
