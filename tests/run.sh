#!/usr/bin/env bash
# Everything that is tested: ruff (rules and format), mypy, pytest. All run even if one fails; the exit code is non-zero
# if any did. Arguments go to pytest: `bash tests/run.sh tests/neustream -k slack`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

bash install.sh || exit
python=.venv/bin/python

verdict() { [ "$1" -eq 0 ] && echo passed || echo FAILED; }

echo "=== ruff"
$python -m ruff check .
ruff=$?
$python -m ruff format --check . || ruff=1

echo "=== mypy"
$python -m mypy
mypy=$?

# Said before pytest runs, so that the last line is pytest's own summary.
echo "=== pytest (ruff $(verdict $ruff), mypy $(verdict $mypy))"
$python -m pytest "$@"
pytest=$?

exit $((ruff != 0 || mypy != 0 || pytest != 0))
