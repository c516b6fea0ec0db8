"""Policies compared on real traffic: one cell of the comparison, and grids of them.

A cell is a window of a trace, an SLO kind and a load, on one device. docs/traffic.md has the settings.
"""

from neusim.evaluating.cell import Cell, capacity, run_cell
from neusim.evaluating.policies import PolicySpec, parse_policy
from neusim.evaluating.slos import SLO_KINDS, slo_classes
from neusim.evaluating.traffic import Traffic, load_traffic

__all__ = [
    "SLO_KINDS",
    "Cell",
    "PolicySpec",
    "Traffic",
    "capacity",
    "load_traffic",
    "parse_policy",
    "run_cell",
    "slo_classes",
]
