#!/usr/bin/env bash
# Serve image requests on the diffusion engine with the neustream policy, and print their goodput. --help lists the flags.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" -m exp.diffusion --policy neustream "$@"
