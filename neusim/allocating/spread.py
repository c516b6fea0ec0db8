"""Latency tables of a model that several devices share, scaled from the table of one by estimates of both."""

from __future__ import annotations

from dataclasses import replace

from neusim.estimating.llm import llm_modules
from neusim.estimating.roofline import BYTES, Roofline
from neustream.catalog.accelerators import ACCELERATORS
from neustream.catalog.llms import known_shape
from neustream.latency import ContextLatency, LatencyModel, Shape, TokensLatency
from neustream.policies import is_llm
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

PROMPT = Shape(1, 1024, 1024 * 1024, 1024)
BATCH = Shape(8)
"""The steps whose estimated seconds are compared: a prefill, and a decode without context."""
DTYPE = "float16"


def spread_table(table: LatencyTable, devices: int) -> LatencyTable | None:
    """The table of the same model over so many devices by tensor parallelism; None where nothing is known of it.

    Each part of a step takes the table's seconds × the estimate for `devices` / the estimate for one. KV blocks grow by
    as many as the estimates of memory differ. Nothing is known of pipelines, of unknown models and devices, of tables
    that are themselves of several devices, and of a number of devices that the model's heads cannot be split over.
    """
    shape, accelerator = known_shape(table.model), ACCELERATORS.get(table.device)
    if devices == 1:
        return table
    if shape is None or accelerator is None or not is_llm(table) or table.tensor_parallel != 1:
        return None
    dtype = str(table.info.get("dtype", DTYPE))
    if dtype not in BYTES or shape.num_heads % devices:
        return None
    one, many = (llm_modules(shape, Roofline(accelerator, dtype, tp=tp), dtype) for tp in (1, devices))
    modules: dict[str, LatencyModel] = dict(table.modules)
    prefill, decode = modules[PREFILL], modules[DECODE]
    if not isinstance(prefill, TokensLatency) or not isinstance(decode, ContextLatency):
        return None
    faster = many[PREFILL].predict(PROMPT) / one[PREFILL].predict(PROMPT)
    a, b, c = (faster * value for value in prefill.coef)
    modules[PREFILL] = replace(
        prefill,
        coef=(a, b, c),
        seconds=tuple(faster * value for value in prefill.seconds),
        per_prompt=faster * prefill.per_prompt,
        long_square=faster * prefill.long_square,
    )
    faster = many[DECODE].predict(BATCH) / one[DECODE].predict(BATCH)
    slope = decode.coef[1] * many[DECODE].slope / one[DECODE].slope
    seconds = tuple(faster * value for value in decode.seconds)
    modules[DECODE] = replace(decode, coef=(faster * decode.coef[0], slope), seconds=seconds)
    info = {**table.info, "tensor_parallel": devices}
    if table.kv_blocks is not None:
        memory, width, block = accelerator.memory_bytes, BYTES[dtype], table.kv_block_size
        more = shape.kv_blocks(devices * memory, width, block) - shape.kv_blocks(memory, width, block)
        info["kv_blocks"] = table.kv_blocks + more
    return replace(table, modules=modules, info=info)
