"""Tables small enough to compute with by hand."""

from __future__ import annotations

import pytest

from neustream import LatencyTable
from neustream.latency import BatchLatency, ContextLatency, TokensLatency


@pytest.fixture
def llm_table() -> LatencyTable:
    """Prefill 0.1 s + 0.01 s a token; decode 0.1 s whatever the batch."""
    modules = {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.0))}
    return LatencyTable("opt-hand", "paper", modules)


@pytest.fixture
def loop_table() -> LatencyTable:
    """Denoise 1, 1.5, 2, 2.5 s at batch 1…4; VAE 0.5 s a request."""
    modules = {
        "denoise": BatchLatency((1, 2, 3, 4), (1.0, 1.5, 2.0, 2.5)),
        "vae": BatchLatency((1, 2), (0.5, 1.0)),
    }
    return LatencyTable("dit-hand", "paper", modules)
