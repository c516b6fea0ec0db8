"""What all experiments take from the command line, checked and filled in before anything is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neusim.profiling.settings import DTYPES
from neustream.catalog.machine import DEVICES, device_slug, local_device
from neustream.cli.arguments import BadInput, above, between, numbers, whole
from neustream.policies import POLICIES, check_abilities
from neustream.workload.arrivals import LEAST_CV, MOST_CV

GPU_REQUESTS = 500
"""The paper's."""
QUICK_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class Common:
    """The choices that mean the same for every kind of model."""

    model: str
    """The model's name, as its latency table is named."""
    policy: str
    device: str
    """`cpu` or `cuda`."""
    slug: str
    """The name of the device's tables: `h200`, `cpu-amd-epyc-2`."""
    dtype: str | None
    """None and `auto`: the table's."""
    rate: tuple[float, ...] | None
    """Requests per second; None: what the kind of model makes of the capacity."""
    cv: tuple[float, ...]
    requests: int | None
    """Requests per setting; None: as many as the kind of model thinks right."""
    num_dup: int
    seed: int
    out: str | None
    quick: bool
    table: Path | None


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be run. Each kind of model has its own subclass."""

    common: Common

    @property
    def table_name(self) -> str:
        """The name of the latency table's file, without `.json`."""
        return self.common.model

    @property
    def tensor_parallel(self) -> int:
        """Over how many devices the model is spread."""
        return 1

    @property
    def profiled(self) -> str:
        """The model as the profiler is told of it."""
        return self.common.model


def add_common_arguments(parser: argparse.ArgumentParser, *, model: str, policy: str) -> None:
    """Add the flags that mean the same for every kind of model. `model` and `policy` are the defaults."""
    parser.add_argument("--model", help=f"what is served (default {model})")
    parser.add_argument("--policy", default=policy, help=f"the step policy (default {policy})")
    parser.add_argument(
        "--rate",
        type=numbers(above(0)),
        metavar="R,…",
        help="requests per second (default: 0.6, 1 and 1.4 × the capacity that the latency table says)",
    )
    parser.add_argument(
        "--cv",
        type=numbers(between(LEAST_CV, MOST_CV)),
        metavar="C,…",
        help="spread of the gaps between arrivals (default 1: Poisson)",
    )
    parser.add_argument(
        "--burstiness",
        type=numbers(between(MOST_CV**-2, LEAST_CV**-2)),
        metavar="B,…",
        help="the same the other way round: 1/cv²",
    )
    parser.add_argument("--requests", type=whole(1), metavar="N", help="requests per setting")
    parser.add_argument("--num-dup", type=whole(1), default=1, metavar="N", help="repeats of each setting (default 1)")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the first repeat (default 0); others follow")
    parser.add_argument(
        "--out", metavar="NAME", help="name of the run in runs/, or a path (default: time-policy-model)"
    )
    parser.add_argument("--quick", action="store_true", help="a few small requests: to see that it works")
    parser.add_argument("--device", help="cpu or cuda: what serves, and whose table is used (default: this machine's)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a latency table to use instead of that one")
    parser.add_argument("--dtype", help="data type of weights and activations (default: the device's)")


def common_options(given: argparse.Namespace, *, device: str, model: str, cv: tuple[float, ...] = (1.0,)) -> Common:
    """The common choices. `device` is a checked one, `model` the checked name, `cv` the default. Raises BadInput."""
    try:
        slug = device_slug(device)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if given.dtype is not None and given.dtype not in DTYPES:
        raise BadInput(f"unknown dtype {given.dtype!r}; there are {', '.join(DTYPES)}")
    return Common(
        model=model,
        policy=given.policy,
        device=device,
        slug=slug,
        dtype=given.dtype,
        rate=given.rate,
        cv=chosen_cv(given.cv, given.burstiness) or cv,
        requests=given.requests,
        num_dup=given.num_dup,
        seed=given.seed,
        out=given.out,
        quick=given.quick,
        table=given.table,
    )


def chosen_cv(cv: tuple[float, ...] | None, burstiness: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The values of --cv, or of --burstiness turned into them. Raises BadInput when both are given."""
    if cv and burstiness:
        raise BadInput("--burstiness is 1/cv²: give it or --cv, not both")
    return tuple(1 / math.sqrt(value) for value in burstiness) if burstiness else cv


def chosen_device(name: str | None) -> str:
    """The device that --device names, or this machine's. Raises BadInput."""
    device = name or local_device()
    if device not in DEVICES:
        raise BadInput(f"unknown device {device!r}; there are {', '.join(DEVICES)}")
    return device


def num_requests(common: Common, rates: Sequence[float], seconds: float, least: int) -> int:
    """Requests per setting: --requests; else the paper's 500 on a GPU, and on a CPU from `least` to as many.

    On a CPU they follow from the rates: serving each of them once shall take about `seconds` in all.
    """
    if common.requests is not None:
        return common.requests
    if common.quick:
        return QUICK_REQUESTS
    if common.device != "cpu":
        return GPU_REQUESTS
    return min(max(int(seconds / sum(1 / rate for rate in rates)), least), GPU_REQUESTS)


def check_policy(
    name: str, kind: str, extra: Sequence[str] = (), *, can_split: bool = True, driver: str = "this driver"
) -> None:
    """Check a policy's name before any table is there. `kind` is "llm" or "loop"; `extra` names are right too.

    Raises BadInput naming those that serve this kind of model, or what the driver cannot do that the policy needs.
    """
    known = [*extra, *(key for key, entry in POLICIES.items() if getattr(entry, kind))]
    if name not in known:
        raise BadInput(f"unknown policy {name!r}; there are {', '.join(known)}")
    if name in POLICIES:
        try:
            check_abilities(name, can_split=can_split, driver=driver)
        except ValueError as error:
            raise BadInput(str(error)) from error
