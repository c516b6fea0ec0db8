#!/usr/bin/env bash
# Serve image requests on the diffusion engine with the neustream policy, and print their goodput. --help lists the flags.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash install.sh
exec .venv/bin/python -m exp.diffusion --policy neustream "$@"
