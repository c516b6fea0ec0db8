"""CLIP's tokenizer: the checkpoint's, or one of single bytes where there is no checkpoint to take the words from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

MAX_LENGTH = 77
END = "<|endoftext|>"


def load_tokenizer(folder: Path | None) -> CLIPTokenizer:
    """The tokenizer of the checkpoint in `folder`; without one, `byte_tokenizer`.

    Raises ValueError where a checkpoint has none that can be read.
    """
    if folder is None:
        return byte_tokenizer()
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"weights: {folder / 'tokenizer'} holds no CLIP tokenizer ({type(error).__name__})") from error
    return tokenizer


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with no merges: every byte of a word is a token. 514 of them."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", END]
    with tempfile.TemporaryDirectory() as name:
        vocabulary, merges = Path(name, "vocab.json"), Path(name, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), pad_token=END, model_max_length=MAX_LENGTH)
