"""A Ray of this program's own, or a cluster that is there."""

from __future__ import annotations

import math
import os
import socket
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from neuserve.replicas.errors import first_line

OBJECT_STORE_BYTES = 256 * 1024**2
"""Shared memory of a Ray that this program starts; what does not fit is spilled to disk."""

KNOCK_SECONDS = 10.0
"""Seconds within which a cluster's address must answer."""


def join_ray(address: str | None, bundles: Sequence[dict[str, float]]) -> Callable[[], None]:
    """Start a Ray with room for these bundles, or join the cluster at `address`; returns what undoes it.

    A program that is connected already stays so. Raises ValueError, one line, where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    def leave() -> None:
        ray.shutdown()

    if ray.is_initialized():
        return lambda: None
    if address is not None:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster can be joined at {address!r}: {first_line(error)}") from error
        return leave
    cpus = math.ceil(sum(bundle.get("CPU", 0.0) for bundle in bundles))
    others = {name for bundle in bundles for name in bundle} - {"CPU", "GPU"}
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        resources={name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in sorted(others)},
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="error",
    )
    return leave


def _knock(address: str) -> None:
    """See whether anybody answers there: Ray itself would ask a silent address for minutes. Raises OSError if not.

    Raises ValueError for what is neither `auto` nor HOST:PORT.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected auto, or HOST:PORT")
    socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def search_path() -> dict[str, str]:
    """The environment variable by which other processes on this machine import what this one can."""
    own = [entry or os.getcwd() for entry in sys.path]
    outside = [entry for entry in own if not _is_pythons(entry)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(outside))}


def _is_pythons(entry: str) -> bool:
    """Whether it comes with the interpreter or its environment."""
    path = Path(entry)
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path.suffix == ".zip" or any(path.is_relative_to(home) for home in homes)
