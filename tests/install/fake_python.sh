#!/bin/sh
# A stand-in for python3.11 and for the python of the virtual environment: install.sh runs all its stages with it in
# a moment and without a network. It appends what it was asked to $CALLS, and makes the files that are expected of it.
# $FAIL and $HANG: patterns of calls that fail (with $FAIL_CODE, saying $FAIL_WORDS), or that never end.
case "$*" in
    "-c import sys;"*) echo "${FAKE_VERSION:-3.11}"; exit ;;
    "-c import sysconfig;"*) mkdir -p "${0%/bin/python}/lib"; echo "${0%/bin/python}/lib"; exit ;;
    "-c import venv"* | "-c import os, sysconfig"*) exit "${LACKS_VENV:-0}" ;;
    -\ *) call="unpack $2" ;;
    *"-m pip"*) call="pip ${*#*--no-input }" ;;
    *) call=$* ;;
esac
case "$call" in
    *"pip wheel "*) call="pip wheel" ;;
    *"pip install --no-deps --require-hashes -r "*) cp "${call##* }" "$CALLS.pins"; call="pip install pins" ;;
    *"pip install --no-deps --no-build-isolation -e "*) call="pip install project" ;;
    *"pip uninstall "*) call="pip uninstall $(cat "${call##* }")" ;;
    *"/vllm-"*.whl) call="pip install vllm wheel" ;;
esac
echo "$call" >>"$CALLS"
case "$call" in ${HANG:-none}) touch "$TMPDIR/half-a-download" && exec sleep 20 ;; esac
case "$call" in ${FAIL:-none}) echo "${FAIL_WORDS:-no luck with: $call}" >&2; exit "${FAIL_CODE:-1}" ;; esac
case "$call" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "unpack "*) mkdir -p "$4/vllm" ;;
    "pip wheel")
        while [ "$1" != --wheel-dir ]; do shift; done
        mkdir -p "$2" && touch "$2/vllm-0.5.4+cpu-cp311-cp311-linux_x86_64.whl" ;;
esac
