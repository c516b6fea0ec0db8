"""The short experiment with a language model that `neustream validate` compares its simulation with."""

from __future__ import annotations

from neusim.validating.experiments import ShortExperiment

SHORT = ShortExperiment(
    program="exp.llm",
    model="opt-125m",
    policies=("fcfs", "neustream", "slack"),
    serves="llm",
    size=("--requests", "80", "--max-tokens", "64"),
)
