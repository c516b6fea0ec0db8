"""Three nodes on this machine: a process is killed, a node is removed in mid-run, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from replica_helpers import pools, service, wait_for

from neuserve.replicas import Deployment, RunReport
from neuserve.replicas.local import search_path
from neustream.request import Outcome

SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 10}
STORE = 80 * 1024**2
NUM_WORKFLOWS = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that holds no replica but the coordinator, and two nodes with room for three replicas each."""
    before = dict(os.environ)
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", **search_path()})
    head = {"num_cpus": 1, "_system_config": SYSTEM, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=3, resources={"device": 3}, object_store_memory=STORE)
    made.wait_for_nodes()
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def deployment(cluster: Cluster) -> Iterator[Deployment]:
    with Deployment(pools(2, 2, resources={"device": 1}), service(), ray_address=cluster.address) as made:
        yield made


def check_counts(reports: list[RunReport]) -> None:
    """Every workflow came back once, and finished, since there was time to make its lost calls again."""
    assert Counter(report.run_id for report in reports) == Counter({f"w{i}": 1 for i in range(NUM_WORKFLOWS)})
    assert Counter(report.outcome for report in reports) == {Outcome.MET: NUM_WORKFLOWS}, [
        report for report in reports if report.outcome is not Outcome.MET
    ][:3]
    for report in reports:
        assert report.calls[-1].node == "look"
        assert report.result == f"{report.run_id}:look"


def test_a_killed_replica_and_a_removed_node_lose_nothing(cluster: Cluster, deployment: Deployment) -> None:
    reports: list[RunReport] = []
    with deployment.client(on_end=reports.append) as client:
        tickets = [client.submit({"bad": i % 3}, run_id=f"w{i}") for i in range(NUM_WORKFLOWS // 2)]
        wait_for(lambda: len(reports) >= 20, "20 workflows have ended")
        replicas = client.status()["replicas"]
        here = ray.get_runtime_context().get_node_id()  # this process would go with its own node
        victim = next(replica["node"] for replica in replicas.values() if replica["node"] != here)
        gone = {name for name, replica in replicas.items() if replica["node"] == victim}
        killed = next(name for name in replicas if name not in gone and name.startswith("write"))
        os.kill(replicas[killed]["pid"], signal.SIGKILL)
        wait_for(lambda: client.status()["replicas"][killed]["num_losses"], "the killed replica was missed")
        # The rest comes now, so that the node is lost in mid-run however long Ray took to miss the replica.
        tickets += [client.submit({"bad": i % 3}, run_id=f"w{i}") for i in range(len(tickets), NUM_WORKFLOWS)]
        node = next(node for node in cluster.worker_nodes if node.node_id == victim)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(
            lambda: all(client.status()["replicas"][name]["num_losses"] for name in gone), "the removed node was missed"
        )
        assert len(reports) < NUM_WORKFLOWS, "it must happen in mid-run"
        for ticket in tickets:
            ticket.result(120.0)
        status = client.status()
    check_counts(reports)
    assert status["num_live"] == 0
    assert status["replicas"][killed]["pid"] != replicas[killed]["pid"]
    assert {name for name, replica in status["replicas"].items() if replica["num_losses"]} == {killed, *gone}
    attempts = Counter(call.attempt for report in reports for call in report.calls)
    assert attempts[1] >= 1
    assert sum(count for attempt, count in attempts.items() if attempt) <= 3 * 16, "only what was in flight is redone"


@pytest.mark.parametrize("on_restart", ["resubmit", "fail"])
def test_when_the_coordinator_is_started_anew_every_client_gets_one_answer(
    deployment: Deployment, on_restart: str
) -> None:
    reports: list[RunReport] = []
    with deployment.client(on_restart=on_restart, on_end=reports.append) as client:  # type: ignore[arg-type]
        tickets = [client.submit({}, run_id=f"w{i}") for i in range(NUM_WORKFLOWS)]
        wait_for(lambda: len(reports) >= 20, "20 workflows have ended")
        pid = client.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        answers = [ticket.result(120.0) for ticket in tickets]
        assert client.status()["pid"] != pid
        assert client.submit({}).result(120.0).outcome is Outcome.MET
    by_outcome = Counter(report.outcome for report in answers)
    if on_restart == "resubmit":
        check_counts(reports[:NUM_WORKFLOWS])
    else:
        assert set(by_outcome) == {Outcome.MET, Outcome.FAILED}
        assert {report.reason for report in answers if report.outcome is Outcome.FAILED} == {
            "the coordinator was started anew and knows nothing of it"
        }
    assert Counter(report.run_id for report in reports[:NUM_WORKFLOWS]) == Counter(report.run_id for report in answers)
