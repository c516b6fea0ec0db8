#!/usr/bin/env bash
# The same workload as neurun.sh on the same engine with the policy off: stock vLLM. --help lists the flags.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/exp/environment.sh" "$@"
exec "$python" -m exp.llm --policy vllm "$@"
