#!/usr/bin/env bash
# Makes .venv with the pinned packages and fetches the built-in model. A second run changes nothing.
#
#   bash scripts/setup.sh [--dev] [--with-torch]
#
#   --dev           also what scripts/test.sh needs (requirements-dev.lock)
#   --with-torch    also .venv-torch for the PyTorch integration (requirements-torch.txt)
#
#   PYTHON=python3.11   build on this Python
#   KVEVICT_CPU=1       take Paddle's CPU wheel even where there is an NVIDIA GPU
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $1" >&2; }
fail() {
    say "$1"
    exit 2
}

dev='' torch=''
for argument in "$@"; do
    case $argument in
        --dev) dev=yes ;;
        --with-torch) torch=yes ;;
        *) fail "unknown argument $argument; known are --dev and --with-torch" ;;
    esac
done

# The upper bound is NumPy's: PaddleNLP needs 1.26, which has no wheel for Python 3.13.
oldest=9
suitable() {
    "$1" -c "import ensurepip, sys, venv; sys.exit(not (3, $oldest) <= sys.version_info < (3, 13))" \
        2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.$oldest to 3.12 with the venv module;\
 name one that is, such as PYTHON=python3.11"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python3.10 python3.9; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.$oldest to 3.12 with the venv module on the PATH; install Python 3.11\
 (Debian and Ubuntu: also python3-venv) or name one with PYTHON=/path/to/python"
}

# once VENV PART KEY COMMAND: runs COMMAND, which installs PART into VENV, unless it did so for KEY.
# The marker lies beside the environment and outlives an interrupted run, so that what is half
# installed is built anew; an environment that someone made by hand is kept and added to.
once() {
    local venv=$1 stamp=$1/.kvevict-$2 key=$3 install=$4 python
    if [ ! -e "$venv.unfinished" ] && [ -x "$venv/bin/python" ] &&
        [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
        return
    fi
    if [ -e "$venv.unfinished" ] || ! suitable "$venv/bin/python"; then
        python=$(find_python)
        say "$("$python" -V) from $(command -v "$python") -> $venv"
        touch "$venv.unfinished"
        "$python" -m venv --clear "$venv"
    fi
    touch "$venv.unfinished"
    say "installing $2 packages into $venv"
    "$install"
    echo "$key" >"$stamp"
    rm "$venv.unfinished"
}

pip_install() { "$1/bin/python" -m pip install --disable-pip-version-check "${@:2}"; }

# `import kvevict` then works from any directory. A path file needs no build, unlike `pip install -e`.
link_library() {
    "$1/bin/python" -c "import site, sys
open(site.getsitepackages()[0] + '/kvevict.pth', 'w').write(sys.argv[1])" "$PWD/src"
}

# Prints the part of Paddle's package index for this machine's driver, nothing without a GPU.
cuda_build() {
    local cuda capability
    cuda=$(nvidia-smi 2>/dev/null) || cuda=''
    cuda=$(sed -n 's/.*CUDA Version: *\([0-9]*\)\.\([0-9]\).*/\1\2/p' <<<"$cuda")
    if [ -z "$cuda" ]; then
        say "nvidia-smi finds no working GPU: Paddle's CPU wheel it is"
    elif [ "$cuda" -ge 130 ]; then
        echo cu130
    elif [ "$cuda" -ge 129 ]; then
        echo cu129
    elif [ "$cuda" -ge 120 ]; then
        echo cu126 # a driver runs every wheel of its CUDA's major version
    elif [ "$cuda" -ge 118 ]; then
        capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
            sort -n | tail -n 1) || true
        [[ ! $capability =~ ^(9|[1-9][0-9])\. ]] ||
            fail "the NVIDIA driver takes Paddle's wheel for CUDA 11.8, which has no code for a card of\
 compute capability $capability; update the driver to one of CUDA 12.0 or newer, or set KVEVICT_CPU=1"
        echo cu118
    else
        fail "the NVIDIA driver is older than CUDA 11.8; update it or set KVEVICT_CPU=1"
    fi
}

# PACKAGE…: their entries in requirements.lock.
locked() {
    local names=$*
    sed -nE "/^(${names// /|})==/,/# via/p" requirements.lock
}

# Triton builds its launchers on the machine where they run.
builds_c() {
    local headers
    headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')
    "${CC:-$(command -v gcc || command -v clang || echo cc)}" -E "-I$headers" -x c - \
        <<<'#include <Python.h>' >/dev/null 2>&1
}

install_locked() {
    local other=triton pinned=(--no-deps --require-hashes -r /dev/stdin)
    if [ -n "$cuda" ]; then other=paddlepaddle; fi
    # Both of Paddle's wheels own the folder paddle/, so one never goes on top of the other.
    .venv/bin/python -m pip uninstall -qq -y paddlepaddle paddlepaddle-gpu
    # Packages that come as source only are built by locked tools, not by the newest ones.
    locked setuptools setuptools-scm wheel packaging tomli typing-extensions |
        pip_install .venv "${pinned[@]}"
    # The GPU wheel has another name and lies on Paddle's own index; it alone needs Triton.
    sed "/^$other==/,/# via/d" requirements.lock |
        pip_install .venv --no-build-isolation "${pinned[@]}"
    if [ -n "$cuda" ]; then
        pip_install .venv --index-url "https://www.paddlepaddle.org.cn/packages/stable/$cuda/" \
            "$(sed -n 's/^paddlepaddle\(==[^ ]*\).*/paddlepaddle-gpu\1/p' requirements.lock)"
        builds_c || say "no C compiler or no Python.h (Debian and Ubuntu: gcc, python3-dev), which\
 Triton needs: long prompts go on without its kernels, slower"
    fi
    link_library .venv
}

install_dev() {
    pip_install .venv --no-deps --require-hashes -r requirements-dev.lock
    locked triton | pip_install .venv --no-deps --require-hashes -r /dev/stdin # its interpreter
}

install_torch() {
    pip_install .venv-torch -r requirements-torch.txt -r requirements-dev.txt
    pip_install .venv-torch --no-deps -r requirements-kvpress.txt
    link_library .venv-torch
}

cuda=''
if [ -z "${KVEVICT_CPU:-}" ] && command -v nvidia-smi >/dev/null; then cuda=$(cuda_build); fi

once .venv locked "$(cksum <requirements.lock) $cuda" install_locked
if [ -n "$dev" ]; then
    once .venv dev "$(cat requirements.lock requirements-dev.lock | cksum)" install_dev
fi
if [ -n "$torch" ]; then
    oldest=10 # PyTorch's own bound
    once .venv-torch torch "$(cat requirements-{torch,kvpress,dev}.txt | cksum)" install_torch
fi
PYTHONPATH=src .venv/bin/python -m kvevict.models fetch >/dev/null
