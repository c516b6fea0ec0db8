#!/usr/bin/env bash
# Draw goodput against rate, spread and SLO, and batch sizes over time, simulated or of real runs. --help lists the flags.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" -m exp.figures "$@"
