#!/usr/bin/env bash
# Does the set-up work for a stranger? A clone of HEAD in a new folder, a new HOME, no pip or uv settings: only the public package index.
# Sets up, imports every direct dependency, trains one tiny trial, and then notes what passed in tests/setup_passed.txt, which
# .ci/run compares with the files at hand (`tests/fresh_setup.sh --needed` says whether anything has changed since).
set -euo pipefail
cd "$(dirname "$0")/.."
files="Makefile bootstrap.py requirements.lock pyproject.toml environment.yml"
mark=$(cat $files | python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "${1:-}" = --needed ]; then
    [ "$(cat tests/setup_passed.txt 2>/dev/null)" != "$mark" ]
    exit
fi
root=$PWD
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git clone -q . "$place/clone"
cp $files "$place/clone"  # as they are now, committed or not
mkdir "$place/home"
for name in $(env | grep -oE '^(PIP|UV)_[A-Z_]+' | grep -vE '_(CERT|TIMEOUT|PROXY)$'); do unset "$name"; done
unset VIRTUAL_ENV PYTHONPATH XDG_CACHE_HOME HF_HOME
export HOME="$place/home" PIP_CONFIG_FILE=/dev/null UV_NO_CONFIG=1
cd "$place/clone"
SECONDS=0
make install
echo "set up in $SECONDS s: $(du -sh .venv | cut -f1) in .venv, $(du -sh "$HOME" | cut -f1) in HOME"
# The names that they are imported by: of the distributions that pyproject.toml asks for.
.venv/bin/python - <<'P'
import importlib, re, tomllib
from importlib.metadata import packages_distributions
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
asked = [re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
modules = {}
for module, distributions in packages_distributions().items():
    for distribution in distributions:
        modules.setdefault(normal(distribution), []).append(module)
for name in asked:
    importlib.import_module(min((m for m in modules[normal(name)] if not m.startswith("_")), key=len))
print(f"{len(asked)} direct dependencies imported")
P
.venv/bin/papermill notebooks/vanilla.ipynb out.ipynb -y '{shots: 2, seeds: [0], epochs: 1, evaluation_rows: 8, output_dir: out}' --no-progress-bar
test -s out/record.json
echo "one trial trained"
echo "$mark" > "$root/tests/setup_passed.txt"
