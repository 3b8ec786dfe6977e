# shellcheck shell=bash disable=SC2154 # the caller sets what is not set here
# Sourced by run_study.sh and needle_grid.sh: many settings on synthetic prompts of several lengths,
# from nothing to one small file of scores. The caller sets name, config, tasks, lengths, depth,
# examples and slice, which flags override as those below, and may set haystack. Leaves $name, $scores
# and draw; ends in src/.
#
# A job is all settings and tasks on a slice of the examples at one length, in one process with a
# directory of its own, so nothing is shared, whatever was predicted can be read at any moment, and
# the same command goes on where it stopped, with any number of processes.

model=smollm2-135m-longctx framework=paddle processes=1 gpus=0 haystack=${haystack:-}
while [ $# -gt 0 ]; do
    flag=${1#--}
    case $1 in
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
            exit ;;
        --name | --config | --tasks | --lengths | --depth | --model_path | --framework)
            [ -n "${2:-}" ] || { echo "${0##*/}: $1 needs a value" >&2; exit 2; } ;;
        --examples | --slice | --processes | --gpus)
            [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "${0##*/}: $1 needs a number" >&2; exit 2; } ;;
        *)
            echo "${0##*/}: unknown argument $1; known are --name, --config, --tasks, --lengths," \
                "--depth, --examples, --slice, --model_path, --framework, --processes, --gpus" >&2
            exit 2 ;;
    esac
    printf -v "${flag/model_path/model}" %s "$2"
    shift 2
done
for flag in examples slice processes; do
    [ "${!flag}" -gt 0 ] || { echo "${0##*/}: --$flag must be at least 1" >&2; exit 2; }
done
IFS=, read -ra depths <<<"$depth"
[ $((examples % ${#depths[@]})) = 0 ] || {
    echo "${0##*/}: --examples $examples is no multiple of the ${#depths[@]} depths, which would" \
        "differ in what they hide" >&2
    exit 2
}
[ ! -e "$model" ] || model=$(realpath -- "$model")
python=${PYTHON:-}
[[ $python != */* ]] || python=$(CDPATH='' cd -- "${python%/*}" && pwd)/${python##*/}
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
if [ -z "$python" ]; then
    with=() python=$PWD/.venv/bin/python
    [ "$framework" != pytorch ] || with=(--with-torch) python=$PWD/.venv-torch/bin/python
    bash scripts/setup.sh ${with[@]+"${with[@]}"}
fi
cores=$(nproc)
scores=$PWD/docs/data/$name/scores.jsonl.gz
log=$PWD/results/$name/log
cd ./src || exit
mkdir -p "$log" "${scores%/*}"
export python model framework processes gpus name config tasks depth haystack examples slice log jobs
export TOKENIZERS_PARALLELISM=false  # the processes are parallel enough

build() {  # length task: one data file
    local own=()
    [ "$2" != math_find ] || own=(--kinds "largest,smallest")
    [ -z "$haystack" ] || own+=(--haystack "$haystack")
    [ -e "../data/$name/$1/$2.jsonl" ] || "$python" ../data/construct_synthetic_dataset.py \
        --task "$2" --length "$1" --num_examples "$examples" --depth "$depth" --seed 1 \
        ${own[@]+"${own[@]}"} --model_path "$model" --out_dir "../data/$name/$1"
}

evaluate() {  # number length start: one job
    local device=cpu
    [ "$gpus" = 0 ] || device=gpu:$(($1 % gpus))
    [ "$processes" = 1 ] || exec 2>"$log/$2-$3.err"  # one process shows how far it is
    if ! "$python" eval_llama3.py --framework "$framework" --device "$device" \
        --model_path "$model" --config "$config" --decode_together --task "$tasks" \
        --data_dir "../data/$name/$2" --output_dir "../results/$name/$2/$3" \
        --start_idx "$3" --stop_idx $(($3 + slice)) >"$log/$2-$3.txt"; then
        echo "job $1 of $jobs failed$([ "$processes" = 1 ] || echo ": see $log/$2-$3.err")"
        return 1
    fi
    echo "job $1 of $jobs done: $2 tokens, examples from $3"
}
export -f build evaluate

echo "== data/$name: $tasks at $lengths tokens, $examples examples each"
for length in ${lengths//,/ }; do
    # shellcheck disable=SC2086 # a line a task
    printf "$length %s\n" ${tasks//,/ }
done | xargs -n 2 -P "$cores" bash -c 'build "$@"' build
for file in ../data/"$name"/*/*.jsonl; do
    found=$(wc -l <"$file")
    if [ "$found" != "$examples" ]; then
        echo "${0##*/}: $file has $found examples, not $examples: remove data/$name and" \
            "results/$name, or give another --name" >&2
        exit 2
    fi
done

# Each length over all GPUs; then a share of every length before the next share of any.
queue=$(for length in $(tr , '\n' <<<"$lengths" | sort -rn); do
    for ((start = 0; start < examples; start += slice)); do
        echo "$length $start"
    done
done | cat -n | sort -s -n -k 3)
jobs=$(wc -l <<<"$queue")
echo "== results/$name: $jobs jobs, $processes at a time"
[ "$processes" = 1 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"
xargs -n 3 -P "$processes" bash -c 'evaluate "$@"' evaluate <<<"$queue"

echo "== ${scores#"${PWD%/src}/"}"
"$python" report.py scores --output_dir "../results/$name" --data_dir "../data/$name" --out "$scores"

draw() {  # what report.py is to do with the scores
    if "$python" -c 'import matplotlib' 2>/dev/null; then
        "$python" report.py "$@"
    else
        echo "where Matplotlib is installed, from src/: python report.py $*"
    fi
}
