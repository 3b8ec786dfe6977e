#!/usr/bin/env bash
# Lints and tests. Arguments go to pytest: bash scripts/test.sh tests/test_budget.py -k sinks
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
run() { in_env .venv "$@"; }
in_env() {
    echo "$bold+ ${*:2}$plain"
    "$1/bin/python" -m "${@:2}"
}

bash scripts/setup.sh --dev
run ruff check .
run ruff format --check .
run pytest "$@"
# What needs PyTorch, where it was asked for: scripts/setup.sh --with-torch.
if [ $# -eq 0 ] && [ -x .venv-torch/bin/python ]; then
    in_env .venv-torch pytest tests/kernels tests/engine/test_cuda_graph.py tests/attention/test_flash.py \
        tests/backends/test_torch.py
fi
