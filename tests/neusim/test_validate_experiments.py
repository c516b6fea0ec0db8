"""`neustream validate` starts the experiments that packages bring, and knows none of them itself."""

from __future__ import annotations

import argparse
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from exp.diffusion import config as diffusion
from exp.llm import config as llm
from neusim import validate
from neusim.validating import experiments
from neusim.validating.experiments import GROUP, ShortExperiment, find_experiments, run_experiments

ROOT = Path(__file__).resolve().parents[2]
BROUGHT: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
LLM = ShortExperiment("my.llm", "tiny", ("fcfs", "slack"), "llm", ("--requests", "3"))
IMAGES = ShortExperiment("my.images", "spot", ("clockwork",), "loop", ())


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Makes these the installed entries, in a folder that is no checkout."""

    def install(**values: str) -> None:
        monkeypatch.setattr(experiments, "ROOT", tmp_path)
        entries = [EntryPoint(name, value, GROUP) for name, value in values.items()]
        monkeypatch.setattr(experiments, "entry_points", lambda group: entries if group == GROUP else [])

    return install


@pytest.fixture
def ran(monkeypatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(experiments, "run_program", lambda what, command: commands.append(list(command)))
    return commands


def test_the_experiments_of_this_checkout_are_found_and_their_flags_are_known(install):
    install(**BROUGHT)
    found = find_experiments()
    assert list(found) == ["diffusion", "llm"]
    for kind, config in (("llm", llm), ("diffusion", diffusion)):
        experiment = found[kind]
        assert experiment.policies
        assert all(experiment.can_run(policy) for policy in experiment.policies)
        program, *flags = experiment.command("neustream", Path("t.json"), Path("out"))
        assert program == f"exp.{kind}"
        command = argparse.ArgumentParser()
        config.add_arguments(command)
        options = command.parse_args(flags)
        assert (options.model, options.policy) == (experiment.model, "neustream")


def test_an_installation_that_is_older_than_its_checkout_has_the_checkouts_experiments(monkeypatch):
    monkeypatch.setattr(experiments, "entry_points", lambda group: [])
    assert list(find_experiments()) == sorted(BROUGHT)


def test_each_kind_is_measured_once_and_runs_the_policies_that_it_can(ran, tmp_path):
    folders = list(run_experiments({"llm": LLM, "images": IMAGES}, ("slack", "clockwork"), tmp_path))
    assert folders == [tmp_path / name for name in ("llm-slack", "images-slack", "images-clockwork")]
    table = str(tmp_path / "tiny.json")
    assert ran[:2] == [
        ["neusim.profile", "--model", "tiny", "--out", table],
        ["my.llm", "--model", "tiny", "--policy", "slack", "--table", table, "--out", str(tmp_path / "llm-slack"),
         "--requests", "3"],
    ]  # fmt: skip
    assert [command[0] for command in ran[2:]] == ["neusim.profile", "my.images", "my.images"]


def test_what_cannot_run_any_policy_is_not_measured_either(ran, tmp_path):
    assert list(run_experiments({"llm": LLM}, ("clockwork",), tmp_path)) == []
    assert ran == []


@pytest.mark.parametrize(
    ("installed", "arguments", "message"),
    [
        ({}, [], "no experiments are installed; `bash install.sh` installs them"),
        (BROUGHT, ["--kind", "video"], "argument --kind: no kind 'video'; there are diffusion, llm"),
        ({"old": "exp.gone:SHORT"}, [], "experiment old cannot be loaded: No module named 'exp.gone'"),
        ({"odd": "os:sep"}, [], "experiment odd: os:sep must be a ShortExperiment, is '/'"),
    ],
)
def test_what_cannot_be_started_is_one_line(install, ran, capsys, installed, arguments, message):
    install(**installed)
    with pytest.raises(SystemExit) as ended:
        validate.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert ran == []


def test_a_program_that_fails_is_named():
    with pytest.raises(ValueError, match=r"exit code 1 of python -m neusim\.no_such_program"):
        experiments.run_program("nothing", ["neusim.no_such_program"])
