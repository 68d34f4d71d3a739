"""lowres against the usual ways of doing the same, side by side: make bench

    python -m tests.benchmarks [--only NAME] [--repeats 5] [--threads 1] [--quick]

Every measure runs in a process of its own, with the memory settings and threads that a study's kernels have, the peers' included; within it
lowres and its peers alternate. Prints a table and writes outputs/bench/bench.md and bench.json. Wants a quiet machine, about an hour.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lowres.files import ROOT, write_json, write_whole
from lowres.models import store
from lowres.models.identity import EMBEDDED
from lowres.runs.execute import Options, pinned
from lowres.runs.process import KERNEL_ENVIRONMENT
from tests.benchmarks import report

# name: module, function, model
MEASURES = {
    "padding": ("costs", "padding", EMBEDDED),
    "first_step": ("costs", "first_step", EMBEDDED),
    "memory": ("costs", "memory", EMBEDDED),
    "lora_step": ("costs", "lora_step", EMBEDDED),
    "hans": ("inference", "hans", EMBEDDED),
    "teacher": ("inference", "teacher", EMBEDDED),
    "five_trials": ("costs", "five_trials", EMBEDDED),
    "trials": ("trials", "whole_trials", EMBEDDED),
    "trials_opt_125m": ("trials", "whole_trials", "opt-125m"),
    "trials_opt_350m": ("trials", "whole_trials", "opt-350m"),
    "growth": ("growth", "growth", EMBEDDED),
}


def measured(name: str, repeats: int, quick: bool) -> list[dict]:
    """One measure's rows, in this process."""
    import torch

    torch.manual_seed(0)
    module, function, model = MEASURES[name]
    with tempfile.TemporaryDirectory() as scratch:
        if quick:
            from tests.benchmarks.workloads import tiny

            model = tiny(Path(scratch))
        measure = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)
        return [row.stored() for row in measure(model, Path(scratch), repeats, quick)]


def in_a_process(name: str, asked: argparse.Namespace) -> dict:
    """A measure's rows, the machine as it saw it, and how long it took; or the last words of a process that failed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "rows.json"
        call = [sys.executable, "-m", "tests.benchmarks", "--only", name, "--repeats", str(asked.repeats), "--into", str(into)]
        environment = {**os.environ, **KERNEL_ENVIRONMENT, **pinned(Options(threads=asked.threads)), "PYTHONPATH": str(ROOT), store.LIMIT: "0"}
        ended = subprocess.run(call + ["--quick"] * asked.quick, cwd=ROOT, env=environment, capture_output=True, text=True)
        found = json.loads(into.read_text()) if into.is_file() else {"rows": [], "failed": ended.stderr.strip()[-2000:] or f"exit {ended.returncode}"}
    return {"name": name, "minutes": (time.monotonic() - start) / 60, **found}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="lowres against the usual ways, side by side")
    parser.add_argument("--only", choices=MEASURES, action="append", help="this measure (may stand several times)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which all take turns")
    parser.add_argument("--threads", type=int, default=1, help="of every process; a study's worker has 1")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and few texts: does it run at all?")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # this process is one measure's
    asked = parser.parse_args(words)
    if asked.into:
        write_json(asked.into, {"rows": measured(asked.only[0], asked.repeats, asked.quick), "machine": report.machine()})
        return 0
    folder, measures = ROOT / "outputs" / ("scratch/bench" if asked.quick else "bench"), []
    for name in asked.only or MEASURES:
        measures.append(in_a_process(name, asked))
        print(report.told(measures[-1]), flush=True)
        write_json(folder / "bench.json", {"measures": measures})  # after each: a bench that is broken off keeps what it found
        write_whole(folder / "bench.md", report.page(measures))
    print(f"\n{report.page(measures)}\nwritten: {(folder / 'bench.md').relative_to(ROOT)}")
    return int(any("failed" in measure for measure in measures))


if __name__ == "__main__":
    sys.exit(main())
