"""The step policies, by name. To add one: a module here with a `plan`, and a line in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neustream.policies.base import StepPolicy
from neustream.policies.chunked import Chunked
from neustream.policies.clockwork import Clockwork
from neustream.policies.demotion import WithDemotion
from neustream.policies.fcfs import Fcfs
from neustream.policies.fcfs_loop import FirstIn
from neustream.policies.neustream_llm import NeuStreamLlm
from neustream.policies.neustream_loop import NeuStreamLoop
from neustream.policies.slack.llm import SlackLlm
from neustream.policies.slack.loop import SlackLoop
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

__all__ = ["DECODE", "POLICIES", "PREFILL", "Entry", "StepPolicy", "is_llm", "make_policy", "policies_for"]

Build = Callable[..., StepPolicy]


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy's builders: `llm` for tables with prefill and decode, `loop` for pipelines of loop modules."""

    summary: str
    llm: Build | None = None
    loop: Build | None = None


POLICIES: Mapping[str, Entry] = {
    "fcfs": Entry("vLLM's default: every prefill that fits, before any decode", llm=lambda table: Fcfs()),
    "chunked": Entry("Sarathi-Serve: decodes never pause, prompts ride along in pieces", llm=Chunked),
    "neustream": Entry("the paper's rules: credit (LLM), passed-over first (loop)", NeuStreamLlm, NeuStreamLoop),
    "clockwork": Entry("whole requests of equal step counts, by latest start (OSDI'20)", loop=Clockwork),
    "slack": Entry("ours: start only what leaves every promise kept", SlackLlm, SlackLoop),
}


def is_llm(table: LatencyTable) -> bool:
    """Whether this is the table of a language model (it has `prefill` and `decode`)."""
    return PREFILL in table and DECODE in table


def policies_for(table: LatencyTable) -> list[str]:
    """Names of the policies that serve this kind of model."""
    return [name for name, entry in POLICIES.items() if (entry.llm if is_llm(table) else entry.loop)]


def make_policy(name: str, table: LatencyTable, **options: Any) -> StepPolicy:
    """The policy of that name for this table's kind of model. `options` go to its constructor.

    Raises ValueError for an unknown name, one that does not serve this kind of model, or an unknown option.
    """
    entry = POLICIES.get(name)
    if entry is None:
        raise ValueError(f"unknown policy {name!r}; there are {', '.join(POLICIES)}")
    build = entry.llm if is_llm(table) else entry.loop
    if build is None:
        raise ValueError(f"policy {name!r} does not serve {table.model}; {', '.join(policies_for(table))} do")
    try:
        policy = build(table, **options)
    except TypeError as error:
        raise ValueError(f"policy {name!r}: {error}") from error
    return WithDemotion(policy, Fcfs() if is_llm(table) else FirstIn())
