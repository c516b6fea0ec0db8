"""The rules of other systems: each one's own, on states computed by hand."""

from __future__ import annotations

import pytest

from neustream import AbsoluteSlo, LatencyTable, Limits, Request, Streams, make_policy
from neustream.latency import ContextLatency, TokensLatency
from neustream.output_lengths import LengthHistory
from neustream.plan import StepPlan
from neustream.policies.mixed_step import own_due
from neustream.route import llm_route

# A prompt token takes 1 ms, a decode step 20 ms whatever its batch; context next to nothing, but more than nothing.
TABLE = LatencyTable("m", "d", {"prefill": TokensLatency((0.0, 0.001, 0.0)), "decode": ContextLatency((0.02, 1e-9))})
ROOMY = Limits(can_split=True)


def prompt(name: str, size: int, ttft: float, tpot: float = 0.1, arrival: float = 0.0) -> Request:
    route = llm_route(40)
    return Request(name, arrival, AbsoluteSlo(ttft, tpot).bind(arrival, route, size, TABLE), route, size)


def decoding(name: str, ttft: float, tpot: float = 0.1, first_at: float = 0.0, units: int = 1) -> Request:
    """One that has delivered `units`, one every `tpot` from `first_at` on."""
    request = prompt(name, 10, ttft, tpot)
    for i in range(units):
        request.advance(first_at + i * tpot)
    return request


def planned(policy: str, now: float, *requests: Request, limits: Limits = ROOMY, **options: object) -> StepPlan:
    streams = Streams(TABLE.modules)
    for request in requests:
        streams.add(request)
    return make_policy(policy, TABLE, **options).plan(now, streams, limits)


def pieces(plan: StepPlan) -> dict[str, int]:
    return {piece.request.request_id: piece.work for piece in plan.pieces}


def names(plan: StepPlan) -> list[str]:
    return [request.request_id for request in plan.batch]


def test_vllm_v1_takes_prompts_as_they_came_up_to_its_budget():
    urgent, long = prompt("urgent", 30, 0.1), prompt("long", 2000, 60.0)
    plan = planned("vllm-v1", 0.0, decoding("d", 0.1), long, urgent)
    assert (names(plan), pieces(plan)) == (["d"], {"long": 2000, "urgent": 30})
    assert pieces(planned("vllm-v1", 0.0, long, urgent, budget=1500)) == {"long": 1500}


def test_sarathi_edf_takes_the_first_deadline_first_up_to_its_budget():
    plan = planned("sarathi-edf", 0.0, decoding("d", 0.1), prompt("later", 500, 9.0), prompt("sooner", 200, 1.0))
    assert (names(plan), pieces(plan)) == (["d"], {"sooner": 200, "later": 55})


@pytest.mark.parametrize(("due", "tokens"), [(0.55, 256), (0.65, 512), (0.15, 128), (2.0, 1536)])
def test_qoserve_takes_the_largest_step_of_its_list_that_the_least_slack_holds_1_2_times(due, tokens):
    """The tokens of the step, decodes included, take 1 ms each; 1.2 × 512 ms are 0.614 s."""
    slack = decoding("d", due - 0.1, first_at=0.0)
    plan = planned("qoserve", 0.0, slack, prompt("p", 4000, 60.0))
    assert (names(plan), pieces(plan)) == (["d"], {"p": tokens - 1})


def test_qoserve_sends_the_hopeless_to_the_back_and_rejects_nobody():
    plan = planned("qoserve", 0.0, prompt("hopeless", 2000, 1.0), prompt("hopeful", 2000, 3.0))
    assert pieces(plan) == {"hopeful": 2000, "hopeless": 552}
    assert not plan.rejected


def test_qoserve_prefers_short_prompts_under_load_only():
    """Late in the order of deadlines: 2 × 0.9 s after now where 1.5 s are left."""
    calm = planned("qoserve", 0.0, prompt("long", 900, 5.0), prompt("short", 100, 5.9))
    loaded = planned("qoserve", 0.0, prompt("long", 900, 1.0), prompt("short", 500, 1.3))
    assert list(pieces(calm)) == ["long", "short"]
    assert list(pieces(loaded)) == ["short", "long"]


