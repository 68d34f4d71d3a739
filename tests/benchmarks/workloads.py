"""What is measured on: models of three shapes, and texts as long as the real ones.

The ids are random: nothing here depends on what a text says, but all on how long it is. So neither the data sets nor OPT's weights are needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lowres.methods.evaluation import BUDGET
from lowres.models.backbone import Backbone
from lowres.models.batches import Inputs
from lowres.models.identity import EMBEDDED
from lowres.models.weights import load_tokenizer, resolve

# Tokens of a text in the pattern `plain` with SmolLM2's tokenizer, its prefix counted, at these percentiles (the nearest rank). Of the real
# sets: both CoLA development files (1,043 rows), MNLI's matched set without neutral (6,692), HANS's validation set (30,000).
PERCENTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
LENGTHS = {
    "cola": (4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 17, 19, 28, 35),
    "mnli": (5, 9, 13, 16, 21, 25, 30, 34, 39, 45, 52, 62, 71, 93, 214),
    "hans": (8, 10, 11, 13, 14, 15, 16, 16, 17, 17, 18, 19, 20, 22, 24),
}
EVALUATED = {"cola": {"cola": 1043}, "mnli": {"mnli": 6692, "hans": 30_000}}  # what a trial of the paper predicts
OPT_SHAPES = {
    "opt-125m": {"hidden_size": 768, "word_embed_proj_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    "opt-350m": {"hidden_size": 1024, "word_embed_proj_dim": 512, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096,
                 "do_layer_norm_before": False},
}
LONGEST = 128
FIRST = 10  # ids below are tokenizers' special tokens: padding must not stand in a text


def lengths(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` lengths of the real set's distribution, evenly spaced in it, so that few are like many; in random order."""
    even = (np.arange(count) + 0.5) / count * 100
    found = np.interp(even, PERCENTILES, LENGTHS[kind]).round().astype(int)
    return np.random.default_rng(seed).permutation(np.minimum(found, LONGEST))


def texts(kind: str, count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(FIRST, vocabulary, size=length).tolist() for length in lengths(kind, count, seed)]


def inputs(ids: list[list[int]]) -> Inputs:
    return Inputs(ids, torch.arange(len(ids)) % 2)


def evenly(ids: list[list[int]], count: int) -> list[list[int]]:
    """At most `count` of the texts, evenly spaced by length."""
    ordered = sorted(ids, key=len)
    return [ordered[int((i + 0.5) * len(ids) / count)] for i in range(count)] if count < len(ids) else ids


def sample(ids: list[list[int]], tokens: int = BUDGET) -> list[list[int]]:
    """As many of the texts, evenly spaced by length, as lowres evaluates in one pass."""
    return evenly(ids, int(0.95 * tokens * len(ids) / sum(map(len, ids))))


def thirds(batches: list) -> list:
    """The middle one of each third."""
    return [batches[int((i + 0.5) * len(batches) / 3)] for i in range(3)] if len(batches) > 3 else batches


def vocabulary(backbone: Backbone) -> int:
    """Below how many an id may be: the tokenizer's and the model's tables differ where the model is random."""
    return min(len(backbone.output), len(backbone.tokenizer))


def model_folder(name: str, scratch: Path) -> str:
    """A name or a folder that `load_backbone` takes. OPT's shapes have random weights, and the embedded model's tokenizer."""
    if name not in OPT_SHAPES:
        return name
    from transformers import AutoModelForCausalLM, OPTConfig

    torch.manual_seed(0)
    folder = scratch / name
    AutoModelForCausalLM.from_config(OPTConfig(**OPT_SHAPES[name])).save_pretrained(folder)
    load_tokenizer(resolve(EMBEDDED)).save_pretrained(folder)
    return str(folder)


def tiny(scratch: Path) -> str:
    """A folder with a random Llama of a few thousand weights, as the tests have it."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from conftest import LLAMA_SHAPE, save_model
    from transformers import LlamaConfig

    return save_model(scratch / "tiny-llama", LlamaConfig(**LLAMA_SHAPE, max_position_embeddings=512), prefix=False)
