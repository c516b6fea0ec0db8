"""Capacity: the best rate within the SLO, in batches that a policy may plan and the device can hold."""

from __future__ import annotations

import pytest

from neusim.sim import Device, PipelineWorkload, simulate
from neustream import LatencyTable, ScaleSlo
from neustream.capacity import MAX_BATCH, largest_batch, llm_capacity, pipeline_capacity
from neustream.latency import BatchLatency, ContextLatency, TokensLatency

FLAT = BatchLatency(tuple(range(1, 21)), tuple(0.0086 + 0.0005 * max(b - 4, 0) for b in range(1, 21)))
"""As DiT-S/2 was measured: to 20 images, and so flat that the line goes on to much larger ones."""


def test_capacity_is_the_best_rate_with_every_token_on_pace(llm_table):
    # B requests live 10·0.1 + B·0.2 s; within 1.6 × (1.0 + 0.2) s that allows B = 4, and 4 leave per 1.8 s.
    assert llm_capacity(llm_table, prompt=10, max_tokens=11, dslo=1.6) == pytest.approx(4 / 1.8)


def test_pipeline_capacity_takes_the_best_batch_within_the_slo(loop_table):
    # Alone 10·1 + 0.5 = 10.5 s, so at most 21 s at scale 2: b = 2 takes 15 + 1, b = 3 takes 20 + 1.5.
    visits = {"denoise": 10.0, "vae": 1.0}
    assert pipeline_capacity(loop_table, visits, 2.0) == pytest.approx(2 / 16)
    assert pipeline_capacity(loop_table, visits, 1.0) == pytest.approx(1 / 10.5)


def test_no_batch_counts_beyond_what_was_measured() -> None:
    table = LatencyTable("dit", "paper", {"denoise": FLAT})
    # At scale 3 batches up to 38 would be in time; the best that may be planned is the largest measured one.
    assert pipeline_capacity(table, {"denoise": 200.0}, 3.0) == pytest.approx(20 / (200 * FLAT.at(20)))
    assert largest_batch(table, "denoise") == 20


def test_no_batch_counts_that_is_larger_than_policies_plan() -> None:
    sizes = (1, 200)
    table = LatencyTable("dit", "paper", {"denoise": BatchLatency(sizes, (1.0, 1.1))})
    assert pipeline_capacity(table, {"denoise": 10.0}, 2.0) == pytest.approx(MAX_BATCH / (10 * table["denoise"].at(64)))
    assert largest_batch(table, "denoise") == MAX_BATCH


def test_a_module_of_small_batches_serves_a_large_one_in_parts() -> None:
    modules = {"denoise": BatchLatency((1, 2, 3), (1.0, 1.0, 1.0)), "vae": BatchLatency((1, 2), (0.5, 0.8))}
    table = LatencyTable("dit", "paper", modules)
    # Three go through the loop together, and as 2 + 1 through the VAE.
    assert pipeline_capacity(table, {"denoise": 10.0, "vae": 1.0}, 3.0) == pytest.approx(3 / (10 + 0.8 + 0.5))


def llm_table(**info: object) -> LatencyTable:
    modules = {"prefill": TokensLatency((0.0, 0.01, 0.0)), "decode": ContextLatency((1.0, 0.0))}
    return LatencyTable("opt", "paper", modules, info)


def test_no_more_sequences_count_than_seats_or_blocks_allow() -> None:
    def resident(table: LatencyTable, **options: int) -> float:
        rate = llm_capacity(table, prompt=16, max_tokens=33, dslo=10.0, **options)
        return rate * 32 / (1 - 0.16 * rate)  # B of B / (32 + 0.16 B)

    assert resident(llm_table()) == pytest.approx(256)
    assert resident(llm_table(), max_seqs=100) == pytest.approx(100)
    # A prompt of 16 and half of 33 tokens take 2 blocks of 16, or 4 of 8.
    assert resident(llm_table(kv_blocks=60)) == pytest.approx(30)
    assert resident(llm_table(kv_blocks=60, kv_block_size=8)) == pytest.approx(15)
    assert resident(llm_table(kv_blocks=1)) == pytest.approx(1)


@pytest.mark.parametrize("policy", ["clockwork", "neustream", "slack"])
def test_no_policy_plans_a_batch_beyond_the_largest(policy: str) -> None:
    modules = {"denoise": BatchLatency((1, 2, 3), (1.0, 1.1, 1.2)), "vae": BatchLatency((1, 2), (0.1, 0.1))}
    table = LatencyTable("dit", "paper", modules)
    workload = PipelineWorkload(5.0, 1.0, ScaleSlo(6.0), (3, 6), num_requests=80)
    for device in (Device("process"), Device("interleaved")):
        result = simulate(table, policy, workload, device, slo_scale=6.0, keep_steps=True)
        assert {step.batch_size for step in result.steps} > {1}
        assert all(step.batch_size <= largest_batch(table, step.kind) for step in result.steps)
