#!/usr/bin/env bash
# Lints and tests. Arguments go to pytest: bash scripts/test.sh tests/test_budget.py -k sinks
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
run() {
    echo "$bold+ $*$plain"
    .venv/bin/python -m "$@"
}

bash scripts/setup.sh --dev
run ruff check .
run ruff format --check .
run pytest "$@"
