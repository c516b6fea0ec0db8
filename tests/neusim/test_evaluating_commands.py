"""Interrupted comparisons go on where they were; the load that a policy bears."""

from __future__ import annotations

import json

import pytest

from neusim.evaluating.kept import KEYS, Kept
from neusim.evaluating.report import highest_loads


def row(policy, load=1.0, share=0.5, slo="A"):
    where = dict.fromkeys(KEYS, "x") | {"slo": slo, "load": load, "policy": policy}
    return {**where, "good_share": share}


def test_rows_are_kept_as_they_come_until_they_are_where_they_belong(tmp_path):
    csv = tmp_path / "out.csv"
    kept = Kept(csv)
    kept.add(row("a"))
    kept.add(row("b"))
    assert sorted(r["policy"] for r in Kept(csv, resume=True).rows.values()) == ["a", "b"]
    kept.discard()
    assert Kept(csv, resume=True).rows == {}
    (tmp_path / "out.csv.partial.jsonl").write_text(json.dumps({"slo": "A"}) + "\n")
    with pytest.raises(ValueError, match=r"partial\.jsonl:1: is no row"):
        Kept(csv, resume=True)


def test_the_highest_load_lies_between_two_that_were_run():
    rows = [row("a", load, share) for load, share in ((0.5, 1.0), (1.0, 0.95), (1.5, 0.85))]
    rows += [row("b", load, 0.5) for load in (0.5, 1.0, 1.5)]
    line = highest_loads(rows, "good_share", 0.9).splitlines()[1].split()
    assert line[-2:] == ["1.25", "<0.5"]
