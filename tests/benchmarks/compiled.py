"""lowres in its two ways, layers as they are and compiled, on one backbone; and what compiling costs before it gains anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lowres.files import ROOT
from lowres.methods.evaluation import predict
from lowres.models.backbone import load_backbone
from lowres.models.heads import Classifier
from tests.benchmarks import workloads
from tests.benchmarks.stepping import Stepped

WAYS = {"lowres": "force_eager", "compiled": "default"}  # way: torch.compiler's stance; the backbone's layers are compiled


def done(way: str, job: Callable) -> Callable:
    """`job` in one of the ways."""

    def run() -> object:
        with torch.compiler.set_stance(WAYS[way]):
            return job()

    return run


def start(model: str, scratch: Path) -> tuple[float, float]:
    """Seconds that compiling adds to the first step and the first evaluation: of the first process on a machine, and of a later one."""
    call = [sys.executable, "-c", f"from tests.benchmarks import compiled; compiled.added({model!r})"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled")}
    def measured() -> float:
        ended = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"compiling in a process of its own failed: {ended.stderr}")
        return float(ended.stdout.split()[-1])

    return measured(), measured()


def added(model: str) -> None:
    """Prints how much longer the first compiled step and evaluation take than the next ones; never less than 0, whatever disturbs the machine."""
    backbone = load_backbone(model, device="cpu", compiled=True)
    ids = workloads.texts("mnli", 32, workloads.vocabulary(backbone))
    head, texts = Classifier(backbone, 2, 0), workloads.inputs(ids)
    stepped = Stepped(backbone, head, texts)

    def seconds(way: str) -> float:
        begin = time.perf_counter()
        done(way, lambda: (stepped.step(list(range(32))), predict(backbone, head, {"set": texts})))()
        return time.perf_counter() - begin

    seconds("lowres")  # new memory is slow, and no part of this
    print(max(0.0, seconds("compiled") - seconds("compiled")))
