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

say "1/4 set-up"
bash scripts/setup.sh
python=$PWD/.venv/bin/python
cd ./src

say "2/4 prompts of 4,096 tokens with something to find, two a task (data/demo)"
if [ -e ../data/demo/needle.jsonl ]; then
    echo "there already"
else
    "$python" ../data/construct_synthetic_dataset.py --task $tasks --length 4096 --num_examples 2 \
        --seed 1 --model_path $model --out_dir ../data/demo --force
fi

say "3/4 the full cache against seven ways to keep a fifth or half of it (results/demo)"
"$python" eval_llama3.py --model_path $model --model_name demo --task $tasks \
    --data_dir ../data/demo --output_dir ../results/demo --decode_together \
    --method full,nacl,laprox,snapkv,adakv,tova,h2o,streamingllm --keep_ratio 0.2,0.5

say "4/4 scores and report (report/demo)"
if [ -e ../report/demo/kept.json ]; then
    echo "kept positions are there already"
else
    "$python" report.py kept --model_path $model --data_dir ../data/demo --task needle --example 0 \
        --method nacl,laprox,snapkv,tova --keep_ratio 0.2 --out ../report/demo
fi
"$python" report.py --output_dir ../results/demo --data_dir ../data/demo --out ../report/demo
sed -n '/^#/,$p' ../report/demo/report.md
echo "Two examples a task only show that it runs: mind the intervals. The page: report/demo/report.html"
