"""The interpreter that runs one program: imports what plots need, walls itself in, waits, runs, ends.

Started by the keeper as `python -I -S -c "…; main()" SPEC`. It says `ready` on the control descriptor once everything
holds; a line on stdin starts the program, the end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from agent_plugin.sandbox.confine import Confinement, confine, set_cpu_limit

OUT_OF_MEMORY = 120
"""Exit status of a program that died of a MemoryError."""

MAX_FRAMES = 100
"""Frames of a traceback that are printed, the innermost ones: a recursion may leave millions."""


def warm_up() -> None:
    """Import matplotlib and draw once, so that the fonts and the canvas are there."""
    import io

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([0, 1])
    axes.set_title("warm")
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def run(path: str) -> int:
    """Run the program as `__main__`; its exit status."""
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__)
    sys.modules["__main__"] = main
    sys.argv = [path]
    try:
        with open(path, encoding="utf-8") as source:
            code = compile(source.read(), path, "exec")
        exec(code, main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace.tb_next if trace else None, limit=-MAX_FRAMES)
        return OUT_OF_MEMORY if isinstance(error, MemoryError) else 1
    return 0


def main() -> None:
    """Live once."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    os.closerange(3, spec["control"])  # whatever this process was started with; from here on it opens its own
    os.closerange(spec["control"] + 1, 1 << 16)
    sys.path = [spec["job"], *spec["paths"]]
    import site

    site.setquit()  # -S leaves exit() and quit() out
    if spec["preload"]:
        warm_up()
    os.chdir(spec["job"])
    told = Confinement(**spec["confinement"])
    confine(told)
    os.write(spec["control"], b"ready\n")
    if not sys.stdin.buffer.readline():
        os._exit(0)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.close(spec["control"])
    set_cpu_limit(told.limits["cpu"])
    for name in [name for name in sys.modules if name.split(".")[0] == "agent_plugin"]:
        del sys.modules[name]
    sys.exit(run(spec["program"]))
