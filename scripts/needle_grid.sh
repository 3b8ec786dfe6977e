#!/usr/bin/env bash
# Needle in a haystack as LaProx reports it, in Paul Graham's essays: depth by length, a heat map for
# each method and ratio (report/needle/depth-needle.png), each of whose fields sees the same needles.
# The defaults are for a CPU.
#
#   bash scripts/needle_grid.sh
#   bash scripts/needle_grid.sh --config configs/snapkv.yaml --model_path DIR --name mine
#   PYTHON=python3 bash scripts/needle_grid.sh --framework pytorch --gpus 4 --processes 40 \
#       --lengths 1024,2048,4096,6144,8192,10240,12288,16384 --examples 99 --slice 20 \
#       --depth 0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1
#
# --examples counts all depths of a length together: with eleven depths, 99 are nine needles, each at
# every depth and length. Run again, it goes on.
set -euo pipefail
name=needle config=configs/studies/needle.yaml tasks=needle
lengths=1024,2048,4096 depth=0,0.25,0.5,0.75,1 examples=15 slice=5 haystack=essays
. "$(dirname -- "${BASH_SOURCE[0]}")/sweep.sh"

draw --scores "$scores" --out "../report/$name" --title "Needle in a haystack"
