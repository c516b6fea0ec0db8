"""Records: what is written is on disk soon, and what is read back is what was meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WRITER = """
import sys, time
from pathlib import Path
from neustream.records import JsonLines

lines = JsonLines(Path(sys.argv[1]))
for i in range(500):
    lines.write({"line": i})
print("written", flush=True)
time.sleep(60)
"""


def test_lines_are_on_disk_a_second_after_they_were_written_whatever_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == list(range(500))
