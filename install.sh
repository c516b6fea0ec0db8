#!/usr/bin/env bash
# Builds the virtual environment that everything here runs in. `bash install.sh --help` says how to use it.
#
# How it stays safe to interrupt: every stage writes a stamp in $VENV/.neustream only once it is complete, and what
# takes long is made under a temporary name and moved into place at the end. A run looks at the stamps and does
# what is missing; when nothing is, it ends in a fraction of a second.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=$ROOT/.cache
LOG=$CACHE/install.log
VLLM=0.5.4
WORK="" # a folder for what is not finished yet, once the lock is ours
SCRATCH="" # one for temporary files, where the user wants them: pip leaves its downloads there when it is ended
exec 4>&2 # what the user must see; inside a stage, 2 goes to the log

usage() {
    cat <<EOF
Usage: bash install.sh [--engine v0 | v1] [--cpu | --cuda] [--venv DIR] [--help]

Builds a virtual environment with vLLM $VLLM, patched, and everything else NeuStream needs; with --engine v1, one with
today's vLLM and what its plug-in needs. Run it again at any time: it does only what is missing.

  --engine v0 vLLM $VLLM, patched (the default)
  --engine v1 today's vLLM, as it comes, for vllm_plugin/

  --cpu       vLLM for the CPU (x86_64 with AVX2 or AVX-512); v0 is compiled, with g++ and the libnuma headers
  --cuda      the CUDA wheels
  --venv DIR  where to build it; default: $ROOT/.venv, of v1 $ROOT/.venv-v1
  --help      print this

Default target: what DIR was built for, else cuda if an NVIDIA GPU is visible, else cpu.
Packages come from pip's configured sources. The CPU target needs the CPU build of PyTorch: if none of those sources has
it, name an index or a folder that does, in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS. Every other package is checked against
the hashes in constraints/, wherever it comes from. Run by root on Debian or Ubuntu, it installs the system packages that
are missing; other users are told their names. bubblewrap is optional.
Wheels built here are kept in .cache/, and the full log is .cache/install.log.
EOF
}

say() { echo "install.sh: $*" >&4; }
refuse() { say "$*"; [ -z "$WORK" ] || touch "$WORK/refused"; exit 2; }

parse_arguments() {
    TARGET="" VENV="" ENGINE=v0
    while [ $# -gt 0 ]; do
        case $1 in
            --cpu | --cuda)
                [ -z "$TARGET" ] || [ "$TARGET" = "${1#--}" ] || refuse "--cpu and --cuda exclude each other"
                TARGET=${1#--} ;;
            --engine | --engine=*)
                if [ "$1" = --engine ]; then ENGINE=${2:-}; shift $(($# > 1)); else ENGINE=${1#--engine=}; fi
                case $ENGINE in v0 | v1) ;; *) refuse "--engine is v0 or v1, got '$ENGINE'" ;; esac ;;
            --venv) [ -n "${2:-}" ] || refuse "--venv needs a folder"
                VENV=$(realpath -m -- "$2"); shift ;;
            --venv=?*) VENV=$(realpath -m -- "${1#--venv=}") ;;
            --help | -h) usage; exit 0 ;;
            *) refuse "unknown argument '$1'; known are --engine E --cpu --cuda --venv DIR --help" ;;
        esac
        shift
    done
    if [ -z "$VENV" ]; then VENV=$ROOT/.venv; [ "$ENGINE" = v0 ] || VENV+=-$ENGINE; fi
    STATE=$VENV/.neustream
    if [ -z "$TARGET" ]; then
        if [ -f "$STATE/target" ]; then TARGET=$(<"$STATE/target")
        elif [[ $(nvidia-smi -L 2>/dev/null) == *"GPU 0:"* ]]; then TARGET=cuda
        else TARGET=cpu; fi
    fi
    PINS=$ROOT/constraints/$TARGET.txt
    [ "$ENGINE" = v0 ] || PINS=$ROOT/constraints/$ENGINE-$TARGET.txt
}

# --- What is there already ------------------------------------------------------------------------------------------

select_pins() { # $1: "only" or "but", $2: packages, as a|b. Their pins, with the hashes.
    awk -F== -v how="$1" -v names="^($2)\$" \
        '/^[^ ]/ { chosen = !/^#/ && ($1 ~ names) == (how == "only") } chosen' "$PINS"
}

