"""Two ways to adapt a backbone around fine-tuning: only its top layers train, or it first reads the task's unlabelled texts.

(The third, choosing the pattern, is in `pattern_choice`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.methods.training import clip, must_be_finite
from lowres.models.adapters import layer_stack
from lowres.models.batches import Rows, encode, pack
from lowres.tasks.shots import Streams

HELD_OUT = 200  # unlabelled texts that are never trained on, at most a fifth of them
LOGITS = 512  # tokens whose logits over the whole vocabulary are held at once


def top_layers(layers: int, asked: int) -> int:
    """How many layers train: what is asked, or the top sixth (2 of 12), at least 1. Raises BadInput for more than there are."""
    if asked > layers:
        raise BadInput(f"train_layers: {asked} is more than the {layers} layers of the model")
    return asked or max(1, round(layers / 6))


def above_layers(backbone) -> list[nn.Module]:
    """What a text passes after the last layer (a final norm, OPT-350M's projection), seen by following one token through."""
    last, passed = layer_stack(backbone.model.base_model)[-1], []
    modules = [module for module in backbone.model.base_model.modules() if module is last or list(module.parameters(recurse=False))]
    hooks = [module.register_forward_hook(lambda module, *_: passed.append(module)) for module in modules]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a hook is no part of a compiled layer
            backbone.hidden(next(pack([[0]], backbone.device)))
    finally:
        for hook in hooks:
            hook.remove()
    return passed[passed.index(last) + 1 :]


def layer_groups(backbone, head: nn.Module, p) -> list[dict[str, Any]]:
    """Freezes all but the top, and gives the optimizer's groups, lowest first: a layer at depth k from the top has lr * decay^k.

    The top layer has depth 0. What follows it (final norm, projection, new head) trains at lr as well. Embeddings lie below all
    layers and are frozen, so no gradient is computed below the lowest trained layer; where the language-model head is tied to
    them it is frozen too, and trains only if it is a matrix of its own that the head reads, which then has no weights.
    """
    layers = layer_stack(backbone.model.base_model)
    count = top_layers(len(layers), p.train_layers)
    above = above_layers(backbone)
    backbone.model.requires_grad_(False)
    for module in (*layers[-count:], *above):
        module.requires_grad_(True)
    if not list(head.parameters()) and backbone.output is not backbone.model.get_input_embeddings().weight:
        backbone.output.requires_grad_(True)
    groups = [
        {"params": list(layer.parameters()), "lr": p.learning_rate * p.layer_decay**depth, "name": f"layer {len(layers) - depth}"}
        for depth, layer in enumerate(reversed(layers[-count:]))
    ][::-1]
    in_layers = {id(weight) for group in groups for weight in group["params"]}
    rest = [weight for module in (backbone.model, head) for weight in module.parameters() if weight.requires_grad and id(weight) not in in_layers]
    return groups + ([{"params": rest, "lr": p.learning_rate, "name": "above the layers"}] if rest else [])


def frozen(backbone) -> int:
    """How many of the backbone's weights do not train. With `layer_groups` all of them lie below those that do."""
    return sum(weight.numel() for weight in backbone.model.parameters() if not weight.requires_grad)


@dataclass
class CorpusResult:
    """What continued language modelling left behind: nats per token on `held_out` texts before and after, and each step's loss."""

    texts: int
    held_out: int
    before: float = float("nan")
    after: float = float("nan")
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "losses": [round(loss, 4) for loss in self.losses]}


def train_on_corpus(backbone, task, p, streams: Streams) -> CorpusResult:
    """Continues language modelling on texts of the pool and such without a label (Gururangan et al. 2020, arXiv 2004.10964), in place.

    Next-token loss on `p.corpus_rows` texts for `p.corpus_steps` steps; AdamW, warm-up, linear decay. The labels are taken off first.
    """
    texts = task.texts.assign(label=0)
    order = streams.unlabelled.permutation(len(texts))
    held = min(HELD_OUT, len(texts) // 5)
    if not held:
        raise BadInput(f"adapt: corpus: the pool has {len(texts)} texts; at least 5 are wanted, to train on and to hold out")
    ids = encode(backbone, texts.iloc[order[: held + p.corpus_rows]], task.file.patterns["plain"], p.max_length).ids
    unseen, read = ids[:held], ids[held:]
    reading = CorpusResult(len(read), held, before=text_loss(backbone, unseen))
    torch.manual_seed(streams.dropout)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=p.corpus_learning_rate, weight_decay=p.weight_decay, fused=True)
    warmup = max(1, round(p.warmup_ratio * p.corpus_steps))
    rate = lambda step: min((step + 1) / warmup, (p.corpus_steps - step) / max(1, p.corpus_steps - warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    batches = _endless(read, p.batch_size, streams.unlabelled)
    backbone.model.train()
    for _ in range(p.corpus_steps):
        batch = next(batches)
        predicted = max(1, sum(len(text) - 1 for text in batch))
        loss = 0.0
        for rows in pack(batch, backbone.device):
            part = next_token_loss(backbone, rows) / predicted
            part.backward()
            loss += part.item()
        must_be_finite(loss, "corpus_learning_rate", p.corpus_learning_rate, len(reading.losses) + 1, p.corpus_steps)
        clip(backbone.model.parameters())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        reading.losses.append(loss)
        reading.tokens += sum(map(len, batch))
    reading.after = text_loss(backbone, unseen)
    return reading


def next_token_loss(backbone, rows: Rows) -> torch.Tensor:
    """Cross-entropy of every token but a text's first, given those before it in its text; summed, in nats.

    Logits of 1,500 tokens at once are 0.3 GB, several times over, and each time of another size, which tears the heap to pieces: a trial of
    50 steps of MNLI had peaks of 12 to 16 GB. Piece by piece it has 6 to 7 GB, and the loss takes 0.9 of its time.
    """
    follows = rows.positions[:, 1:] > rows.positions[:, :-1]  # positions begin anew with each text, and padding has 0
    row, place = follows.nonzero(as_tuple=True)
    hidden = backbone.hidden(replace(rows, last=row * rows.ids.shape[1] + place))
    pieces = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=LOGITS, chunking_method=None)
    return F.linear_cross_entropy(hidden, backbone.output, rows.ids[:, 1:][follows], reduction="sum", options=pieces)


@torch.inference_mode()
def text_loss(backbone, ids: list[list[int]]) -> float:
    """Mean next-token loss of texts, in nats per token."""
    backbone.model.eval()
    total = sum(next_token_loss(backbone, rows).item() for rows in pack(ids, backbone.device))
    return total / max(1, sum(len(text) - 1 for text in ids))


def _endless(texts: list, size: int, stream: np.random.Generator) -> Iterator[list]:
    """Batches in an order drawn anew for each pass."""
    while True:
        order = stream.permutation(len(texts))
        for start in range(0, len(order), size):
            yield [texts[i] for i in order[start : start + size]]


def check(p) -> None:
    """What can be told of `train_layers` from the model's configuration alone. Raises BadInput."""
    if p.adapt != "layers":
        return
    from lowres.models.adapters import shape_of

    top_layers(len(layer_stack(shape_of(p.model).base_model)), p.train_layers)
