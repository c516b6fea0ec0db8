"""The plotting workflow's calls as the artifact recorded them: prompt sizes, output lengths, arrivals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neusim.sim.workflow_load import TOOL_MEDIAN, TOOL_SIGMA, Truth, tool_table
from neustream.catalog.workflows import MAX_TOKENS, PICTURE_TOKENS
from neustream.latency import ContextLatency, LatencyModel, TokensLatency
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable, TableError
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.run import Run
from neustream.workload import gamma_arrivals

CHARS_PER_TOKEN = 4
CODE_SHARE = 0.9
"""Share of the code model's output that is code, which the vision model is shown."""
ARRIVAL_SEEDS = {1.0: 4, 2.0: 6, 3.0: 8, 4.0: 6}
"""The artifact's seeds of the arrivals, by their cv."""


@dataclass(frozen=True, slots=True)
class PlotTask:
    """One plotting task: sizes of its prompts in tokens, lengths of its outputs, seconds of its tool runs."""

    write_size: int
    look_size: int
    """Without the code of the first node, which its real output adds."""
    revise_size: int
    """Without the text of the vision model, which its real output adds."""
    write_units: int
    look_units: int
    revise_units: int
    seconds: tuple[float, float]


class PlotTrace:
    """A workload of plotting tasks; `deadline` is one constant for all in seconds, or None: the stages' own SLOs."""

    def __init__(
        self, tasks: list[PlotTask], rate: float, cv: float, *, seed: int | None = None, deadline: float | None = None
    ) -> None:
        seed = ARRIVAL_SEEDS.get(cv, 4) if seed is None else seed
        self.tasks = tasks
        self.window = len(tasks) / rate
        self.arrivals = gamma_arrivals(rate, cv, len(tasks), seed)
        self.deadline = deadline

    def runs(self, workflow: Workflow) -> Iterator[Run]:
        for i, arrival in enumerate(self.arrivals):
            due = None if self.deadline is None else float(arrival) + self.deadline
            yield Run(str(i), workflow, float(arrival), due, self.tasks[i])

    def size(self, run: Run, node: Node) -> int:
        task: PlotTask = run.payload
        if node.name == "write_code":
            return task.write_size
        if node.name == "look":
            return task.look_size + round(CODE_SHARE * _output_of(run, "write_code"))
        if node.name == "revise_code":
            return task.revise_size + _output_of(run, "look")
        return 1

    def truth(self, run: Run, node: Node) -> Truth:
        task: PlotTask = run.payload
        if node.kind == "tool":
            return Truth(seconds=task.seconds[0 if node.name == "execute" else 1])
        units = {"write_code": task.write_units, "look": task.look_units, "revise_code": task.revise_units}
        return Truth(units=units[node.name])


def _output_of(run: Run, name: str) -> int:
    return next((visit.units for visit in reversed(run.visits) if visit.node.name == name), 0)


def read_trace(path: Path, *, revise_from: str = "code") -> list[PlotTask]:
    """The tasks of an artifact's trace file (`agents_trace.json`).

    The lengths of the second code node were not recorded. `revise_from` says what is assumed: "code", a permutation of
    the first code node's, or "vision", those of the vision model. Raises ValueError, one line, for a file that is
    missing or of another format.
    """
    if revise_from not in ("code", "vision"):
        raise ValueError(f"revise_from must be code or vision, got {revise_from!r}")
    try:
        data = json.loads(path.read_text())
        requests: list[Mapping[str, Any]] = data["requests"]
        chars: Mapping[str, int] = data["template_chars"]
        code = [int(request["codellama_1_output_tokens"]) for request in requests]
        vision = [int(request["llava_output_tokens"] or MAX_TOKENS) for request in requests]
        dice = np.random.RandomState(1)
        revised = [code[i] for i in dice.permutation(len(code))] if revise_from == "code" else vision
        seconds = np.random.RandomState(2).lognormal(np.log(TOOL_MEDIAN), TOOL_SIGMA, (len(requests), 2))
        return [
            PlotTask(
                write_size=(chars["codellama_1"] + int(request["expert_chars"])) // CHARS_PER_TOKEN,
                look_size=PICTURE_TOKENS + (chars["llava"] + int(request["simple_chars"])) // CHARS_PER_TOKEN,
                revise_size=chars["codellama_2"] // CHARS_PER_TOKEN,
                write_units=code[i],
                look_units=vision[i],
                revise_units=revised[i],
                seconds=(float(seconds[i, 0]), float(seconds[i, 1])),
            )
            for i, request in enumerate(requests)
        ]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no trace of the plotting workflow ({error!r})") from error


def read_tables(path: Path) -> dict[str, LatencyTable]:
    """The latency tables of an artifact's file (`agents_tables.json`), and one for its code runner, by name.

    Raises TableError, one line, for a file that is missing or of another format.
    """
    try:
        data = json.loads(path.read_text())
        tables = {name: _table(name, fields) for name, fields in data.items()}
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: is no file of the plotting workflow's tables ({error!r})") from error
    tables["execute"] = tool_table("code-executor")
    return tables


def _table(name: str, fields: Mapping[str, Any]) -> LatencyTable:
    prefill, decode = fields["prefill_fit"], fields["decode_fit"]
    modules: dict[str, LatencyModel] = {
        PREFILL: TokensLatency(
            (prefill["c0"], prefill["per_token"], prefill["per_token_squared"]),
            tuple(fields["prefill_tokens"]),
            tuple(fields["prefill_seconds"]),
        ),
        DECODE: ContextLatency((decode["c0"], decode["per_context_token"])),
    }
    return LatencyTable(name, "rtx4090", modules, {"kv_blocks": fields["kv_blocks"]})
