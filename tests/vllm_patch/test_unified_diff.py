"""The patch reader: exact application in both directions, and refusal of everything it does not do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_patch.unified_diff import PatchError, apply_file_patch, parse_patch

OLD = "".join(f"line {n}\n" for n in range(1, 31))
NEW = OLD.replace("line 3\n", "line three\nand more\n").replace("line 20\nline 21\n", "")

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\x0cd\n", "\n", "-x\n", "+y\n", "@@ z\n"]), max_size=12).map("".join)


def git_diff(folder: Path, old: str | None, new: str) -> str:
    """What git says of the change from `old` to `new` in file `f.py`."""
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    if old is not None:
        (folder / "f.py").write_bytes(old.encode())
        subprocess.run([*git, "add", "f.py"], check=True)
    (folder / "f.py").write_bytes(new.encode())
    subprocess.run([*git, "add", "-N", "f.py"], check=True)
    return subprocess.run([*git, "diff", "--no-color"], check=True, capture_output=True).stdout.decode()


def test_applies_what_git_diffed_and_takes_it_back(tmp_path: Path) -> None:
    (patch,) = parse_patch("A description.\n---\n" + git_diff(tmp_path, OLD, NEW))
    assert patch.path == "f.py"
    assert len(patch.hunks) == 2
    assert apply_file_patch(patch, OLD) == NEW
    assert apply_file_patch(patch, NEW, reverse=True) == OLD


def test_creates_a_file_and_removes_it_again(tmp_path: Path) -> None:
    (patch,) = parse_patch(git_diff(tmp_path, None, NEW))
    assert patch.creates
    assert apply_file_patch(patch, None) == NEW
    assert apply_file_patch(patch, NEW, reverse=True) is None


@settings(max_examples=25, deadline=None)
@given(old=LINES, new=LINES)
def test_agrees_with_git_on_any_change(tmp_path_factory: pytest.TempPathFactory, old: str, new: str) -> None:
    if not old or not new or old == new:
        return
    (patch,) = parse_patch(git_diff(tmp_path_factory.mktemp("git"), old, new))
    assert apply_file_patch(patch, old) == new
    assert apply_file_patch(patch, new, reverse=True) == old


@pytest.mark.parametrize("text", [OLD.replace("line 4\n", "line 4!\n"), "line 0\n" + OLD, OLD[: len(OLD) // 2]])
def test_refuses_text_that_is_not_what_it_expects(tmp_path: Path, text: str) -> None:
    (patch,) = parse_patch(git_diff(tmp_path, OLD, NEW))
    with pytest.raises(PatchError, match=r"f\.py: does not fit at line"):
        apply_file_patch(patch, text)


def test_refuses_to_create_over_another_file_or_to_patch_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (created,) = parse_patch(git_diff(tmp_path / "1", None, NEW))
    (edited,) = parse_patch(git_diff(tmp_path / "2", OLD, NEW))
    with pytest.raises(PatchError, match="exists already"):
        apply_file_patch(created, OLD)
    with pytest.raises(PatchError, match="no such file"):
        apply_file_patch(edited, None)


def test_refuses_patches_of_kinds_it_does_not_know(tmp_path: Path) -> None:
    good = git_diff(tmp_path, OLD, NEW)
    with pytest.raises(PatchError, match="no 'diff --git' line"):
        parse_patch("just words\n")
    with pytest.raises(PatchError, match="rename"):
        parse_patch(good.replace("index ", "rename from f.py\nindex ", 1))
    with pytest.raises(PatchError, match="cut short"):
        parse_patch(good[: len(good) - 40])
