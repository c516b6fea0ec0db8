"""The short experiment with an image pipeline that `neustream validate` compares its simulation with."""

from __future__ import annotations

from neusim.validating.experiments import ShortExperiment

SHORT = ShortExperiment(
    program="exp.diffusion",
    model="dit-nano",
    policies=("clockwork", "neustream", "slack"),
    serves="loop",
    size=("--requests", "200", "--load", "0.5,1.5"),
)
