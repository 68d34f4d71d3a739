"""torch.compile for a backbone's layers: what a layer does between its matrix products becomes a few fused loops.

Between products a layer reads and writes memory more than it computes, and that is what compiling saves. It costs seconds before the
first step, so it is asked for (`compiled: true`) where a run is long.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from torch import nn

from lowres.errors import BadInput


def check_compiler(device: str) -> None:
    """Raises BadInput where the CPU's loops could not be built. A GPU's are built by Triton, which comes with torch."""
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    needed = {f"the C++ compiler {compiler}": shutil.which(compiler), f"the header {header.name} of Python's development files": header.is_file()}
    for what, there in needed.items():
        if not there:
            raise BadInput(f"compiled: true needs {what}, which is not here; false needs nothing")


def compile_layers(model: nn.Module) -> None:
    """Compiles each layer when it is first called, once for all layers and lengths. What was built is kept for the next process."""
    from platformdirs import user_cache_path

    from lowres.adaptation import layer_stack

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("lowres") / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a run's neighbours have the other cores
    for layer in layer_stack(model):
        layer.compile(dynamic=True)
