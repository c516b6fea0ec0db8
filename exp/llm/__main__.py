"""`python -m exp.llm --policy neustream | vllm | …`: serve a workload on vLLM, print and keep its goodput."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
from pathlib import Path
from typing import Any

from exp.harness.folder import RunFolder, create_run_folder
from exp.harness.report import goodput_columns
from exp.harness.runner import run_settings
from exp.harness.settings import Setting, default_rates, sweep
from exp.harness.tables import profile_table, table_file, table_header
from exp.harness.versions import command_line, versions
from exp.llm import config, table
from exp.llm.bench import LlmBench, load_bench
from exp.llm.model import Model, resolve_model
from exp.llm.prompts import Prompts, read_prompts
from neustream.capacity import llm_capacity
from neustream.cli.arguments import RunFailed, exit_code_for
from neustream.tables import LatencyTable, table_name


def header(
    options: argparse.Namespace, model: Model, found: LatencyTable, path: Path, prompts: Prompts
) -> dict[str, Any]:
    """What the summary says of the run besides its figures."""
    return {
        "kind": "llm",
        "model": model.name,
        "policy": options.policy,
        "device": options.slug,
        "dtype": options.dtype,
        "tensor_parallel": options.tp,
        "weights": "from its folder" if model.has_weights else "random",
        **table_header(path, found),
        "capacity": options.capacity,
        "slo": options.absolute_slo or "pslo and dslo of each setting",
        "requests": options.requests,
        "max_tokens": options.max_tokens,
        "prompts": prompts.source,
        "mean_prompt": prompts.mean_length(options.seed),
        "taken_at": "engine",
        "versions": versions("vllm", "torch", "transformers", "numpy"),
        "command": command_line(),
    }


def settings_of(options: argparse.Namespace, found: LatencyTable, prompts: Prompts) -> list[Setting]:
    """The sweep. Without --rate, its rates are multiples of the capacity, and --requests follows from that too."""
    prompt = prompts.mean_length(options.seed)
    pace = table.pace_scale(found, options.absolute_slo, min(options.dslo), prompt + options.max_tokens // 2)
    options.capacity = llm_capacity(found, prompt=prompt, max_tokens=options.max_tokens, dslo=pace)
    options.requests = options.requests or config.default_requests(options, options.capacity)
    rates = options.rate or default_rates(options.capacity)
    return sweep(config.sweep_axes(options, rates), repeats=options.num_dup, seed=options.seed)


def load(
    options: argparse.Namespace, model: Model, found: LatencyTable, path: Path, prompts: Prompts, folder: RunFolder
) -> LlmBench:
    """The engine, ready to serve. Raises RunFailed, with the trace kept in the run's folder."""
    print(f"loading {model.name} ({options.dtype}) on {options.slug} …", file=sys.stderr, flush=True)
    try:
        return load_bench(options, model, found, path, prompts)
    except RunFailed:
        raise
    except Exception as error:
        where = folder.write_error(error)
        raise RunFailed(f"cannot load {model.name}: {type(error).__name__}: {error}; see {where}") from error


def run(options: argparse.Namespace) -> int:
    """Check everything, then load the model and measure; returns the exit code."""
    config.check_options(options)
    model = resolve_model(options.model)
    prompts = read_prompts(options.dataset, model)
    config.check_model(model, options, prompts.longest())
    path = table_file(options, table_name(model.name, options.tp))
    found = table.read_table(path, options, model) if path.exists() or options.table else None
    with create_run_folder(options.out, options.policy, model.name) as folder:
        try:
            if found is None:
                profile_table(path, str(model.folder or model.name), options, ("--tp", str(options.tp)))
                found = table.read_table(path, options, model)
            options.dtype = options.dtype or found.info.get("dtype", "auto")
            settings = settings_of(options, found, prompts)
            head = header(options, model, found, path, prompts)
            bench = load(options, model, found, path, prompts, folder)
            columns = goodput_columns(list(settings[0].values))
            return run_settings(bench, settings, folder, head, best_by="token_goodput", columns=columns)
        finally:
            folder.remove_if_empty()


def main() -> int:
    """The command."""
    parser = config.make_parser()
    options = parser.parse_args()
    return exit_code_for(parser, lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
