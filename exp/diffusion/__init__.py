"""Diffusion experiments: image pipelines served step by step, under SLOs; `python -m exp.diffusion --help`."""
