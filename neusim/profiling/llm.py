"""Profile a language model: memory, points, the engine, the fit, the table."""

from __future__ import annotations

import importlib
from datetime import date
from typing import Any

from neusim.profiling.depth import extrapolate
from neusim.profiling.fit import fit_decode, fit_mixed, fit_prefill
from neusim.profiling.grid import CONTEXT_TOKENS, MixedShape, Point, llm_points, mixed_points
from neusim.profiling.measure import Visits, disturbed, measure, spread, trusted
from neusim.profiling.memory import KvCache, MemoryPlan, TooLarge, cpu_cache, free_ram, gpu_cache, plan_memory
from neusim.profiling.settings import Settings, SettingsError
from neusim.profiling.visits import Partial, partial_path
from neustream.catalog.llms import LlmShape, load_shape
from neustream.catalog.machine import check_tensor_parallel, cpu_flags, free_gpu_bytes, total_gpu_bytes
from neustream.latency import LatencyModel, Shape
from neustream.tables import DEFAULT_ENGINE, STEP_TOKENS, LatencyTable
from vllm_patch.engine import cpu_cache_gib

TIMERS = {"v0": "neusim.profiling.vllm_timer", "v1": "neusim.profiling.plugin_timer"}
"""By engine, the module that times steps on it."""
ENGINES = {"v0": "vllm_patch.engine", "v1": "vllm_plugin.engine"}
QUICK_REPEATS, FULL_REPEATS = 5, 9
QUICK_SECONDS, FULL_SECONDS = 1.0, 10.0
"""What a point may take before it is visited no more."""
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""With either, a CPU multiplies bfloat16 faster than float32; without, much slower."""


def profile(settings: Settings) -> LatencyTable:
    """Measure prefill and decode on the real engine and fit them. See `registry` for the contract."""
    model, dtype, plan = check(settings)
    print(f"{model.name} on {settings.slug}: {plan.reason}")
    cache = planned_cache(settings, model, dtype)  # first: loading an engine sets what the environment says
    stopwatch = importlib.import_module(TIMERS[settings.engine])
    timer = stopwatch.EngineTimer(stopwatch.load_engine(model, settings, dtype, plan), model.vocabulary)
    max_len = timer.max_model_len - 2 * timer.decode_steps
    most = min(CONTEXT_TOKENS, int(0.95 * timer.cache_tokens))
    points = llm_points(quick=settings.quick, max_len=max_len, max_tokens=most)
    if "mixed" in stopwatch.MODULES:
        points += mixed_points(quick=settings.quick, max_len=max_len, max_tokens=most, max_work=STEP_TOKENS)
    depths = plan.layers or (model.num_layers,)
    kept = Partial(partial_path(settings.out), _key(settings, model, dtype, plan))
    if kept.num_visits:
        print(f"resuming: {kept.num_visits} visits are kept in {kept.path}")
    visits = measure(
        [point.at(depth) for point in points for depth in depths],
        timer.run,
        repeats=settings.repeats or (QUICK_REPEATS if settings.quick else FULL_REPEATS),
        seconds_per_point=QUICK_SECONDS if settings.quick else FULL_SECONDS,
        partial=kept,
        progress=settings.progress,
        label=model.name,
    )
    if settings.device == "cuda" and plan.layers is None:
        cache = KvCache(timer.cache_blocks, timer.block_size, "the engine that was measured")
    return _table(settings, model, dtype, plan, points, visits, cache)


def planned_cache(settings: Settings, model: LlmShape, dtype: str) -> KvCache:
    """The KV cache that an engine of the experiments would have for the whole model. Raises SettingsError.

    A profile's own engine may have another: it holds what is measured, and on a CPU no more than that.
    """
    if settings.device == "cuda":
        return gpu_cache(model, dtype, total_gpu_bytes() * settings.tp)
    try:
        return cpu_cache(model, dtype, cpu_cache_gib(), tp=settings.tp)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def check(settings: Settings) -> tuple[LlmShape, str, MemoryPlan]:
    """The model, the dtype and how to measure it. Raises SettingsError for what cannot be; loads nothing."""
    try:
        model = load_shape(settings.model)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if settings.layers and settings.layers[1] >= model.num_layers:
        raise SettingsError(f"--layers must be below the {model.num_layers} of {model.name}, got {settings.layers[1]}")
    if settings.engine != DEFAULT_ENGINE and settings.layers:
        raise SettingsError("--layers measures on vLLM 0.5.4 alone: leave out --engine")
    try:
        importlib.import_module(ENGINES[settings.engine]).check_device(settings.device)
        check_tensor_parallel(model, settings.tp, settings.device)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if settings.device == "cpu" and settings.dtype == "float16":
        raise SettingsError("dtype float16 is not to be had on a CPU; there are bfloat16, float32")
    free = free_ram() if settings.device == "cpu" else free_gpu_bytes() * settings.tp
    failures = []
    for dtype in _dtypes(settings):
        try:
            plan = plan_memory(model, dtype, free, layers=settings.layers, cache_tokens=CONTEXT_TOKENS)
        except TooLarge as error:
            failures.append(str(error))
            continue
        if plan.layers and settings.engine != DEFAULT_ENGINE:
            raise SettingsError(f"{plan.reason}; that takes vLLM 0.5.4: leave out --engine")
        if plan.layers and settings.tp > 1:
            raise SettingsError(f"{plan.reason}; that takes --tp 1, got {settings.tp}")
        return model, dtype, plan
    raise SettingsError(failures[-1])


def _dtypes(settings: Settings) -> tuple[str, ...]:
    """The dtypes to try, in this order: the next only where a model does not fit in the one before."""
    if settings.dtype != "auto":
        return (settings.dtype,)
    if settings.device == "cuda":
        return ("float16",)
    return ("bfloat16",) if BFLOAT16_FLAGS & cpu_flags() else ("float32", "bfloat16")


def _key(settings: Settings, model: LlmShape, dtype: str, plan: MemoryPlan) -> dict[str, Any]:
    """What must be the same for kept visits to be used; `repeats` may grow."""
    return {
        "model": model.config(model.num_layers),
        "device": settings.slug,
        "dtype": dtype,
        "tp": settings.tp,
        "layers": plan.layers,
        "threads": num_threads(settings.device),
        "versions": importlib.import_module(TIMERS[settings.engine]).versions(),
    }


def _table(
    settings: Settings,
    model: LlmShape,
    dtype: str,
    plan: MemoryPlan,
    points: list[Point],
    visits: Visits[Point],
    cache: KvCache,
) -> LatencyTable:
    noise = spread(visits)
    stopwatch = importlib.import_module(TIMERS[settings.engine])

    def of(module: str, held_out: bool) -> dict[Shape, float]:
        chosen = [point for point in points if (point.module, point.held_out) == (module, held_out)]
        return {point.shape: seconds for point, seconds in _full_depth(model, plan, chosen, visits).items()}

    def mixed_of(held_out: bool) -> dict[MixedShape, float]:
        chosen = [point for point in points if (point.module, point.held_out) == ("mixed", held_out)]
        return {point.mixed_shape: seconds for point, seconds in _full_depth(model, plan, chosen, visits).items()}

    prefill, prefill_report = fit_prefill(of("prefill", False), of("prefill", True))
    decode, decode_report = fit_decode(of("decode", False), of("decode", True), noise)
    info: dict[str, Any] = {
        "dtype": dtype,
        "tensor_parallel": settings.tp,
        "engine": settings.engine,
        "source": f"neusim/profile.py, {stopwatch.versions()}, {date.today().isoformat()}",
        "quick": settings.quick,
        "threads": num_threads(settings.device),
        "max_prefill_tokens": STEP_TOKENS,
        "spread": round(noise, 4),
        "disturbed": round(disturbed(visits), 4),
        "fit": {"prefill": prefill_report, "decode": decode_report},
    }
    info |= cache.info
    if plan.layers:
        info |= {"layers_measured": list(plan.layers), "num_layers": model.num_layers}
    modules: dict[str, LatencyModel] = {"prefill": prefill, "decode": decode}
    mixed = None
    if measured := mixed_of(False):
        mixed, info["fit"]["mixed"] = fit_mixed(measured, mixed_of(True))
    return LatencyTable(settings.name, settings.slug, modules, info, mixed)


def _full_depth(model: LlmShape, plan: MemoryPlan, points: list[Point], visits: Visits[Point]) -> dict[Point, float]:
    """Seconds of each point at the model's full depth; points never timed undisturbed are left out if others remain."""
    depths = plan.layers or (model.num_layers,)
    by_depth = [trusted({point: visits[point.at(depth)] for point in points}) for depth in depths]
    if plan.layers is None:
        return by_depth[0]
    shallow, deep = by_depth
    both = shallow.keys() & deep.keys()
    return extrapolate({p: s for p, s in shallow.items() if p in both}, deep, plan.layers, model.num_layers)


def num_threads(device: str) -> int | None:
    """Threads that the CPU computes with; None on a GPU."""
    import torch

    return torch.get_num_threads() if device == "cpu" else None
