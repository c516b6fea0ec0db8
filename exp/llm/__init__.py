"""LLM experiments: OPT on the patched vLLM under SLOs, with a step policy or as stock vLLM."""
