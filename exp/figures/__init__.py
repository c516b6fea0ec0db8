"""Figures of what each policy does: from simulated sweeps, or from the folders of real runs.

A `Study` (study.py) is what one model on one device gave, wherever it came from: simulated.py makes one from a
latency table, recorded.py from `runs/` folders, draw.py draws it.
"""
