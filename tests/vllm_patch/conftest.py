"""Trees to patch, and engines on a tiny OPT with random weights."""

from __future__ import annotations

import os

# vLLM reads these when it is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neustream.latency import ContextLatency, LatencyModel, TokensLatency
from neustream.tables import LatencyTable, save_table
from vllm_patch.patchset import PatchSet, load_patch_set
from vllm_patch.target import Target, find_target

TINY_OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="session")
def patch_set() -> PatchSet:
    return load_patch_set()


@pytest.fixture(scope="session")
def installed() -> Target:
    """The vLLM that the tests run against."""
    return find_target(None)


@pytest.fixture
def tree(tmp_path: Path, installed: Target, patch_set: PatchSet) -> Path:
    """An unpatched vLLM tree with the files that the patches touch, and no others."""
    root = tmp_path / "tree"
    states = installed.states(patch_set)
    for path in patch_set.files:
        content = installed.original(path, states[path], patch_set)
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            place.write_bytes(content)
    (root / "vllm" / "version.py").write_text('__version__ = "0.5.4"\n')
    return root


@pytest.fixture(scope="session")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A latency table: prefill 10 ms + 0.1 ms a token, decode 10 ms."""
    modules: dict[str, LatencyModel] = {
        "prefill": TokensLatency((0.01, 0.0001, 0.0)),
        "decode": ContextLatency((0.01, 0.0)),
    }
    path = tmp_path_factory.mktemp("tables") / "tiny.json"
    save_table(LatencyTable("tiny", "hand", modules), path)
    return str(path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a two-layer OPT."""
    folder = tmp_path_factory.mktemp("tiny-opt")
    (folder / "config.json").write_text(json.dumps(TINY_OPT))
    return str(folder)


@pytest.fixture(scope="session")
def engine_options(model: str) -> Callable[..., dict[str, Any]]:
    """Options of an engine on the tiny OPT."""

    def options(**more: Any) -> dict[str, Any]:
        return {
            "model": model,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "device": "cpu",
            "max_model_len": 256,
            "disable_log_stats": True,
            "num_gpu_blocks_override": 256,
            **more,
        }

    return options


@pytest.fixture
def make_engine(engine_options: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Builds LLMEngines whose random weights are the same and large enough that the tokens differ."""
    from vllm import EngineArgs, LLMEngine

    def make(**more: Any) -> Any:
        engine = LLMEngine.from_engine_args(EngineArgs(**engine_options(**more)))
        randomize(engine)
        return engine

    return make


def randomize(engine: Any) -> None:
    """Give the engine's model seeded normal weights, biases and norms as they are."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = engine.model_executor.driver_worker.model_runner.model
    with torch.no_grad():
        for name, parameter in weights.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
            if "embed_tokens" in name:  # also the output layer; a longer row would win every time
                parameter /= parameter.norm(dim=1, keepdim=True)
