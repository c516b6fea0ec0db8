"""Prompts that begin alike share memory and work: which blocks are there, who gives way, what a hit spares."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neusim.sim import Device, simulate
from neusim.sim.prefixes import PrefixMemory
from neusim.sim.workload import TraceWorkload
from neustream import AbsoluteSlo, LatencyTable, Request
from neustream.latency import ContextLatency, TokensLatency
from neustream.policies import POLICIES
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES
from neustream.workload.traces import TracedRequest

TABLE = LatencyTable(
    "m", "d", {"prefill": TokensLatency((0.01, 1e-4, 1e-9)), "decode": ContextLatency((0.02, 1e-7))}, {}
)
NAMES: dict[str, tuple[int, ...]] = {}


def prompt(name, size, names, units=4):
    NAMES[name] = tuple(names)
    return Request(name, 0.0, NO_DEADLINES, llm_route(units), size)


def memory(total, per_name=2, block=4):
    return PrefixMemory(total, block, 0.0, lambda request: NAMES[request.request_id], per_name * block)


def serve(kept, request):
    """Admit it, process all of its prompt, let it go."""
    kept.refresh([request])
    assert kept.admit(request)
    kept.fill(request, request.size)
    kept.check_integrity()
    kept.release(request)
    kept.check_integrity()


def test_a_prompt_that_begins_like_an_earlier_one_is_spared_its_full_blocks():
    kept = memory(20)
    first = prompt("a", 21, [1, 2, 3])  # two full blocks of eight tokens, and five tokens more
    kept.refresh([first])
    assert first.cached == 0
    assert kept.admit(first)
    assert kept.free == 20 - 6
    second = prompt("b", 30, [1, 2, 3, 9])
    kept.refresh([second])
    assert second.cached == 0  # nothing is processed yet
    kept.fill(first, 10)
    kept.refresh([second])
    assert second.cached == 8
    kept.fill(first, 21)
    kept.refresh([second])
    assert second.cached == 16  # the third is not full in the first prompt
    assert kept.admit(second)
    assert kept.free == 20 - 6 - (8 - 4)  # 30 tokens are 8 blocks, 4 of them are there
    kept.check_integrity()
    kept.release(first)
    assert kept.free == 20 - 8
    kept.release(second)
    assert kept.free == 20
    assert (kept.num_spared, kept.num_asked) == (16, 51)


def test_the_last_token_is_always_processed():
    kept = memory(20)
    serve(kept, prompt("a", 16, [1, 2]))
    again = prompt("b", 16, [1, 2])
    kept.refresh([again])
    assert (again.cached, again.pending) == (15, 1)
    assert kept.admit(again)
    assert kept.free == 16
    kept.release(again)
    kept.check_integrity()


def test_who_needs_room_takes_what_is_idle_for_longest_the_ends_first():
    kept = memory(10)
    serve(kept, prompt("a", 17, [1, 2, 0]))
    serve(kept, prompt("b", 16, [5, 6]))
    serve(kept, prompt("c", 8, [1]))  # 1 was used again
    big = prompt("d", 14, [8])
    assert kept.admit(big)  # four of ten blocks; two are free besides eight idle ones
    kept.check_integrity()
    left = prompt("e", 99, [1, 2, 0]), prompt("f", 99, [5, 6])
    kept.refresh(left)
    assert [request.cached for request in left] == [8, 16]  # 2 has gone, the end of the one idle for longest


def test_idle_blocks_that_somebody_waiting_would_use_are_not_certain():
    kept = memory(10)
    serve(kept, prompt("a", 24, [1, 2, 3]))
    waiting = [prompt("b", 17, [1, 2, 7]), prompt("c", 25, [1, 2, 3, 4])]
    assert kept.free == 10
    assert kept.certain(waiting) == 4
    assert kept.certain(waiting[:1]) == 6
    assert kept.admit(prompt("g", 12, []))
    assert not kept.admit(prompt("d", 32, [1, 2, 3, 4]))  # eight blocks, six of them there but idle: seven are free
    assert kept.admit(prompt("c", 25, [1, 2, 3, 4]))
    assert kept.free == 0
    kept.check_integrity()


def test_blocks_of_a_trace_must_be_whole_blocks_of_the_device():
    with pytest.raises(ValueError, match="prefix blocks of 8 tokens cannot be made of blocks of 3"):
        PrefixMemory(10, 3, 0.0, lambda request: (), 8)


@st.composite
def prompts(draw):
    tree = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    names, seen = [], 0
    for branch in tree:
        seen = 10 * seen + branch + 1
        names.append(seen)
    size = draw(st.integers((len(names) - 1) * 8 + 1, len(names) * 8))
    return size, tuple(names)


@settings(max_examples=200)
@given(st.lists(st.tuples(prompts(), st.integers(0, 3)), max_size=25), st.integers(14, 40))
def test_every_block_is_free_idle_shared_or_held_whatever_comes(asked, total):
    kept = memory(total)
    running: list[Request] = []
    for i, ((size, names), action) in enumerate(asked):
        request = prompt(str(i), size, names)
        kept.refresh([request])
        certain = kept.certain([request])
        if kept.admit(request):
            running.append(request)
            kept.fill(request, max(request.cached, size // 2))
            kept.fill(request, size)
            assert request.cached <= size - 1
        else:
            assert kept.blocks(request.pending) > certain  # who is promised that much gets it
        kept.check_integrity()
        if action and running:
            kept.release(running.pop(action % len(running)))
            kept.check_integrity()
    for request in running:
        kept.release(request)
    assert kept.free == total
    kept.check_integrity()


def talk(turns, gap, size=2000, start=0.0, first=0):
    """A conversation: each prompt is the one before it and 1,024 tokens more."""
    rows = []
    for i in range(turns):
        tokens = size + 1024 * i
        rows.append(TracedRequest(start + gap * i, tokens, 20, tuple(range(first, first + -(-tokens // 512)))))
    return rows


def workload(rows):
    return TraceWorkload(sorted(rows, key=lambda row: row.offset), AbsoluteSlo(ttft=1.0, tpot=0.1), 64)


def test_a_hit_spares_a_prefill_its_work():
    rows = talk(5, 10.0)
    results = [
        simulate(TABLE, "fcfs", workload(rows), Device(prefix_cache=on), keep_steps=True) for on in (False, True)
    ]
    first, spared = ([s.seconds for s in result.steps if s.kind == "prefill"] for result in results)
    assert first[0] == spared[0]
    # The last prompt has 6,096 tokens; nine blocks of the one before it were full.
    pairs = (6096 - 4608) ** 2 + 2 * (6096 - 4608) * 4608
    assert spared[-1] == pytest.approx(0.01 + 1e-4 * (6096 - 4608) + 1e-9 * pairs + 1e-7 * 4608)
    assert first[-1] == pytest.approx(0.01 + 1e-4 * 6096 + 1e-9 * 6096**2)
    assert results[0].spared is None
    hits = [0, 3 * 512, 5 * 512, 7 * 512, 9 * 512]
    assert results[1].spared == pytest.approx(sum(hits) / sum(row.prompt for row in rows))
    assert results[1].summary["ttft"]["p50"] < results[0].summary["ttft"]["p50"]


@pytest.mark.parametrize("policy", [name for name, entry in POLICIES.items() if entry.llm])
@pytest.mark.parametrize("blocks", [500, 1300, None])
def test_all_are_served_where_memory_is_short_and_shared(policy, blocks):
    rows = [row for i in range(6) for row in talk(4, 0.3, start=0.05 * i, first=100 * (i % 3))]
    slack = TraceWorkload(sorted(rows, key=lambda row: row.offset), AbsoluteSlo(e2el=1e4), 64)
    device = Device(kv_blocks=blocks, block_size=16)
    result = simulate(TABLE, policy, slack, device)
    assert result.summary["good"] == len(rows), result.summary
    assert result.spared is not None
    assert result.spared > 0.1


def test_the_same_prompts_without_names_hit_nothing():
    rows = [row._replace(blocks=()) for row in talk(3, 10.0)]
    assert simulate(TABLE, "fcfs", workload(rows), Device()).spared is None
