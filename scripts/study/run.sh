#!/usr/bin/env bash
# The study of docs/study.md and docs/fade.md from nothing: all data, every configuration, all tables.
#
#   bash scripts/study/run.sh                                     # PyTorch on the CPU: weeks
#   bash scripts/study/run.sh --gpus 2 --processes 24             # days
#   bash scripts/study/run.sh --quick --only real_ruler,bytes_ruler --model_path smollm2-135m-instruct
#
# --data_dir holds longbench/ (by default data/, downloaded where it is missing), --out takes data,
# results, scores and tables. --quick is an example of two tasks each. Run again, it goes on. A run
# that fails is named at the end; the others are not stopped by it. Without PYTHON it sets up
# .venv-torch, or .venv with --framework paddle, first.
set -euo pipefail
model=qwen2.5-coder-1.5b-instruct half=qwen2.5-coder-0.5b-instruct framework=pytorch
processes=1 gpus=0 out=study data=data only='' quick=
while (($#)); do
    case $1 in
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
            exit ;;
        --quick) quick=1; shift; continue ;;
        --model_path | --half_path | --framework | --out | --data_dir | --only)
            [ -n "${2:-}" ] || { echo "run.sh: $1 needs a value" >&2; exit 2; } ;;
        --processes | --gpus)
            [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "run.sh: $1 needs a number" >&2; exit 2; } ;;
        *)
            echo "run.sh: unknown argument $1; --help shows what there is" >&2
            exit 2 ;;
    esac
    case $1 in
        --model_path) model=$2 ;; --half_path) half=$2 ;; --framework) framework=$2 ;;
        --out) out=$2 ;; --data_dir) data=$2 ;; --only) only=$2 ;;
        --processes) processes=$2 ;; --gpus) gpus=$2 ;;
    esac
    shift 2
done
[ "$processes" -gt 0 ] || { echo "run.sh: --processes must be at least 1" >&2; exit 2; }
[ -z "$quick" ] || half=$model
for path in model half; do [ ! -e "${!path}" ] || printf -v "$path" %s "$(realpath -- "${!path}")"; done
python=${PYTHON:-}
[[ $python != */* ]] || python=$(CDPATH='' cd -- "${python%/*}" && pwd)/${python##*/}
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
if [ -z "$python" ]; then
    with=(--with-torch) python=$PWD/.venv-torch/bin/python
    [ "$framework" = pytorch ] || with=() python=$PWD/.venv/bin/python
    bash scripts/setup.sh ${with[@]+"${with[@]}"}
fi
mkdir -p "$out/log" "$out/scores"
out=$(realpath -- "$out") data=$(realpath -- "$data")
export PYTHONPATH=$PWD/src TOKENIZERS_PARALLELISM=false

short=4096 long=(8192 16384 32768) passkeys=(4000 8000 16000 30000) most=14
ruler=all english=english extended=all plain='' examples=24 asked=780
questions=qasper,multifieldqa_en,hotpotqa,2wikimqa,musique
later=$questions,narrativeqa simple=qa_1,qa_2
table2=passage_retrieval_zh,passage_retrieval_en,repobench-p,hotpotqa,narrativeqa,triviaqa,qmsum
if [ -n "$quick" ]; then
    short=1200 long=(1400) passkeys=(400) most=1 examples=1 asked=1 plain='--stop_idx 1'
    ruler=niah_single_1,fwe english=hotpotqa,triviaqa extended=hotpotqa_e,triviaqa_e
    questions=hotpotqa later=hotpotqa simple=$ruler table2=hotpotqa,triviaqa
fi

# name, model, data, configuration, what else eval_llama3.py is told
runs() {
    local of_ruler="--benchmark ruler --task $ruler --length $short"
    local of_longbench="--benchmark longbench --task"
    local all_long
    printf -v all_long '%s,' "${long[@]}"
    cat <<END
real_ruler $model $out/data/42 real $of_ruler
real_longbench $model $data real $of_longbench $english
real_longbench_e $model $data real --benchmark longbench_e --task $extended
search_ruler $model $out/data/101 search $of_ruler
search_longbench $model $out/data/halves/development search $of_longbench $english
search2_ruler $model $out/data/101 search2 $of_ruler
search2_longbench $model $out/data/halves/development search2 $of_longbench $english
search3_ruler $model $out/data/606 search3 $of_ruler
search3_longbench $model $out/data/halves/development search3 $of_longbench $english
search4_ruler $model $out/data/707 search4 $of_ruler
search4_longbench $model $out/data/halves/development search4 $of_longbench $english
held_out_ruler $model $out/data/404 confirm $of_ruler
held_out_longbench $model $out/data/halves/held_out confirm $of_longbench $english
questions $model $out/data/505 questions --benchmark ruler --task $simple --length $short
half_ruler $half $out/data/404 confirm $of_ruler
half_longbench $half $out/data/halves/held_out confirm $of_longbench $english
long $model $out/data/909 long --benchmark ruler --task $ruler --length ${all_long%,}
budgets_ruler $model $out/data/808 budgets $of_ruler
budgets_longbench $model $data budgets $of_longbench $english
bytes_ruler $model $out/data/808 bytes $of_ruler --unpack
bytes_longbench $model $data bytes $of_longbench $english --unpack
table2 $model $data table2 $of_longbench $table2 --nll
forms $model $out/data/808 forms $of_ruler
forms_bare $model $out/data/808 forms $of_ruler --chat off
forms_unprefixed $model $out/data/808 forms $of_ruler --answer_prefix off
forms_questions $model $data forms $of_longbench $questions
forms_bare_questions $model $data forms $of_longbench $questions --chat off
unseen $model $out/data/404 unseen $of_ruler --compress context
unseen_longbench $model $data unseen $of_longbench $later --compress context
unseen_half $half $out/data/404 unseen $of_ruler --compress context
unseen_half_longbench $half $data unseen $of_longbench $later --compress context
nll $model $out/data/808 long $of_ruler --nll
others $half $out/data/808 others $of_ruler
no_context $model $out/data/halves/no_context full $of_longbench $english
END
    for length in "${passkeys[@]}"; do
        echo "passkey_$length $model $out/data/passkey/$length passkey --task $passkey"
    done
}
passkey=passkey,number_string,kv_retrieval
wanted() { [ -z "$only" ] || [[ ,$only, == *,$1,* ]]; }

for name in ${only//,/ }; do
    [ "$(runs | grep -c "^$name ")" = 1 ] || {
        echo "run.sh: there is no run $name: $(runs | cut -d ' ' -f 1 | paste -sd ' ')" >&2
        exit 2
    }
done

make_data() {  # name folder flags…: what a run reads
    case $2 in
        "$out"/data/passkey/*)
            [ -e "$2/kv_retrieval.jsonl" ] || "$python" data/construct_synthetic_dataset.py --seed 1 \
                --task $passkey --length "${2##*/}" --num_examples $((examples == 1 ? 1 : 8)) \
                --depth uniform --model_path "$model" --out_dir "$2" ;;
        "$data" | "$out"/data/halves/*)
            [ -d "$data/longbench" ] || bash scripts/download_dataset.sh longbench --out_dir "$data"
            [ "$2" = "$data" ] || [ -d "$2" ] || "$python" scripts/study/halves.py \
                --data_dir "$data" --out "$out/data/halves" --task "$english" --most $most ;;
        *)
            local count=$examples
            [ "$1" != questions ] || count=$asked
            "$python" -m benchmarks.ruler --out_dir "$2/ruler" --seed "${2##*/}" \
                --num_examples "$count" --model_path "$model" \
                --task "$(sed 's/.*--task \([^ ]*\).*/\1/' <<<"$*")" \
                --length "$(sed 's/.*--length \([0-9,]*\).*/\1/' <<<"$*")" ;;
    esac
}

