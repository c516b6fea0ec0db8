"""Writes a latency table for a device that nobody has at hand, from its published peak rates.

    python neusim/estimate.py --model opt-13b --device a6000
    python -m neusim.estimate --model sd15-512 --device h100

The table is marked "estimated", with what it assumes; a measured one of the same name always wins over it.
How the seconds come about, and how far they are from measured ones: docs/estimates.md.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
from pathlib import Path
from typing import Any

from neusim.estimating.llm import llm_modules
from neusim.estimating.roofline import BYTES, Roofline
from neustream.catalog import find_model
from neustream.catalog.accelerators import ACCELERATORS, GIGA, TERA, Accelerator, find_accelerator
from neustream.catalog.llms import MEMORY_SHARE, LlmShape
from neustream.cli.arguments import Parser
from neustream.cli.paths import TABLES
from neustream.tables import LatencyTable, save_table, table_name, table_path

DEFAULT_TP = {"opt-30b": 2, "opt-66b": 4}


def estimate(model: str, device: str, *, tp: int | None = None, dtype: str = "float16") -> LatencyTable:
    """The estimated table of `model` on `device` (or `tp` of them).

    Raises ValueError for an unknown model, device or dtype, or a model that does not fit.
    """
    accelerator = find_accelerator(device)
    if dtype not in BYTES:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(BYTES)}")
    found = find_model(model)
    if isinstance(found, LlmShape):
        return _estimate_llm(found, accelerator, DEFAULT_TP.get(found.name, 1) if tp is None else tp, dtype)
    if tp not in (None, 1):
        raise ValueError(f"--tp is for language models; {model} runs on one device")
    from neusim.estimating.image import image_modules  # needs torch

    roofline = Roofline(accelerator, dtype)
    modules = image_modules(found, roofline, dtype)
    return LatencyTable(found.name, accelerator.name, dict(modules), describe(roofline, dtype))


def _estimate_llm(shape: LlmShape, device: Accelerator, tp: int, dtype: str) -> LatencyTable:
    if tp < 1:
        raise ValueError(f"--tp must be at least 1, got {tp}")
    weights = shape.num_parameters * BYTES[dtype]
    if weights / tp > MEMORY_SHARE * device.memory_bytes:
        enough = next(n for n in range(1, 1 << 10) if weights / n <= MEMORY_SHARE * device.memory_bytes)
        raise ValueError(
            f"{shape.name} in {dtype} takes {weights / tp / GIGA:.0f} GB on each of {tp} {device.title}, "
            f"{MEMORY_SHARE:.0%} of {device.memory_bytes / GIGA:.0f} GB are there; give --tp {enough} or more"
        )
    roofline = Roofline(device, dtype, tp=tp)
    modules = llm_modules(shape, roofline, dtype)
    info = {"tensor_parallel": tp, "kv_blocks": shape.kv_blocks(device.memory_bytes * tp, BYTES[dtype])}
    if shape.picture_tokens:
        info |= {"picture_tokens": shape.picture_tokens}
    return LatencyTable(shape.name, device.name, modules, describe(roofline, dtype) | info)


def file_name(table: LatencyTable) -> str:
    """The name of the table's file, which says for how many devices it is where that is not the usual number."""
    usual = DEFAULT_TP.get(table.model, 1)
    devices = 1 if table.tensor_parallel == usual else table.tensor_parallel
    return table_name(table.model, devices, estimated=True)


def describe(roofline: Roofline, dtype: str) -> dict[str, Any]:
    """What a table says of its origin: every rate and assumption behind it."""
    device = roofline.device
    rates = {
        "device": device.title,
        "rates_from": device.source,
        "peak_tflops": device.flops(dtype) / TERA,
        "peak_gb_per_s": device.bytes_per_s / GIGA,
    }
    if roofline.tp > 1:
        rates |= {"link": device.link.name, "link_gb_per_s": device.link.bytes_per_s / GIGA}
    return {
        "dtype": dtype,
        "source": "neusim/estimate.py: roofline of published peak rates, see docs/estimates.md",
        "estimated": rates | roofline.assume.to_json(),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="estimate.py", description=(__doc__ or "").split("\n")[0])
    result.add_argument(
        "--model", required=True, help="a language or an image model, such as opt-13b, llava-1.5-7b, sd15-512"
    )
    result.add_argument("--device", required=True, help=f"one of {', '.join(ACCELERATORS)}")
    result.add_argument(
        "--tp", type=int, help="devices that share a language model (opt-30b: 2, opt-66b: 4, others: 1)"
    )
    result.add_argument("--dtype", default="float16", help=f"one of {', '.join(BYTES)} (default: float16)")
    result.add_argument("--out", type=Path, default=TABLES, help="folder of tables (default: neusim/tables)")
    return result


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    command = parser()
    arguments = command.parse_args(argv)
    try:
        table = estimate(arguments.model, arguments.device, tp=arguments.tp, dtype=arguments.dtype)
        path = table_path(arguments.out, table.device, file_name(table))
        save_table(table, path)
    except (ValueError, OSError) as error:
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 2
    for name, module in table.modules.items():
        print(f"{name:14} alone {module.alone(256) * 1e3:9.2f} ms")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
