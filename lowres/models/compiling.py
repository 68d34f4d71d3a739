"""torch.compile for a backbone's layers: what a layer does between its matrix products becomes a few fused loops.

Between products a layer reads and writes memory more than it computes, and that is what compiling saves. It costs seconds before the
first step, so it is asked for (`compiled: true`) where a run is long. What was built stays in torch's own cache for later runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lowres.files import BadInput

if TYPE_CHECKING:
    from torch import nn


VARIANTS = 64  # of a layer: training or not, frozen or not, adapted or not, one row or several; torch gives up after 8
_spent = {"seconds": 0.0, "since": 0.0}


def check_compiler(device: str) -> None:
    """Raises BadInput where the loops could not be built: they are C++ on a CPU, and on a GPU Triton builds what starts them."""
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    names = ("CC", "gcc", "clang") if on_gpu else ("CXX", "g++", "clang++")
    compiler = os.environ.get(names[0], names[2] if sys.platform == "darwin" else names[1])
    header = Path(sysconfig.get_path("include")) / "Python.h"
    needed = {f"the compiler {compiler}": shutil.which(compiler), f"the header {header.name} of Python's development files": header.is_file()}
    for what, there in needed.items():
        if not there:
            raise BadInput(f"compiled: true needs {what}, which is not here; false needs nothing")


def compile_layers(layers: nn.ModuleList) -> None:
    """Compiles a backbone's layers when they are first called: each variant once, for all layers and lengths."""
    from torch import _inductor
    from torch._dynamo import callback, config

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    _inductor.config.fallback_random = True  # dropout draws the masks that it draws uncompiled
    _inductor.config.compile_threads = 1  # a run's neighbours have the other cores
    if _started not in callback.callback_handler.start_callbacks:
        callback.on_compile_start(_started)
        callback.on_compile_end(_ended)
    for layer in layers:
        layer.compile(dynamic=True)


def seconds_compiling() -> float:
    """How long this process has compiled so far: a machine's start, and no part of what a method costs."""
    return _spent["seconds"]


def _started(_) -> None:
    _spent["since"] = time.perf_counter()


def _ended(_) -> None:
    _spent["seconds"] += time.perf_counter() - _spent["since"]
