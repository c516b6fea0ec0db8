"""The hook in vLLM's scheduler: a policy chooses, vLLM's budget, blocks, swapping and preemption stay in charge."""

from __future__ import annotations

import importlib.util
import logging
import random
from typing import Any

import pytest
from vllm.config import SchedulerConfig
from vllm.core.scheduler import Scheduler
from vllm.core.step_policy import StepDecision
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm_harness import Bench, Queue, Scripted, build, only, stock

from vllm_patch.patchset import PatchSet
from vllm_patch.target import Target


def random_workload(bench: Bench, seed: int, *, wide: bool) -> list[tuple[str, list[str]]]:
    """Requests that arrive while others run; returns the trace until all have ended."""
    rng = random.Random(seed)
    trace = []
    for i in range(30):
        sampling = {"n": 2, "best_of": 2} if wide and i % 3 == 0 else {}
        bench.add(f"r{i}", rng.randint(1, 24), rng.randint(1, 12), **sampling)
        trace += [bench.step() for _ in range(rng.randint(0, 2))]
    return trace + bench.run()


@pytest.fixture(scope="module")
def pristine_scheduler(
    tmp_path_factory: pytest.TempPathFactory, installed: Target, patch_set: PatchSet
) -> type[Scheduler]:
    """The Scheduler of the unpatched vLLM."""
    path = "vllm/core/scheduler.py"
    source = installed.original(path, installed.states(patch_set)[path], patch_set)
    assert source is not None
    assert b"step_policy" not in source
    place = tmp_path_factory.mktemp("pristine") / "pristine_scheduler.py"
    place.write_bytes(source)
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Scheduler  # type: ignore[no-any-return]


