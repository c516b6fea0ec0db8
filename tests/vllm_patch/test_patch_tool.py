"""`python -m vllm_patch` on an unpacked tree: all or nothing, idempotent, reversible, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vllm_patch.__main__ as tool
from vllm_patch import patchset
from vllm_patch.patchset import PATCHES, PatchSet, load_patch_set, make_manifest, sha256
from vllm_patch.target import FileState, Target

ROOT = PATCHES.parent


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of every file under a folder."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run(command: str, folder: Path) -> int:
    return tool.main([command, "--target", str(folder)])


def states(folder: Path, patch_set: PatchSet) -> set[FileState]:
    return set(Target(folder / "vllm").states(patch_set).values())


def test_apply_patches_every_file_and_revert_gives_the_same_bytes_back(tree: Path, patch_set: PatchSet) -> None:
    before = snapshot(tree)
    assert run("apply", tree) == 0
    assert states(tree, patch_set) == {FileState.AFTER}
    for path, expected in patch_set.files.items():
        assert sha256((tree / path).read_bytes()) == expected.after
    assert run("verify", tree) == 0
    assert run("revert", tree) == 0
    assert snapshot(tree) == before


def test_git_makes_the_same_files_of_the_patches(tree: Path, tmp_path: Path) -> None:
    by_git = tmp_path / "by_git"
    shutil.copytree(tree, by_git)
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for name in (PATCHES / "series").read_text().split():
        subprocess.run(["git", "apply", str(PATCHES / name)], cwd=by_git, check=True, env=environment)
    assert run("apply", tree) == 0
    shutil.rmtree(tree / "vllm" / ".vllm_patch")
    assert snapshot(tree) == snapshot(by_git)


def test_apply_and_revert_do_nothing_a_second_time(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("revert", tree) == 0
    assert "not patched already" in capsys.readouterr().out
    assert run("apply", tree) == 0
    first = snapshot(tree)
    times = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert run("apply", tree) == 0
    assert "patched already" in capsys.readouterr().out
    assert snapshot(tree) == first
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == times


def test_works_inside_a_git_repository_and_leaves_it_alone(tree: Path, patch_set: PatchSet) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tree.parent, check=True)
    assert run("apply", tree) == 0
    assert states(tree, patch_set) == {FileState.AFTER}


def test_target_may_be_the_package_folder_itself(tree: Path, patch_set: PatchSet) -> None:
    assert run("apply", tree / "vllm") == 0
    assert states(tree, patch_set) == {FileState.AFTER}


def test_status_and_verify_tell_what_is(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", tree) == 1
    assert "not patched (14 files, 4 patches)" in capsys.readouterr().out
    assert run("verify", tree) == 1
    assert "0 of 14 files as patched" in capsys.readouterr().out
    run("apply", tree)
    capsys.readouterr()
    assert run("status", tree) == 0
    assert run("verify", tree) == 0
    (tree / "vllm/outputs.py").write_text("# mine\n")
    capsys.readouterr()
    assert run("status", tree) == 1
    assert "vllm/outputs.py: changed" in capsys.readouterr().out
    assert run("verify", tree) == 1
    assert "outputs.py: changed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("path", ["vllm/sequence.py", "vllm/core/step_policy.py"])
def test_refuses_a_tree_that_somebody_changed_and_names_the_file(
    tree: Path, command: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tree / path
    place.write_bytes((place.read_bytes() if place.exists() else b"") + b"# mine\n")
    before = snapshot(tree)
    assert run(command, tree) == 2
    assert str(place) in capsys.readouterr().err
    assert snapshot(tree) == before


@pytest.mark.parametrize("text", ['__version__ = "0.5.5"\n', "", "__version__ = '0.5.4.post1'\n"])
def test_refuses_another_version(tree: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "vllm/version.py").write_text(text)
    before = snapshot(tree)
    assert run("apply", tree) == 2
    assert "the patches are for 0.5.4" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_refuses_a_folder_without_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("apply", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_half_way_puts_everything_back(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(tree)
    moved = []
    move = os.replace

    def fail_at_the_sixth(source: object, place: object) -> None:
        moved.append(place)
        if len(moved) == 6:
            raise PermissionError(13, "Permission denied", str(place))
        move(source, place)  # type: ignore[arg-type]

    monkeypatch.setattr("vllm_patch.target.os.replace", fail_at_the_sixth)
    assert run("apply", tree) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Permission denied" in error
    shutil.rmtree(tree / "vllm/.vllm_patch")
    assert snapshot(tree) == before


def test_a_tree_that_cannot_be_written_is_one_line_and_stays_as_it_is(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(tree)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(tree))

    monkeypatch.setattr("vllm_patch.target.tempfile.mkstemp", refuse)
    monkeypatch.setattr("vllm_patch.target.tempfile.mkdtemp", refuse)
    assert run("apply", tree) == 1
    assert capsys.readouterr().err == f"vllm_patch: cannot write {tree}: Read-only file system\n"
    assert snapshot(tree) == before


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from vllm_patch import __main__ as tool
move, moved = os.replace, []
def kill_at_the_sixth(source, place):
    moved.append(place)
    if len(moved) == 6:
        os.kill(os.getpid(), 9)
    move(source, place)
os.replace = kill_at_the_sixth
tool.main([{command!r}, "--target", {tree!r}])
"""


