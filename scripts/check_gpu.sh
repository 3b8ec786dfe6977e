#!/usr/bin/env bash
# Whether this machine's GPU is fit for use: what is installed, every kernel and a small evaluation
# beside float64, and three kernels beside their floors. Two minutes, no network, no model.
#
#   bash scripts/check_gpu.sh                     with .venv and .venv-torch, whichever are there
#   bash scripts/check_gpu.sh --python python3    with a Python of your own: PyTorch with transformers,
#                                                 or Paddle with PaddleNLP, and pytest. What lies
#                                                 elsewhere may be in PYTHONPATH
#
#   KVEVICT_CHECK_DEVICE=cpu    try the check itself on a machine without a GPU
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
    echo "check_gpu: $1" >&2
    exit 2
}
pythons=()
case "$# ${1:-}" in
    '0 ')
        for venv in .venv .venv-torch; do
            if [ -x $venv/bin/python ]; then pythons+=("$venv/bin/python"); fi
        done
        [ ${#pythons[@]} -gt 0 ] || fail "no .venv and no .venv-torch: run scripts/setup.sh, or name a\
 Python that has a framework: --python python3"
        ;;
    '2 --python')
        command -v "$2" >/dev/null || fail "there is no $2"
        pythons=("$2")
        ;;
    *) fail "unknown arguments $*; known is --python PYTHON" ;;
esac

export PYTHONPATH=src:tests/gpu:.${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1
unset TRITON_INTERPRET
log=results/check_gpu.txt
if [ "${KVEVICT_CHECK_DEVICE:-}" = cpu ]; then
    export TRITON_INTERPRET=1
    log=results/check_gpu_trial.txt
fi
mkdir -p results
: >"$log"

# part PYTHON NAME COMMAND…: what a part prints goes to the log too.
part() {
    printf '\n== %s\n' "$2" | tee -a "$log"
    "$1" "${@:3}" 2>&1 | tee -a "$log"
}

status=0 verdicts=()
for python in "${pythons[@]}"; do
    wrong=''
    part "$python" "$python" tests/gpu/installed.py || wrong='what is installed does not fit'
    if [ -z "$wrong" ]; then
        part "$python" 'results beside float64' -m pytest -q -p no:cacheprovider tests/gpu ||
            wrong='results are wrong'
        part "$python" 'speed' tests/gpu/speed.py || wrong=${wrong:-a kernel fails at full size}
    fi
    verdict="$python: fit for use"
    if [ -n "$wrong" ]; then
        verdict="$python: NOT fit for use: $wrong" status=1
    elif [ "${KVEVICT_CHECK_DEVICE:-}" = cpu ]; then
        verdict="$python: the check itself works; of a GPU it says nothing"
    fi
    verdicts+=("$verdict")
done
printf '\n' | tee -a "$log"
for verdict in "${verdicts[@]}"; do
    echo "$verdict (to report it, send $log)" | tee -a "$log"
done
exit $status
