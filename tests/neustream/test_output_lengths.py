"""The lengths of finished outputs, and what they say of one under way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neustream import Limits, Outcome, Request
from neustream.history import StepHistory
from neustream.output_lengths import LengthHistory
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 20), st.floats(0, 1), st.integers(0, 50))
def test_quantile_and_mean_are_those_of_the_last_outputs_that_were_longer(lengths, window, share, beyond):
    history = LengthHistory(window)
    for length in lengths:
        history.add(length)
    longer = sorted(length for length in lengths[-window:] if length > beyond)
    assert len(history) == min(len(lengths), window)
    if not longer:
        assert (history.quantile(share, beyond), history.mean(beyond)) == (None, None)
        return
    expected = np.quantile(longer, share, method="inverted_cdf")
    assert history.quantile(share, beyond) == expected
    assert history.mean(beyond) == pytest.approx(np.mean(longer))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        LengthHistory(0)
    with pytest.raises(ValueError, match=r"share must be between 0 and 1, got 1\.5"):
        LengthHistory().quantile(1.5)


def test_only_outputs_that_came_to_their_end_count_each_in_its_class():
    history = StepHistory()
    for units, outcome, slo_class in ((3, None, "chat"), (5, Outcome.ABORTED, "chat"), (7, None, "batch")):
        request = Request("r", 0.0, NO_DEADLINES, llm_route(9), 4, slo_class=slo_class)
        for _ in range(units):
            request.advance(1.0)
        request.end(1.0, outcome)
        history.finished(request)
    lengths = history.limits(Limits()).lengths
    assert {name: known.mean() for name, known in lengths.items()} == {"chat": 3.0, "batch": 7.0}


def kept_by_product_limit(lengths, cut, units):
    """The share of outputs that go on beyond `units`, by the definition of the product-limit estimate."""
    share = 1.0
    for length in sorted({length for length in lengths if length <= units}):
        at_risk = sum(other >= length for other in lengths)
        ended = sum(other == length and not is_cut for other, is_cut in zip(lengths, cut, strict=True))
        share *= 1 - ended / at_risk
    return share


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=20), st.integers(0, 12))
def test_the_likely_length_is_where_half_of_those_that_go_on_have_ended(outputs, units):
    history = LengthHistory()
    for length, is_cut in outputs:
        history.add(length, is_cut)
    lengths, cut = zip(*outputs, strict=True)
    gone_on = kept_by_product_limit(lengths, cut, units)
    likely = history.likely().beyond(units, 100)
    if gone_on < 1e-9:  # everybody had ended by then: as far again
        assert likely == 2 * units
        return
    for length in range(units + 1, 100):
        if kept_by_product_limit(lengths, cut, length) <= 0.5 * gone_on + 1e-9:
            assert likely == length
            return
    assert likely == 100


def test_outputs_that_all_ran_to_their_maximum_say_nothing_but_the_maximum():
    history = LengthHistory()
    for _ in range(20):
        history.add(64, is_cut=True)
    assert [history.likely().beyond(units, 300) for units in (0, 10, 64, 80)] == [300] * 4
