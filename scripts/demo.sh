#!/usr/bin/env bash
# The whole evaluation on the built-in model: data, predictions, scores, report. Run again, it goes
# on where it stopped; --fresh begins anew.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case ${1:-} in
    '') ;;
    --fresh) rm -rf data/demo results/demo report/demo ;;
    *)
        echo "demo: unknown argument $1; known is --fresh" >&2
        exit 2
        ;;
esac
say() { printf '\n== %s\n' "$1"; }
tasks=passkey,number_string,needle
model=smollm2-135m-longctx

say "1/5 set-up"
bash scripts/setup.sh
python=$PWD/.venv/bin/python
cd src

say "2/5 prompts of 2,560 tokens with something to find (data/demo)"
if [ -e ../data/demo/needle.jsonl ]; then
    echo "there already"
else
    "$python" ../data/construct_synthetic_dataset.py --task $tasks --length 2560 --num_examples 3 \
        --seed 1 --model_path $model --out_dir ../data/demo --force
fi

say "3/5 the full cache against four ways to keep a fifth or half of it (results/demo)"
"$python" eval_llama3.py --model_path $model --model_name demo --task $tasks \
    --data_dir ../data/demo --output_dir ../results/demo \
    --method full,nacl,laprox,snapkv,streamingllm --keep_ratio 0.2,0.5

say "4/5 scores"
"$python" compute_scores.py --task $tasks --output_dir ../results/demo

say "5/5 report (report/demo)"
"$python" report.py kept --model_path $model --data_dir ../data/demo --task needle --example 0 \
    --method nacl,laprox,snapkv,streamingllm --keep_ratio 0.2 --out ../report/demo
"$python" report.py --output_dir ../results/demo --data_dir ../data/demo --out ../report/demo
sed -n '/^#/,$p' ../report/demo/report.md
