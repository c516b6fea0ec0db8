"""The upper bound on what any schedule could reach; docs/bound.md has the argument."""

from neusim.bound.program import request_bound

__all__ = ["request_bound"]
