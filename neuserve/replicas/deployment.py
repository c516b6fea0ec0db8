"""A deployment: what is served by how many replicas, their placement in a Ray cluster, start and end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from neuserve.replicas.client import Client, OnRestart
from neuserve.replicas.coordinator import CoordinatorActor
from neuserve.replicas.dispatch import Service
from neuserve.replicas.errors import first_line
from neuserve.replicas.factory import Factory
from neuserve.replicas.link import Member, stop
from neuserve.replicas.local import join_ray, search_path
from neuserve.replicas.messages import RunReport
from neuserve.replicas.replica import CLOSE_WAIT, ReplicaActor
from neustream.workflow.pool import CREDITS

MAX_RESTARTS = 3
"""How often Ray starts a replica anew."""
PLACE_WAIT = 60.0
"""Seconds for which a cluster that is large enough may be too busy to place the replicas."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool: replicas of one driver, each in a process of its own. Raises ValueError, one line, for bad numbers."""

    name: str
    driver: Factory
    """Makes the driver, in the replica's process. With `gpus` above 1 it also gets `tensor_parallel=gpus`."""
    replicas: int = 1
    cpus: float = 1.0
    """CPUs that Ray sets aside for a replica."""
    gpus: float = 0.0
    """GPUs of a replica. A fraction shares one; it limits nothing, so set the driver's memory to match."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Further resources of Ray's."""
    threads: int = 1
    """CPU threads of the replica's numerical libraries."""
    credits: int = CREDITS
    """Calls that may wait at a replica which has not begun them."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of the replica's process."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a pool needs a name")
        for name in ("replicas", "threads", "credits"):
            if getattr(self, name) < 1:
                raise ValueError(f"pool {self.name!r}: {name} must be at least 1, got {getattr(self, name)}")
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus), *self.resources.items()):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"pool {self.name!r}: {name} must be at least 0, got {value:g}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"pool {self.name!r}: gpus above 1 must be whole, got {self.gpus:g}")

    def bundle(self) -> dict[str, float]:
        """What one replica takes of the cluster."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in wanted.items() if amount} or {"CPU": 0.001}

    def factory(self) -> Factory:
        """What makes a replica's driver."""
        if self.gpus <= 1:
            return self.driver
        return Factory(self.driver.path, {**self.driver.options, "tensor_parallel": int(self.gpus)})

    def environment(self) -> dict[str, str]:
        """Environment variables of a replica's process."""
        return {**dict.fromkeys(THREAD_VARIABLES, str(self.threads)), **self.env}


