"""These need today's vLLM: they run in the environment that `bash install.sh --engine v1` makes, by tests/run.sh."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neustream.latency import ContextLatency, TokensLatency
from neustream.tables import LatencyTable, save_table

HAS_TODAYS_VLLM = importlib.util.find_spec("vllm") is not None and importlib.util.find_spec("vllm.v1") is not None
collect_ignore_glob = [] if HAS_TODAYS_VLLM else ["test_*.py"]

TINY = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    modules = {"prefill": TokensLatency((4e-3, 1e-5, 0.0)), "decode": ContextLatency((4e-3, 1e-8))}
    return LatencyTable("tiny", "cpu", modules, {})


@pytest.fixture(scope="session")
def table_path(table: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "tiny.json"
    save_table(table, path)
    return str(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OPT with weights so large that its greedy tokens differ from prompt to prompt."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    OPTForCausalLM(OPTConfig(**TINY, init_std=0.4)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's configuration alone."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="session")
def load(tiny: Path, table_path: str) -> Callable[..., Any]:
    """Loads an engine; `policy` None: vLLM's own scheduler class."""
    from vllm_plugin.engine import SCHEDULER, load_engine

    def load(policy: str | None, *, scheduler: str | None = SCHEDULER, **options: Any) -> Any:
        step_policy = {"policy": policy, "table": table_path} if policy is not None else None
        return load_engine(
            tiny,
            dtype="float32",
            has_weights=True,
            step_policy=step_policy,
            scheduler=scheduler,
            **{"enforce_eager": True, "max_model_len": 1024, **options},
        )

    return load
