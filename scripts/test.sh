#!/usr/bin/env bash
# Lints and tests.
#
#   bash scripts/test.sh          everything that needs no PyTorch, and that too where .venv-torch is
#   bash scripts/test.sh --all    everything that needs no GPU: installs PyTorch and Chromium and
#                                 fetches a model of half a gigabyte first
#   bash scripts/test.sh tests/test_budget.py -k sinks    arguments go to pytest
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
run() {
    echo "$bold+ $*$plain"
    "$1/bin/python" -m "${@:2}"
}

# The page of a report is tried in a browser.
get_chromium() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if command -v $name >/dev/null; then return; fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "$bold+ apt-get install chromium$plain"
        apt-get update -qq || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            chromium >/dev/null && return
    fi
    echo "test.sh: there is no Chromium, and it cannot be installed from here" >&2
}

all=''
if [ "${1:-}" = --all ]; then
    all=--all
    shift
    get_chromium
fi
bash scripts/setup.sh --dev ${all:+--with-torch}
if [ -n "$all" ]; then PYTHONPATH=src run .venv kvevict.models fetch qwen2.5-coder-0.5b-instruct; fi
run .venv ruff check .
run .venv ruff format --check .
echo "$bold+ shellcheck$plain"
.venv/bin/shellcheck -x -P SCRIPTDIR scripts/*.sh .ci/run
if [ $# -gt 0 ]; then
    run .venv pytest "$@"
    exit
fi

# A process a core, up to four: each has a framework and a model in memory.
cores=$(nproc)
processes=$((cores < 4 ? cores : 4))
export OMP_NUM_THREADS=$((cores / processes))
test_all() { # ENVIRONMENT REPORT PATH…
    run "$1" pytest -n $processes --dist loadfile --junitxml="$2" "${@:3}" || status=$?
}
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
found=("$reports/paddle.xml") status=0
test_all .venv "${found[0]}"
# What was skipped there needs PyTorch.
mapfile -t skipped < <(.venv/bin/python tests/summary.py --skipped "${found[0]}")
if [ -x .venv-torch/bin/python ] && [ ${#skipped[@]} -gt 0 ]; then
    found+=("$reports/pytorch.xml")
    test_all .venv-torch "${found[1]}" "${skipped[@]}"
fi
.venv/bin/python tests/summary.py $all "${found[@]}" || status=$?
exit $status
