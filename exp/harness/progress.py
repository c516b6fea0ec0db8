"""What is to be seen while a run is under way: a bar on a terminal, a line per setting elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from exp.harness.settings import Setting
from neustream.records import StepRecord
from neustream.request import Outcome, Request


class Progress:
    """Counts the ended requests of one setting. An observer, and a context manager."""

    def __init__(self, setting: Setting, num_settings: int, num_requests: int) -> None:
        self.title = f"[{setting.index + 1}/{num_settings}] {setting}"
        self.num_requests = num_requests
        self.counts = dict.fromkeys(Outcome, 0)
        self._bar: Any = None
        self._started = time.monotonic()

    def on_step(self, record: StepRecord) -> None:
        """Steps are not shown."""

    def on_end(self, request: Request) -> None:
        """One more request has ended."""
        if request.outcome is not None:
            self.counts[request.outcome] += 1
        if self._bar is not None:
            self._bar.set_postfix_str(self._counts_text(), refresh=False)
            self._bar.update()

    def _counts_text(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.num_requests, desc=self.title, unit="req", dynamic_ncols=True)
        else:
            print(f"{self.title}: {self.num_requests} requests …", file=sys.stderr, flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            seconds = time.monotonic() - self._started
            print(f"{self.title}: {self._counts_text()} in {seconds:.1f} s", file=sys.stderr, flush=True)
