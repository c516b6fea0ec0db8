"""An experiment and the simulator make the same requests of the same rate, cv and seed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from exp.diffusion.bench import DiffusionBench
from exp.harness.settings import sweep
from exp.llm.prompts import Prompts
from neusim.sim import LlmWorkload, PipelineWorkload
from neustream import LatencyTable, ScaleSlo
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.workload import gamma_arrivals, step_counts

IMAGES = LatencyTable("i", "d", {"denoise": BatchLatency((1, 2), (1.0, 1.0)), "vae": BatchLatency((1, 2), (1.0, 1.0))})
LLM = LatencyTable("m", "d", {"prefill": TokensLatency((1.0, 0.0, 0.0)), "decode": ContextLatency((0.5, 0.0))})


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_images_arrive_alike_and_take_as_many_steps(seed: int) -> None:
    bench = DiffusionBench(cast(Any, None), IMAGES, "neustream", 30, (5, 40))
    (setting,) = sweep({"rate": [2.0], "cv": [1.5], "slo_scale": [3.0]}, seed=seed)
    simulated = list(PipelineWorkload(2.0, 1.5, ScaleSlo(3.0), (5, 40), 30, seed).requests(IMAGES))
    assert [(ask.arrival, ask.payload[1]) for ask in bench.asks(setting)] == [
        (request.arrival, request.route[0].visits) for request in simulated
    ]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_prompts_are_as_long(seed: int) -> None:
    simulated = list(LlmWorkload(2.0, 1.5, ScaleSlo(3.0), 8, 30, seed).requests(LLM))
    assert Prompts(100).lengths(30, seed) == [request.size for request in simulated]


def test_another_seed_gives_other_step_counts_and_the_same_whatever_the_rate() -> None:
    def steps(seed: int, rate: float) -> list[int]:
        workload = PipelineWorkload(rate, 1.5, ScaleSlo(3.0), (5, 40), 30, seed)
        return [request.route[0].visits for request in workload.requests(IMAGES)]

    assert steps(0, 1.0) == steps(0, 4.0) == step_counts(5, 40, 30, 0).tolist()
    assert steps(0, 1.0) != steps(1, 1.0)
    assert gamma_arrivals(1.0, 1.5, 30, 0).tolist() != gamma_arrivals(1.0, 1.5, 30, 1).tolist()