class Deployment:
    """Replicas and their coordinator, from `start` to `close`. Context manager.

    Without `ray_address` a Ray of its own is started on this machine and ended with it; `auto` or `HOST:PORT` joins a
    cluster, and leaves it running. `told` hears, in a line, what is being waited for. Raises ValueError, one line,
    for a description that cannot be served, before anything is started.
    """

    def __init__(
        self,
        pools: tuple[PoolSpec, ...] | list[PoolSpec],
        service: Service,
        *,
        ray_address: str | None = None,
        told: Callable[[str], None] | None = None,
    ) -> None:
        names = [pool.name for pool in pools]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two pools are named {name!r}")
        service.check(names)
        self.pools = tuple(pools)
        self.service = service
        self.ray_address = ray_address
        self.coordinator: Any = None
        self.members: list[Member] = []
        self._told = told if told is not None else lambda line: None
        self._group: PlacementGroup | None = None
        self._leave: Callable[[], None] | None = None
        self._clients: list[Client] = []

    def start(self) -> None:
        """Place the replicas and wait until all their drivers are made. Nothing is left behind where that fails.

        Raises ValueError, one line, for an address where no cluster answers, a cluster that is too small, and a
        driver that cannot be made.
        """
        try:
            bundles = [pool.bundle() for pool in self.pools for _ in range(pool.replicas)]
            self._leave = join_ray(self.ray_address, bundles)
            self._check_room(bundles)
            self._place(bundles)
            self._start_replicas()
            self._start_coordinator()
        except BaseException:
            self.close()
            raise

    def client(
        self,
        *,
        name: str | None = None,
        on_restart: OnRestart = "resubmit",
        on_end: Callable[[RunReport], None] | None = None,
    ) -> Client:
        """A client; it is closed with the deployment. See `Client`."""
        client = Client(self.coordinator, name=name, on_restart=on_restart, on_end=on_end)
        self._clients.append(client)
        return client

    def status(self) -> dict[str, Any]:
        """How everything stands. Raises RayError where the coordinator does not answer just now."""
        status: dict[str, Any] = ray.get(self.coordinator.status.remote())
        return status

    def close(self) -> None:
        """Withdraw what is open, close the drivers, end all processes that were started. Twice is no error."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if ray.is_initialized():
            self._close_actors()
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _close_actors(self) -> None:
        if self.coordinator is not None:
            stop(self.coordinator)
            self.coordinator = None
        closing = [member.actor.close.remote() for member in self.members]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_WAIT)
        for member in self.members:
            stop(member.actor)
        self.members.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    # The parts of starting.

    def _check_room(self, bundles: list[dict[str, float]]) -> None:
        room = ray.cluster_resources()
        for resource in sorted({name for bundle in bundles for name in bundle}):
            needed = sum(bundle.get(resource, 0.0) for bundle in bundles)
            if needed > room.get(resource, 0.0) + 1e-6:
                raise ValueError(
                    f"the replicas need {needed:g} {resource} in all, the cluster has {room.get(resource, 0.0):g}"
                )

    def _place(self, bundles: list[dict[str, float]]) -> None:
        self._group = placement_group(bundles, strategy="SPREAD")
        if not self._group.wait(PLACE_WAIT):
            raise ValueError(
                f"the cluster did not place {len(bundles)} replicas within {PLACE_WAIT:g} s: others use it, or no node "
                "has room for one of them"
            )

    def _start_replicas(self) -> None:
        actor_class: Any = ray.remote(ReplicaActor)
        group = self._group
        assert group is not None
        shared = search_path() if self.ray_address is None else {}
        for pool in self.pools:
            for i in range(pool.replicas):
                where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=len(self.members))
                actor = actor_class.options(
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus,
                    resources=dict(pool.resources),
                    max_restarts=MAX_RESTARTS,
                    max_task_retries=0,
                    scheduling_strategy=where,
                    runtime_env={"env_vars": {**shared, **pool.environment()}},
                ).remote(f"{pool.name}-{i}", pool.factory())
                self.members.append(Member(f"{pool.name}-{i}", pool.name, pool.credits, actor))
        waiting = {member.actor.ready.remote(): member for member in self.members}
        while waiting:
            names = ", ".join(member.name for member in waiting.values())
            self._told(f"waiting for {len(waiting)} of {len(self.members)} replicas: {names}")
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            member = waiting.pop(done)
            try:
                ray.get(done)
            except RayTaskError as error:
                raise ValueError(f"replica {member.name}: {_line(error.cause)}") from error
            except RayError as error:
                raise ValueError(f"replica {member.name} died while its driver was made: {_line(error)}") from error

    def _start_coordinator(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        options = {"runtime_env": {"env_vars": search_path()}} if self.ray_address is None else {}
        actor_class: Any = ray.remote(CoordinatorActor)
        self.coordinator = actor_class.options(
            num_cpus=0,
            max_restarts=MAX_RESTARTS,
            max_task_retries=0,
            # Beside this process, whose end is the deployment's end in any case: no other node's loss takes it along.
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            **options,
        ).remote(self.service, self.members)
        try:
            ray.get(self.coordinator.begin.remote())
        except RayError as error:
            raise ValueError(f"the coordinator cannot be started: {_line(error)}") from error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(error: BaseException) -> str:
    return first_line(error) or type(error).__name__
