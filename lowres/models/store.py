"""What a model as it comes makes of texts, kept on disk from run to run: its states are the same whichever method asks.

The untrained yardstick, a probe's features, a teacher's answers and in-context learning read the same rows again and again. An entry's name is a
checksum of all that its numbers depend on; it says what it cost, so that whoever reads it is charged as if it had been computed. The folder may be
deleted at any time; it keeps what was used last, up to LIMIT gigabytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowres.files import BadInput, write_whole
from lowres.models.identity import identity, processor

LIMIT = "LOWRES_STORE_GB"  # an environment variable; 5 where it is not set, and nothing is kept where it is 0
FEWEST = 64  # texts that are worth a file


class Kept(NamedTuple):
    """What was computed, what it cost in seconds, and the peak of the memory that it took, in bytes."""

    states: torch.Tensor
    seconds: float
    peak: int


def limit() -> float:
    """Bytes that the store may take. Raises BadInput for what is no number."""
    given = os.environ.get(LIMIT, "5")
    try:
        return 1e9 * float(given)
    except ValueError:
        raise BadInput(f"{LIMIT}: {given!r} is no number of gigabytes") from None


def folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("lowres") / "states"


def key(backbone, ids: list[list[int]], before: Iterable[tuple[torch.Tensor, torch.Tensor]] | None, *more: Any) -> str:
    """Names the states of texts, `ids`, behind a context's keys and values."""
    on = processor() if backbone.device.type == "cpu" else torch.cuda.get_device_name(backbone.device)
    kernels = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    packages = [version(name) for name in ("torch", "transformers", "tokenizers")]
    model = identity(backbone.name), backbone.folder.name, backbone.precision, backbone.compiled
    digest = hashlib.sha256(repr((model, on, kernels, packages, _code(), more, ids)).encode())
    for pair in before or ():
        for part in pair:
            digest.update(part.contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def found(name: str) -> Kept | None:
    """What is kept under a name; None where there is nothing, or nothing whole."""
    path = folder() / name
    try:
        with safe_open(path, "pt") as file:
            states, about = file.get_tensor("states"), file.metadata()
        kept = Kept(states, float(about["seconds"]), int(about["peak"]))
        if about["sha256"] != _checksum(kept):
            return None
        os.utime(path)  # it was used now
        return kept
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def keep(name: str, kept: Kept) -> None:
    """Writes it, whole, and makes room. A disk that is full, or not to be written, costs time and no result."""
    about = {"seconds": repr(kept.seconds), "peak": str(kept.peak), "sha256": _checksum(kept)}
    try:
        write_whole(folder() / name, save({"states": kept.states.contiguous().cpu()}, about))
        entries = sorted(((path, path.stat()) for path in folder().iterdir()), key=lambda entry: -entry[1].st_mtime)
        total = 0
        for path, about in entries:
            total += about.st_size
            if total > limit():
                path.unlink(missing_ok=True)
    except OSError:
        pass


def states(backbone, ids: list[list[int]], before, compute: Callable[[], torch.Tensor], *more: Any) -> torch.Tensor:
    """What `compute` gives, or gave once before, (texts, width): of a backbone that nothing has trained, and of some texts at least."""
    if len(ids) < FEWEST or not backbone.as_it_came or not limit():
        return compute()
    name, meter = key(backbone, ids, before, *more), backbone.meter
    if kept := found(name):
        if meter:
            meter.charge(kept.seconds, kept.peak)
        return kept.states.to(backbone.device)
    start = meter.clock() if meter else 0.0
    computed = compute()
    if meter:  # else nobody knows what it cost
        keep(name, Kept(computed, meter.clock() - start, meter.peak()))
    return computed


def _checksum(kept: Kept) -> str:
    digest = hashlib.sha256(f"{kept.seconds} {kept.peak} {tuple(kept.states.shape)}".encode())
    digest.update(kept.states.contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def _code() -> str:
    """A checksum of what computes states."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*sorted(here.glob("*.py")), here.parent / "methods" / "evaluation.py"])).hexdigest()
