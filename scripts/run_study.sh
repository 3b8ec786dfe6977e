#!/usr/bin/env bash
# Reproduces the study of docs/tiny_model.md from nothing: data, predictions under 109 settings, scores
# (docs/data/study/scores.jsonl.gz), figures (figures/study) and the tables of the page.
#
#   bash scripts/run_study.sh                           # Paddle on the CPU, in one process
#   bash scripts/run_study.sh --lengths 2048 --examples 10 --name small
#   PYTHON=python3 bash scripts/run_study.sh --framework pytorch --gpus 4 --processes 20
#
# Run again, it goes on. Without PYTHON it sets up .venv first. Settings of one prompt are in memory
# together: 2 GB at 2,048 tokens on a CPU, 16 GB at 16,384.
set -euo pipefail
name=study config=configs/studies/study.yaml
tasks=passkey,number_string,needle,multi_needle,kv_retrieval,kv_confusable,math_find
lengths=2048,4096,8192,16384 depth=uniform examples=50 slice=10
. "$(dirname -- "${BASH_SOURCE[0]}")/sweep.sh"

if [ "$name" = study ]; then
    draw study --scores "$scores" --page ../docs/tiny_model.md --figures ../figures/study
else  # another study has no page of its own
    draw --scores "$scores" --out "../report/$name" --title "$name"
fi
