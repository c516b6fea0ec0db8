"""The client process sends on time, whatever the receiver does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from exp.harness.client import Client, ClientDied, Job, Sent


def receive_all(client: Client) -> list[Sent]:
    sent: list[Sent] = []
    while not client.is_done:
        sent += client.receive(1.0)
    return sent


def test_sends_every_job_at_its_time_in_order() -> None:
    jobs = [Job(f"r{i}", 0.02 * i, [i] * 3) for i in range(8)]
    with Client(jobs) as client:
        origin = client.start()
        sent = receive_all(client)
    assert [(item.request_id, item.payload) for item in sent] == [(job.request_id, job.payload) for job in jobs]
    assert all(item.arrival >= origin + job.offset for item, job in zip(sent, jobs, strict=True))


def test_a_busy_receiver_does_not_delay_the_stamps() -> None:
    with Client([Job("a", 0.0, None), Job("b", 0.05, None)]) as client:
        client.start()
        time.sleep(1.0)
        awake = time.time()
        assert all(item.arrival < awake for item in receive_all(client))


def test_a_killed_client_is_noticed() -> None:
    with Client([Job("a", 60.0, None)]) as client:
        client.start()
        os.kill(client.pid or 0, signal.SIGKILL)
        with pytest.raises(ClientDied, match="exit code -9"):
            client.receive(10.0)


def test_leaving_early_ends_the_process() -> None:
    with Client([Job("a", 60.0, None)]) as client:
        client.start()
        pid = client.pid or 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
