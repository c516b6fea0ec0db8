"""What the plug-in's configuration and a request's SLO may say, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neustream.latency import ContextLatency, TokensLatency
from neustream.tables import LatencyTable, save_table
from vllm_plugin.config import check_engine, check_version, read_config
from vllm_plugin.slo import RequestSlo, read_slo


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.json"
    modules = {"prefill": TokensLatency((0.01, 1e-4, 0.0)), "decode": ContextLatency((0.01, 1e-6))}
    save_table(LatencyTable("tiny", "cpu", modules, {}), path)
    return str(path)


def test_without_our_key_nothing_is_scheduled_otherwise() -> None:
    assert read_config(None).policy is None
    assert read_config({"somebody's": {}}).policy is None


def test_a_policy_its_table_and_classes_are_read(table: str) -> None:
    classes = {"batch": {"e2el_ms": 60000, "on_miss": "demote"}}
    config = read_config({"neustream": {"policy": "slack", "table": table, "slo_classes": classes}})
    assert config.policy is not None
    assert config.classes == classes
    assert config.table is not None
    assert config.table.model == "tiny"


def test_no_policy_means_that_steps_are_watched_only() -> None:
    config = read_config({"neustream": {"policy": None, "slo": {"ttft_ms": 100}}})
    assert (config.policy, config.slo) == (None, {"ttft_ms": 100})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "needs the key 'policy'"),
        ([1], "needs the key 'policy'"),
        ({"policy": "fcfs", "tabel": "x"}, "unknown keys ['tabel']"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"policy": "slack"}, "needs 'table'"),
        ({"policy": "fcfs", "slo": {"pslo": 3}}, "needs 'table'"),
        ({"policy": "fcfs", "slo_classes": [1]}, "slo_classes must map names to SLOs"),
        ({"policy": "fcfs", "slo_classes": {"batch": {"ttft": 5}}}, "slo_classes: batch: SLO keys"),
        ({"policy": "fcfs", "slo_classes": {"batch": {"pslo": 3}}}, "batch: an SLO given as a scale needs 'table'"),
    ],
)
def test_a_bad_configuration_is_one_line(config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"additional_config|unknown policy|needs") as caught:
        read_config({"neustream": config})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["0.30.0", "0.32.0", "0.33.1"])
def test_known_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.5.4", "0.29.0", "0.34.0", "0.3.0"])
def test_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match=rf"knows vLLM 0\.30 to 0\.33, this is {version}"):
        check_version(version)


def engine_config(**changes: Any) -> Any:
    """What of vLLM's configuration is looked at."""
    config = {
        "model_config": SimpleNamespace(runner_type="generate", is_encoder_decoder=False),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
        "scheduler_config": SimpleNamespace(enable_chunked_prefill=True),
        "speculative_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
    }
    return SimpleNamespace(**{**config, **changes})


def test_a_usual_engine_is_taken() -> None:
    check_engine(engine_config())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline parallelism"),
        ({"model_config": SimpleNamespace(runner_type="pooling", is_encoder_decoder=False)}, "a pooling model"),
        ({"scheduler_config": SimpleNamespace(enable_chunked_prefill=False)}, "needs chunked prefill"),
    ],
)
def test_what_a_policy_does_not_go_with_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_engine(engine_config(**change))


def test_an_slo_travels_as_flat_keys() -> None:
    asked = read_slo({"slo_ttft_ms": 500, "slo_tpot_ms": 50.0, "slo_on_miss": "demote", "other": 1})
    assert asked == RequestSlo({"ttft_ms": 500, "tpot_ms": 50.0, "on_miss": "demote"})
    assert read_slo({"slo_scale": 3}) == RequestSlo({"slo_scale": 3})
    assert read_slo({"other": 1}) == read_slo(None) == RequestSlo()


def test_a_class_brings_its_slo_unless_the_request_has_one() -> None:
    classes = {"batch": {"e2el_ms": 60000}}
    assert read_slo({"slo_class": "batch"}, classes) == RequestSlo({"e2el_ms": 60000}, "batch")
    assert read_slo({"slo_class": "batch", "slo_ttft_ms": 5}, classes) == RequestSlo({"ttft_ms": 5}, "batch")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"slo_tfft_ms": 5}, "unknown key 'slo_tfft_ms'"),
        ({"slo_ttft_ms": "fast"}, "ttft_ms must be a finite number"),
        ({"slo_ttft_ms": -1}, "ttft_ms must be above 0"),
        ({"slo_ttft_ms": [1]}, "ttft_ms must be a finite number"),
        ({"slo_ttft_ms": 5, "slo_pslo": 3}, "not a mixture"),
        ({"slo_ttft_ms": 5, "slo_on_miss": "shrug"}, "on_miss must be"),
        ({"slo_on_miss": "demote"}, "needs an SLO"),
        ({"slo_class": 7}, "slo_class must be a name"),
        ({"slo_class": "gold"}, "no class 'gold'"),
        ({"slo_max_tokens": 0}, "slo_max_tokens must be"),
        ({"slo_" + "x" * 9000: 1}, "unknown key"),
    ],
)
def test_a_malformed_slo_is_one_short_line(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"slo|SLO|on_miss") as caught:
        read_slo(extra, {"batch": {"e2el_ms": 60000}})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