@pytest.mark.parametrize("killed", ["apply", "revert"])
@pytest.mark.parametrize("then", ["apply", "revert"])
def test_a_run_that_was_killed_is_finished_by_the_next(tree: Path, patch_set: PatchSet, killed: str, then: str) -> None:
    original = snapshot(tree)
    if killed == "revert":
        assert run("apply", tree) == 0
    script = KILLED.format(root=str(ROOT), command=killed, tree=str(tree))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert states(tree, patch_set) == {FileState.BEFORE, FileState.AFTER}
    assert run("status", tree) == 1
    assert run(then, tree) == 0
    assert states(tree, patch_set) == {FileState.AFTER if then == "apply" else FileState.BEFORE}
    assert not list(tree.rglob("*.tmp"))
    if then == "revert":
        assert snapshot(tree) == original


def older_set(folder: Path, tree: Path) -> Path:
    """A patch set that lacks the last patch and has another line in the first."""
    shutil.copytree(PATCHES, folder)
    names = (folder / "series").read_text().split()
    (folder / "series").write_text("\n".join(names[:-1]))
    first = folder / names[0]
    first.write_text(first.read_text().replace("+    # Imported at first use:", "+    # Imported late:"))
    manifest = make_manifest(folder, Target(tree / "vllm").read)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("then", ["apply", "revert"])
def test_a_newer_patch_set_replaces_an_older_one_or_takes_it_back(
    tree: Path, tmp_path: Path, patch_set: PatchSet, then: str
) -> None:
    original = snapshot(tree)
    older = older_set(tmp_path / "older", tree)
    assert run_with(older, "apply", tree) == 0
    assert FileState.OUTDATED in states(tree, patch_set)
    assert run("status", tree) == 1
    assert run(then, tree) == 0
    if then == "revert":
        assert snapshot(tree) == original
    else:
        assert states(tree, patch_set) == {FileState.AFTER}


def variant(folder: Path, tree: Path, word: str) -> Path:
    """A patch set that differs from the real one in a word of the first patch."""
    shutil.copytree(PATCHES, folder)
    first = folder / (folder / "series").read_text().split()[0]
    first.write_text(first.read_text().replace("+    # Imported at first use:", f"+    # Imported {word}:"))
    manifest = make_manifest(folder, Target(tree / "vllm").read)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run_with(sets: Path, command: str, folder: Path) -> int:
    """Run a command with another patch set than the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "PATCHES", sets)
        patch.setattr(tool, "load_patch_set", lambda: load_patch_set(sets))
        return run(command, folder)


KILLED_UPGRADE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from vllm_patch import __main__ as tool, target, record
tool.PATCHES = Path({sets!r})
tool.load_patch_set = lambda: tool_load(tool.PATCHES)
from vllm_patch.patchset import load_patch_set as tool_load
def kill(*arguments):
    os.kill(os.getpid(), 9)
replace = target.Target.replace
if {when!r} == "before any file":
    target.Target.replace = kill
elif {when!r} == "between two files":
    move, moved = os.replace, []
    def move_or_kill(source, place):
        moved.append(place)
        if len(moved) == 2:
            kill()
        move(source, place)
    os.replace = move_or_kill
elif {when!r} == "after the last file":
    record.Record.forget_others = kill
else:
    rmtree = record.shutil.rmtree
    record.shutil.rmtree = lambda place, **options: (rmtree(place, **options), kill())
tool.main(["apply", "--target", {tree!r}])
"""


@pytest.mark.parametrize("when", ["before any file", "between two files", "after the last file", "among the records"])
@pytest.mark.parametrize("then", ["newest", "middle", "revert"])
def test_an_upgrade_that_was_killed_leaves_what_any_later_one_needs(
    tree: Path, tmp_path: Path, patch_set: PatchSet, when: str, then: str
) -> None:
    original = snapshot(tree)
    oldest = older_set(tmp_path / "oldest", tree)
    middle = variant(tmp_path / "middle", tree, "not yet")
    assert run_with(oldest, "apply", tree) == 0
    script = KILLED_UPGRADE.format(root=str(ROOT), sets=str(middle), tree=str(tree), when=when)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    if then == "revert":
        assert run("revert", tree) == 0
        assert snapshot(tree) == original
        return
    if then == "middle":
        assert run_with(middle, "apply", tree) == 0
        assert states(tree, load_patch_set(middle)) == {FileState.AFTER}
    assert run("apply", tree) == 0
    assert states(tree, patch_set) == {FileState.AFTER}
    assert Target(tree / "vllm").record.sets() == [patch_set]
    assert run("revert", tree) == 0
    assert snapshot(tree) == original


