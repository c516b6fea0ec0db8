#!/usr/bin/env bash
# The same workload as neurun.sh on the same engine with the policy off: stock vLLM. --help lists the flags.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" -m exp.llm --policy vllm "$@"
