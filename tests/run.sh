#!/usr/bin/env bash
# Everything that is tested: ruff, mypy, pytest. Arguments go to pytest: `bash tests/run.sh tests/neustream -k slack`.
# All three run even if one fails; the exit code is non-zero if any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

bash install.sh || exit
python=.venv/bin/python

verdict() { [ "$1" -eq 0 ] && echo passed || echo FAILED; }

echo "=== ruff"
$python -m ruff check .
ruff=$?

echo "=== mypy"
$python -m mypy
mypy=$?

# Said before pytest runs, so that the last line is pytest's own summary.
echo "=== pytest (ruff $(verdict $ruff), mypy $(verdict $mypy))"
$python -m pytest "$@"
pytest=$?

exit $((ruff != 0 || mypy != 0 || pytest != 0))
