"""Instances for the bound's property tests: tables of every allowed shape, SLOs of every kind, small memories."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from neusim.sim import Device
from neustream import AbsoluteSlo, LatencyTable, Request, ScaleSlo, Stage
from neustream.latency import BatchLatency, ContextLatency, LatencyModel, TokensLatency
from neustream.route import DECODE, LOOP_MODULE, PREFILL, Route, llm_route
from neustream.slo import Deadlines, Slo
from neustream.tables import TableError, parse_table, table_to_json

MODULES = ("text_encoder", LOOP_MODULE, "vae", "safety")
tenths = st.integers(1, 30).map(lambda number: number / 10)


@st.composite
def batch_latencies(draw: st.DrawFn, is_sane: bool = False) -> BatchLatency:
    """Measured from any batch size on, with gaps; the seconds need not rise."""
    sizes = sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=4)))
    seconds = [draw(tenths) for _ in sizes]
    if is_sane:
        sizes, seconds = list(range(1, len(sizes) + 1)), sorted(seconds)
    return BatchLatency(tuple(sizes), tuple(seconds))


@st.composite
def image_tables(draw: st.DrawFn, is_sane: bool = False) -> LatencyTable:
    """A loop, and up to three modules around it."""
    around = draw(st.sets(st.sampled_from([name for name in MODULES if name != LOOP_MODULE])))
    names = [name for name in MODULES if name == LOOP_MODULE or name in around]
    return LatencyTable("dit", "test", {name: draw(batch_latencies(is_sane)) for name in names})


def image_routes(table: LatencyTable, most: int) -> st.SearchStrategy[Route]:
    """The table's modules in their order, the loop up to `most` times; some leave modules out."""

    def route(steps: int, skipped: frozenset[str]) -> Route:
        stages = (Stage(name, steps if name == LOOP_MODULE else int(name not in skipped)) for name in table.modules)
        return tuple(stages)

    return st.builds(route, st.integers(1, most), st.frozensets(st.sampled_from(tuple(table.modules)), max_size=1))


@st.composite
def images(draw: st.DrawFn, most: int = 4, steps: int = 3, is_sane: bool = False) -> tuple[list[Request], LatencyTable]:
    """Requests whose windows are a multiple of what they take alone."""
    table = draw(image_tables(is_sane))
    requests = []
    for i in range(draw(st.integers(1, most))):
        route = draw(image_routes(table, steps))
        arrival = draw(st.integers(0, 30)) / 10
        slo = ScaleSlo(draw(st.sampled_from([1.0, 1.2, 1.5, 2.0, 3.0])))
        due = slo.bind(arrival, route, 1, table).at(1) - draw(st.sampled_from([0.0, 0.0, 0.1]))
        requests.append(Request(str(i), arrival, Deadlines(due), route))
    return requests, table


def is_allowed(table: LatencyTable) -> bool:
    """Whether a file may say so."""
    try:
        parse_table(table_to_json(table))
    except TableError:
        return False
    return True


@st.composite
def text_tables(draw: st.DrawFn) -> LatencyTable:
    """Every form that a file may have: a formula or a grid for the prefill, and for the decode's constant part."""
    coef = draw(st.integers(-2, 10)) / 10, draw(st.integers(0, 20)) / 20, draw(st.integers(-2, 4)) / 100
    tokens = sorted(draw(st.sets(st.integers(1, 8), max_size=3)))
    per_prompt = draw(st.sampled_from([0.0, 0.0, 0.2]))
    prefill = TokensLatency(coef, tuple(tokens), tuple(draw(tenths) for _ in tokens), per_prompt)
    sizes = sorted(draw(st.sets(st.integers(1, 4), max_size=3)))
    base = draw(tenths), draw(st.sampled_from([0.0, 0.01, 0.05, 0.2]))
    decode = ContextLatency(base, tuple(sizes), tuple(draw(tenths) for _ in sizes))
    modules: dict[str, LatencyModel] = {PREFILL: prefill, DECODE: decode}
    return LatencyTable("opt", "test", modules, {"max_prefill_tokens": 12})


