"""Whole traces of the simulator, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from neusim.sim import Device, Result, default_device, simulate
from neusim.sim.events import EventQueue, Priority
from neustream import Deadlines, LatencyTable, Limits, Outcome, Piece, Request, StepPlan, Streams
from neustream.catalog.llms import OPT_SHAPES
from neustream.cost import gpu_demand, step_seconds
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.plan import IDLE
from neustream.policies.fcfs_loop import FcfsLoop
from neustream.route import llm_route, pipeline_route

DIT = LatencyTable(
    "dit-hand",
    "paper",
    {
        "denoise": BatchLatency((1, 2, 3, 4), (1.0, 1.5, 2.0, 2.5)),
        "vae": BatchLatency((1, 2), (0.5, 1.0)),
    },
)
OPT = LatencyTable(
    "opt-hand", "paper", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.0))}
)


class Given:
    """A workload of these requests, made anew for each run."""

    def __init__(self, make: Callable[[], list[Request]]) -> None:
        self.make = make
        self.num_requests = len(make())

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        return iter(self.make())


def image(name: str, arrival: float, steps: int, due: float = 1e9) -> Request:
    return Request(name, arrival, Deadlines(due), pipeline_route(["denoise", "vae"], steps))


def prompt(name: str, arrival: float, size: int, tokens: int) -> Request:
    return Request(name, arrival, Deadlines(1e9), llm_route(tokens), size)


def trace(result: Result) -> list[tuple[float, float, str, str]]:
    """(start, end, module, ids) of each step, by its end."""
    return [(round(s.time, 9), round(s.time + s.seconds, 9), s.kind, " ".join(s.request_ids)) for s in result.steps]


def run(table: LatencyTable, policy, make: Callable[[], list[Request]], device: Device, **options) -> Result:
    return simulate(table, policy, Given(make), device, keep_steps=True, **options)


def test_processes_of_one_pipeline_overlap_and_slow_each_other_down():
    """Demand on the GPU: the upper half's slope is 0.5 s a request, so denoise of one 0.5, VAE of one 1.

    From 2.75 both run, at 1/1.5 of their speed: the VAE's 0.5 s take 0.75, b's step does 0.5 of its last 0.75 s.
    """
    result = run(
        DIT,
        "neustream",
        lambda: [image("a", 0.0, 2), image("b", 0.5, 3)],
        Device("process", handover=0.25),
        slo_scale=3.0,
    )
    assert trace(result) == [
        (0.0, 1.0, "denoise", "a"),
        (1.0, 2.5, "denoise", "a b"),
        (2.75, 3.5, "vae", "a"),
        (2.5, 3.75, "denoise", "b"),
        (3.75, 4.75, "denoise", "b"),
        (5.0, 5.5, "vae", "b"),
    ]


def test_one_loop_over_all_modules_runs_one_step_at_a_time():
    result = run(
        DIT, "neustream", lambda: [image("a", 0.0, 1), image("b", 0.5, 2)], Device("interleaved"), slo_scale=3.0
    )
    assert trace(result) == [
        (0.0, 1.0, "denoise", "a"),
        (1.0, 1.5, "vae", "a"),
        (1.5, 2.5, "denoise", "b"),
        (2.5, 3.5, "denoise", "b"),
        (3.5, 4.0, "vae", "b"),
    ]


def test_steps_of_small_demand_do_not_slow_each_other_down():
    table = LatencyTable("t", "d", {m: BatchLatency((1, 2, 3), (1.0, 1.2, 1.4)) for m in ("denoise", "vae")})
    assert gpu_demand(table, "denoise", 1) == pytest.approx(0.2)
    assert gpu_demand(table, "denoise", 2) == pytest.approx(0.4 / 1.2)
    result = run(table, "neustream", lambda: [image("a", 0.0, 1), image("b", 0.5, 1)], Device("process", handover=0.0))
    assert trace(result) == [
        (0.0, 1.0, "denoise", "a"),
        (1.0, 2.0, "denoise", "b"),
        (1.0, 2.0, "vae", "a"),
        (2.0, 3.0, "vae", "b"),
    ]


SD = LatencyTable(
    "sd-hand",
    "paper",
    {module: BatchLatency((1, 2), (1.0, 1.5)) for module in ("text_encoder", "denoise", "vae", "safety")},
)


def sd_image(name: str) -> Request:
    return Request(name, 0.0, Deadlines(1e9), pipeline_route(SD.modules, 1))


def test_what_is_behind_the_loop_shares_a_process_and_one_hand_over():
    device = default_device(SD)
    assert device.processes(SD) == (("text_encoder",), ("denoise",), ("vae", "safety"))
    assert (device.handover, device.margin, default_device(DIT).margin) == (0.016, 0.0, 0.035)
    result = run(SD, "neustream", lambda: [sd_image("a")], Device("process", handover=0.25))
    assert [(start, module) for start, _, module, _ in trace(result)] == [
        (0.0, "text_encoder"),
        (1.25, "denoise"),
        (2.5, "vae"),
        (3.5, "safety"),
    ]


def test_whole_requests_run_in_one_process_without_hand_overs():
    result = run(SD, "clockwork", lambda: [sd_image("a")], default_device(SD))
    assert [start for start, *_ in trace(result)] == [0.0, 1.0, 2.0, 3.0]


def test_groups_of_modules_can_be_named_and_must_be_the_tables():
    device = Device("process", groups=(("text_encoder", "denoise"), ("vae",), ("safety",)))
    assert len(device.processes(SD)) == 3
    with pytest.raises(ValueError, match="groups must name each of denoise, vae once"):
        device.processes(DIT)
    with pytest.raises(ValueError, match="need the layout process"):
        Device("interleaved", groups=(("denoise",),))


def test_the_hosts_time_is_not_stretched_by_other_processes():
    """a's VAE (0.5 s, demand 1) and b's denoise (1 s, demand 0.5) both wait 0.5 s for the host, from 1.5 on.

    On the GPU together from 2.0 they run at 1/1.5: the VAE takes 0.75 s; denoise has 0.5 s left at 2.75.
    """
    result = run(
        DIT,
        "neustream",
        lambda: [image("a", 0.0, 1), image("b", 0.1, 1)],
        Device("process", handover=0.0, overhead=0.5),
    )
    assert trace(result)[:3] == [(0.0, 1.5, "denoise", "a"), (1.5, 2.75, "vae", "a"), (1.5, 3.25, "denoise", "b")]


@pytest.mark.parametrize(("contention", "ends"), [("full", (2.0, 2.5)), ("none", (1.5, 2.0))])
def test_other_laws_of_contention(contention, ends):
    result = run(
        DIT,
        "neustream",
        lambda: [image("a", 0.0, 1), image("b", 0.1, 1)],
        Device("process", handover=0.0, contention=contention),
    )
    assert [(module, end) for _, end, module, _ in trace(result)[1:3]] == list(
        zip(("vae", "denoise"), ends, strict=True)
    )


def test_steps_of_a_slow_device_take_longer_and_only_those_that_ran_alone_are_drift():
    seen: list[dict[str, float]] = []

    class Watching(FcfsLoop):
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            seen.append(dict(limits.drift))
            return super().plan(now, streams, limits)

    make = lambda: [image("a", 0.0, 2), image("b", 0.1, 2)]  # noqa: E731
    result = run(DIT, Watching, make, Device("process", handover=0.0, slowness=1.25))
    assert trace(result)[0] == (0.0, 1.25, "denoise", "a")
    # Mean and mean deviation move by a 64th of 0.25 each.
    assert seen[:2] == [{}, {"denoise": pytest.approx(1 + 2 * 0.25 / 64)}]
    seen.clear()
    overlapped = run(DIT, Watching, make, Device("process", handover=0.0))
    assert overlapped.num_steps == 6
    assert any(step.seconds > 1.001 for step in overlapped.steps)
    assert {ratio for drift in seen for ratio in drift.values()} == {1.0}


def test_out_of_blocks_the_last_come_is_preempted_and_recomputed():
    """Six blocks of four tokens, one of them spare for prefills. a and b hold three each after one decode step."""
    ended: dict[str, Request] = {}
    result = run(
        OPT,
        "fcfs",
        lambda: [prompt("a", 0.0, 8, 4), prompt("b", 0.0, 8, 4)],
        Device(kv_blocks=6, block_size=4, watermark=0.17),
        on_end=lambda request: ended.update({request.request_id: request}),
    )
    assert trace(result) == [
        (0.0, 0.26, "prefill", "a b"),
        (0.26, 0.36, "decode", "a b"),
        (0.36, 0.46, "decode", "a"),
        (0.46, 0.56, "decode", "a"),
        (0.56, 0.76, "prefill", "b"),  # its 8 tokens and the 2 it had generated: 0.1 + 10 · 0.01 s
        (0.76, 0.86, "decode", "b"),
    ]
    assert {name: request.units for name, request in ended.items()} == {"a": 4, "b": 4}


def test_a_preempted_request_is_before_all_others_in_its_stream():
    def make() -> list[Request]:
        return [prompt("a", 0.0, 8, 4), prompt("b", 0.0, 8, 4), prompt("c", 0.1, 8, 1)]

    result = run(OPT, "fcfs", make, Device(kv_blocks=6, block_size=4, watermark=0.17))
    prefills = [ids for _, _, module, ids in trace(result) if module == "prefill"]
    assert prefills == ["a b", "b c"]


class Evicting:
    """Prefills the last to come, taking the device from whoever runs; else decodes."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting, running = list(streams["prefill"]), tuple(streams["decode"])
        if waiting and waiting[-1].units == 0:
            return StepPlan("prefill", (waiting[-1],), preempted=running)
        return StepPlan("decode", running) if running else StepPlan("prefill", tuple(waiting))


