"""Today's vLLM (0.30 to 0.33) under the core's step policies: a scheduler class, and a driver. docs/plugin.md says how.

It needs vLLM 0.3x, which lives in an environment of its own: `bash install.sh --engine v1` makes `.venv-v1`.
"""
