"""What the paper measured: its devices and models, its arrival rates, its ranges of denoising steps.

Experiments, the simulator and the figures take their defaults from here and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

Rates = tuple[float, ...]


def _rates(first: float, last: float, step: float) -> Rates:
    return tuple(round(first + i * step, 4) for i in range(round((last - first) / step) + 1))


PAIRS = (
    ("rtx4090", "dit-s-2-256"),
    ("rtx4090", "dit-xl-2-256"),
    ("rtx4090", "palette-256"),
    ("rtx4090", "sd15-256"),
    ("rtx4090", "sd15-512"),
    ("h100", "sd15-512"),
    ("a6000", "opt-13b"),
    ("a6000", "opt-30b"),
    ("a6000", "opt-66b"),
)
"""Device and model of each of the paper's experiments."""

STEPS: Mapping[str, tuple[int, int]] = {"dit": (200, 250), "palette": (80, 100), "sd": (30, 51)}
"""Denoising steps by family of models: the lowest, and one past the highest."""

PAPER_RATES: Mapping[str, Rates] = {
    "dit-s-2-256": _rates(0.5, 4.0, 0.5),
    "dit-xl-2-256": _rates(0.2, 0.9, 0.1),
    "palette-256": _rates(0.3, 1.0, 0.1),
    "sd15-256": _rates(0.75, 2.5, 0.25),
    "sd15-512": _rates(0.2, 0.55, 0.05),
}
"""The sweeps of the image models, in requests per second, made for an RTX 4090."""
SD_512_H100 = _rates(0.5, 1.2, 0.1)
"""The sweep of `sd15-512` on an H100."""

USUAL_RATES: Mapping[str, float] = {
    "dit-s-2-256": 2.0,
    "dit-xl-2-256": 0.4,
    "palette-256": 0.4,
    "sd15-256": 1.25,
    "sd15-512": 0.3,
}
"""The rate of each image model where something else is swept, made for an RTX 4090."""
USUAL_SD_512_H100 = 0.8
"""The same of `sd15-512` on an H100."""

HOPPER = ("h100", "h200", "gh200")
"""Beginnings of the names of devices that get the sweep of the H100: they differ in memory, not in arithmetic."""


def paper_rates(device: str, model: str) -> Rates | None:
    """The rates at which `model` is swept on `device`, in requests per second; None where the paper has none."""
    if model == "sd15-512" and device.startswith(HOPPER):
        return SD_512_H100
    return PAPER_RATES.get(model)


def usual_rate(device: str, model: str) -> float | None:
    """The rate of `model` on `device` where something else is swept; None where the paper has none."""
    if model == "sd15-512" and device.startswith(HOPPER):
        return USUAL_SD_512_H100
    return USUAL_RATES.get(model)


def paper_steps(model: str) -> tuple[int, int] | None:
    """The range of denoising steps, by the family that a model's name begins with; None where none is known."""
    return next((steps for family, steps in STEPS.items() if model.startswith(family)), None)
