"""The sandbox as callers see it: results, limits, files, cancelling, and what `none` means."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading

import pytest
from PIL import Image
from sandbox_helpers import is_gone, make_sandbox, wait_until

from agent_plugin.sandbox.limits import MIB, Limits
from agent_plugin.sandbox.pool import WARNING, Sandbox
from agent_plugin.sandbox.result import REASONS
from agent_plugin.sandbox.wire import Unpacker, WireError, pack

PLOT = """
import sys
early = "matplotlib.pyplot" in sys.modules
import matplotlib.pyplot as plt
plt.plot([1, 3, 2])
plt.title("a title, so fonts are there")
plt.savefig("plot.png")
print("early" if early else "late")
"""
ENDLESS = "open('started', 'w').close()\nwhile True: pass"


def test_a_plot_is_made_by_an_interpreter_that_had_matplotlib_before(rung):
    with make_sandbox(rung, preload=True, limits=Limits(wall=300.0, cpu=60.0)) as sandbox:
        result = sandbox.run(PLOT)
    assert (result.reason, result.stdout, result.stderr) == ("ok", "early\n", ""), result
    (picture,) = result.pictures
    with Image.open(io.BytesIO(picture.data)) as seen:
        assert seen.size == (picture.width, picture.height) == (640, 480)
        assert len(seen.convert("L").getcolors()) > 10


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("print(1)", "ok", 0),
        ("raise ValueError('no')", "failed", 1),
        ("exit(3)", "failed", 3),
        ("import sys; sys.exit('told')", "failed", 1),
        ("syntax error", "failed", 1),
        ("x = [0] * (1 << 40)", "out_of_memory", None),
        ("import os; os.abort()", "killed", None),
        ("import os; os._exit(0)", "ok", 0),
    ],
)
def test_how_a_program_ends_is_told(held, code, reason, status):
    result = held.run(code)
    assert result.reason == reason, result
    assert result.exit_status == status or reason == "out_of_memory"
    assert result.reason in REASONS
    assert result.is_ok == (reason == "ok")
    assert result.to_json()["reason"] == reason


def test_an_error_is_told_as_python_tells_it_without_our_own_lines(held):
    result = held.run("def inner():\n    return 1 / 0\ninner()")
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "agent_plugin" not in result.stderr


def test_a_program_is_main_and_finds_its_files(held):
    result = held.run(
        "import helper\nif __name__ == '__main__': print(helper.x, open('data/in.txt').read())",
        {"helper.py": b"x = 4", "data/in.txt": b"given"},
    )
    assert result.stdout == "4 given\n", result


def test_processor_time_is_limited_beside_the_clock(rung):
    limits = dataclasses.replace(Limits(), wall=300.0, cpu=1.0)
    with make_sandbox(rung, limits=limits) as sandbox:
        assert sandbox.run("while True: pass").reason == "out_of_cpu"


def test_a_call_may_ask_for_less_time_but_not_for_more(rung):
    with make_sandbox(rung, limits=Limits(wall=1.0)) as sandbox:
        assert sandbox.run("import time; time.sleep(1000)", wall=5000.0).reason == "timed_out"


def test_output_is_cut_at_the_limit(held):
    result = held.run("while True: print('x' * 99)")
    assert (result.reason, len(result.stdout)) == ("too_much_output", held.limits.output)
    assert result.notes == (f"printed more than {held.limits.output} bytes: ended, the output is cut there",)


def test_cancelling_one_that_runs_and_one_that_waits(rung, tmp_path):
    with make_sandbox(rung, folder=str(tmp_path)) as sandbox:
        running, waiting, other = sandbox.submit(ENDLESS), sandbox.submit("pass"), sandbox.submit("print(2)")
        wait_until(lambda: [*tmp_path.glob("*/*/job/started")], "the program runs")
        sandbox.cancel(waiting)
        sandbox.cancel(running)
        assert [future.result().reason for future in (running, waiting, other)] == ["cancelled", "cancelled", "ok"]


def test_a_cancelled_task_ends_its_program(rung, tmp_path):
    async def use(sandbox):
        task = asyncio.create_task(sandbox.run_async(ENDLESS))
        while not [*tmp_path.glob("*/*/job/started")]:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await sandbox.run_async("print(3)")

    with make_sandbox(rung, folder=str(tmp_path)) as sandbox:
        assert asyncio.run(use(sandbox)).stdout == "3\n"


def test_many_threads_may_share_one(held):
    said = {}

    def use(number):
        said[number] = held.run(f"print({number})").stdout

    threads = [threading.Thread(target=use, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"{number}\n" for number in range(12)}


def test_without_a_wall_every_result_warns_and_strays_are_ended(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nopen('a.png', 'wb').write(b'x')"
    with Sandbox("none", seats=2, warm=1, preload=False, folder=str(tmp_path)) as sandbox:
        futures = [sandbox.submit(code) for _ in range(6)]
        results = [future.result() for future in futures]
        assert sandbox.verdicts == []
    assert {result.warning for result in results} == {WARNING}
    assert {result.reason for result in results} == {"ok"}
    assert {result.notes for result in results} == {("a.png: is no PNG or JPEG picture (UnidentifiedImageError)",)}
    assert is_gone(sandbox.keeper_pid)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seats": 0}, "seats is 0 and warm 0, expected at least 1"),
        ({"seats": 1, "warm": 0}, "seats is 1 and warm 0, expected at least 1"),
        ({"folder": "/nonexistent"}, "folder '/nonexistent' is not there, or not writable"),
    ],
)
def test_bad_arguments_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        Sandbox("landlock", **options)


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../b", "", "a//b", "./a", "program.py", "nul\0"])
def test_files_stay_beside_the_program(held, name):
    with pytest.raises(ValueError, match="expected a relative path"):
        held.submit("pass", {name: b""})


def test_no_time_at_all_is_refused(held):
    with pytest.raises(ValueError, match="wall is 0 seconds, expected more than 0"):
        held.submit("pass", wall=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("wall", 0, "limit wall is 0, expected a number above 0"),
        ("files", 2.5, "limit files is 2.5, expected a whole number"),
        ("cpu", True, "limit cpu is True, expected a number above 0"),
        ("memory", MIB, "limit memory is 1048576 bytes, expected at least 67108864"),
        ("open_files", 3, "limit open_files is 3, expected at least 16"),
        ("pixels", float("nan"), "limit pixels is nan, expected a number above 0"),
    ],
)
def test_limits_that_cannot_hold_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        Limits(**{field: value})


def test_messages_arrive_whole_however_they_are_cut():
    sent = pack({"op": "run", "id": 1}, [b"abc", b""]) + pack({"op": "cancel", "id": 2})
    unpacker, found = Unpacker(), []
    for at in range(len(sent)):
        found += unpacker.feed(sent[at : at + 1])
    assert [(header["op"], blobs) for header, blobs in found] == [("run", [b"abc", b""]), ("cancel", [])]
    with pytest.raises(WireError, match=r"a message of 4294967295 \+ 0 bytes"):
        list(Unpacker().feed(b"\xff\xff\xff\xff\0\0\0\0"))


def test_closing_twice_does_no_harm(rung):
    sandbox = make_sandbox(rung)
    sandbox.close()
    sandbox.close()
    assert is_gone(sandbox.keeper_pid)