def test_a_plan_that_preempts_frees_their_memory_before_its_step():
    """Four blocks of four tokens: either prompt takes two and grows to three, so both do not fit."""

    def make() -> list[Request]:
        return [prompt("a", 0.0, 8, 3), prompt("b", 0.1, 8, 2)]

    result = run(OPT, Evicting, make, Device(kv_blocks=4, block_size=4, watermark=0.0))
    assert trace(result) == [
        (0.0, 0.18, "prefill", "a"),
        (0.18, 0.36, "prefill", "b"),
        (0.36, 0.46, "decode", "b"),
        (0.46, 0.65, "prefill", "a"),  # its 8 tokens and the one it had generated
        (0.65, 0.75, "decode", "a"),
    ]


def test_a_request_that_memory_can_never_hold_fails_with_the_reason():
    ended: list[Request] = []
    run(OPT, "fcfs", lambda: [prompt("a", 0.0, 20, 10)], Device(kv_blocks=7, block_size=4), on_end=ended.append)
    assert [(request.outcome, request.reason) for request in ended] == [
        (Outcome.FAILED, "its context does not fit into the KV cache")
    ]


class Chunks:
    """Processes prompts in pieces of ten that ride along with all decodes."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        pieces = tuple(Piece(request, min(request.pending, 10)) for request in streams["prefill"])
        decodes = tuple(streams["decode"])
        return StepPlan("decode", decodes, pieces=pieces) if pieces or decodes else IDLE


def test_a_piece_of_a_prompt_rides_along_with_the_decodes():
    """A mixed step costs a prefill of all its tokens: 0.1 + (10 pieces of prompt + 1 decode) · 0.01 s."""
    result = run(
        OPT,
        Chunks,
        lambda: [prompt("a", 0.0, 10, 4), prompt("b", 0.1, 15, 2)],
        Device(kv_blocks=20, block_size=4, watermark=0.0),
    )
    assert trace(result) == [
        (0.0, 0.2, "decode", "a"),
        (0.2, 0.41, "mixed", "a b"),
        (0.41, 0.57, "mixed", "a b"),  # b's last five tokens
        (0.57, 0.67, "decode", "a b"),
    ]


def test_a_mixed_step_is_never_cheaper_than_its_decodes_and_pays_for_context():
    table = LatencyTable("o", "d", {"prefill": TokensLatency((0.0, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.001))})
    running, waiting = prompt("r", 0.0, 20, 9), prompt("w", 0.0, 30, 9)
    running.advance(0.0)
    assert step_seconds(table, StepPlan("decode", (running,), pieces=(Piece(waiting, 2),))) == pytest.approx(0.121)
    waiting.processed = 10
    mixed = StepPlan("decode", (running,), pieces=(Piece(waiting, 20),))
    attention = 20 * 10 * 0.001 * 0.01 / 0.1  # pairs, at the decode's price in the ratio of arithmetic to memory
    assert step_seconds(table, mixed) == pytest.approx(0.01 * 21 + 0.001 * (21 + 10) + attention)
    assert step_seconds(table, StepPlan("prefill", (), pieces=(Piece(waiting, 5),))) == pytest.approx(
        0.05 + 0.01 + 0.005
    )


def test_overhead_is_part_of_every_step():
    result = run(DIT, "neustream", lambda: [image("a", 0.0, 1)], Device(overhead=0.125))
    assert trace(result) == [(0.0, 1.125, "denoise", "a"), (1.125, 1.75, "vae", "a")]


class Sleepy:
    """Asks to be woken at 2 s and runs everything then."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        return StepPlan("denoise", tuple(streams["denoise"])) if now >= 2.0 else StepPlan(wake=2.0)


