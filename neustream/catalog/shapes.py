"""The sizes of a language model, and what follows from them: weights, keys and values, the `config.json` of vLLM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from neustream.tables import KV_BLOCK

MEMORY_SHARE = 0.9
"""Share of a device's memory that vLLM uses (its default); what weights leave of it is for keys and values."""


@dataclass(frozen=True, slots=True)
class LlmShape(ABC):
    """One language model: `num_layers` decoder layers of width `hidden`. `name` is that of its latency table."""

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    """Width between the two halves of a layer's feed-forward part."""
    vocabulary: int = field(kw_only=True)
    max_positions: int = field(kw_only=True)

    @property
    @abstractmethod
    def kv_hidden(self) -> int:
        """Width of a layer's keys, and of its values."""

    @property
    @abstractmethod
    def layer_parameters(self) -> int:
        """Weights and biases of one decoder layer."""

    @property
    @abstractmethod
    def other_parameters(self) -> int:
        """Weights and biases that the model has once, whatever its depth."""

    @abstractmethod
    def config(self, num_layers: int | None = None) -> dict[str, Any]:
        """`config.json`, at this depth if one is given, with the keys of the published checkpoints."""

    @property
    def output_width(self) -> int:
        """Width of what the output layer reads."""
        return self.hidden

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward part multiplies two projections (SwiGLU), and positions are rotated in."""
        return False

    @property
    def picture_tokens(self) -> int:
        """Tokens that a picture takes of the prompt; 0: the model takes no pictures."""
        return 0

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the whole model."""
        return self.parameters(self.num_layers)

    def parameters(self, num_layers: int) -> int:
        """Weights and biases at this depth."""
        return self.other_parameters + num_layers * self.layer_parameters

    def kv_elements(self, num_layers: int) -> int:
        """Elements of keys and values per token at this depth."""
        return 2 * num_layers * self.kv_hidden

    def kv_blocks(self, memory_bytes: float, element_bytes: int, block_size: int = KV_BLOCK) -> int:
        """KV blocks that vLLM finds room for on devices with so much memory together; 0 where weights leave none.

        A block holds `block_size` tokens.
        """
        room = MEMORY_SHARE * memory_bytes - self.num_parameters * element_bytes
        return max(int(room / (self.kv_elements(self.num_layers) * element_bytes * block_size)), 0)


@dataclass(frozen=True, slots=True)
class OptShape(LlmShape):
    """An OPT model (Zhang et al., 2022). The output layer shares the weights of the word embedding."""

    embed: int
    """Width of the word embedding; differs from `hidden` in opt-350m only."""
    norm_first: bool = True
    vocabulary: int = field(default=50272, kw_only=True)
    max_positions: int = field(default=2048, kw_only=True)

    @property
    def output_width(self) -> int:
        return self.embed

    @property
    def kv_hidden(self) -> int:
        return self.hidden

    @property
    def layer_parameters(self) -> int:
        h, f = self.hidden, self.ffn
        return 4 * h * (h + 1) + f * (h + 1) + h * (f + 1) + 4 * h

    @property
    def other_parameters(self) -> int:
        """Embeddings, the projections beside them, the last norm."""
        projections = 2 * self.embed * self.hidden if self.embed != self.hidden else 0
        embeddings = self.vocabulary * self.embed + (self.max_positions + 2) * self.hidden
        return embeddings + projections + (2 * self.hidden if self.norm_first else 0)

    def config(self, num_layers: int | None = None) -> dict[str, Any]:
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "num_hidden_layers": num_layers or self.num_layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.num_heads,
            "ffn_dim": self.ffn,
            "word_embed_proj_dim": self.embed,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "activation_function": "relu",
            "do_layer_norm_before": self.norm_first,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "torch_dtype": "float16",
        }


@dataclass(frozen=True, slots=True)
class LlamaShape(LlmShape):
    """A Llama-like model (Touvron et al., 2023): gated feed-forward parts, no biases, an output layer of its own."""

    num_kv_heads: int
    rope_theta: float = 10000.0
    """Base of the rotary position embedding."""

    @property
    def kv_hidden(self) -> int:
        return self.hidden // self.num_heads * self.num_kv_heads

    @property
    def is_gated(self) -> bool:
        return True

    @property
    def layer_parameters(self) -> int:
        return 2 * self.hidden * (self.hidden + self.kv_hidden) + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def text_parameters(self) -> int:
        """Word embedding, output layer, the last norm."""
        return 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def other_parameters(self) -> int:
        return self.text_parameters

    def text_config(self, num_layers: int | None = None) -> dict[str, Any]:
        """The configuration of the language model."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": num_layers or self.num_layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float16",
        }

    def config(self, num_layers: int | None = None) -> dict[str, Any]:
        return self.text_config(num_layers)


@dataclass(frozen=True, slots=True)
class ClipShape:
    """The vision tower of CLIP (Radford et al., 2021): a picture as (`image_size` / `patch_size`)² tokens."""

    num_layers: int
    """As published. LLaVA takes the output of the last layer but one, and vLLM does not load the last."""
    hidden: int
    num_heads: int
    ffn: int
    image_size: int
    """Side of the square that pictures are scaled and cut to, in pixels."""
    patch_size: int

    @property
    def num_patches(self) -> int:
        """Tokens of a picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def layers_used(self) -> int:
        """Layers that a picture passes."""
        return self.num_layers - 1

    @property
    def num_parameters(self) -> int:
        """Weights and biases of what vLLM loads: embeddings, the norm after them, the layers used."""
        h, f = self.hidden, self.ffn
        embeddings = h + 3 * self.patch_size**2 * h + (self.num_patches + 1) * h
        layer = 4 * h * (h + 1) + f * (h + 1) + h * (f + 1) + 4 * h
        return embeddings + 2 * h + self.layers_used * layer

    def config(self) -> dict[str, Any]:
        """`vision_config`, with the keys of the published checkpoints."""
        return {
            "model_type": "clip_vision_model",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.ffn,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": "quick_gelu",
            "projection_dim": self.hidden,
        }


@dataclass(frozen=True, slots=True)
class LlavaShape(LlamaShape):
    """LLaVA-1.5 (Liu et al., 2023): a Llama-like model that reads pictures through CLIP's vision tower."""

    vision: ClipShape = field(kw_only=True)
    picture_token: int = field(kw_only=True)
    """The token that stands for a picture in a prompt."""

    @property
    def picture_tokens(self) -> int:
        return self.vision.num_patches

    @property
    def other_parameters(self) -> int:
        """What the text model has once, the vision tower, and the two layers of the projector between them."""
        projector = self.vision.hidden * self.hidden + self.hidden * self.hidden + 2 * self.hidden
        return self.text_parameters + self.vision.num_parameters + projector

    def config(self, num_layers: int | None = None) -> dict[str, Any]:
        return {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "text_config": self.text_config(num_layers),
            "vision_config": self.vision.config(),
            "image_token_index": self.picture_token,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "projector_hidden_act": "gelu",
            "torch_dtype": "float16",
        }