evaluate() {  # name model data configuration flags…: in all processes
    local name=$1 own=$2 folder=$3 config=configs/studies/$4.yaml rank gpu running pids=() failed=0
    local device=cpu
    [ -e "$config" ] || config=configs/$4.yaml
    shift 4
    [ "$gpus" = 0 ] || device=gpu
    for ((rank = 0; rank < processes; rank++)); do
        gpu=$((gpus > 0 ? rank % gpus : 0))
        # shellcheck disable=SC2086 # $plain is two words or none
        env CUDA_VISIBLE_DEVICES=$gpu RANK=$rank WORLD_SIZE="$processes" MASTER_ADDR=127.0.0.1 \
            MASTER_PORT="${PORT:-29400}" "$python" src/eval_llama3.py --framework "$framework" \
            --device $device --model_path "$own" --decode_together --data_dir "$folder" \
            --output_dir "$out/results/$name" --config "$config" \
            "$@" $plain >"$out/log/$name-$rank.txt" 2>&1 &
        pids+=($!)
    done
    # As a launcher does: where one process ends in an error, the first would wait for it for ever.
    while running=$(jobs -pr) && [ -n "$running" ]; do
        # shellcheck disable=SC2086 # process numbers are words
        wait -n || kill $running 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    return $failed
}

failed=()
while read -r name own folder config flags; do
    wanted "$name" || continue
    echo "== $name"
    # shellcheck disable=SC2086 # flags are words
    if ! { make_data "$name" "$folder" $flags >>"$out/log/data.txt" 2>&1 &&
        evaluate "$name" "$own" "$folder" "$config" $flags &&
        "$python" src/report.py scores --output_dir "$out/results/$name" \
            --out "$out/scores/$name.jsonl.gz" >>"$out/log/scores.txt" 2>&1; }; then
        failed+=("$name")
        echo "$name failed: see $out/log" >&2
    fi
done < <(runs)

echo "== $out/tables.md"
losses() { "$python" scripts/study/losses.py "$@" 2>&1 || true; }
{
    for part in search search2 search3 search4 held_out half; do
        found=("$out/scores/$part"_*.jsonl.gz)
        [ ! -e "${found[0]}" ] || { echo "# $part"; losses "${found[@]}"; echo; }
    done
    for file in "$out"/scores/bytes_*.jsonl.gz; do
        [ ! -e "$file" ] || { echo "# $(basename "$file" .jsonl.gz)"; "$python" scripts/study/bytes.py "$file"; echo; }
    done
} >"$out/tables.md"
if "$python" -c 'import matplotlib' 2>/dev/null; then
    for file in "$out"/scores/*.jsonl.gz; do
        [ ! -e "$file" ] || "$python" src/report.py --scores "$file" --title "$(basename "$file" .jsonl.gz)" \
            --out "$out/report/$(basename "$file" .jsonl.gz)"
    done
fi
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
