#!/usr/bin/env bash
# Serve a workload on patched vLLM with the neustream policy, and print its goodput. --help lists the flags.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/exp/environment.sh" "$@"
exec "$python" -m exp.llm --policy neustream "$@"
