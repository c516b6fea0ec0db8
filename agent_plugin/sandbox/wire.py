"""Messages between a sandbox and its keeper: a header of JSON, then blobs; no pickle, every size known beforehand."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

HEAD = struct.Struct("=II")
MAX_HEADER = 16 << 20
MAX_BLOBS = 1 << 30


class WireError(ValueError):
    """A message that neither side would send."""


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """One message."""
    text = json.dumps(header | {"sizes": [len(blob) for blob in blobs]}).encode()
    size = sum(len(blob) for blob in blobs)
    if len(text) > MAX_HEADER or size > MAX_BLOBS:
        raise WireError(f"a message of {len(text)} + {size} bytes, at most {MAX_HEADER} + {MAX_BLOBS} can be sent")
    return b"".join((HEAD.pack(len(text), size), text, *blobs))


class Unpacker:
    """Takes bytes as they come, gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
        """`(header, blobs)` of each message that is complete now. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= HEAD.size:
            length, size = HEAD.unpack_from(self._buffer)
            if length > MAX_HEADER or size > MAX_BLOBS:
                raise WireError(f"a message of {length} + {size} bytes")
            if len(self._buffer) < HEAD.size + length + size:
                return
            header = json.loads(bytes(self._buffer[HEAD.size : HEAD.size + length]))
            at = HEAD.size + length
            blobs = []
            for blob in header["sizes"]:
                blobs.append(bytes(self._buffer[at : at + blob]))
                at += blob
            del self._buffer[: HEAD.size + length + size]
            yield header, blobs
