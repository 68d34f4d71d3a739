"""A pretrained causal language model as the methods use it: texts in, final hidden states out, and back to its first weights."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from lowres.files import BadInput
from lowres.models.adapters import behind_prompt, detach, layer_stack
from lowres.models.identity import weights_files
from lowres.models.weights import context_length, load_model, load_tokenizer, prefix_tokens, resolve

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
    bottlenecks: list = field(default_factory=list)  # what takes bottleneck adapters out again, while there are any
    trained: tuple[nn.Module, str] | None = None  # the head that it was last trained with, and the pattern
    below: Callable | None = None  # knows what frozen layers make of a text (methods.layers_and_corpus.Below), while they are frozen
    known_below: dict = field(default_factory=dict)  # by how many they are; kept from trial to trial
    meter: Any = None  # of the trial at work: it is told of seconds that an earlier one has spent for it
    pretrained: int | None = None  # a sum over its weights' bits as they were read

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
        """The final hidden states at `rows.last`, (texts, width) or (texts, places, width), in float32. The `cache` in front stays as it is."""
        return self.hidden_behind(rows, _shared(cache, len(rows.ids)) if cache else None)

    def hidden_behind(self, rows, past) -> torch.Tensor:
        """The same behind a `past` of transformers' own, which grows by the rows."""
        return self._states(rows, past).flatten(0, 1)[rows.last].float()

    def past(self, cache: Cache):
        """Such a past, for one row: a context's, which stays as it is."""
        return _shared(cache, 1)

    @torch.no_grad()
    def encode_context(self, tokens: list[int]) -> Cache:
        """A context's keys and values, computed once for any number of texts after it; without dropout, CHUNK tokens at a time."""
        from lowres.models.batches import pack

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
            run = lambda: self.model.base_model(**given, use_cache=past is not None).last_hidden_state[:, virtual:]
            with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
                return self.below(rows, run) if self.below and past is None else run()

    @torch.no_grad()
    def restore(self) -> None:
        """Takes an adapter out and puts the pretrained weights back, in place: every trial starts from the same backbone."""
        detach(self)
        self.below = None
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

    @property
    def as_it_came(self) -> bool:
        """Whether its weights are the pretrained ones, and nothing was put into it. Told by the weights, since torch does not count what optimizers
        write."""
        return self.below is None and self.pretrained == self._bits()

    def _bits(self) -> int:
        return sum(int(weight.detach().view(torch.int32).sum(dtype=torch.int32)) for weight in self.whole.parameters())  # it may wrap

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
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device: {device!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
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
        compile_layers(layer_stack(backbone.model))
        backbone.compiled = True
    backbone.pretrained = backbone._bits()
    return backbone


def without_weights(name: str) -> Backbone:
    """Reads texts as the backbone will, and can do nothing else: for what is to be told before weights are read."""
    from transformers import AutoConfig

    folder = resolve(name, weights=False)
    tokenizer = load_tokenizer(folder)
    length = context_length(AutoConfig.from_pretrained(folder).get_text_config(), name)
    return Backbone(name, folder, None, tokenizer, prefix_tokens(tokenizer), length, torch.device("meta"), "float32")


def resolved_precision(precision: str, device: torch.device) -> str:
    """auto: bfloat16 autocast (weights stay float32) where the processor computes in it natively, else float32."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


@torch.no_grad()
def _check_head_is_linear(backbone: Backbone) -> None:
    """Label logits are read as rows of a plain product. A head that does more (soft caps, scales) is refused, not misread."""
    from lowres.models.batches import pack

    ids = backbone.prefix + [5, 6, 7]
    rows = next(pack([ids], backbone.device))
    exact = Backbone(**{**vars(backbone), "precision": "float32"})
    states = exact.hidden(rows)[0]
    backbone.model.set_attn_implementation("eager")  # what both ways of attention must agree with
    expected = backbone.model.eval()(input_ids=torch.tensor([ids], device=backbone.device)).logits[0, -1]
    if not torch.allclose(states @ backbone.output.T, expected, atol=1e-2, rtol=1e-2):
        raise BadInput(f"model: {backbone.name!r}: its language-model head is no plain product, or it ignores position_ids; not supported")


# torch.compile for the layers: what a layer does between its matrix products, which reads and writes memory more than it computes, becomes a few
# fused loops. It costs seconds before the first step, so it is asked for (`compiled: true`) where a run is long. What was built stays in torch's
# own cache for later runs.
VARIANTS = 64  # of a layer: training or not, frozen or not, adapted or not, one row or several; torch gives up after 8
_spent = {"seconds": 0.0, "since": 0.0}


def check_compiler(device: str) -> None:
    """Raises BadInput where the loops could not be built: they are C++ on a CPU, and on a GPU Triton builds what starts them."""
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
