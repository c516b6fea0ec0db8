"""The client process sends on time, whatever the receiver does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exp.harness.client import Client, ClientDied
from neustream.driver import Ask


def receive_all(client: Client) -> list[Ask]:
    sent: list[Ask] = []
    while not client.is_done:
        sent += client.receive(1.0)
    return sent


def test_sends_every_ask_at_its_time_in_order() -> None:
    asks = [Ask(f"r{i}", 0.02 * i, [i] * 3, {"slo_scale": 2.0}) for i in range(8)]
    with Client(asks) as client:
        origin = client.start()
        sent = receive_all(client)
    assert [ask._replace(arrival=0.0) for ask in sent] == [ask._replace(arrival=0.0) for ask in asks]
    assert all(one.arrival >= origin + ask.arrival for one, ask in zip(sent, asks, strict=True))


def test_a_receiver_that_is_busy_for_seconds_does_not_delay_the_stamps() -> None:
    """1000 prompts of 400 tokens a second fill a pipe within a tenth of a second."""
    prompt = list(range(1000, 1400))
    asks = [Ask(f"r{i}", 0.001 * i, (prompt, 128)) for i in range(2000)]
    with Client(asks) as client:
        origin = client.start()
        time.sleep(3.0)
        awake = time.time()
        sent = receive_all(client)
    assert [ask.request_id for ask in sent] == [ask.request_id for ask in asks]
    assert all(ask.arrival < awake for ask in sent)
    assert max(one.arrival - origin - ask.arrival for one, ask in zip(sent, asks, strict=True)) < 0.5


FIRST_CLIENT = """
from pathlib import Path
from exp.harness.client import Client
from neustream.driver import Ask

if __name__ == "__main__":
    with Client([Ask("a", 60.0, None)]) as client:
        client.start()
        print(Path(f"/proc/{client.pid}/status").read_text().partition("SigBlk:")[2].split()[0])
"""


def test_ctrl_c_does_not_reach_the_client_the_first_one_of_a_run_included(tmp_path: Path) -> None:
    """Python starts its resource tracker with the first process, and unblocks the signals on the way."""
    script = tmp_path / "first.py"
    script.write_text(FIRST_CLIENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    blocked = int(result.stdout, 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


def test_a_killed_client_is_noticed() -> None:
    with Client([Ask("a", 60.0, None)]) as client:
        client.start()
        os.kill(client.pid or 0, signal.SIGKILL)
        with pytest.raises(ClientDied, match="exit code -9"):
            client.receive(10.0)


def test_leaving_early_ends_the_process() -> None:
    with Client([Ask("a", 60.0, None)]) as client:
        client.start()
        pid = client.pid or 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
