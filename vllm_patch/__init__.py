"""Patches vLLM 0.5.4 (`python -m vllm_patch`) and adapts its scheduler to the core's step policies.

The patch tool needs the standard library alone; `adapter` and `factory` need vLLM and are imported by it.
"""
