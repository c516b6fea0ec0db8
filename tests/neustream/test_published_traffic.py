"""Made-up traffic has the statistics that were published; bursts have the rate that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from neustream.workload import Bursts, output_lengths
from neustream.workload.published import PUBLISHED, SHARES, published_trace
from neustream.workload.traces import mean_rate

# Means that were published with the quantiles; interpolating between those comes this near.
MEANS = {"azure-conv-like": (1155, 211), "azure-code-like": (2048, 27.9), "mooncake-like": (12035, 343)}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_lengths_and_rate_are_the_published_ones(name):
    rows = published_trace(name, 20_000, 0)
    known = PUBLISHED[name]
    for lengths, quantiles, mean in zip(
        ([row.prompt for row in rows], [row.output for row in rows]),
        (known.prompt, known.output),
        MEANS[name],
        strict=True,
    ):
        at = [i for i, share in enumerate(SHARES) if 0.05 <= share <= 0.95]
        assert np.quantile(lengths, [SHARES[i] for i in at]) == pytest.approx(
            [quantiles[i] for i in at], rel=0.12, abs=1
        )
        assert np.mean(lengths) == pytest.approx(mean, rel=0.15)
        assert min(lengths) >= quantiles[0]
        assert max(lengths) <= quantiles[-1]
    assert mean_rate(rows) == pytest.approx(known.rate, rel=0.15)
    assert rows[0].offset == 0.0
    assert [row.offset for row in rows] == sorted(row.offset for row in rows)
    assert rows == published_trace(name, 20_000, 0)
    assert rows[:50] != published_trace(name, 50, 1)


def test_code_comes_in_bursts_and_conversations_do_not():
    def spread(name):
        """Coefficient of variation of the requests per ten seconds."""
        times = np.array([row.offset for row in published_trace(name, 8000, 0)])
        counts = np.bincount((times // 10).astype(int))
        return counts.std() / counts.mean()

    assert spread("azure-code-like") == pytest.approx(1.67, rel=0.25)  # of the trace itself
    assert spread("azure-conv-like") < 0.3


@pytest.mark.parametrize(("size", "gap", "rate"), [(1, 0.0, 3.0), (20, 0.05, 2.0), (60, 0.0, 0.5)])
def test_bursts_come_at_the_rate(size, gap, rate):
    times = Bursts(size, gap).arrivals(rate, 60_000, 0)
    gaps = np.diff(times)
    assert 1 / gaps.mean() == pytest.approx(rate, rel=0.1)
    inner = np.sort(gaps)[: int(len(gaps) * 0.98 * (1 - 1 / size))]
    if len(inner):
        assert inner.mean() == pytest.approx(gap, rel=0.15, abs=1e-12)


def test_bursts_that_cannot_be():
    for arguments, said in (
        ((0.5, 0.1), "at least 1 request"),
        ((5, -1.0), "at least 0 s"),
        ((5, float("inf")), "gap"),
    ):
        with pytest.raises(ValueError, match=said):
            Bursts(*arguments)
    with pytest.raises(ValueError, match="cannot make 10 requests/s"):
        Bursts(5, 0.5).arrivals(10.0, 5, 0)
    with pytest.raises(ValueError, match="unknown traffic 'x'"):
        published_trace("x", 1, 0)


def test_log_normal_outputs_have_the_mean_and_are_not_the_prompts():
    lengths = output_lengths(50_000, 0, mean=150.0)
    assert lengths.mean() == pytest.approx(150, rel=0.02)
    assert lengths.std() / lengths.mean() == pytest.approx(np.sqrt(np.exp(0.7**2) - 1), rel=0.05)
    assert lengths.min() >= 1
    with pytest.raises(ValueError, match="mean of output lengths"):
        output_lengths(1, 0, mean=0.0)
