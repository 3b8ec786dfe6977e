#!/usr/bin/env bash
# Downloads a benchmark's published data into data/, or goes on where a download broke off.
#
#   bash scripts/download_dataset.sh [infinitebench] [--task all|NAME,…] [--out_dir DIR]
#   bash scripts/download_dataset.sh longbench [--out_dir DIR]
#
# ∞Bench (OpenBMB/InfiniteBench) is a file for each task, without --task all twelve; LongBench
# (THUDM/LongBench) is one archive, whose files go to DIR/longbench. HF_ENDPOINT names a mirror of
# huggingface.co. A file gets its final name only when it has every example; until then what has
# come lies in NAME.part.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
hub=${HF_ENDPOINT:-https://huggingface.co}
hub=${hub%/}/datasets
benchmark=infinitebench
out_dir=$root/data
task=

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

while (($#)); do
    case $1 in
        -h | --help)
            sed -n '2,10s/^# \{0,1\}//p' "$0"
            exit
            ;;
        infinitebench | longbench)
            benchmark=$1
            shift
            ;;
        --task | --out_dir)
            (($# > 1)) || fail "$1 needs a value" 2
            declare "${1#--}=$2"
            shift 2
            ;;
        *) fail "unknown argument $1; --help shows what there is" 2 ;;
    esac
done

command -v curl >/dev/null || fail "curl is not installed"
for python in "$root/.venv/bin/python" python3 python ""; do
    [[ -z $python ]] && fail "there is no Python 3.9 or newer; bash scripts/setup.sh installs one"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && break
done

published() { # missing BENCHMARK SPEC DIR | check BENCHMARK TASK FILE | unpack BENCHMARK ZIP DIR
    PYTHONPATH=$root/src "$python" -m benchmarks "$@"
}

fetch() { # URL PART: from the end of what PART holds
    local meter=--silent status=0 answer reason
    [[ -t 2 ]] && meter=--progress-bar
    answer=$(curl --fail --location --continue-at - --retry 3 --connect-timeout 20 \
        --speed-limit 1000 --speed-time 60 "$meter" --write-out '%{http_code}' \
        --output "$2" "$1?download=true") || status=$?
    case $status/$answer in
        0/*) return ;;
        33/* | */416) # PART cannot be resumed: the next attempt starts afresh.
            rm -f "$2"
            return
            ;;
        6/* | 7/*) reason="the server cannot be reached" ;;
        18/* | 28/* | 52/* | 56/* | 92/*) reason="the transfer broke off" ;;
        22/*) reason="the server answered $answer" ;;
        23/*) reason="$2 cannot be written" ;;
        *) reason="curl ended with status $status" ;;
    esac
    fail "cannot download $1: $reason; run this again to go on"
}

download() { # URL PART CHECK…: until CHECK finds PART whole
    local url=$1 part=$2 fault
    shift 2
    # A second attempt, for a part that cannot be resumed or was the start of something else.
    for _ in 1 2; do
        "$@" &>/dev/null && return
        fetch "$url" "$part"
        fault=$("$@" 2>&1) && return
        rm -f "$part"
    done
    fail "the download is not whole: ${fault#error: }"
}

make_out_dir() {
    mkdir -p "$out_dir" 2>/dev/null || fail "cannot make the directory $out_dir" 2
}

infinitebench() {
    local names name file
    names=$(published missing infinitebench "${task:-all,math_calc}" "$out_dir") || exit 2
    make_out_dir
    for name in $names; do
        file=$out_dir/$name.jsonl
        echo "$file"
        download "$hub/xinrongzhang2022/InfiniteBench/resolve/main/$name.jsonl" "$file.part" \
            published check infinitebench "$name" "$file.part"
        mv "$file.part" "$file"
    done
}

longbench() {
    local names part
    out_dir=$out_dir/longbench
    part=$out_dir/data.zip.part
    [[ -z $task ]] || fail "LongBench comes whole, so --task has no use" 2
    names=$(missing_of_longbench) || exit 2
    [[ -n $names ]] || return 0
    make_out_dir
    echo "$out_dir"
    download "$hub/THUDM/LongBench/resolve/main/data.zip" "$part" unpack_longbench "$part"
    rm "$part"
}

missing_of_longbench() {
    published missing longbench all "$out_dir" && published missing longbench_e all "$out_dir"
}

unpack_longbench() { # ZIP: LongBench and LongBench-E
    published unpack longbench "$1" "$out_dir" && published unpack longbench_e "$1" "$out_dir"
}

"$benchmark"
