"""chunked: Sarathi-Serve's stall-free batching. Every step decodes everybody and fills up with pieces of prompts."""

from __future__ import annotations

from neustream.plan import IDLE, Limits, Piece, StepPlan
from neustream.policies.base import USUAL, PolicyContext, at_least, seats_taken
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

BUDGET = 512
"""Units of work (tokens) in a step, decodes included: vLLM's default for chunked prefill."""


class Chunked:
    """Decodes are never paused for a prefill; a prompt is spread over as many steps as its pieces need.

    As in Sarathi-Serve (OSDI'24): first all running requests, one unit each, then prompts that are partly
    done, then new ones, first come first served, until the step's token budget is spent. SLOs are ignored
    and nobody is rejected.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, budget: int = BUDGET) -> None:
        self.budget = at_least("budget", budget, 1)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        running = tuple(streams[DECODE])
        decodes = seats_taken(running)
        pieces = self._pieces(streams, limits, min(self.budget, limits.max_work) - decodes, decodes)
        if running:
            return StepPlan(DECODE, running, pieces=pieces)
        return StepPlan(PREFILL, pieces=pieces) if pieces else IDLE

    def _pieces(self, streams: Streams, limits: Limits, work: int, decodes: int) -> tuple[Piece, ...]:
        """Pieces of prompts for at most `work` tokens; a prompt's seat and memory are taken with its first piece."""
        pieces: list[Piece] = []
        waiting = streams[PREFILL]
        seats = limits.max_resident - decodes - seats_taken(r for r in waiting if r.is_resident)
        growth = sum([1 for request in streams[DECODE] if (request.context - 1) % limits.block_size == 0])
        blocks = limits.free_blocks - limits.spare_blocks - growth
        for is_begun in (True, False):
            for request in waiting:
                if work <= 0:
                    return tuple(pieces)
                if request.is_resident is not is_begun:
                    continue
                pending = request.pending
                if not is_begun:
                    seats -= request.width
                    blocks -= limits.blocks(pending)
                    if seats < 0 or blocks < 0:
                        return tuple(pieces)
                piece = min(pending, work)
                work -= piece
                pieces.append(Piece(request, piece))
        return tuple(pieces)
