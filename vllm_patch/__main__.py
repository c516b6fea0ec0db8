"""`python -m vllm_patch apply | status | revert | verify [--target DIR]`: patch vLLM 0.5.4 and take it back.

Exit code 0: the vLLM is as asked (apply, revert: it is so now; status, verify: it is patched). 1: it is not
(status, verify), or its files cannot be written, or read back otherwise. 2: bad input; nothing was touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_patch.patchset import PATCHES, PatchSet, load_patch_set, make_manifest
from vllm_patch.target import FileState, Target, TargetError, find_target
from vllm_patch.unified_diff import PatchError


class NotAsWrittenError(RuntimeError):
    """Files that read otherwise than they were written."""


def apply(target: Target, patch_set: PatchSet) -> int:
    """Patch every file that is not patched yet. Refuses a tree with files that are neither."""
    with target.locked(exclusive=True):
        changes = _changes(target, patch_set, patch_set.apply)
        target.remove_leftovers(target.states(patch_set))
        if changes or not target.record.holds_only(PATCHES):
            target.record.add(PATCHES)
            target.replace(changes)
            _read_back(target, patch_set, FileState.AFTER)
            target.record.forget_others(PATCHES)
    return _report(target, changes, FileState.AFTER)


def revert(target: Target, patch_set: PatchSet) -> int:
    """Give every patched file back its original bytes. Refuses a tree with files that are neither."""
    with target.locked(exclusive=True):
        changes = _changes(target, patch_set, lambda _, original: original)
        target.remove_leftovers(target.states(patch_set))
        target.replace(changes)
        _read_back(target, patch_set, FileState.BEFORE)
        target.record.forget_all()
    return _report(target, changes, FileState.BEFORE)


def status(target: Target, patch_set: PatchSet) -> int:
    """Print in a line what the target is, and name the files that stand out."""
    with target.locked(exclusive=False):
        states = target.states(patch_set)
    kinds = set(states.values())
    if kinds == {FileState.AFTER} or kinds == {FileState.BEFORE}:
        print(f"{target.package}: {kinds.pop()} ({len(states)} files, {len(patch_set.patches)} patches)")
    else:
        advice = "not safe to touch" if FileState.CHANGED in kinds else "run apply or revert"
        print(f"{target.package}: mixed; {advice}")
        for path, state in sorted(states.items()):
            print(f"  {path}: {state}")
    return 0 if set(states.values()) == {FileState.AFTER} else 1


def verify(target: Target, patch_set: PatchSet) -> int:
    """Compare every touched file with the hash that it has when patched."""
    with target.locked(exclusive=False):
        states = target.states(patch_set)
    wrong = sorted(path for path, state in states.items() if state is not FileState.AFTER)
    for path in wrong:
        print(f"{target.file(path)}: {states[path]}")
    print(f"{target.package}: {len(states) - len(wrong)} of {len(states)} files as patched")
    return 1 if wrong else 0


def _changes(
    target: Target, patch_set: PatchSet, rewrite: Callable[[str, bytes | None], bytes | None]
) -> dict[str, bytes | None]:
    """New content for each file that must change, made from its original content by `rewrite`."""
    states = target.states(patch_set)
    changed = sorted(str(target.file(path)) for path, state in states.items() if state is FileState.CHANGED)
    if changed:
        raise TargetError(f"neither original nor patched, so nothing was touched: {', '.join(changed)}")
    changes = {}
    for path, state in states.items():
        content = target.original(path, state, patch_set)
        if path in patch_set.files:
            content = rewrite(path, content)
        if content != target.read(path):
            changes[path] = content
    return changes


def _read_back(target: Target, patch_set: PatchSet, wanted: FileState) -> None:
    """Raises NotAsWrittenError where a file on the disk is not what it is said to be."""
    # A file that only another patch set touches is in its original state under either.
    states = target.states(patch_set)
    fine = {wanted, FileState.BEFORE}
    wrong = [path for path, state in states.items() if state not in (fine if path not in patch_set.files else {wanted})]
    if wrong:
        names = ", ".join(str(target.file(path)) for path in sorted(wrong))
        raise NotAsWrittenError(f"did not come out as {wanted}, run it again: {names}")


def _report(target: Target, changes: Mapping[str, bytes | None], state: FileState) -> int:
    print(f"{target.package}: {state} {f'now ({len(changes)} files)' if changes else 'already'}")
    return 0


def write_manifest(target: Target, folder: Path) -> int:
    """For maintainers: write `manifest.json` from an unpatched vLLM after the patches were edited."""
    manifest = make_manifest(folder, target.read)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"wrote {folder / 'manifest.json'}")
    return 0


COMMANDS = {"apply": apply, "status": status, "revert": revert, "verify": verify}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    summary, _, codes = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="vllm_patch", description=summary, epilog=codes)
    parser.add_argument("command", choices=[*COMMANDS, "manifest"])
    parser.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="an unpacked source archive, a site-packages folder or the vllm folder itself "
        "(default: the vLLM of this Python)",
    )
    options = parser.parse_args(arguments)
    try:
        target = find_target(options.target)
    except TargetError as error:
        print(f"vllm_patch: {error}", file=sys.stderr)
        return 2
    try:
        if options.command == "manifest":
            return write_manifest(target, PATCHES)
        return COMMANDS[options.command](target, load_patch_set())
    except (TargetError, PatchError) as error:
        print(f"vllm_patch: {error}", file=sys.stderr)
        return 2
    except NotAsWrittenError as error:
        print(f"vllm_patch: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vllm_patch: cannot write {error.filename or target.package}: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
