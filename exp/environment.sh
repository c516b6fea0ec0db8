# Sourced by the scripts here, with their arguments: makes the environment that they need, and sets `python` to its
# Python. `--engine v1` needs today's vLLM.
engine=v0 previous=
for argument in "$@"; do
    case $previous$argument in --engine=* | --enginev[01]) engine=${argument#--engine=} ;; esac
    previous=
    [ "$argument" != --engine ] || previous=--engine
done
venv=$root/.venv
if [ "$engine" = v1 ]; then venv+=-v1; bash "$root/install.sh" --engine v1; else bash "$root/install.sh"; fi
python=$venv/bin/python
