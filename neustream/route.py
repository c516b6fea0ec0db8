"""Routes: which modules a request visits, how often, and what those modules are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PREFILL = "prefill"
"""The module of a language model that processes a prompt and delivers its first token."""
DECODE = "decode"
"""The module of a language model that delivers one further token per visit."""
LOOP_MODULE = "denoise"
"""The module of an image pipeline that a request visits once per denoising step."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One module on a request's way, visited `visits` times in a row (denoising steps, decode steps).

    Raises ValueError for a negative number of visits.
    """

    module: str
    visits: int = 1
    emits: bool = False
    """Whether every visit delivers one output unit (a token). Otherwise only the end of the route does."""

    def __post_init__(self) -> None:
        if self.visits < 0:
            raise ValueError(f"stage {self.module!r}: visits must be at least 0, got {self.visits}")


Route = tuple[Stage, ...]


def llm_route(max_tokens: int) -> Route:
    """A prompt's way: one prefill, which delivers the first token, and a decode step for each further one.

    The number of decode steps is a maximum: a text may end earlier. Raises ValueError for `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    return Stage(PREFILL, 1, emits=True), Stage(DECODE, max_tokens - 1, emits=True)


def pipeline_route(modules: Iterable[str], steps: int) -> Route:
    """An image's way through a pipeline: each module once, in order, and `denoise` once per denoising step.

    Raises ValueError for `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return tuple(Stage(module, steps if module == LOOP_MODULE else 1) for module in modules)
