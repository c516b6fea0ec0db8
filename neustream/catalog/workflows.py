"""Workflows by name. `plot` is the paper's: write plotting code, run it, look at the picture, revise the code, run it.

Lengths and prompt sizes of `plot` are those of the NeuStream artifact's trace (100 plotting tasks of MatPlotBench):
means, in tokens; prompts there are counted as a quarter of their characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neustream.workflow.graph import Edge, Node, Workflow

CODE_MODEL = "codellama-7b"
VISION_MODEL = "llava-1.5-7b"
CODE_RUNNER = "code-executor"
MAX_TOKENS = 1000
EXECUTE_SECONDS = 2.5
"""What the artifact grants a run of the code."""
PICTURE_TOKENS = 576
"""Tokens that LLaVA-1.5 makes of a picture."""
RUNNER_SEATS = 40
"""Runs of code at once: the artifact's threads."""
PUBLISHED_REPLICAS: Mapping[str, int] = {"look": 2}
"""Replicas by node in the artifact's experiment; 1 where nothing is said."""


@dataclass(frozen=True, slots=True)
class Typical:
    """What a node's calls are like until enough have finished: units of input, output units."""

    size: int
    units: int


WRITE = Node("write_code", CODE_MODEL, "llm", MAX_TOKENS, pool="write_code")
EXECUTE = Node("execute", CODE_RUNNER, "tool", pool="execute")
LOOK = Node("look", VISION_MODEL, "llm", MAX_TOKENS, pool="look")
REVISE = Node("revise_code", CODE_MODEL, "llm", MAX_TOKENS, pool="revise_code")
EXECUTE_AGAIN = Node("execute_again", CODE_RUNNER, "tool", pool="execute")
REPAIR = Node("repair_code", CODE_MODEL, "llm", MAX_TOKENS, pool="write_code")

MAX_REPAIRS = 4
"""Repairs of code that does not run, as MatPlotAgent allows; the artifact left that loop out."""

PLOT = Workflow(
    "plot",
    (WRITE, EXECUTE, LOOK, REVISE, EXECUTE_AGAIN),
    (
        Edge("write_code", "execute"),
        Edge("execute", "look"),
        Edge("look", "revise_code"),
        Edge("revise_code", "execute_again"),
    ),
)
PLOT_REPAIR = Workflow(
    "plot-repair",
    (WRITE, EXECUTE, REPAIR, LOOK, REVISE, EXECUTE_AGAIN),
    (
        Edge("write_code", "execute"),
        Edge("execute", "repair_code", when="failed", at_most=MAX_REPAIRS),
        Edge("repair_code", "execute"),
        Edge("execute", "look"),
        Edge("look", "revise_code"),
        Edge("revise_code", "execute_again"),
    ),
)
PICTURE = Workflow(
    "picture",
    (
        Node("rewrite_prompt", "opt-125m", "llm", 64),
        Node("paint", "sd-nano", "image"),
        Node("judge", "opt-125m", "llm", 16, pool="rewrite_prompt"),
    ),
    (
        Edge("rewrite_prompt", "paint"),
        Edge("paint", "judge"),
        Edge("judge", "rewrite_prompt", when="rejected", at_most=1),
    ),
)
"""Text to image with a rewritten prompt and a judge: language model, diffusion pipeline, language model."""

WORKFLOWS: Mapping[str, Workflow] = {workflow.name: workflow for workflow in (PLOT, PLOT_REPAIR, PICTURE)}

TYPICAL: Mapping[str, Typical] = {
    "write_code": Typical(529, 661),
    "repair_code": Typical(900, 661),
    "look": Typical(1734, 810),
    "revise_code": Typical(983, 661),
    "rewrite_prompt": Typical(40, 48),
    "judge": Typical(80, 8),
}


def find_workflow(name: str) -> Workflow:
    """The workflow of that name. Raises ValueError, naming the known ones, for any other."""
    workflow = WORKFLOWS.get(name)
    if workflow is None:
        raise ValueError(f"unknown workflow {name!r}; there are {', '.join(WORKFLOWS)}")
    return workflow
