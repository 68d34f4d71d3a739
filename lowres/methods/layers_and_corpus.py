"""Two ways to adapt a backbone around fine-tuning: only its top layers train, or it first reads the task's unlabelled texts.

(The third, choosing the pattern, is in `pattern_choice`.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


class Below:
    """What the layers below the lowest that trains make of a text: computed once, then read back for every epoch, trial and evaluation.

    They are the pretrained ones in every trial, and a text's states do not depend on what is packed beside it (in bfloat16 but for their last
    digits). What was computed in an earlier trial is charged to each that reads it (`backbone.meter`), as if it were computed anew.
    """

    MOST = 500e6  # bytes that are kept; what comes later is computed whenever it is wanted

    def __init__(self, backbone, count: int):
        layers = layer_stack(backbone.model.base_model)
        self.layers, self.lowest, self.backbone = layers[:count], layers[count], backbone
        self.states: dict[bytes, torch.Tensor] = {}  # by a text's tokens and their positions
        self.spent: dict[bytes, float] = {}
        self.charged: set[bytes] = set()  # in the trial of this meter
        self.meter = None
        self.bytes, self.in_tuples = 0, False  # as some families' layers return what they make

    def __call__(self, rows: Rows, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `run` returns, (rows, length, width), with the lower layers passed over."""
        if self.meter is not self.backbone.meter:
            self.meter = self.backbone.meter
            self.charged.clear()
        kind = b"trained" if torch.is_grad_enabled() else b"read"  # by two ways of attention, which round differently
        places = [(kind + key, place) for key, place in texts_in(rows)]
        if all(key in self.states for key, _ in places):
            states = self._read(rows, places)
        else:
            states = self._computed(rows, places, run)
        with self._passed_over(), self._hooked(lambda module, given, named: _first_given(states, given, named)):
            return run()

    def _read(self, rows: Rows, places: list[tuple[bytes, slice]]) -> torch.Tensor:
        one = self.states[places[0][0]]
        states = one.new_zeros(rows.ids.numel(), one.shape[1])
        for key, place in places:
            states[place] = self.states[key]
            if key not in self.charged:
                self.charged.add(key)
                if self.meter:
                    self.meter.shared += self.spent[key]
        return states.view(*rows.ids.shape, -1)

    @torch.no_grad()
    def _computed(self, rows: Rows, places: list[tuple[bytes, slice]], run: Callable[[], torch.Tensor]) -> torch.Tensor:
        start, found = self._now(), []

        def reached(module, given, named):
            found.append(given[0] if given else named["hidden_states"])
            raise _Reached

        form = self.layers[-1].register_forward_hook(lambda module, given, made: setattr(self, "in_tuples", isinstance(made, tuple)))
        with self._hooked(reached), suppress(_Reached):
            run()
        form.remove()
        states, seconds = found[0], self._now() - start
        for key, place in places:
            if self.bytes < self.MOST and key not in self.states:
                with torch.inference_mode(False):  # what is predicted now may be trained on later
                    self.states[key] = states.flatten(0, 1)[place].clone()
                self.bytes += self.states[key].nbytes
                self.spent[key] = seconds / len(places)
            self.charged.add(key)
        return states

    def _now(self) -> float:
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
        return time.perf_counter()

    @contextmanager
    def _hooked(self, hook: Callable) -> Iterator[None]:
        handle = self.lowest.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _passed_over(self) -> Iterator[None]:
        for layer in self.layers:
            layer.forward = lambda hidden_states, *_, **__: (hidden_states,) if self.in_tuples else hidden_states
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward


class _Reached(Exception):
    """The lowest layer that trains has been called: what is below it has been computed."""


def _first_given(states: torch.Tensor, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return ((states, *given[1:]), named) if given else (given, named | {"hidden_states": states})


def texts_in(rows: Rows) -> list[tuple[bytes, slice]]:
    """Where in the flattened rows each text lies, and what names it: its tokens and their positions, which tell branches, too."""
    length, both = rows.ids.shape[1], torch.stack([rows.ids, rows.positions], dim=-1).flatten(0, 1).cpu().numpy()
    found, start = [], 0
    for last in sorted((rows.last.view(len(rows.texts), -1).amax(1) if rows.ends is None else rows.ends).tolist()):
        start = max(start, last - last % length)  # a row begins anew
        found.append((both[start : last + 1].tobytes(), slice(start, last + 1)))
        start = last + 1
    return found


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
    backbone.below = _below(backbone, len(layers) - count)
    rest = [weight for module in (backbone.model, head) for weight in module.parameters() if weight.requires_grad and id(weight) not in in_layers]
    return groups + ([{"params": rest, "lr": p.learning_rate, "name": "above the layers"}] if rest else [])


def _below(backbone, count: int) -> Below | None:
    """None where dropout is at work in the layers, which makes something else of a text each time, or where they are compiled."""
    dropout = any("drop" in key and isinstance(value, float) and value for key, value in backbone.model.config.get_text_config().to_dict().items())
    if not count or dropout or backbone.compiled:
        return None
    return backbone.known_below.setdefault(count, Below(backbone, count))


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