def test_qoserve_judges_a_deadline_for_the_last_token_by_the_outputs_of_its_class():
    """40 tokens at most; the class has delivered 2 at most, which is 38 × 8 ms better."""
    history = LengthHistory()
    for _ in range(50):
        history.add(2)
    route = llm_route(40)
    ends = [
        Request(n, 0.0, AbsoluteSlo(e2el=e).bind(0.0, route, 10, TABLE), route, 10, slo_class=n)
        for n, e in (("known", 3.1), ("unknown", 3.0))
    ]
    hopeless = prompt("hopeless", 900, 0.1)
    limits = Limits(can_split=True, lengths={"known": history})
    assert list(pieces(planned("qoserve", 0.0, *ends, hopeless, limits=limits)))[:2] == ["known", "unknown"]
    assert list(pieces(planned("qoserve", 0.0, *ends, hopeless)))[:2] == ["unknown", "known"]


def test_qos_own_spends_no_lead_beyond_one_pace_a_unit():
    """The first unit came 5 s early. By the envelope a step may take 5 s, by its own pace 0.1 s."""
    early = decoding("d", 5.0, first_at=0.0)
    assert own_due(early) == pytest.approx(0.1)
    assert early.next_deadline == pytest.approx(5.1)
    waiting = prompt("p", 4000, 60.0)
    assert pieces(planned("qos-own", 0.0, early, waiting)) == {"p": 127}
    assert pieces(planned("qoserve", 0.0, early, waiting)) == {"p": 2551}


def test_a_late_decode_keeps_the_step_small_only_where_it_is_said_to():
    late = decoding("late", 0.1, first_at=0.0)
    waiting = prompt("p", 4000, 60.0)
    assert pieces(planned("qoserve", 1.0, late, waiting, late_hold=True)) == {"p": 127}
    assert pieces(planned("qoserve", 1.0, late, waiting)) == {"p": 2551}


def test_fairbatching_leaves_out_decodes_that_are_ahead_while_prompts_need_the_time():
    """The step takes 0.15 s: `urgent` has 0.15 s left, `ahead` 5.1 s. The prompt takes all of it."""
    urgent, ahead = decoding("urgent", 0.05, first_at=0.0), decoding("ahead", 5.0, first_at=0.0)
    plan = planned("fairbatching", 0.0, ahead, urgent, prompt("p", 4000, 1.0))
    assert (names(plan), pieces(plan)) == (["urgent"], {"p": 148})
    plan = planned("fairbatching", 0.0, ahead, urgent, prompt("p", 20, 1.0))
    assert (names(plan), pieces(plan)) == (["urgent", "ahead"], {"p": 20})


def test_fairbatching_gives_a_step_at_least_one_pace():
    late = decoding("late", 0.1, first_at=0.0)
    assert pieces(planned("fairbatching", 1.0, late, prompt("p", 4000, 60.0))) == {"p": 98}


def test_slos_serve_guarantees_the_most_prompts_and_gives_the_others_what_is_left():
    """100 tokens in each step of 0.1 s: of 900 and 400 tokens due after 1 s only one can be guaranteed."""
    decode = decoding("d", 0.5, first_at=0.0)
    first, short = prompt("first", 900, 1.0), prompt("short", 400, 1.001)
    plan = planned("slos-serve", 0.0, decode, first, short)
    assert pieces(plan) == {"short": 98}
    assert pieces(planned("slos-serve", 0.0, decode, first)) == {"first": 98}
    tiny = prompt("tiny", 40, 1.0)
    assert pieces(planned("slos-serve", 0.0, decode, first, tiny, short)) == {"tiny": 40, "short": 58}


def test_scorpio_rejects_who_cannot_have_its_first_token_after_those_ahead():
    plan = planned("scorpio", 0.0, prompt("a", 600, 1.0), prompt("b", 600, 1.1), prompt("c", 300, 1.2))
    assert [rejection.request.request_id for rejection in plan.rejected] == ["b"]
    assert pieces(plan) == {"a": 256}
    assert not planned("scorpio", 0.0, prompt("a", 600, 1.0), prompt("b", 600, 1.3)).rejected


def test_scorpio_lets_in_only_what_the_tightest_pace_has_room_for():
    """A decode step of n takes 20 ms × n here; two of pace 50 ms fit, a third does not."""
    decode = ContextLatency((0.02, 1e-9), (1, 2, 3), (0.02, 0.04, 0.06))
    table = LatencyTable("m", "d", {"prefill": TABLE["prefill"], "decode": decode})
    streams = Streams(table.modules)
    for request in (decoding("a", 9.0, 0.05), prompt("b", 10, 9.0, 0.05), prompt("c", 10, 9.1, 0.05)):
        streams.add(request)
    assert pieces(make_policy("scorpio", table).plan(0.0, streams, ROOMY)) == {"b": 10}