pinned_version() { select_pins only "$1" | sed -n 's/^[^ ]*==\([^ ]*\).*/\1/p'; }

pinned_names() { sed -n 's/^\([^ #]*\)==.*/\1/p' "$1" | sort; }

# The wheel is compiled for this processor's instruction set, so that belongs to its name.
instruction_set() {
    { lscpu || cat /proc/cpuinfo || true; } 2>/dev/null |
        { grep -owE 'avx2|avx512f|avx512_bf16' || true; } | sort -u | paste -sd_
}

compute_keys() {
    local torch
    torch=$(pinned_version torch)
    PACKAGES_KEY=$(cat "$ROOT/requirements.txt" "$PINS" | sha256sum | cut -c1-16)
    PROJECT_KEY=$(sha256sum <"$ROOT/pyproject.toml" | cut -c1-16)-$ROOT
    VLLM_KEY=vllm-$VLLM-$TARGET-torch${torch%+cpu}-cp311
    [ "$TARGET" = cuda ] || VLLM_KEY+=-$(instruction_set)
    PATCHES_KEY=$VLLM_KEY-$(cat "$ROOT"/patches/series "$ROOT"/patches/*.patch | sha256sum | cut -c1-16)
}

has_stamp() { [ -f "$STATE/$1" ] && [ "$(<"$STATE/$1")" = "$2" ]; }

is_complete() {
    [ -x "$VENV/bin/python" ] && [ ! -e "$STATE/busy" ] && has_stamp target "$TARGET" && has_engine &&
        has_stamp packages "$PACKAGES_KEY" && has_stamp project "$PROJECT_KEY" || return 1
    [ "$ENGINE" = v1 ] ||
        { has_stamp vllm "$VLLM_KEY" && has_stamp patches "$PATCHES_KEY" &&
            (cd "$ROOT" && "$VENV/bin/python" -m vllm_patch verify >/dev/null 2>&1); } # somebody may have reverted them
}

has_engine() { [ "$(cat "$STATE/engine" 2>/dev/null || echo v0)" = "$ENGINE" ]; }

# --- Checks, before anything is downloaded or written ---------------------------------------------------------------

check_machine() {
    [ "$(uname -s)" = Linux ] || refuse "needs Linux, this is $(uname -s)"
    [ "$(uname -m)" = x86_64 ] || refuse "needs an x86_64 processor, this is $(uname -m)"
    [ "$TARGET" = cuda ] || [ -n "$(instruction_set)" ] || refuse "this processor has neither AVX2 nor AVX-512"
}

list_pythons() { # not the environment's own, which comes first in a shell that activated it: it may have to go
    local candidate
    { type -ap python3.11 python3 || true; } | while IFS= read -r candidate; do
        [ "$(dirname -- "$candidate")" -ef "$VENV/bin" ] || echo "$candidate"
    done
    [ ! -f "$VENV/pyvenv.cfg" ] || sed -n 's|^home *= *\(.*\)|\1/python3.11|p' "$VENV/pyvenv.cfg"
}

find_python() {
    local candidate version seen=""
    while IFS= read -r candidate; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [ "$version" = 3.11 ]; then PYTHON=$candidate; return; fi
        seen+=" $version ($candidate)"
    done < <(list_pythons)
    refuse "needs Python 3.11; found:${seen:- no Python at all}"
}

has_header() { # $1: header. Ask the compiler, which knows CPATH and the like; without one look where Debian puts it.
    if command -v g++ >/dev/null; then g++ -E -x c++ - >/dev/null 2>&1 <<<"#include <$1>"
    else [ -e "/usr/include/$1" ]; fi
}

find_missing_system_packages() {
    MISSING=()
    command -v git >/dev/null || MISSING+=(git)
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || MISSING+=(python3.11-venv)
    [ "$TARGET-$ENGINE" = cpu-v0 ] || return 0
    command -v g++ >/dev/null || MISSING+=(g++)
    has_header numa.h || MISSING+=(libnuma-dev)
    "$PYTHON" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null ||
        MISSING+=(python3.11-dev)
}

has_bubblewrap() { command -v bwrap >/dev/null; }

can_use_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

check_system_packages() {
    find_missing_system_packages
    [ ${#MISSING[@]} -eq 0 ] || can_use_apt ||
        refuse "missing on this system: ${MISSING[*]}; on Debian or Ubuntu: sudo apt-get install ${MISSING[*]}"
}

list_needs() { # what each folder must take, in MB, and the folder
    local downloads=800 installed=2400
    [ "$ENGINE" = v0 ] || { downloads=1000 installed=3800; }
    [ "$TARGET" = cpu ] || { downloads=4000 installed=8500; }
    if has_stamp packages "$PACKAGES_KEY"; then downloads=0 installed=100; fi
    echo "$installed $VENV"
    echo "400 $CACHE"
    echo "$downloads ${TMPDIR:-/tmp}"
    [ -n "${PIP_NO_CACHE_DIR:-}" ] || echo "$downloads ${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/pip}"
}

check_disk() { # folders on one disk share what is free there
    local mb wanted folder free_mb disk
    local -A need=() users=() free=()
    while read -r mb wanted; do
        folder=$wanted
        while [ ! -d "$folder" ]; do folder=$(dirname -- "$folder"); done
        [ -w "$folder" ] && [ "$mb" -gt 0 ] || continue
        read -r free_mb disk < <(df -Pm -- "$folder" | awk 'NR == 2 { print $4, $6 }')
        free[$disk]=$free_mb
        need[$disk]=$((${need[$disk]:-0} + mb))
        users[$disk]+=${users[$disk]:+, }$wanted
    done < <(list_needs)
    for disk in "${!need[@]}"; do
        [ "${free[$disk]}" -ge "${need[$disk]}" ] ||
            refuse "needs ${need[$disk]} MB free on $disk for ${users[$disk]}; only ${free[$disk]} MB are"
    done
}

check_folder() {
    [ ! -d "$STATE" ] || [ ! -f "$STATE/target" ] || has_engine ||
        refuse "$VENV holds the other engine: remove it, or name another folder with --venv"
    [ ! -e "$VENV" ] || [ -d "$STATE" ] || { [ -d "$VENV" ] && [ -z "$(ls -A "$VENV")" ]; } ||
        refuse "$VENV was not made by install.sh: remove it, or name another folder with --venv"
}

# --- Stages ---------------------------------------------------------------------------------------------------------

stage() { # $1: what it does, $2: how long that usually takes, then the function. Its output goes to the log.
    local title=$1 usual=$2 started=$SECONDS status=0
    shift 2
    say "$title (usually $usual) ..."
    echo "=== $title" >>"$LOG"
    set -m # in a process group of its own, so that a signal to this script alone can end all of it
    (set -e; "$@") </dev/null >>"$LOG" 2>&1 8>&- 9>&- &
    set +m
    wait $! || status=$?
    if [ -e "$WORK/refused" ]; then exit 2; fi # and it has said why
    if [ $status -eq 0 ]; then say "    done in $((SECONDS - started)) s"; return; fi
    tail -n 25 "$LOG" >&4
    say "failed: $title; above is the end of $LOG"
    exit 1
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

install_system_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${MISSING[@]}"
}

install_bubblewrap() { # never fails: without it programs run behind the sandbox's second wall
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q -o Acquire::http::Timeout=20 || true # an older list of packages may do
    apt-get install -y -q --no-install-recommends -o Acquire::http::Timeout=20 bubblewrap || true
}

offer_bubblewrap() {
    has_bubblewrap && return
    if can_use_apt; then stage "system package, optional: bubblewrap" "under a minute" install_bubblewrap; fi
    has_bubblewrap || say "without bubblewrap (Debian and Ubuntu: apt-get install bubblewrap) programs that models" \
        "write run behind Landlock alone; docs/sandbox.md"
}

make_venv() {
    # "busy" stays until all packages are in: pip can leave a broken package behind when it is interrupted.
    touch "$STATE/busy"
    local entry
    shopt -s dotglob nullglob
    for entry in "$VENV"/* "$STATE"/*; do
        case $entry in "$STATE" | "$STATE/busy" | "$STATE/lock") ;; *) rm -rf -- "$entry" ;; esac
    done
    echo "$TARGET" >"$STATE/target"
    echo "$ENGINE" >"$STATE/engine"
    "$PYTHON" -m venv "$VENV"
}

install_torch_for_cpu() {
    # Without a hash, alone of all: each of the sources that a user may name has a file of its own making. On x86_64 the
    # plain version is a CUDA build of several GB, useless to a vLLM that was compiled for the CPU.
    local version
    version=$(pinned_version torch)
    if pip install --no-deps "torch==$version"; then return; fi
    # If pip saw other versions, it is not the network that failed.
    ! tail -n 5 "$LOG" | grep 'from versions: [0-9]' || refuse "pip's sources have no CPU build of PyTorch" \
        "${version%+cpu}: name an index or folder that has it in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
    return 1
}

install_pins() { # $1: "only" or "but", $2: packages, as a|b
    select_pins "$1" "$2" >"$WORK/pins.txt"
    pip install --no-deps --require-hashes -r "$WORK/pins.txt"
}

install_packages() {
    touch "$STATE/busy"
    rm -f "$STATE/packages"
    if [ "$TARGET" = cpu ]; then
        install_torch_for_cpu
        install_pins but 'torch|vllm'
    elif [ "$ENGINE" = v0 ]; then
        install_pins but vllm
    else
        install_pins but ''
    fi
    if [ -f "$STATE/pins" ]; then # what an earlier list had and this one lacks
        comm -23 <(pinned_names "$STATE/pins") <(pinned_names "$PINS") >"$WORK/gone.txt"
        [ ! -s "$WORK/gone.txt" ] || pip uninstall -y -r "$WORK/gone.txt"
    fi
    cp "$PINS" "$STATE/pins"
    echo "$PACKAGES_KEY" >"$STATE/packages"
    rm "$STATE/busy"
}

install_project() { # importable from any folder and in processes that vLLM or Ray start; and the command `neustream`
    rm -f "$STATE/project" "$(site_packages)/neustream.pth" # the latter is how it used to be done
    pip install --no-deps --no-build-isolation -e "$ROOT"
    echo "$PROJECT_KEY" >"$STATE/project"
}

site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

unpack_vllm_source() { # pip cannot: it builds the metadata, and refuses its "+cpu" for not being in the file's name
    "$VENV/bin/python" - "vllm==$VLLM" "$(select_pins only vllm | sed -n 's/.*sha256://p')" "$WORK" <<'EOF'
import ast, os, subprocess, sys
from unearth import PackageFinder

requirement, sha256, folder = sys.argv[1:]
settings = {}  # pip's own, from its files and the environment; where both say something, the environment counts
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
for line in sorted(listing.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
    key, _, value = line.partition("=")
    settings[key.rpartition(".")[2]] = ast.literal_eval(value).split()
if "cert" in settings:
    os.environ.setdefault("SSL_CERT_FILE", settings["cert"][0])
finder = PackageFinder(  # without an index it takes the public one, as pip does
    index_urls=settings.get("index-url", []), trusted_hosts=settings.get("trusted-host", []), no_binary=["vllm"]
)
if settings.get("no-index", ["0"])[0].lower() in ("1", "true", "yes", "on"):
    finder.sources.clear()
for url in settings.get("extra-index-url", []):
    finder.add_index_url(url)
for url in settings.get("find-links", []):
    finder.add_find_links(url)
found = finder.find_best_match(requirement).best
if found is None:
    sys.exit(f"none of pip's sources has the source archive of {requirement}")
finder.download_and_unpack(found.link, folder + "/vllm", folder, hashes={"sha256": [sha256]})
EOF
}

build_vllm_wheel() {
    unpack_vllm_source
    # GIT_DIR: or setup.py records the commit of the repository around it, ours, as vLLM's.
    (cd "$WORK/vllm" && PATH=$VENV/bin:$PATH VLLM_TARGET_DEVICE=cpu MAX_JOBS=$(nproc) GIT_DIR=/nonexistent \
        CXX=${CXX:-g++} "$VENV/bin/python" -m pip wheel --no-build-isolation --no-deps --wheel-dir "$WORK/wheel" .)
    mkdir -p "$CACHE/wheels"
    rm -rf "${CACHE:?}/wheels/$VLLM_KEY"
    mv "$WORK/wheel" "$CACHE/wheels/$VLLM_KEY"
}

install_vllm() {
    rm -f "$STATE/vllm" "$STATE/patches"
    local packages
    packages=$(site_packages)
    rm -rf "${packages:?}"/vllm "$packages"/vllm-*.dist-info # pip trips over one that it was interrupted in
    if [ "$TARGET" = cuda ]; then install_pins only vllm
    else pip install --no-deps "$CACHE/wheels/$VLLM_KEY"/vllm-*.whl; fi
    echo "$VLLM_KEY" >"$STATE/vllm"
}

apply_patches() {
    cd "$ROOT"
    "$VENV/bin/python" -m vllm_patch apply 2>&4 || { touch "$WORK/refused"; exit 2; } # it says what is wrong
    echo "$PATCHES_KEY" >"$STATE/patches"
}

lock() { # $1: descriptor of the lock's file, $2: what is worked on
    flock --nonblock "$1" || { say "another install.sh is at work on $2; waiting for it to end"; flock "$1"; }
}

take_locks() { # two clones may build one environment
    mkdir -p "$CACHE" 2>/dev/null && exec 9>"$CACHE/install.lock" || refuse "cannot write to $CACHE"
    lock 9 "$CACHE"
    mkdir -p "$STATE" 2>/dev/null && exec 8>"$STATE/lock" || refuse "cannot write to $VENV"
    lock 8 "$VENV"
    rm -rf "$CACHE"/tmp.* # of a run that was killed
    WORK=$(mktemp -d "$CACHE/tmp.XXXXXX")
    trap 'rm -rf "$WORK" "$SCRATCH"' EXIT
    trap 'interrupt 129' HUP
    trap 'interrupt 130' INT
    trap 'interrupt 143' TERM
    local temporary=${TMPDIR:-/tmp}
    SCRATCH=$(mktemp -d "$temporary/neustream-install.XXXXXX" 2>/dev/null) || refuse "cannot write to $temporary (TMPDIR)"
    export TMPDIR=$SCRATCH
}

interrupt() { # $1: exit code. Ends the stage under way, all its processes, before its files are removed.
    trap '' HUP INT TERM
    local group tries=0
    for group in $(jobs -p); do
        kill -TERM -- "-$group" 2>/dev/null || continue
        wait "$group" 2>/dev/null || true
        while kill -0 -- "-$group" 2>/dev/null && [ $((tries += 1)) -le 50 ]; do sleep 0.1; done
        kill -KILL -- "-$group" 2>/dev/null || true
    done
    say "interrupted; run it again to go on from here"
    exit "$1"
}

main() {
    parse_arguments "$@"
    unset PYTHONPATH PYTHONHOME # which packages are there is not the caller's environment's to decide
    export PYTHONNOUSERSITE=1
    compute_keys
    if is_complete; then say "nothing to do: $VENV is complete ($TARGET)"; exit 0; fi
    check_machine
    check_folder
    find_python
    check_system_packages
    check_disk
    take_locks
    if is_complete; then say "nothing left to do: $VENV is complete ($TARGET)"; exit 0; fi
    : >"$LOG"
    say "building $VENV for $TARGET with $PYTHON"
    [ ${#MISSING[@]} -eq 0 ] || stage "system packages: ${MISSING[*]}" "under a minute" install_system_packages
    [ "$ENGINE" = v1 ] || offer_bubblewrap
    if ! has_stamp target "$TARGET" || [ -e "$STATE/busy" ] || [ ! -x "$VENV/bin/python" ]; then
        stage "virtual environment" "5 s" make_venv
    fi
    has_stamp packages "$PACKAGES_KEY" || stage "Python packages" "1 to 3 minutes; CUDA: 10" install_packages
    has_stamp project "$PROJECT_KEY" || stage "this repository, to be imported from anywhere" "5 s" install_project
    if [ "$ENGINE" = v1 ]; then say "$VENV is complete ($ENGINE, $TARGET), after $SECONDS s"; exit 0; fi
    # Other patches than those that were applied: they go on an unpatched vLLM.
    if [ -f "$STATE/patches" ] && ! has_stamp patches "$PATCHES_KEY"; then rm -f "$STATE/vllm"; fi
    if ! has_stamp vllm "$VLLM_KEY"; then
        if [ "$TARGET" = cpu ] && ! compgen -G "$CACHE/wheels/$VLLM_KEY/vllm-*.whl" >/dev/null; then
            stage "compile vLLM $VLLM for the CPU" "2 to 4 minutes on two cores" build_vllm_wheel
        fi
        stage "install vLLM $VLLM" "5 s" install_vllm
    fi
    stage "patch vLLM" "1 s" apply_patches
    say "$VENV is complete ($TARGET), after $SECONDS s"
}

main "$@"
