#!/usr/bin/env bash
# The campaign on a machine with a GPU: latency tables, what steps cost outside the network, goodput of the policies.
# Needs a python3 of 3.11 or later with PyTorch, and no network. `bash bench/gpu.sh --help` lists the flags, docs/gpu.md
# says what comes out. PYTHON names another Python.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Whether this is a Python that can run the code, and with $2 also PyTorch.
serves() {
    [ -n "$1" ] && command -v "$1" >/dev/null && "$1" -c "
import sys, importlib.util as util
sys.exit(sys.version_info < (3, 11) or ('$2' != '' and util.find_spec('$2') is None))" 2>/dev/null
}

for module in torch ""; do
    for python in "${PYTHON:-}" python3 "$root/.venv/bin/python"; do
        if serves "$python" "$module"; then
            exec "$python" "$root/bench/gpu_campaign.py" "$@"
        fi
    done
done
echo "gpu.sh: no python3 of 3.11 or later; PYTHON=/path/to/python3 names one" >&2
exit 2