def test_a_policy_is_asked_again_when_it_said_and_whenever_something_arrives():
    table = LatencyTable("t", "d", {"denoise": DIT["denoise"]})
    asked: list[float] = []

    class Asked(Sleepy):
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            asked.append(now)
            return super().plan(now, streams, limits)

    def make() -> list[Request]:
        return [Request(n, t, Deadlines(9.0), pipeline_route(["denoise"], 1)) for n, t in (("a", 0.5), ("b", 1.0))]

    assert trace(run(table, Asked, make, Device())) == [(2.0, 3.5, "denoise", "a b")]
    assert sorted(set(asked)) == [0.5, 1.0, 2.0]


def test_a_policy_that_lets_requests_wait_for_ever_is_found_out():
    class Never:
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            return IDLE

    with pytest.raises(AssertionError, match="idle for ever with 1 requests"):
        run(DIT, Never, lambda: [image("a", 0.0, 1)], Device())


def test_requests_must_come_in_order_of_arrival():
    with pytest.raises(ValueError, match="before the one ahead"):
        run(DIT, "neustream", lambda: [image("a", 1.0, 1), image("b", 0.5, 1)], Device())


def test_a_policy_sees_how_long_the_last_step_of_each_module_took():
    seen: list[dict[str, float]] = []

    class Looks(Sleepy):
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            seen.append(dict(limits.last_seconds))
            for module in ("vae", "denoise"):
                if streams[module]:
                    return StepPlan(module, tuple(streams[module]))
            return IDLE

    run(DIT, Looks, lambda: [image("a", 0.0, 1)], Device())
    assert seen == [{}, {"denoise": 1.0}]