def test_a_record_of_an_earlier_version_of_the_tool_is_understood(
    tree: Path, tmp_path: Path, patch_set: PatchSet
) -> None:
    older = older_set(tmp_path / "older", tree)
    assert run_with(older, "apply", tree) == 0
    record = tree / "vllm/.vllm_patch"
    shutil.rmtree(record)
    shutil.copytree(older, record)
    record.chmod(0o700)
    assert FileState.OUTDATED in states(tree, patch_set)
    assert run("apply", tree) == 0
    assert states(tree, patch_set) == {FileState.AFTER}
    assert Target(tree / "vllm").record.sets() == [patch_set]
    assert [entry.is_dir() for entry in record.iterdir()] == [True]
    assert record.stat().st_mode == (tree / "vllm").stat().st_mode


def test_everybody_may_read_the_record(tree: Path) -> None:
    (tree / "vllm").chmod(0o755)
    before = os.umask(0o077)
    try:
        assert run("apply", tree) == 0
    finally:
        os.umask(before)
    for path in (tree / "vllm/.vllm_patch", *(tree / "vllm/.vllm_patch").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_file_that_reads_otherwise_than_written_is_told(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    move = os.replace

    def lose_one(source: Path, place: Path) -> None:
        if place.name != "outputs.py":
            move(source, place)

    monkeypatch.setattr("vllm_patch.target.os.replace", lose_one)
    assert run("apply", tree) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vllm_patch: did not come out as patched, run it again: {tree / 'vllm/outputs.py'}\n"
    monkeypatch.undo()
    assert run("apply", tree) == 0


SLOW = """
import os, sys, time
sys.path.insert(0, {root!r})
from vllm_patch import __main__ as tool
move, moved = os.replace, []
def wait_at_the_sixth(source, place):
    moved.append(place)
    if len(moved) == 6:
        print("half way", flush=True)
        sys.stdin.readline()
    move(source, place)
os.replace = wait_at_the_sixth
sys.exit(tool.main(["apply", "--target", {tree!r}]))
"""


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("apply", "patched already"),
        ("revert", "not patched now"),
        ("status", ": patched ("),
        ("verify", "14 of 14"),
    ],
)
def test_a_second_run_waits_for_the_first(tree: Path, patch_set: PatchSet, second: str, said: str) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    slow = [sys.executable, "-c", SLOW.format(root=str(ROOT), tree=str(tree))]
    command = [sys.executable, "-m", "vllm_patch", second, "--target", str(tree)]
    with subprocess.Popen(slow, text=True, **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "half way\n"
        with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as other:
            assert other.stderr is not None
            waits = other.stderr.readline()
            out, err = first.communicate("go on\n", timeout=60)
            assert waits == f"vllm_patch: waiting for another run on {tree / 'vllm'}\n"
            assert (first.returncode, err) == (0, "")
            assert "patched now (14 files)" in out
            out, err = other.communicate(timeout=60)
            assert (other.returncode, err) == (0, "")
            assert said in out
    assert states(tree, patch_set) == {FileState.BEFORE if second == "revert" else FileState.AFTER}
    assert not list(tree.rglob("*.tmp"))


def test_manifest_agrees_with_the_patches(tree: Path) -> None:
    manifest = json.loads((PATCHES / "manifest.json").read_text())
    assert make_manifest(PATCHES, Target(tree / "vllm").read) == manifest
    assert all(path.endswith(".py") for path in manifest["files"])


def test_a_damaged_patch_set_is_refused_before_anything_is_touched(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(PATCHES, damaged)
    name = (damaged / "series").read_text().split()[1]
    text = (damaged / name).read_text()
    assert "+        slo: The latency" not in text
    (damaged / name).write_text(text.replace("+            slo: The latency", "+            slo: The LATENCY"))
    monkeypatch.setattr(tool, "load_patch_set", lambda: load_patch_set(damaged))
    before = snapshot(tree)
    assert run("apply", tree) == 2
    assert "has not the hash in the manifest" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_patches_say_nothing_of_who_made_them() -> None:
    for name in (PATCHES / "series").read_text().split():
        text = (PATCHES / name).read_text()
        header = text.partition("diff --git ")[0]
        assert header.endswith("\n---\n")
        for word in ("From ", "Date:", "Author:", "Signed-off-by", "@"):
            assert word not in header, (name, word)


def test_tool_runs_on_the_standard_library_alone() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vllm_patch.__main__;"
        "bad = {'numpy', 'torch', 'vllm', 'neustream'} & {name.split('.')[0] for name in sys.modules};"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(ROOT)], check=True)


def test_installed_vllm_is_patched(installed: Target, patch_set: PatchSet) -> None:
    assert set(installed.states(patch_set).values()) == {FileState.AFTER}
    assert patchset.VERSION == "0.5.4"
