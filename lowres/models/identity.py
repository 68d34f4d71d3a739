"""Which weights a model's name stands for, told without loading torch, and without weights at hand where that can be."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from lowres.files import BadInput, located, shown

EMBEDDED = "smollm2-135m"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def split_revision(name: str) -> tuple[str, str | None]:
    """'facebook/opt-125m@27dcfa7' -> ('facebook/opt-125m', '27dcfa7')."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def identity(name: str) -> str | None:
    """What a model's weights are known by; None for a folder that is not at hand.

    The embedded model: its package file's SHA-256. A folder: its weights' and config's. A hub id: itself with its revision.
    """
    if name == EMBEDDED:
        return f"gguf:{GGUF_SHA256}"
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