def test_scorpio_goes_on_with_what_has_begun_where_a_new_prompt_of_an_earlier_deadline_is_shut_out():
    table = LatencyTable("m", "d", {"prefill": TABLE["prefill"], "decode": ContextLatency((0.2, 1e-9))})
    begun = prompt("begun", 40, 9.0)
    begun.process(10)
    streams = Streams(table.modules)
    for request in (prompt("new", 10, 8.0), begun):
        streams.add(request)
    assert pieces(make_policy("scorpio", table).plan(0.0, streams, ROOMY)) == {"begun": 30}


def test_scorpio_decodes_a_loose_request_as_often_as_its_pace_needs():
    """A request of three times the tightest pace decodes in every third step, whenever it joined."""
    tight, loose = decoding("tight", 9.0, 0.1), decoding("loose", 9.0, 0.3)
    turns = []
    for _ in range(9):
        plan = planned("scorpio", 0.0, tight, loose)
        turns.append("loose" in names(plan))
        for request in (tight, loose):
            if request in plan.batch:
                request.advance(0.0)
            else:
                request.passes += 1
    assert sum(turns) == 3
    assert turns in ([i % 3 == k for i in range(9)] for k in range(3))


def test_slidebatching_goes_by_deadline_in_calm_times_and_by_length_in_others():
    sooner, short = prompt("sooner", 900, 2.0), prompt("short", 300, 2.2)
    assert list(pieces(planned("slidebatching", 0.0, sooner, short))) == ["sooner", "short"]
    others = [prompt(f"more{i}", 950, 20.0) for i in range(2)]
    assert list(pieces(planned("slidebatching", 0.0, sooner, short, *others)))[:2] == ["short", "sooner"]


def test_slidebatching_serves_those_without_hope_last_until_their_patience_is_over():
    late, hopeful = prompt("late", 100, 0.05), prompt("hopeful", 900, 9.0, arrival=1.0)
    assert list(pieces(planned("slidebatching", 1.0, late, hopeful))) == ["hopeful", "late"]
    assert list(pieces(planned("slidebatching", 1.0, late, hopeful, patience=0.5))) == ["late", "hopeful"]


PEERS = ["sarathi-edf", "qoserve", "qos-own", "fairbatching", "slos-serve", "scorpio", "slidebatching", "vllm-v1"]


@pytest.mark.parametrize("policy", PEERS)
def test_a_prompt_without_room_keeps_new_ones_out_and_lets_those_that_have_begun_go_on(policy):
    begun = prompt("begun", 50, 9.0)
    begun.process(20)
    begun.is_resident = True
    limits = Limits(can_split=True, free_blocks=60, total_blocks=200)
    requests = [prompt("big", 100, 5.0), begun, prompt("small", 10, 8.0)]
    assert pieces(planned(policy, 0.0, *requests, limits=limits)) == {"begun": 30}


@pytest.mark.parametrize("policy", ["qoserve", "fairbatching", "slos-serve", "slidebatching"])
def test_slow_steps_make_smaller_pieces(policy):
    decode, waiting = decoding("d", 0.5, first_at=0.0), prompt("p", 4000, 60.0)
    slow = Limits(can_split=True, drift={"decode": 2.0, "prefill": 2.0})
    exact = pieces(planned(policy, 0.0, decode, waiting))["p"]
    assert pieces(planned(policy, 0.0, decode, waiting, limits=slow))["p"] <= exact / 2 + 1


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("qoserve", {"alpha": -1}, "alpha must be a number of at least 0, got -1"),
        ("qos-own", {"caution": 0}, "caution must be a number above 0, got 0"),
        ("sarathi-edf", {"budget": 0}, "budget must be a whole number of at least 1, got 0"),
        ("scorpio", {"budget": 2.5}, "budget must be a whole number of at least 1, got 2.5"),
        ("slos-serve", {"caution": "x"}, "caution must be a number above 0, got 'x'"),
        ("fairbatching", {"caution": float("nan")}, "caution must be a number above 0, got nan"),
        ("slidebatching", {"patience": float("inf")}, "patience must be a number of at least 0, got inf"),
        ("qoserve", {"late_hold": "yes"}, "late_hold must be true or false, got 'yes'"),
    ],
)
def test_constants_out_of_range_are_refused(policy, options, message):
    with pytest.raises(ValueError, match=message):
        make_policy(policy, TABLE, **options)
