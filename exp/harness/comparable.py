"""Whether the figures of two runs mean the same: all that their summaries say must agree, but for what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neusim.validating.run_folder import slo_of
from neustream.cli.arguments import BadInput

Summary = Mapping[str, Any]

COMPARED = ("policy", "settings", "axes")
"""What runs are compared by. That they swept the same axes is checked where their settings are put together."""
INCIDENTAL = ("schema", "command", "started", "seconds", "complete", "table", "capacity", "mean_prompt")
"""What may differ: it says when and how the run was made, or follows from something else that is compared."""
INCIDENTAL_VERSIONS = ("python", "commit")
"""Versions that may differ: not of what serves. Runs of two commits are a comparison that people make."""


def _said(summary: Summary) -> dict[str, Any]:
    """What must agree, each under a name of its own; forms of older versions as today's. None is not said."""
    apart = (*COMPARED, *INCIDENTAL, "versions", "slo")
    said = {key: value for key, value in summary.items() if key not in apart and value is not None}
    versions = summary.get("versions", {})
    said |= {f"version of {name}": versions[name] for name in versions if name not in INCIDENTAL_VERSIONS}
    return {**said, "slo": slo_of(summary, {}) or "scale"}


def differences(a: Summary, b: Summary) -> list[str]:
    """What makes two runs differ, as `key (theirs and ours)`. What only one of them says is no difference."""
    ours, theirs = _said(a), _said(b)
    both = [key for key in ours if key in theirs]
    return [f"{key} ({ours[key]} and {theirs[key]})" for key in both if ours[key] != theirs[key]]


def unsaid(a: Summary, b: Summary) -> list[str]:
    """What only one of two runs says of itself: the other is of an older version, or has no such package."""
    return sorted(_said(a).keys() ^ _said(b).keys())


def check_comparable(runs: Sequence[tuple[str, Summary]], *, force: bool) -> list[str]:
    """Compare each run, given by name and summary, with the first.

    Raises BadInput naming what differs, in one line. With `force`, returns such lines instead.
    """
    lines = []
    for name, summary in runs[1:]:
        found = differences(runs[0][1], summary)
        if found:
            lines.append(f"{runs[0][0]} and {name} differ in {', '.join(found)}")
    if lines and not force:
        raise BadInput(f"{lines[0]}: their figures do not mean the same (--force takes them all the same)")
    return lines
