"""Replicas on a Ray of this machine's own: streaming, withdrawal, crashes, refusals, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from replica_helpers import LLM, PATIENCE, pools, service, wait_for

from neuserve.replicas import Deployment, Factory, PoolSpec, RequestService, RunReport
from neuserve.replicas.local import join_ray, search_path
from neustream.request import Outcome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """One Ray for this module, with room beside the deployment below; a deployment in it leaves it as it is."""
    leave = join_ray(None, [{"CPU": 4.0}])
    yield
    assert ray.is_initialized()
    leave()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def deployment(one_ray: None) -> Iterator[Deployment]:
    with Deployment(pools(), service()) as made:
        yield made


def test_a_watched_workflow_streams_its_calls_and_its_tokens(deployment: Deployment) -> None:
    with deployment.client() as client:
        ticket = client.submit({"bad": 1}, run_id="a", watch=True)
        events = list(ticket)
        report = ticket.result(PATIENCE)
    assert [(event.node, event.kind) for event in events if event.kind in ("sent", "ended")] == [
        (node, kind) for node in ("write", "execute", "repair", "execute", "look") for kind in ("sent", "ended")
    ]
    assert [event.units for event in events if event.node == "write" and event.kind == "grown"] == [1, 2, 3]
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert (report.outcome, report.result) == (Outcome.MET, "a:look")
    assert [(call.node, call.label, call.units) for call in report.calls] == [
        ("write", "ok", 4), ("execute", "failed", 1), ("repair", "ok", 4), ("execute", "ok", 1), ("look", "ok", 4),
    ]  # fmt: skip


def test_on_an_event_loop_a_ticket_is_iterated_and_awaited(deployment: Deployment) -> None:
    async def follow() -> tuple[list[str], RunReport]:
        ticket = client.submit({}, watch=True)
        kinds = [event.kind async for event in ticket]
        return kinds, await ticket.wait()

    with deployment.client() as client:
        kinds, report = asyncio.run(asyncio.wait_for(follow(), PATIENCE))
    assert (kinds[0], kinds[-1], report.outcome) == ("sent", "ended", Outcome.MET)


def test_a_withdrawn_workflow_leaves_the_replica_free(deployment: Deployment) -> None:
    with deployment.client() as client:
        ticket = client.submit({"units": 100_000}, run_id="long", watch=True)
        next(iter(ticket))
        ticket.abort("enough")
        report = ticket.result(PATIENCE)
        ticket.abort()
        assert (report.outcome, report.reason) == (Outcome.ABORTED, "enough")
        assert client.submit({}).result(PATIENCE).outcome is Outcome.MET
        assert client.num_open == 0
        with pytest.raises(ValueError, match="the deadline must be above 0"):
            client.submit({}, deadline=0.0)


def test_a_client_that_goes_takes_its_workflows_along(deployment: Deployment) -> None:
    with deployment.client() as client:
        tickets = [client.submit({"units": 100_000}, run_id=str(i)) for i in range(4)]
        with pytest.raises(ValueError, match="run id '0' is in use"):
            client.submit({}, run_id="0")
    assert {ticket.result(0.0).outcome for ticket in tickets} == {Outcome.ABORTED}
    wait_for(lambda: deployment.status()["num_live"] == 0, "its workflows were withdrawn")
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.submit({})


def test_a_call_that_kills_its_replicas_fails_in_the_end_and_the_others_go_on(deployment: Deployment) -> None:
    """Each attempt costs a restart: the third is the last, of the call and of the replica both may have."""
    reports: list[RunReport] = []
    with deployment.client(on_end=reports.append) as client:
        killer = client.submit({"crash": "write"}, run_id="killer")
        others = [client.submit({"bad": i % 2}, run_id=str(i)) for i in range(10)]
        assert (killer.result(PATIENCE).outcome, killer.result().reason) == (
            Outcome.FAILED, "write: lost its replica 3 times",
        )  # fmt: skip
        outcomes = Counter(ticket.result(PATIENCE).outcome for ticket in others)
        wait_for(lambda: client.status()["replicas"]["write-0"]["state"] == "open", "the replica came back")
    # Those that the driver had begun beside the killer share its fate, at most as many as the replica's credits.
    assert outcomes[Outcome.MET] + outcomes[Outcome.FAILED] == 10
    assert outcomes[Outcome.MET] >= 5
    assert Counter(report.run_id for report in reports) == Counter(["killer", *map(str, range(10))])


def test_a_drained_replica_gets_no_further_calls(deployment: Deployment) -> None:
    """The last of this deployment's tests: the pool has no other replica."""
    with deployment.client() as client:
        client.drain("execute-0")
        ticket = client.submit({})
        status = wait_for(lambda: (s := client.status())["pools"]["execute"]["queue"] and s, "a call waits in vain")
        assert status["pools"]["execute"]["replicas"]["execute-0"]["is_open"] is False
        assert not ticket.is_done
        with pytest.raises(ValueError, match="there is no replica 'cook-0'; there are write-0, execute-0"):
            client.drain("cook-0")


PROGRAM = """
import sys, time
from neuserve.replicas import Deployment, RequestService
from replica_helpers import pools
with Deployment(pools()[:1], RequestService()) as deployment, deployment.client() as client:
    ticket = client.submit({"units": 3, "result": "made"}, slo={"ttft_ms": 1e6, "tpot_ms": 1e6})
    print(ticket.result(60.0).outcome, ticket.result().result, flush=True)
    pids = [deployment.status()["pid"], *(r["pid"] for r in deployment.status()["replicas"].values())]
    print(*pids, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_interrupted_or_killed_leaves_no_process(number: int) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "met made\n"
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    parents = {_parent(pid) for pid in pids}
    program.send_signal(number)
    program.wait(PATIENCE)
    wait_for(lambda: not any(_runs(pid) for pid in {*pids, *parents}), "every process has ended")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_driver_that_cannot_be_made_is_said_in_a_line_and_nothing_stays(one_ray: None) -> None:
    bad = PoolSpec("write", Factory("neuserve.replicas.stand_in:build", {"table": LLM, "speed": -1.0}))
    free = ray.available_resources()["CPU"]
    with pytest.raises(ValueError, match="replica write-0: speed must be above 0, got -1") as caught:
        Deployment([bad, *pools()[1:]], service()).start()
    assert "\n" not in str(caught.value)
    wait_for(lambda: ray.available_resources().get("CPU") == free, "what it took of the cluster is free again")


def test_a_machine_without_the_gpus_is_refused(one_ray: None) -> None:
    wants = PoolSpec("write", Factory("neuserve.replicas.stand_in:build", {"table": LLM}), 2, gpus=8)
    with pytest.raises(ValueError, match="the replicas need 16 GPU in all, the cluster has "):
        Deployment([wants], RequestService()).start()


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "refused"), ("somewhere", "expected auto, or HOST:PORT")])
def test_an_address_without_a_cluster_is_refused(address: str, why: str) -> None:
    """In a process of its own: this one is connected already."""
    program = f"from neuserve.replicas.local import join_ray; join_ray({address!r}, [])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    line = [line for line in result.stderr.splitlines() if line.startswith("ValueError")][-1]
    assert line.startswith(f"ValueError: no Ray cluster can be joined at {address!r}: ")
    assert why in line


def test_other_processes_find_what_this_one_imports() -> None:
    entries = search_path()["PYTHONPATH"].split(os.pathsep)
    assert str(Path(__file__).parent) in entries
    assert not [entry for entry in entries if "site-packages" in entry]
