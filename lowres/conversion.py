"""A model that the hub has only as pickled weights -> a folder of safetensors, once, when asked for."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from lowres.errors import BadInput
from lowres.files import located, shown
from lowres.identity import split_revision
from lowres.pretrained import load_model


def convert(name: str, target: Path) -> None:
    """A hub model that has only pickled weights -> a folder with safetensors, checked to load without a fault.

    The one place where pickled weights are read, with torch's restricted reader (`weights_only`), and only when asked for.
    """
    from huggingface_hub import snapshot_download
    from safetensors.torch import save_file

    if target.exists():
        raise BadInput(f"{shown(target)}: exists already")
    repository, revision = split_revision(name)
    source = located(name)
    if not source.is_dir():
        source = Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", "*.bin"]))
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.bin")):
        weights |= torch.load(file, map_location="cpu", weights_only=True)
    kept, seen = {}, set()
    for key, value in weights.items():  # safetensors stores each memory once: a tied head is not written twice
        if value.data_ptr() not in seen:
            kept[key] = value.contiguous()
            seen.add(value.data_ptr())
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        save_file(kept, scratch / "model.safetensors", metadata={"format": "pt"})
        for file in [*source.glob("*.json"), *source.glob("*.txt"), *source.glob("*.model")]:
            if not file.name.endswith(".index.json"):
                shutil.copy(file, scratch)
        load_model(scratch, name)
        (scratch / "converted_from.json").write_text(json.dumps({"model": repository, "revision": revision}))
        os.chmod(scratch, 0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
