"""Workflows for real: what their nodes do, tools, the sandbox that tools run in."""
