#!/usr/bin/env bash
# Downloads ∞Bench (OpenBMB/InfiniteBench) into data/, or goes on where a download broke off.
#
#   bash scripts/download_dataset.sh [--task all|NAME,…] [--out_dir DIR]
#
# Without --task, all twelve files. HF_ENDPOINT names a mirror of huggingface.co. A file gets its
# final name only when it has every example; until then it is called NAME.jsonl.part.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
endpoint=${HF_ENDPOINT:-https://huggingface.co}
source=${endpoint%/}/datasets/xinrongzhang2022/InfiniteBench/resolve/main
out_dir=$root/data
task=all,math_calc

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

while (($#)); do
    case $1 in
        -h | --help)
            sed -n '2,7s/^# \{0,1\}//p' "$0"
            exit
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

tasks() { # list SPEC | check FILE NAME
    PYTHONPATH=$root/src "$python" -m benchmarks "$@"
}

fetch() { # NAME PART: from the end of what PART holds
    local url=$source/$1.jsonl meter=--silent status=0 answer reason
    [[ -t 2 ]] && meter=--progress-bar
    answer=$(curl --fail --location --continue-at - --retry 3 --connect-timeout 20 \
        --speed-limit 1000 --speed-time 60 "$meter" --write-out '%{http_code}' \
        --output "$2" "$url?download=true") || status=$?
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
    fail "cannot download $url: $reason; run this again to go on"
}

names=$(tasks list "$task") || exit 2
mkdir -p "$out_dir" 2>/dev/null || fail "cannot make the directory $out_dir" 2
for name in $names; do
    file=$out_dir/$name.jsonl
    part=$file.part
    echo "$file"
    if [[ -e $file ]]; then
        fault=$(tasks check "$file" "$name" 2>&1) ||
            fail "${fault#error: }; move it away to download it anew" 2
        continue
    fi
    # A second attempt, for a part that cannot be resumed or was the start of something else.
    for _ in 1 2; do
        tasks check "$part" "$name" 2>/dev/null && break
        fetch "$name" "$part"
        fault=$(tasks check "$part" "$name" 2>&1) && break
        rm -f "$part"
    done
    [[ -e $part ]] || fail "the download is not whole: ${fault#error: }"
    mv "$part" "$file"
done
