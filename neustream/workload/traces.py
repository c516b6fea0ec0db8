"""Traces of real traffic: when requests came and how long their prompts and outputs were.

Three formats, told apart by their content:

- Azure's LLM inference traces: CSV with the columns `TIMESTAMP,ContextTokens,GeneratedTokens`.
- Mooncake's (FAST'25): a JSON object per line with `timestamp` (ms), `input_length`, `output_length`, and `hash_ids`
  where it says which prompts begin alike.
- ShareGPT: a JSON list of conversations. It has no times, and lengths are in words, so tokens are estimated.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
BLOCKS_KEY = "hash_ids"
PREFIX_TOKENS = 512
"""Tokens in a named block of Mooncake's traces; the last of a prompt may have fewer."""
MS_PER_S = 1000.0
TOKENS_PER_WORD = 4 / 3


class TracedRequest(NamedTuple):
    """One request of a trace."""

    offset: float | None
    """Seconds after the first request of the trace; None where the trace has no times."""
    prompt: int
    """Tokens of its prompt."""
    output: int
    """Tokens of its output."""
    blocks: tuple[int, ...] = ()
    """Names of its prompt's blocks of `PREFIX_TOKENS` tokens, front to back, where the trace says: prompts agree as far
    as these agree."""


def read_trace(path: Path) -> list[TracedRequest]:
    """The requests of a trace file, by rising offset. Requests without a prompt or an output are left out.

    Raises ValueError, one line that names the file (and the line), where it cannot be read, is of none of the formats,
    or holds no request.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"trace {path}: cannot be read ({reason})") from error
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start == "[":
        rows = _read_sharegpt(path, text)
    elif start == "{":
        rows = list(_read_mooncake(path, text))
    else:
        rows = list(_read_azure(path, text))
    kept = [row for row in rows if row.prompt > 0 and row.output > 0]
    if not kept:
        raise ValueError(f"trace {path}: holds no request with a prompt and an output")
    if kept[0].offset is None:
        return kept
    first = min(row.offset or 0.0 for row in kept)
    moved = [row._replace(offset=(row.offset or 0.0) - first) for row in kept]
    return sorted(moved, key=lambda row: row.offset or 0.0)


def window(trace: Sequence[TracedRequest], start: float, end: float) -> list[TracedRequest]:
    """The requests of `[start, end)` seconds of the trace, their offsets counted from `start`.

    Raises ValueError for a trace without times, and for a window with no request in it.
    """
    if not 0 <= start < end:
        raise ValueError(f"a trace's window must be a:b with 0 <= a < b, got {start:g}:{end:g}")
    found = [
        row._replace(offset=row.offset - start) for row in trace if row.offset is not None and start <= row.offset < end
    ]
    if not found:
        last = max((row.offset or 0.0 for row in trace), default=0.0)
        raise ValueError(f"the trace has no request between {start:g} s and {end:g} s; its last is at {last:.0f} s")
    return found


def scaled(trace: Sequence[TracedRequest], scale: float) -> list[TracedRequest]:
    """The same requests `scale` times as fast. Raises ValueError unless `scale` is above 0."""
    if not scale > 0:
        raise ValueError(f"a trace's scale must be above 0, got {scale:g}")
    return [row if row.offset is None else row._replace(offset=row.offset / scale) for row in trace]


def mean_rate(trace: Sequence[TracedRequest]) -> float:
    """Requests per second between the first and the last request; 0 for a trace without times, or of one request."""
    if len(trace) < 2 or trace[0].offset is None or trace[-1].offset is None:
        return 0.0
    gaps = [(b.offset or 0.0) - (a.offset or 0.0) for a, b in pairwise(trace)]
    seconds = sum(gaps)
    return len(gaps) / seconds if seconds > 0 else 0.0


def sharegpt_turns(path: Path, data: Any) -> list[tuple[str, str]]:
    """First question and first answer of each conversation of a ShareGPT file's JSON. Raises ValueError, one line."""
    try:
        talks = [entry["conversations"] for entry in data if entry["conversations"]]
        return [
            (str(talk[0]["value"]), str(talk[1]["value"]))
            for talk in talks
            if talk[0]["from"] in ("human", "user") and len(talk) > 1
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f'dataset {path}: expected a list of {{"conversations": [{{"from": …, "value": …}}, …]}} ({error!r})'
        ) from error


def _read_sharegpt(path: Path, text: str) -> list[TracedRequest]:
    def tokens(words: str) -> int:
        return round(len(words.split()) * TOKENS_PER_WORD)

    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"trace {path}: is not JSON ({error})") from error
    return [TracedRequest(None, tokens(question), tokens(answer)) for question, answer in sharegpt_turns(path, data)]


def _read_mooncake(path: Path, text: str) -> Iterator[TracedRequest]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            stamp, prompt, output = (row[key] for key in MOONCAKE_KEYS)
            blocks = tuple(int(name) for name in row.get(BLOCKS_KEY, ()))
            yield TracedRequest(float(stamp) / MS_PER_S, int(prompt), int(output), blocks)
        except (ValueError, KeyError, TypeError) as error:
            keys = ", ".join(MOONCAKE_KEYS)
            raise ValueError(f"trace {path}:{number}: expected an object with {keys} ({error!r})") from error


def _read_azure(path: Path, text: str) -> Iterator[TracedRequest]:
    rows = csv.reader(text.lstrip("\ufeff").splitlines())
    header = next(rows, [])
    if header != AZURE_COLUMNS:
        known = f"a CSV with {','.join(AZURE_COLUMNS)}, JSON lines with {', '.join(MOONCAKE_KEYS)}, or a ShareGPT list"
        raise ValueError(f"trace {path}: is none of the formats that are known: {known}")
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        try:
            stamp, prompt, output = row
            yield TracedRequest(_seconds(stamp), int(prompt), int(output))
        except ValueError as error:
            raise ValueError(f"trace {path}:{number}: expected a time and two numbers of tokens ({error})") from error


def _seconds(stamp: str) -> float:
    """Seconds of a time such as `2023-11-16 18:17:03.9799600`, whose seven digits Python does not read."""
    whole, _, fraction = stamp.partition(".")
    moment = datetime.fromisoformat(whole)
    return (moment - datetime(1970, 1, 1)).total_seconds() + (float(f"0.{fraction}") if fraction else 0.0)
