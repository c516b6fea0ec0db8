"""Latency tables computed from a device's published rates; docs/estimates.md has the method."""