DEVICES: list[dict[str, Any]] = [
    {"blocks": 200},
    {"blocks": 24, "max_seqs": 6},
    {"blocks": 24, "max_seqs": 6, "v2": True},
    {"blocks": 20, "cpu_blocks": 200},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", DEVICES)
def test_without_a_policy_the_patched_scheduler_decides_as_the_unpatched(
    seed: int, options: dict[str, Any], pristine_scheduler: type[Scheduler]
) -> None:
    wide = "cpu_blocks" in options
    unpatched = Bench(scheduler_class=pristine_scheduler, **options)
    patched = Bench(**options)
    assert random_workload(patched, seed, wide=wide) == random_workload(unpatched, seed, wide=wide)
    assert patched.reasons() == unpatched.reasons()
    assert patched.scheduler.num_cumulative_preemption == unpatched.scheduler.num_cumulative_preemption


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", DEVICES)
def test_a_policy_that_chooses_everything_gives_the_stock_trace(seed: int, options: dict[str, Any]) -> None:
    wide = "cpu_blocks" in options  # several sequences need swap space
    plain = Bench(**options)
    hooked = Bench(Scripted(stock), **options)
    assert random_workload(hooked, seed, wide=wide) == random_workload(plain, seed, wide=wide)
    assert hooked.reasons() == plain.reasons()
    assert len(plain.reasons()) == 30
    assert set(plain.reasons().values()) == {"length"}
    assert hooked.num_errors == 0
    assert hooked.free_blocks() == plain.free_blocks() == options["blocks"]
    if options["blocks"] < 30:
        assert hooked.scheduler.num_cumulative_preemption == plain.scheduler.num_cumulative_preemption > 0


def test_the_policy_orders_and_restricts_prefill() -> None:
    bench = Bench(Scripted(lambda w, r, s: StepDecision(prefill=only(["c", "a"], w))))
    for name in "abcd":
        bench.add(name, 5, 2)
    assert bench.step() == ("prefill", ["c", "a"])
    assert bench.names("waiting") == ["b", "d"]
    assert bench.names("running") == ["c", "a"]
    assert bench.step() == ("decode", ["c", "a"])


def test_decode_of_some_keeps_the_others_and_their_blocks_and_places() -> None:
    chosen: list[str] = []
    bench = Bench(Scripted(lambda w, r, s: StepDecision(prefill=list(w), decode=only(chosen, r))))
    for name in "abcd":
        bench.add(name, 4, 4)
    assert bench.step() == ("prefill", ["a", "b", "c", "d"])
    assert bench.free_blocks() == 100 - 4
    chosen[:] = ["d", "b"]
    assert bench.step() == ("decode", ["d", "b"])
    assert bench.free_blocks() == 100 - 6
    assert bench.names("running") == ["a", "b", "c", "d"]
    lengths = {g.request_id: g.seqs[0].get_output_len() for g in bench.scheduler.running}
    assert lengths == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert bench.run()[-1] == ("decode", ["a", "c"])
    assert bench.free_blocks() == 100


def test_groups_that_are_held_back_are_preempted_first() -> None:
    def decide(waiting: Queue, running: Queue, swapped: Queue) -> StepDecision:
        return StepDecision(prefill=list(waiting) if not running else [], decode=only(["a", "b"], running))

    bench = Bench(Scripted(decide), blocks=6)  # 1 % of 6 rounds to no watermark
    for name in "abc":
        bench.add(name, 8, 6)
    assert bench.step() == ("prefill", ["a", "b", "c"])
    assert bench.free_blocks() == 0
    assert bench.step() == ("decode", ["a", "b"])
    assert bench.names("waiting") == ["c"]
    assert bench.names("running") == ["a", "b"]
    bench.run()
    assert bench.reasons() == {"a": "length", "b": "length", "c": "length"}
    assert bench.free_blocks() == 6


def test_a_prefill_that_does_not_fit_becomes_a_decode_in_the_same_step() -> None:
    bench = Bench(Scripted(lambda w, r, s: StepDecision(prefill=list(w))), blocks=10)
    bench.add("a", 20, 3)
    assert bench.step() == ("prefill", ["a"])
    bench.add("b", 24, 1)
    assert bench.step() == ("decode", ["a"])
    assert bench.names("waiting") == ["b"]
    assert bench.run() == [("decode", ["a"]), ("prefill", ["b"])]


def test_a_policy_that_chooses_nothing_does_not_stall_the_engine() -> None:
    bench = Bench(Scripted(lambda w, r, s: StepDecision()))
    bench.add("a", 5, 2)
    bench.add("b", 5, 2)
    assert bench.run() == [("prefill", ["a", "b"]), ("decode", ["a", "b"])]
    assert bench.num_errors == 0


def test_a_policy_may_wait_while_nothing_runs_but_not_while_something_does() -> None:
    wake = [1e12]
    bench = Bench(
        Scripted(lambda w, r, s: StepDecision(prefill=[] if wake else list(w), wake=wake[0] if wake else None))
    )
    bench.add("a", 5, 3)
    assert [bench.step() for _ in range(3)] == [("idle", [])] * 3
    wake.clear()
    assert bench.step() == ("prefill", ["a"])
    wake.append(1e12)
    assert bench.step() == ("decode", ["a"])


@pytest.mark.parametrize("v2", [False, True])
def test_rejecting_frees_blocks_and_emits_the_output_at_once(v2: bool) -> None:
    reject: list[tuple[str, str]] = []
    policy = Scripted(lambda w, r, s: StepDecision(prefill=[] if reject else list(w), reject=reject))
    bench = Bench(policy, v2=v2, max_seqs=2)
    for name in "abc":
        bench.add(name, 9, 5, slo={"ttft_ms": 1})
    bench.step()
    assert bench.names("waiting") == ["c"]
    reject[:] = [("a", "too late"), ("c", "no hope"), ("nobody", "unknown ids are passed over")]
    assert bench.step() == ("decode", ["b"])
    reject.clear()
    assert bench.reasons() == {"a": "timeout", "c": "timeout"}
    assert bench.outputs["a"].outputs[0].stop_reason == "too late"
    assert bench.outputs["a"].outputs[0].token_ids == (10,)
    assert bench.outputs["a"].slo == {"ttft_ms": 1}
    assert len(bench.outputs["a"].metrics.token_times) == 1
    assert bench.outputs["c"].outputs[0].token_ids == ()
    assert bench.free_blocks() == 100 - 3
    bench.run()
    assert policy.finished == ["c", "a", "b"]
    assert bench.free_blocks() == 100


def test_rejecting_everybody_empties_the_queues_without_a_hang() -> None:
    policy = Scripted(lambda w, r, s: StepDecision(reject=[(g.request_id, "all go") for g in (*w, *r)]))
    bench = Bench(policy)
    bench.add("a", 5)
    bench.add("b", 5)
    assert bench.step() == ("idle", [])
    assert not bench.scheduler.has_unfinished_seqs()
    assert bench.reasons() == {"a": "timeout", "b": "timeout"}
    assert [(record.kind, list(record.rejected)) for record in policy.steps] == [
        ("idle", [("a", "all go"), ("b", "all go")])
    ]


def test_rejecting_a_swapped_group_frees_its_swap_space() -> None:
    reject: list[tuple[str, str]] = []
    policy = Scripted(lambda w, r, s: StepDecision(prefill=list(w), reject=reject))
    bench = Bench(policy, blocks=10, cpu_blocks=20)
    for name in "ab":
        bench.add(name, 12, 30, n=2, best_of=2)
    while not bench.scheduler.swapped:
        bench.step()
    assert bench.names("swapped") == ["b"]
    reject[:] = [("b", "too late")]
    bench.step()
    assert bench.outputs["b"].finished
    assert {o.finish_reason for o in bench.outputs["b"].outputs} == {"timeout"}
    assert bench.scheduler.block_manager.get_num_free_cpu_blocks() == 20
    reject.clear()
    bench.run()
    assert bench.free_blocks() == 10


@pytest.mark.parametrize("where", ["waiting", "running"])
def test_abort_frees_blocks_and_tells_the_policy_once(where: str) -> None:
    policy = Scripted(lambda w, r, s: StepDecision(prefill=only(["a"], w)))
    bench = Bench(policy)
    bench.add("a", 9, 9)
    bench.add("b", 9, 9)
    bench.step()
    name = bench.names(where)[0]
    bench.scheduler.abort_seq_group(name)
    bench.scheduler.abort_seq_group(name)
    assert policy.added == ["a", "b"]
    assert policy.finished == [name]
    assert bench.free_blocks() == (100 if where == "running" else 97)
    bench.scheduler.abort_seq_group("ab".replace(name, ""))
    assert bench.free_blocks() == 100
    assert not bench.scheduler.has_unfinished_seqs()


@pytest.mark.parametrize(
    "sampling", [{"n": 3}, {"n": 2, "best_of": 3}, {"use_beam_search": True, "best_of": 3, "n": 3}]
)
def test_several_sequences_per_request_go_through_swap_and_back(sampling: dict[str, Any]) -> None:
    options: dict[str, Any] = {"blocks": 9, "cpu_blocks": 60}
    if "use_beam_search" in sampling:
        sampling = {**sampling, "temperature": 0.0}
    traces = []
    for policy in (None, Scripted(stock), Scripted(lambda w, r, s: StepDecision(list(w)[::-1][:1], list(r)[:1]))):
        bench = Bench(policy, **options)
        for i in range(4):
            bench.add(f"r{i}", 7, 12, **sampling)
        traces.append(bench.run())
        assert bench.reasons() == {f"r{i}": "length" for i in range(4)}
        assert bench.free_blocks() == 9
        assert bench.scheduler.num_cumulative_preemption > 0
        assert len(bench.outputs["r0"].outputs) == sampling["n"]
    assert traces[0] == traces[1] != traces[2]


def test_the_limit_on_loras_holds_for_what_the_policy_chooses() -> None:
    bench = Bench(Scripted(lambda w, r, s: StepDecision(prefill=only(["b", "c", "a"], w))), max_loras=1)
    for i, name in enumerate("abc"):
        bench.add(name, 5, 2, lora=LoRARequest(f"lora{i % 2}", i % 2 + 1, "/nowhere"))
    assert bench.step() == ("prefill", ["b"])
    assert bench.names("waiting") == ["a", "c"]
    assert bench.step() == ("decode", ["b"])
    assert bench.step() == ("prefill", ["a", "c"])  # vLLM sorts a batch by LoRA
    assert bench.names("running") == ["c", "a"]


def test_a_prompt_that_can_never_fit_is_ignored_as_ever() -> None:
    policy = Scripted(stock)
    bench = Bench(policy, blocks=10)
    bench.add("long", 60)
    bench.add("a", 5, 1)
    assert bench.run() == [("prefill", ["a"])]
    assert bench.reasons() == {"a": "length", "long": "length"}
    assert sorted(policy.finished) == ["a", "long"]


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (lambda w, r, s: 1 / 0, "ZeroDivisionError"),
        (lambda w, r, s: None, "AttributeError"),
        (lambda w, r, s: StepDecision(prefill=list(w) * 2), "named twice"),
        (lambda w, r, s: StepDecision(decode=[*r, *w]), "not in that queue"),
        (
            lambda w, r, s: StepDecision(prefill=list(w), reject=[(g.request_id, "") for g in w]),
            "both prefill and reject",
        ),
        (lambda w, r, s: StepDecision(preempt=[*w]), "cannot preempt"),
        (lambda w, r, s: StepDecision(decode=[*r], preempt=[*r]) if r else StepDecision([*w]), "decode and preempt"),
        (
            lambda w, r, s: StepDecision([*w], preempt=[*r], reject=[(g.request_id, "") for g in r]),
            "both preempt and reject",
        ),
    ],
)
def test_a_policy_that_fails_is_logged_and_the_step_is_scheduled_without_it(
    decision: Any, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    policy = Scripted(decision)
    bench = Bench(policy)
    bench.add("a", 5, 2)
    bench.step()
    bench.add("b", 5, 2)
    with caplog.at_level(logging.ERROR):
        bench.run()
    assert bench.reasons() == {"a": "length", "b": "length"}
    assert bench.num_errors >= 1
    errors = [record.error for record in policy.steps if record.error]
    assert errors
    assert all(message in error for error in errors)


def test_a_failing_on_add_refuses_the_request_and_leaves_no_trace() -> None:
    class Picky(Scripted):
        def on_add(self, group: Any) -> None:
            if group.slo == "bad":
                raise ValueError("this slo is bad")

    bench = Bench(Picky(stock))
    with pytest.raises(ValueError, match="this slo is bad"):
        bench.add("a", 5, slo="bad")
    assert not bench.scheduler.has_unfinished_seqs()


@pytest.mark.parametrize("error", [TypeError("no such key"), OverflowError("too large"), KeyError("gone")])
def test_whatever_on_add_raises_reaches_the_caller_as_a_value_error(error: Exception) -> None:
    class Clumsy(Scripted):
        def on_add(self, group: Any) -> None:
            raise error

    bench = Bench(Clumsy(stock))
    with pytest.raises(ValueError, match=f"request 'a' is refused: {type(error).__name__}"):
        bench.add("a", 5)
    assert not bench.scheduler.has_unfinished_seqs()


def test_an_id_in_use_is_refused_until_its_request_has_ended() -> None:
    reject: list[tuple[str, str]] = []
    policy = Scripted(lambda w, r, s: StepDecision(prefill=[] if reject else list(w), reject=reject))
    bench = Bench(policy, blocks=10)

    def in_use(name: str) -> None:
        with pytest.raises(ValueError, match=f"request id '{name}' is in use"):
            bench.add(name, 5)

    bench.add("finishes", 5, 2)
    in_use("finishes")
    bench.run()
    bench.add("finishes", 5, 9)
    bench.step()
    in_use("finishes")  # also while it runs
    bench.scheduler.abort_seq_group("finishes")
    bench.add("finishes", 5, 9)
    reject[:] = [("finishes", "too late")]
    bench.outputs.clear()
    bench.step()
    reject.clear()
    bench.outputs.clear()
    bench.add("finishes", 60)  # never fits: vLLM ignores it
    bench.step()
    bench.outputs.clear()
    bench.add("finishes", 5, 1)
    assert bench.run() == [("prefill", ["finishes"])]


def preempting(victims: list[str], prefill: list[str], decode: list[str] | None = None) -> Scripted:
    """Takes the blocks of `victims` while they run, and chooses those."""

    def decide(waiting: Queue, running: Queue, swapped: Queue) -> StepDecision:
        return StepDecision(
            prefill=only(prefill, waiting),
            decode=only(decode, running) if decode is not None else None,
            preempt=only(victims, running),
        )

    return Scripted(decide)


def test_a_policy_may_take_blocks_for_a_prefill() -> None:
    victims: list[str] = []
    prefill = ["a", "b", "c"]
    policy = preempting(victims, prefill)
    bench = Bench(policy, blocks=10)
    for name in "abc":
        bench.add(name, 8, 6)
    bench.step()
    bench.add("live", 17, 1)
    assert bench.free_blocks() == 4
    prefill[:] = ["live"]
    bench.step()  # too little room: everybody decodes, into a third block each
    assert (bench.names("running"), bench.free_blocks()) == (["a", "b", "c"], 1)
    victims[:] = ["c", "b"]
    assert bench.step() == ("prefill", ["live"])
    assert bench.names("waiting") == ["b", "c"]  # each to the front, in the order given
    assert bench.names("running") == ["a"]
    assert (policy.steps[-1].num_preempted, bench.scheduler.num_cumulative_preemption) == (2, 2)
    victims.clear()
    prefill[:] = ["b", "c"]
    bench.run()
    assert bench.reasons() == dict.fromkeys(["a", "b", "c", "live"], "length")
    assert [len(bench.outputs[name].metrics.token_times) for name in "abc"] == [6, 6, 6]
    assert bench.num_errors == 0
    assert bench.free_blocks() == 10


def test_a_policy_may_take_blocks_and_decode_the_others_or_run_nothing() -> None:
    victims: list[str] = []
    prefill, decode = ["a", "b", "c"], ["a"]
    bench = Bench(preempting(victims, prefill, decode), blocks=20)
    for name in "abc":
        bench.add(name, 8, 6)
    bench.step()
    prefill.clear()
    victims[:] = ["b"]
    assert bench.step() == ("decode", ["a"])
    assert (bench.names("waiting"), bench.names("running"), bench.free_blocks()) == (["b"], ["a", "c"], 20 - 5)
    victims[:] = ["a", "c"]
    decode.clear()
    assert bench.step() == ("idle", [])
    assert (bench.names("waiting"), bench.names("running"), bench.free_blocks()) == (["c", "a", "b"], [], 20)
    assert bench.num_errors == 0


def test_groups_of_several_sequences_keep_their_blocks() -> None:
    prefill = ["a"]
    bench = Bench(preempting(["a"], prefill), blocks=10, cpu_blocks=10)
    bench.add("a", 8, 6, n=2, best_of=2)
    bench.step()
    bench.add("live", 33, 1)
    prefill[:] = ["live"]
    assert bench.step() == ("decode", ["a"])
    assert bench.scheduler.num_cumulative_preemption == bench.num_errors == 0
    bench.run()
    assert bench.reasons() == {"a": "length", "live": "length"}


def test_prefix_caching_works_with_a_policy() -> None:
    traces = []
    for policy in (None, Scripted(stock)):
        bench = Bench(policy, prefix_caching=True)
        bench.add("a", 9, 3)
        trace = [bench.step()]
        bench.add("b", 13, 3)  # begins as the first one does
        trace += bench.run()
        assert bench.cached == {"a": 0, "b": 1}
        assert bench.reasons() == {"a": "length", "b": "length"}
        traces.append(trace)
    assert traces[0] == traces[1]
    assert bench.num_errors == 0


def test_steps_are_recorded_with_and_without_a_policy() -> None:
    for policy in (None, Scripted(stock)):
        bench = Bench(policy)
        records: list[Any] = []
        bench.scheduler.on_step = records.append
        bench.add("a", 5, 2)
        bench.add("b", 7, 2)
        bench.run()
        assert [(r.kind, r.num_seq_groups, r.num_tokens, r.request_ids, r.num_running) for r in records] == [
            ("prefill", 2, 12, ["a", "b"], 2),
            ("decode", 2, 2, ["a", "b"], 2),
        ]
        for record in records:
            assert 0 < record.schedule_seconds <= record.seconds
            assert (record.decision_seconds > 0) == (policy is not None)
        if policy is not None:
            assert policy.steps == records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_policy": "no_such_module:f"}, "no_such_module"),
        ({"step_policy": "vllm_harness:absent"}, "absent"),
        ({"step_policy": "vllm_harness"}, "pkg.mod:factory"),
        ({"step_policy": "vllm_harness:BLOCK"}, "not callable"),
        ({"step_policy": "vllm_harness:build", "step_policy_config": [1]}, "JSON object"),
        ({"step_policy_config": {"policy": 1}}, "no step_policy"),
        ({"step_policy": "vllm_harness:build", "enable_chunked_prefill": True}, "enable_chunked_prefill=False"),
        ({"step_policy": "vllm_harness:build", "embedding_mode": True}, "they have no decode"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SchedulerConfig(256, 32, 256, **options)
    assert "\n" not in str(caught.value)


def test_engine_arguments_reach_the_scheduler_configuration(model: str, engine_options: Any) -> None:
    arguments = EngineArgs(**engine_options(step_policy="vllm_harness:build", step_policy_config='{"policy": 7}'))
    config = arguments.create_engine_config().scheduler_config
    assert config.step_policy == "vllm_harness:build"
    assert config.step_policy_config == {"policy": 7}
    assert build(None, None, config.step_policy_config) == 7
    assert EngineArgs(**engine_options()).create_engine_config().scheduler_config.step_policy is None
    with pytest.raises(ValueError, match="must be JSON"):
        EngineArgs(**engine_options(step_policy="vllm_harness:build", step_policy_config="{")).create_engine_config()


SPECULATIVE = {
    "speculative_model": "[ngram]",
    "num_speculative_tokens": 2,
    "ngram_prompt_lookup_max": 2,
    "use_v2_block_manager": True,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SPECULATIVE, "speculative decoding: it plans one token per request and step"),
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "set pipeline_parallel_size=1"),
    ],
)
def test_what_a_policy_cannot_plan_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str, engine_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.config._PP_SUPPORTED_MODELS", ["OPTForCausalLM"])
    assert EngineArgs(**engine_options(**options)).create_engine_config().scheduler_config.step_policy is None
    with pytest.raises(ValueError, match=message) as caught:
        EngineArgs(**engine_options(step_policy="vllm_harness:build", **options)).create_engine_config()
    assert "\n" not in str(caught.value)


def test_command_line_flags_name_the_policy(model: str) -> None:
    from vllm.utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    flags = ["--model", model, "--step-policy", "a.b:c", "--step-policy-config", '{"x": 1}']
    arguments = EngineArgs.from_cli_args(parser.parse_args(flags))
    assert (arguments.step_policy, arguments.step_policy_config) == ("a.b:c", '{"x": 1}')
    assert EngineArgs.from_cli_args(parser.parse_args(["--model", model])).step_policy is None
