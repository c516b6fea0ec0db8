"""Errors of Ray's, many lines long, as people are told of them."""

from __future__ import annotations


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text that says anything; empty where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
