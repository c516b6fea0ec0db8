"""Experiments: workloads served by the real engines, goodput in `runs/`. docs/experiments.md says how to run them."""
