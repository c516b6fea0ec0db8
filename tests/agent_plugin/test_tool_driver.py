"""The code executor as a driver: seats, deadlines, withdrawals, results; on stand-ins and on the real sandbox."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from sandbox_helpers import is_gone, make_sandbox

from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.limits import MIB, Limits
from agent_plugin.sandbox.result import Picture, ToolResult
from agent_plugin.tools.driver import ToolDriver
from agent_plugin.tools.result import LABELS, ToolCall
from agent_plugin.tools.seats import ENOUGH, RunSeconds, choose
from neustream.driver import Ask, Callbacks, Driver, HasResults
from neustream.latency import BatchLatency, ContextLatency
from neustream.records import RequestRecord
from neustream.request import Outcome, Request
from neustream.route import Stage
from neustream.slo import Deadlines
from neustream.tables import LatencyTable
from neustream.testing import VirtualClock

TABLE = LatencyTable("code-executor", "paper", {"execute": BatchLatency((1, 2), (1.0, 1.5))})
DRAW = """
import struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\\0" + bytes(3 * 4) for _ in range(3))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 8, 2, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
open("novice.png", "wb").write(png)
"""


DRAWN = (Picture("novice.png", 1, 1, b"png"),)


class Promised(Future):
    """A future that knows its program, and whether it was to be ended."""

    def __init__(self, code, wall):
        super().__init__()
        self.code, self.wall, self.is_cancelled = code, wall, False

    def becomes(self, reason="ok", pictures=DRAWN, **fields):
        self.set_result(ToolResult(reason, 0.5, "bwrap", pictures=pictures, **fields))


class FakeRunner:
    """Takes programs, and does nothing with them until the test says how they end."""

    def __init__(self, seats=2):
        self.seats, self.limits, self.given, self.is_closed = seats, Limits(), [], False

    def submit(self, code, files=None, *, wall=None):
        self.given.append(Promised(code, wall))
        return self.given[-1]

    def cancel(self, future):
        future.is_cancelled = True

    def close(self):
        self.is_closed = True

    @property
    def codes(self):
        return [future.code for future in self.given]


class Bench:
    """A driver on a fake runner and a virtual clock, and what its observer heard."""

    def __init__(self, seats=2, **options):
        self.runner, self.clock, self.records, self.heard = FakeRunner(seats), VirtualClock(), [], []
        observer = Callbacks(on_end=self.heard.append, on_step=self.records.append)
        self.driver = ToolDriver(self.runner, clock=self.clock, observer=observer, patience=0, **options)

    def ask(self, *names, e2el=None, **fields):
        slo = None if e2el is None else {"e2el_ms": e2el * 1000}
        for name in names:
            self.driver.submit(Ask(name, self.clock(), name, slo, **fields))

    def ended(self):
        return {request.request_id: str(request.outcome) for request in self.driver.take_ended()}


def test_it_is_a_driver_that_has_results():
    driver: Driver = Bench().driver
    assert isinstance(driver, HasResults)


def test_programs_get_the_seats_there_are_and_the_next_one_a_seat_that_is_left():
    bench = Bench(seats=2)
    bench.ask("a", "b", "c")
    assert bench.driver.step() is None
    assert bench.runner.codes == ["a", "b"]
    bench.clock.now += 1.0
    bench.runner.given[1].becomes()
    record = bench.driver.step()
    assert bench.runner.codes == ["a", "b", "c"]
    assert (record.kind, record.request_ids, record.seconds, record.num_waiting) == ("execute", ("b",), 1.0, 1)
    assert bench.ended() == {"b": "met"}
    assert bench.driver.num_unfinished == 2


def test_fewer_seats_than_the_sandbox_has():
    bench = Bench(seats=3)
    driver = ToolDriver(bench.runner, seats=1, clock=bench.clock, patience=0)
    for name in "abc":
        driver.submit(Ask(name, 0.0, name))
    driver.step()
    assert bench.runner.codes == ["a"]
    with pytest.raises(ValueError, match="seats is 4, expected 1 to 3, the sandbox's"):
        ToolDriver(bench.runner, seats=4)


def test_every_program_has_one_record_of_its_own():
    bench = Bench(seats=4)
    bench.ask(*"abcd")
    bench.driver.step()
    bench.clock.now += 2.0
    for future in bench.runner.given:
        future.becomes()
    while bench.driver.num_unfinished:
        assert bench.driver.step() is not None
    assert bench.driver.step() is None
    assert sorted(record.request_ids for record in bench.records) == [("a",), ("b",), ("c",), ("d",)]
    assert [record.extra["num_running"] for record in bench.records] == [1, 2, 3, 4]
    assert {record.kind for record in bench.records} == {"execute"}


def test_the_earliest_deadline_is_served_first():
    bench = Bench(seats=1)
    bench.ask("late", e2el=30)
    bench.ask("early", e2el=10)
    bench.ask("never")
    for _ in range(3):
        bench.driver.step()
        bench.runner.given[-1].becomes()
        bench.driver.step()
    assert bench.runner.codes == ["early", "late", "never"]


def test_a_program_that_waits_in_vain_is_rejected_and_never_runs():
    bench = Bench(seats=1, table=TABLE)
    bench.ask("first", "second", "third", e2el=2.1)
    bench.driver.step()
    assert bench.runner.codes == ["first"]
    assert bench.ended() == {"third": "rejected"}  # 1 s each, one after the other: the third would take until 3
    assert bench.driver.take_result("third") is None
    bench.clock.now += 1.2  # the first takes longer than the table said
    bench.driver.step()
    assert bench.ended() == {"second": "rejected"}
    bench.runner.given[0].becomes()
    record = bench.driver.step()
    assert sorted(record.rejected) == ["second", "third"]
    assert bench.ended() == {"first": "met"}
    assert [request.reason for request in bench.heard] == ["deadline cannot hold", "deadline cannot hold", None]


def test_one_that_chose_to_be_demoted_waits_on_behind_all_others():
    bench = Bench(seats=1, table=TABLE)
    bench.ask("running")
    bench.driver.step()
    bench.ask("demoted", e2el=1.5, on_miss="demote")
    bench.driver.step()
    bench.ask("other")
    bench.runner.given[0].becomes()
    bench.driver.step()
    assert bench.runner.codes == ["running", "other"]
    bench.clock.now += 5.0
    bench.runner.given[1].becomes()
    bench.driver.step()
    bench.runner.given[2].becomes()
    bench.driver.step()
    assert bench.ended() == {"running": "met", "other": "met", "demoted": "late"}


def test_one_that_runs_past_its_deadline_is_late_not_ended():
    bench = Bench()
    bench.ask("slow", e2el=1.0)
    bench.driver.step()
    bench.clock.now += 3.0
    bench.driver.step()
    assert not bench.runner.given[0].is_cancelled
    bench.runner.given[0].becomes()
    bench.driver.step()
    assert bench.ended() == {"slow": "late"}


def test_a_program_that_fails_has_been_served():
    bench = Bench()
    bench.ask("broken", e2el=10)
    bench.driver.step()
    bench.runner.given[0].becomes("failed", (), stderr="x" * 5000 + "NameError")
    record = bench.driver.step()
    assert bench.ended() == {"broken": "met"}
    result = bench.driver.take_result("broken")
    assert (result.label, result.branch, result.picture) == ("error", "failed", None)
    assert result.stderr.endswith("NameError")
    assert len(result.stderr) == 2000
    assert (record.extra["label"], record.extra["program_origin"]) == ("error", "model")


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("ok", "ok"),
        ("failed", "error"),
        ("killed", "error"),
        ("timed_out", "timeout"),
        ("out_of_cpu", "timeout"),
        ("out_of_memory", "memory"),
        ("too_much_output", "output"),
        ("too_many_files", "files"),
        ("too_much_disk", "files"),
    ],
)
def test_each_end_has_its_label(reason, label):
    bench = Bench()
    bench.ask("a")
    bench.driver.step()
    bench.runner.given[0].becomes(reason)
    bench.driver.step()
    bench.driver.take_ended()
    result = bench.driver.take_result("a")
    assert result.label == label
    assert label in LABELS
    assert result.branch == ("ok" if label == "ok" else "failed")


def test_a_program_that_ends_well_without_a_picture_is_told_apart():
    bench = Bench()
    bench.ask("a")
    bench.driver.step()
    bench.runner.given[0].becomes("ok", ())
    bench.driver.step()
    bench.driver.take_ended()
    assert (bench.driver.take_result("a").label, bench.driver.take_result("a").branch) == ("no_picture", "failed")


def test_results_are_there_until_the_next_ends_are_taken():
    bench = Bench()
    bench.ask("a")
    bench.driver.step()
    bench.runner.given[0].becomes()
    bench.driver.step()
    with pytest.raises(KeyError):
        bench.driver.take_result("a")
    bench.driver.take_ended()
    assert bench.driver.take_result("a").picture == b"png"
    bench.driver.take_ended()
    with pytest.raises(KeyError):
        bench.driver.take_result("a")


def test_withdrawing_one_that_waits_and_one_that_runs():
    bench = Bench(seats=1)
    bench.ask("runs", "waits", "next")
    bench.driver.step()
    bench.driver.abort("waits")
    bench.driver.abort("runs", "nobody wants it")
    bench.driver.abort("unknown")
    assert bench.ended() == {"waits": "aborted", "runs": "aborted"}
    assert [request.reason for request in bench.heard] == ["aborted", "nobody wants it"]
    assert bench.runner.given[0].is_cancelled
    bench.driver.step()
    assert bench.runner.codes == ["runs"]  # the seat is not free before its program has ended
    bench.runner.given[0].becomes("cancelled", ())
    assert bench.driver.step().extra["label"] == "cancelled"
    assert bench.runner.codes == ["runs", "next"]
    assert bench.ended() == {}


def test_closing_withdraws_all_and_closes_the_sandbox():
    bench = Bench(seats=1)
    bench.ask("a", "b")
    bench.driver.step()
    bench.driver.close()
    assert bench.ended() == {"a": "aborted", "b": "aborted"}
    assert bench.runner.is_closed
    assert bench.driver.num_unfinished == 0
    with pytest.raises(RuntimeError, match="closed"):
        bench.ask("c")
    bench.driver.close()


def test_a_sandbox_that_breaks_breaks_the_driver_and_loses_no_request():
    bench = Bench(seats=1)
    bench.ask("a", "b")
    bench.driver.step()
    bench.runner.given[0].set_exception(SandboxRefused("the keeper of the sandbox has ended"))
    for _ in range(2):
        with pytest.raises(SandboxRefused, match="the keeper of the sandbox has ended"):
            bench.driver.step()
    bench.driver.close()
    assert bench.ended() == {"a": "aborted", "b": "aborted"}


def test_bad_input_is_one_line_and_harms_nobody():
    bench = Bench()
    bench.ask("good")
    for payload, message in [
        (7, "request 'bad': its payload must be a ToolCall or a program's text, got 7"),
        (ToolCall("x", wall=-1.0), "request 'bad': wall is -1.0 seconds, expected more than 0"),
        (ToolCall("x", {"../up": b""}), "request 'bad': file name '../up', expected a relative path"),
        (ToolCall("x", {"data": bytes(17 * MIB)}), "request 'bad': file 'data' is larger than 16777216 bytes"),
        ("x" * (17 * MIB), "request 'bad': its program is larger than 16777216 bytes"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            bench.driver.submit(Ask("bad", 0.0, payload))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="request id 'good' is in use"):
        bench.ask("good")
    with pytest.raises(ValueError, match="SLO keys must be among"):
        bench.driver.submit(Ask("bad", 0.0, "x", {"soon": 1}))
    assert bench.driver.num_unfinished == 1
    wrong = LatencyTable("m", "d", {"execute": ContextLatency((1.0, 0.0))})
    with pytest.raises(ValueError, match="module 'execute' is a ContextLatency, expected seconds by batch size"):
        ToolDriver(bench.runner, table=wrong)


def test_slos_may_be_scales_on_the_table():
    bench = Bench(table=TABLE, slo={"slo_scale": 3.0})
    bench.ask("a")
    bench.driver.step()
    bench.clock.now += 2.9
    bench.runner.given[0].becomes()
    bench.driver.step()
    (request,) = bench.driver.take_ended()
    assert request.deadlines.at(1) == 3.0
    assert RequestRecord.of(request).outcome == "met"


def test_an_idle_driver_waits_for_requests_and_a_busy_one_says_when_to_come_back():
    bench = Bench()
    assert bench.driver.step() is None
    assert bench.driver.wake is None
    bench.ask("a")
    bench.driver.step()
    assert bench.driver.wake > bench.clock()
    bench.runner.given[0].becomes()
    bench.driver.step()
    assert bench.driver.wake is None


def test_a_step_waits_for_an_end_and_is_woken_by_it():
    runner = FakeRunner()
    driver = ToolDriver(runner, patience=1000.0)
    driver.submit(Ask("a", 0.0, "a"))
    threading.Timer(0.05, lambda: runner.given[0].becomes()).start()
    assert driver.step().request_ids == ("a",)


# --- the pure part -------------------------------------------------------------------------------------------------


def waiting(name, due, *, is_demoted=False):
    request = Request(name, 0.0, Deadlines(last=due), (Stage("execute"),))
    request.demoted = is_demoted
    return request


def names(requests):
    return [request.request_id for request in requests]


def test_forecasts_follow_the_seats():
    asked = [waiting("a", 10), waiting("b", 4), waiting("c", 5), waiting("d", 3.9)]
    start, hopeless = choose(0.0, asked, [3.0], 2, 2.0)
    # One seat is free now, the other at 3: d runs until 2, b until 4, c until 5, a until 6.
    assert (names(start), names(hopeless)) == (["d"], [])
    start, hopeless = choose(0.0, asked, [3.0], 2, 2.1)
    assert (names(start), names(hopeless)) == (["d"], ["b"])


def test_an_overdue_program_may_end_at_any_time_but_holds_its_seat():
    start, hopeless = choose(10.0, [waiting("a", 12)], [3.0], 1, 1.0)
    assert (names(start), names(hopeless)) == ([], [])


def test_demoted_programs_take_what_is_left():
    asked = [waiting("old", 1, is_demoted=True), waiting("new", 50)]
    assert names(choose(10.0, asked, [], 1, 1.0)[0]) == ["new"]
    assert names(choose(10.0, asked, [], 2, 1.0)[0]) == ["new", "old"]


def test_what_programs_took_outweighs_the_table_once_there_are_enough():
    seconds = RunSeconds(BatchLatency((1, 2), (1.0, 1.5)))
    assert (seconds.expect(1), seconds.expect(2)) == (1.0, 1.5)
    for _ in range(ENOUGH):
        seconds.add(4.0)
    assert seconds.expect(2) == 4.0
    assert RunSeconds().expect(1) == 0.0


# --- on the real sandbox -------------------------------------------------------------------------------------------


def drain(driver):
    """Step until nothing is left; `{id: (request, result)}`, and the records."""
    found, records = {}, []
    while driver.num_unfinished:
        record = driver.step()
        records += [record] if record else []
        found |= {
            request.request_id: (request, driver.take_result(request.request_id)) for request in driver.take_ended()
        }
    return found, records


def test_real_programs_come_back_with_labels_and_pictures(rung):
    sandbox = make_sandbox(rung, seats=2)
    driver = ToolDriver(sandbox)
    asked = {
        "draws": ToolCall(DRAW),
        "fails": ToolCall("print('so far'); import math; math.nothing", origin="library"),
        "hangs": ToolCall("while True: pass", wall=0.5),
        "floods": ToolCall("while True: print('x' * 1000)"),
        "draws nothing": ToolCall("print(open('data.txt').read())", {"data.txt": b"given"}),
        "is gone": ToolCall("while True: pass"),
    }
    for name, call in asked.items():
        driver.submit(Ask(name, driver.clock(), call))
    driver.submit(Ask("too late", driver.clock() - 5, "pass", {"e2el_ms": 1000}))
    driver.abort("is gone")
    found, records = drain(driver)
    labels = {name: result.label for name, (_, result) in found.items() if result is not None}
    assert labels == {
        "draws": "ok", "fails": "error", "hangs": "timeout", "floods": "output", "draws nothing": "no_picture",
    }  # fmt: skip
    assert found["draws"][1].picture.startswith(b"\x89PNG")
    assert "AttributeError" in found["fails"][1].stderr
    assert found["fails"][1].stdout == "so far\n"
    assert found["draws nothing"][1].stdout == "given\n"
    assert found["too late"][0].outcome is Outcome.REJECTED
    assert len(records) == 5
    assert {record.extra["rung"] for record in records} == {rung}
    driver.close()
    assert is_gone(sandbox.keeper_pid)


def test_one_withdrawn_while_it_runs_is_ended(rung):
    driver = ToolDriver(make_sandbox(rung))
    driver.submit(Ask("endless", driver.clock(), "while True: pass"))
    driver.submit(Ask("next", driver.clock(), "print('mine')"))
    driver.step()
    driver.abort("endless")
    found, _ = drain(driver)
    assert {name: str(request.outcome) for name, (request, _) in found.items()} == {"endless": "aborted", "next": "met"}
    driver.close()
