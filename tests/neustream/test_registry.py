"""The registry: policies by name, their options, and what they need of a driver."""

from __future__ import annotations

import pytest

from neustream import POLICIES, make_policy
from neustream.policies import check_abilities, policies_for
from neustream.policies.base import PolicyContext


def test_a_policy_that_splits_prompts_is_refused_by_a_driver_that_cannot():
    message = "'chunked' splits prompts over several steps, which vLLM 0.5.4 cannot do; fcfs, neustream, slack do not"
    with pytest.raises(ValueError, match=message):
        check_abilities("chunked", can_split=False, driver="vLLM 0.5.4")
    check_abilities("chunked", can_split=True)
    for name in ("fcfs", "neustream", "slack", "clockwork"):
        check_abilities(name, can_split=False)
    for name, entry in POLICIES.items():
        if entry.splits:
            with pytest.raises(ValueError, match=f"policy '{name}' splits prompts"):
                check_abilities(name, can_split=False)
    with pytest.raises(ValueError, match="unknown policy 'magic'; there are fcfs, "):
        check_abilities("magic", can_split=True)


def test_every_policy_is_told_where_it_runs_and_knows_its_own_options(llm_table, loop_table):
    for table in (llm_table, loop_table):
        for name in policies_for(table):
            make_policy(name, table, slo_scale=2.0, handover=0.01)
            with pytest.raises(ValueError, match=f"policy '{name}' has no option 'colour'; it has "):
                make_policy(name, table, colour=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neustream", {"horizon": -1}, "horizon must be a whole number of at least 0, got -1"),
        ("neustream", {"horizon": "x"}, "horizon must be a whole number of at least 0, got 'x'"),
        ("chunked", {"budget": 1.5}, "budget must be a whole number of at least 1, got 1.5"),
        ("slack", {"slo_scale": 0.5}, "slo_scale must be at least 1, got 0.5"),
        ("fcfs", {"handover": "soon"}, "handover must be at least 0, got 'soon'"),
        ("fcfs", {"handover": float("nan")}, "handover must be at least 0, got nan"),
    ],
)
def test_options_out_of_range_are_refused(llm_table, name, options, message):
    with pytest.raises(ValueError, match=message):
        make_policy(name, llm_table, **options)


def test_the_usual_policies_are_those_that_are_no_peers(llm_table):
    usual = policies_for(llm_table, peers=False)
    assert usual == ["fcfs", "chunked", "neustream", "slack"]
    assert set(policies_for(llm_table)) - set(usual) >= {"qoserve", "scorpio", "vllm-v1"}


def test_an_error_inside_a_policy_is_no_error_of_its_options(llm_table, monkeypatch):
    def broken(table: object, context: PolicyContext) -> None:
        raise TypeError("a bug")

    monkeypatch.setitem(POLICIES, "broken", type(POLICIES["fcfs"])("has a bug", broken))
    with pytest.raises(TypeError, match="a bug"):
        make_policy("broken", llm_table)


def test_fcfs_serves_pipelines_one_request_after_the_other(loop_table):
    assert policies_for(loop_table) == ["fcfs", "neustream", "clockwork", "slack"]
