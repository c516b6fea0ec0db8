"""Latency tables (measured and estimated) and the simulator that replays workloads in virtual time."""
