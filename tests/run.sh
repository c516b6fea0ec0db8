#!/usr/bin/env bash
# Everything that is tested: ruff (rules and format), mypy, pytest. All run even if one fails; the exit code is non-zero
# if any did. Tests of the plug-in for today's vLLM run in an environment of their own, unless there are arguments, which
# go to pytest: `bash tests/run.sh tests/neustream -k slack`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

bash install.sh && bash install.sh --engine v1 || exit
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
pytest=0
if [ $# -eq 0 ]; then # what needs today's vLLM; the whole run ends with the summary of the other tests
    .venv-v1/bin/python -m pytest tests/vllm_plugin/engine || pytest=1
fi
$python -m pytest "$@" || pytest=1

exit $((ruff != 0 || mypy != 0 || pytest != 0))