slos: st.SearchStrategy[Slo] = st.one_of(
    st.builds(ScaleSlo, st.sampled_from([1.0, 1.5, 3.0]), st.sampled_from([1.0, 1.5, 2.0])),
    st.builds(AbsoluteSlo, ttft=tenths),
    st.builds(AbsoluteSlo, e2el=st.integers(1, 60).map(lambda number: number / 10)),
    st.builds(AbsoluteSlo, ttft=tenths, tpot=tenths),
    st.builds(AbsoluteSlo, ttft=tenths, e2el=st.integers(1, 60).map(lambda number: number / 10)),
    st.builds(AbsoluteSlo, ttft=tenths, tpot=tenths, e2el=st.integers(1, 60).map(lambda number: number / 10)),
)


@st.composite
def texts(
    draw: st.DrawFn, most: int = 3, size: int = 2, tokens: int = 3
) -> tuple[list[Request], LatencyTable, dict[str, int]]:
    """Requests, their table, and limits of the device: blocks of memory, sequences in a step."""
    table = draw(text_tables().filter(is_allowed))
    requests = []
    for i in range(draw(st.integers(1, most))):
        prompt, route = draw(st.integers(1, size)), llm_route(draw(st.integers(1, tokens)))
        arrival = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.5]))
        deadlines = draw(slos).bind(arrival, route, prompt, table)
        requests.append(Request(str(i), arrival, deadlines, route, prompt))
    limits = draw(st.sampled_from([{}, {"max_batch": 1}, {"max_batch": 2}]))
    if draw(st.booleans()):
        limits = limits | {"kv_blocks": draw(st.integers(1, 8)), "block_size": draw(st.integers(1, 3))}
    return requests, table, limits


@st.composite
def mixed_corners(draw: st.DrawFn) -> tuple[list[Request], LatencyTable, dict[str, int]]:
    """Instances where the cheapest step is one in which a prompt's tokens ride with decodes.

    A lone decode is cheap, two are dear, and tokens are in between. Deadlines are at the end of steps, to the tenth.
    """
    alone, two, token = draw(tenths), draw(tenths), draw(st.integers(1, 10)) / 10
    prefill = TokensLatency((draw(st.sampled_from([0.0, 0.1])), token, 0.0))
    table = LatencyTable("opt", "test", {PREFILL: prefill, DECODE: ContextLatency((alone, 0.0), (1, 2), (alone, two))})
    steps = [alone, two, *(prefill.formula(work, work) for work in range(1, 4))]
    moments = sorted({round(a + b + c, 9) for a in steps for b in (0.0, *steps) for c in (0.0, *steps)})
    requests = []
    for i, (size, tokens) in enumerate(
        draw(st.sampled_from([((1, 3), (2, 1)), ((1, 2), (3, 1)), ((1, 3), (1, 1), (1, 1))]))
    ):
        route = llm_route(tokens)
        slo = AbsoluteSlo(e2el=draw(st.sampled_from(moments)))
        requests.append(Request(str(i), 0.0, slo.bind(0.0, route, size, table), route, size))
    return requests, table, {}


@st.composite
def layouts(draw: st.DrawFn, table: LatencyTable) -> Device:
    """A device whose processes overlap: any division of the modules, any law of contention."""
    modules = tuple(table.modules)
    cuts = sorted(draw(st.sets(st.integers(1, max(len(modules) - 1, 1)))))
    edges = [0, *(cut for cut in cuts if cut < len(modules)), len(modules)]
    return Device(
        "process",
        groups=tuple(modules[a:b] for a, b in pairwise(edges)),
        handover=draw(st.sampled_from([0.0, 0.1, 0.25])),
        contention=draw(st.sampled_from(["table", "full", "none"])),
        overhead=draw(st.sampled_from([0.0, 0.05])),
    )
