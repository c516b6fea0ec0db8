"""Pipelines of the nano models, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from diffusion_plugin import load_pipeline
from diffusion_plugin.pipelines.base import Pipeline


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dit() -> Pipeline:
    return load_pipeline("dit-nano", device="cpu")


@pytest.fixture(scope="session")
def sd() -> Pipeline:
    return load_pipeline("sd-nano", device="cpu")


@pytest.fixture(scope="session")
def palette() -> Pipeline:
    return load_pipeline("palette-nano", device="cpu")
