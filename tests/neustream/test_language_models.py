"""The catalog of language models: sizes as published, `config.json` there and back, memory for keys and values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neustream.catalog import LlmShape, find_model
from neustream.catalog.accelerators import ACCELERATORS
from neustream.catalog.llms import LLMS, known_shape, load_shape
from neustream.catalog.shapes import LlamaShape, LlavaShape


@pytest.mark.parametrize("name", LLMS)
def test_a_folder_with_a_models_config_has_its_shape(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLMS[name].config()))
    assert load_shape(str(folder)) == LLMS[name]
    assert isinstance(find_model(str(folder)), LlmShape)
    assert find_model(name) is known_shape(name) is LLMS[name]


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes", "picture_tokens"),
    [
        # Parameters of the published checkpoints; of LLaVA's, the last layer of the tower and its norm are not loaded.
        ("codellama-7b", 6_738_546_688, 512 << 10, 0),
        ("llava-1.5-7b", 7_063_427_072 - 12_596_224 - 2048, 512 << 10, 576),
        ("opt-6.7b", 6_658_473_984, 512 << 10, 0),
        ("llava-nano", 3_185_664, 2 << 10, 64),
    ],
)
def test_sizes_are_those_of_the_published_models(
    name: str, parameters: int, kv_bytes: int, picture_tokens: int
) -> None:
    shape = LLMS[name]
    assert shape.num_parameters == parameters
    assert 2 * shape.kv_elements(shape.num_layers) == kv_bytes
    assert shape.picture_tokens == picture_tokens


def test_the_config_of_published_llava_names_few_sizes_the_rest_are_defaults(tmp_path: Path) -> None:
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
        },
    }  # fmt: skip
    folder = tmp_path / "llava-1.5-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert load_shape(str(folder)) == LLMS["llava-1.5-7b"]


def test_fewer_heads_of_keys_and_values_make_less_to_keep() -> None:
    full = LlamaShape("a", 2, 256, 8, 512, 8, vocabulary=1000, max_positions=128)
    grouped = LlamaShape("b", 2, 256, 8, 512, 2, vocabulary=1000, max_positions=128)
    assert (full.kv_hidden, grouped.kv_hidden) == (256, 64)
    assert full.layer_parameters - grouped.layer_parameters == 2 * 256 * (256 - 64)


def test_llava_holds_few_prompts_beside_its_weights_on_24_gb() -> None:
    shape = LLMS["llava-1.5-7b"]
    tokens = 16 * shape.kv_blocks(ACCELERATORS["rtx4090"].memory_bytes, 2)
    assert tokens == pytest.approx((0.9 * 24e9 - 2 * shape.num_parameters) / (512 << 10), abs=16)


def test_random_weights_of_the_nano_model_never_generate_the_token_of_pictures() -> None:
    """It lies behind the vocabulary, in the rows that vLLM pads the embedding with (to a multiple of 64)."""
    shape = LLMS["llava-nano"]
    assert isinstance(shape, LlavaShape)
    assert shape.vocabulary <= shape.picture_token < -(-shape.vocabulary // 64) * 64