def test_events_of_one_instant_come_by_priority_then_by_order_of_insertion():
    queue: EventQueue[str] = EventQueue()
    queue.push(1.0, Priority.PLANS, "plan")
    queue.push(1.0, Priority.ENTERS, "first in")
    queue.push(1.0, Priority.STEP_ENDS, "end")
    queue.push(1.0, Priority.ENTERS, "second in")
    queue.push(0.5, Priority.PLANS, "earlier")
    assert [queue.pop() for _ in range(len(queue))] == [
        (0.5, "earlier"),
        (1.0, "end"),
        (1.0, "first in"),
        (1.0, "second in"),
        (1.0, "plan"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "both"}, "layout must be process or interleaved, got 'both'"),
        ({"overhead": -0.1}, "overhead must be at least 0, got -0.1"),
        ({"handover": float("nan")}, "handover must be at least 0, got nan"),
        ({"jitter": 1.0}, "jitter is relative"),
        ({"kv_blocks": 0}, "kv_blocks must be at least 1, got 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"watermark": 1.0}, "watermark must be"),
    ],
)
def test_an_impossible_device_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Device(**options)


def test_kv_blocks_come_from_the_table_or_from_what_is_known_of_device_and_model():
    """OPT-13B on 48 GB: 0.9 · 48e9 B less 2 B a weight, by 2 · 40 layers · 5120 · 2 B · 16 tokens a block."""
    weights = 2 * 12_853_473_280
    expected = int((0.9 * 48e9 - weights) / (2 * 40 * 5120 * 2 * 16))
    table = LatencyTable("opt-13b", "a6000", OPT.modules, {"dtype": "float16"})
    assert default_device(table).kv_blocks == expected
    assert default_device(LatencyTable("opt-13b", "a6000", OPT.modules, {"kv_blocks": 7})).kv_blocks == 7
    assert default_device(LatencyTable("opt-13b", "nobody's", OPT.modules)).kv_blocks is None
    small = default_device(LatencyTable("opt-13b", "a6000", OPT.modules, {"kv_blocks": 7, "kv_block_size": 8}))
    assert (small.kv_blocks, small.block_size) == (7, 8)
    halved = default_device(LatencyTable("opt-13b", "a6000", OPT.modules, {"kv_block_size": 8}))
    assert (halved.kv_blocks, halved.block_size) == (OPT_SHAPES["opt-13b"].kv_blocks(48e9, 2, 8), 8)
    assert halved.kv_blocks in (2 * expected, 2 * expected + 1)
    assert default_device(table, kv_blocks=None).kv_blocks is None
    assert default_device(DIT) == Device("process", margin=0.035)
    assert default_device(DIT, handover=0.0) == Device("process", handover=0.0)
