"""Traces are read in the formats that they are published in, or refused in one line; SLO classes likewise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from neustream import AbsoluteSlo, ScaleSlo
from neustream.workload.classes import check_classes, draw_classes, parse_slo_class
from neustream.workload.traces import TracedRequest, mean_rate, read_trace, scaled, window

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "traces"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.2299600,3180,8
2023-11-16 18:18:03.9799600,110,0
2023-11-16 18:18:04.9799600,110,27
"""
MOONCAKE = "\n".join(
    json.dumps({"timestamp": at, "input_length": size, "output_length": units, "hash_ids": [0]})
    for at, size, units in ((3000, 6758, 500), (0, 7322, 490), (27, 100, 3))
)
SHAREGPT = json.dumps(
    [
        {"conversations": [{"from": "human", "value": "one two three"}, {"from": "gpt", "value": "yes " * 9}]},
        {"conversations": [{"from": "gpt", "value": "ignored"}, {"from": "gpt", "value": "x"}]},
        {"conversations": []},
    ]
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_an_azure_trace_counts_from_its_first_request_and_leaves_out_empty_outputs(tmp_path):
    trace = read_trace(written(tmp_path, AZURE))
    assert [(round(row.offset, 6), row.prompt, row.output) for row in trace] == [
        (0.0, 4808, 10), (1.25, 3180, 8), (61.0, 110, 27),
    ]  # fmt: skip
    assert mean_rate(trace) == pytest.approx(2 / 61)


def test_a_mooncake_trace_is_in_milliseconds_and_comes_out_in_order(tmp_path):
    trace = read_trace(written(tmp_path, MOONCAKE))
    assert trace == [(0.0, 7322, 490, (0,)), (0.027, 100, 3, (0,)), (3.0, 6758, 500, (0,))]


def test_requests_of_one_moment_stay_in_the_order_of_the_file(tmp_path):
    lines = [{"timestamp": 3000 * (i // 3), "input_length": 90 - i, "output_length": 5} for i in range(6)]
    trace = read_trace(written(tmp_path, "\n".join(json.dumps(line) for line in lines)))
    assert [row.prompt for row in trace] == [90, 89, 88, 87, 86, 85]
    assert {row.blocks for row in trace} == {()}


def test_sharegpt_has_lengths_and_no_times(tmp_path):
    trace = read_trace(written(tmp_path, SHAREGPT))
    assert trace == [TracedRequest(None, 4, 12)]
    assert mean_rate(trace) == 0.0


def test_a_window_counts_from_its_start_and_a_scale_is_how_many_times_as_fast(tmp_path):
    trace = read_trace(written(tmp_path, MOONCAKE))
    assert window(trace, 0.02, 5.0) == [
        (pytest.approx(0.007), 100, 3, (0,)),
        (pytest.approx(2.98), 6758, 500, (0,)),
    ]
    assert [row.offset for row in scaled(trace, 2.0)] == [0.0, 0.0135, 1.5]
    with pytest.raises(ValueError, match="no request between 10 s and 20 s; its last is at 3 s"):
        window(trace, 10.0, 20.0)
    with pytest.raises(ValueError, match="a:b with 0 <= a < b, got 5:5"):
        window(trace, 5.0, 5.0)
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        scaled(trace, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is none of the formats that are known: a CSV with TIMESTAMP"),
        (AZURE + "2023-11-16,x,3\n", "trace:6: expected a time and two numbers of tokens"),
        (AZURE + "yesterday,1,3\n", "trace:6: expected a time"),
        (AZURE + "2023-11-16 18:17:03\n", "trace:6: expected a time"),
        ('{"timestamp": 0, "input_length": 1}\n', "trace:1: expected an object with timestamp, input_length"),
        ('{"timestamp": 0,\n', "trace:1: expected an object"),
        ("[1]", "expected a list of"),
        ("[", "is not JSON"),
        ("", "is none of the formats"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ],
)  # fmt: skip
def test_another_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_trace(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read \(No such file"):
        read_trace(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="it is no text"):
        read_trace(tmp_path / "binary")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference traces are not beside the repository")
@pytest.mark.parametrize(
    ("name", "count", "minutes"),
    [("azure-2023-code.csv", 8819, 57), ("azure-2023-conv.csv", 19366, 58), ("mooncake-conversation.jsonl", 12031, 59)],
)
def test_the_published_traces_are_read_whole(name, count, minutes):
    trace = read_trace(REFERENCE / name)
    assert len(trace) >= 0.99 * count
    assert trace[-1].offset is not None
    assert trace[-1].offset / 60 == pytest.approx(minutes, abs=1)


def test_a_class_is_a_name_an_slo_and_a_share():
    interactive = parse_slo_class("interactive=ttft_ms:500,tpot_ms:60,share:3")
    assert (interactive.name, interactive.slo, interactive.share) == ("interactive", AbsoluteSlo(0.5, 0.06), 3.0)
    batch = parse_slo_class("batch=e2el_ms:60000,on_miss:demote")
    assert (batch.slo, batch.share, batch.on_miss) == (AbsoluteSlo(e2el=60.0), 1.0, "demote")
    assert parse_slo_class("old=pslo:3,dslo:1.5").slo == ScaleSlo(3.0, 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interactive", "is written as interactive=ttft_ms:500"),
        ("=ttft_ms:500", "is written as"),
        ("a=ttft_ms", "SLO class a: expected key:value, got 'ttft_ms'"),
        ("a=ttft_ms:x", "SLO class a: ttft_ms must be a number, got 'x'"),
        ("a=ttft_ms:1,ttft_ms:2", "SLO class a: ttft_ms is given twice"),
        ("a=ttft:500", "SLO class a: SLO keys must be among"),
        ("a=share:2", "SLO class a: SLO keys must be among"),
        ("a=ttft_ms:500,share:0", "SLO class a: share must be above 0, got 0"),
        ("a=ttft_ms:500,on_miss:drop", "on_miss must be reject or demote, got 'drop'"),
        ("a=ttft_ms:-1", "SLO class a: SLO ttft_ms must be above 0"),
    ],
)
def test_another_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse_slo_class(text)
    assert "\n" not in str(refused.value)


def test_requests_get_classes_by_their_shares_the_same_for_the_same_seed():
    classes = [parse_slo_class("a=ttft_ms:1,share:3"), parse_slo_class("b=ttft_ms:2")]
    drawn = draw_classes(classes, 4000, 7)
    assert drawn == draw_classes(classes, 4000, 7)
    assert Counter(slo_class.name for slo_class in drawn)["a"] == pytest.approx(3000, abs=120)
    with pytest.raises(ValueError, match="two SLO classes are called 'a'"):
        check_classes([classes[0], classes[0]])
