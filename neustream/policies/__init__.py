"""The step policies, by name. To add one: a module here with a `plan`, and a line in `POLICIES`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neustream.policies.base import PolicyContext, StepPolicy
from neustream.policies.chunked import Chunked
from neustream.policies.clockwork import Clockwork
from neustream.policies.demotion import WithDemotion
from neustream.policies.fcfs import Fcfs
from neustream.policies.fcfs_loop import FcfsLoop
from neustream.policies.neustream_llm import NeuStreamLlm
from neustream.policies.neustream_loop import NeuStreamLoop
from neustream.policies.peers.fairbatching import FairBatching
from neustream.policies.peers.qoserve import QoServe, QosOwn
from neustream.policies.peers.sarathi_edf import SarathiEdf
from neustream.policies.peers.scorpio import Scorpio
from neustream.policies.peers.slidebatching import SlideBatching
from neustream.policies.peers.slos_serve import SlosServe
from neustream.policies.peers.vllm_v1 import VllmV1
from neustream.policies.slack.llm import SlackLlm
from neustream.policies.slack.loop import SlackLoop
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

__all__ = [
    "DECODE",
    "POLICIES",
    "PREFILL",
    "Entry",
    "PolicyContext",
    "StepPolicy",
    "check_abilities",
    "is_llm",
    "make_policy",
    "policies_for",
]

Build = Callable[..., StepPolicy]
"""Called with the table, a `PolicyContext`, and the policy's own options, which are its keyword-only parameters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy's builders: `llm` for tables with prefill and decode, `loop` for pipelines of loop modules."""

    summary: str
    llm: Build | None = None
    loop: Build | None = None
    splits: bool = False
    """Whether it spreads a prompt over several steps: the driver must be able to run pieces (`Limits.can_split`)."""
    whole_requests: bool = False
    """Whether it runs a request through all modules without a break, and so in one process."""
    is_peer: bool = False
    """Another system's rule, there to compare with (docs/peers.md): only in figures that ask for it by name."""


POLICIES: Mapping[str, Entry] = {
    "fcfs": Entry(
        "first come first served: vLLM's default (LLM), one after the other (loop)",
        lambda table, context: Fcfs(),
        lambda table, context: FcfsLoop(),
    ),
    "chunked": Entry("Sarathi-Serve: decodes never pause, prompts ride along in pieces", Chunked, splits=True),
    "neustream": Entry("the paper's rules: credit (LLM), passed-over first (loop)", NeuStreamLlm, NeuStreamLoop),
    "clockwork": Entry(
        "whole requests of equal step counts, by latest start (OSDI'20)", loop=Clockwork, whole_requests=True
    ),
    "slack": Entry("ours: start only what, by the forecast, keeps every promise", SlackLlm, SlackLoop),
    "vllm-v1": Entry(
        "today's vLLM: running first, then waiting, up to a budget of tokens", VllmV1, splits=True, is_peer=True
    ),
    "sarathi-edf": Entry(
        "chunked, prompts by the deadline of their first token", SarathiEdf, splits=True, is_peer=True
    ),
    "qoserve": Entry(
        "pieces as large as decodes' slack allows; hopeless to the back", QoServe, splits=True, is_peer=True
    ),
    "qos-own": Entry(
        "qoserve at its best here: nobody's lead is spent beyond its own pace", QosOwn, splits=True, is_peer=True
    ),
    "fairbatching": Entry(
        "a step's time by the least slack; decodes ahead left out", FairBatching, splits=True, is_peer=True
    ),
    "slos-serve": Entry(
        "guarantees the largest set of prompts, others get the rest", SlosServe, splits=True, is_peer=True
    ),
    "scorpio": Entry("guards for TTFT and TPOT, decodes by credit", Scorpio, splits=True, is_peer=True),
    "slidebatching": Entry(
        "by deadline in calm times, else by tokens on time a second", SlideBatching, splits=True, is_peer=True
    ),
}


def is_llm(table: LatencyTable) -> bool:
    """Whether this is the table of a language model (it has `prefill` and `decode`)."""
    return PREFILL in table and DECODE in table


def policies_for(table: LatencyTable, *, peers: bool = True) -> list[str]:
    """Names of the policies that serve this kind of model; without `peers`, the usual ones only."""
    serving = [name for name, entry in POLICIES.items() if (entry.llm if is_llm(table) else entry.loop)]
    return [name for name in serving if peers or not POLICIES[name].is_peer]


def check_abilities(name: str, *, can_split: bool, driver: str = "this driver") -> None:
    """Raise ValueError for a policy that needs what the driver cannot do, naming it; also for an unknown policy."""
    if _entry(name).splits and not can_split:
        others = ", ".join(other for other, entry in POLICIES.items() if entry.llm and not entry.splits)
        raise ValueError(
            f"policy {name!r} splits prompts over several steps, which {driver} cannot do; {others} do not need it"
        )


def make_policy(name: str, table: LatencyTable, **options: Any) -> StepPolicy:
    """The policy of that name for this table's kind of model.

    The fields of `PolicyContext` (`slo_scale`, `handover`) may be given for any policy; the other `options` are its
    own. Raises ValueError for an unknown name, one that does not serve this kind of model, an unknown option, or a
    value out of range.
    """
    entry = _entry(name)
    build = entry.llm if is_llm(table) else entry.loop
    if build is None:
        raise ValueError(f"policy {name!r} does not serve {table.model}; {', '.join(policies_for(table))} do")
    surroundings = {field.name for field in dataclasses.fields(PolicyContext)}
    context = PolicyContext(**{key: value for key, value in options.items() if key in surroundings})
    own = {key: value for key, value in options.items() if key not in surroundings}
    parameters = inspect.signature(build).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [key for key in own if key not in known]
    if unknown:
        raise ValueError(f"policy {name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return WithDemotion(build(table, context, **own), Fcfs() if is_llm(table) else FcfsLoop())


def _entry(name: str) -> Entry:
    entry = POLICIES.get(name)
    if entry is None:
        raise ValueError(f"unknown policy {name!r}; there are {', '.join(POLICIES)}")
    return entry
