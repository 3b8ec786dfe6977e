#!/usr/bin/env bash
# Three long prompts, answered with the full cache and with a fifth and a twentieth of it: set-up,
# data, predictions, scores, report. Run again, it goes on where it stopped.
#
#   bash scripts/demo.sh [--small] [--fresh]
#
#   --small    a 135M model on synthetic prompts instead of Qwen2.5-Coder-0.5B, whose download of
#              0.5 GB takes 1.3 GB of disk once it is converted
#   --fresh    begin anew
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

small='' fresh=''
for argument in "$@"; do
    case $argument in
        --small) small=yes ;;
        --fresh) fresh=yes ;;
        *)
            echo "demo: unknown argument $argument; known are --small and --fresh" >&2
            exit 2
            ;;
    esac
done
name=demo${small:+-small}
data=../data/$name results=../results/$name report=../report/$name
say() { printf '\n== %s\n' "$1"; }

say "1/4 set-up"
bash scripts/setup.sh
python=$PWD/.venv/bin/python
cd ./src
if [ -n "$fresh" ]; then rm -rf "$data" "$results" "$report"; fi

if [ -z "$small" ]; then
    model=qwen2.5-coder-0.5b-instruct
    tasks=qa_2,niah_single_2,niah_multikey_2 # real text and questions, essays, look-alikes
    evaluation=(--benchmark ruler --length 4096 --task "$tasks" --start_idx 12 --stop_idx 13
        --method "full,fade,nacl,laprox,snapkv,h2o" --keep_ratio "0.2,0.05")

    say "2/4 the model, and three prompts of about 4,000 tokens (data/$name)"
    "$python" -m kvevict.models fetch $model
    "$python" -m benchmarks.ruler --model_path $model --task $tasks --length 4096 \
        --num_examples 13 --out_dir "$data/ruler"
    echo "Example 12 was chosen because the model answers its HotpotQA question with the full cache;"
    echo "no method had been run on it."
else
    model=smollm2-135m-longctx
    tasks=passkey,number_string,needle
    evaluation=(--task "$tasks"
        --method "full,nacl,laprox,snapkv,adakv,tova,h2o,streamingllm" --keep_ratio "0.2,0.5")

    say "2/4 prompts of 4,096 tokens with something to find, two a task (data/$name)"
    if [ -e "$data/needle.jsonl" ]; then
        echo "there already"
    else
        "$python" ../data/construct_synthetic_dataset.py --task $tasks --length 4096 \
            --num_examples 2 --seed 1 --model_path $model --out_dir "$data" --force
    fi
fi

say "3/4 all settings from one prefill of each prompt (results/$name)"
"$python" eval_llama3.py --model_path $model --model_name demo --data_dir "$data" \
    --output_dir "$results" --decode_together "${evaluation[@]}"

say "4/4 report and answers (report/$name)"
if [ -n "$small" ] && [ ! -e "$report/kept.json" ]; then
    "$python" report.py kept --model_path $model --data_dir "$data" --task needle --example 0 \
        --method nacl,laprox,snapkv,tova --keep_ratio 0.2 --out "$report"
fi
"$python" report.py --output_dir "$results" --data_dir "$data" --out "$report"
echo
"$python" report.py answers --output_dir "$results" --data_dir "$data"
echo
echo "A few examples only show that it runs. Scores, memory and times: report/$name/report.html"
