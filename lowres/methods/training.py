"""The one training loop. Every method trains by it; none resets a seed, and there is no framework around it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowres.files import BadInput
from lowres.models.batches import Inputs, lay, read
from lowres.tasks.shots import Streams

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CLIP = 1.0  # the gradient's norm is clipped at it, as transformers' Trainer does by default


class Diverged(BadInput):
    """A loss that is no number."""


@dataclass
class Training:
    """What one training left behind. losses: mean per example, one a step."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    tokens: int = 0
    trainable: int = 0
    skipped: int = 0  # weights below the lowest that trains: no gradient passes through them
    cut: int = 0  # texts that were too long
    found: dict[str, Any] = field(default_factory=dict)  # the method's own findings, for the record


@dataclass
class Outcome:
    """What a notebook's `trial` hands back: the labelled examples drawn, the training, the label logits by set."""

    shots: pd.DataFrame
    training: Training
    logits: dict[str, np.ndarray]
    extra: dict[str, Any] = field(default_factory=dict)  # the method's own findings, for the record
    classifier: Any = None  # scikit-learn's, of a baseline that may be kept
    read: int = 0  # tokens read besides, without a gradient: contexts, a teacher's inputs


def train(backbone, head: nn.Module, inputs: Inputs, p, streams: Streams, groups: list[dict] | None = None) -> Training:
    """Trains whatever requires a gradient in the backbone and the head (or the optimizer's parameter `groups`).

    AdamW, linear warm-up, then linear decay to 0; batches of `p.batch_size` in an order drawn anew each epoch.
    """
    torch.manual_seed(streams.dropout)
    backbone.trained = head, inputs.pattern
    if p.class_weights == "balanced":
        head.class_weights = balanced(inputs.labels).to(backbone.device)
    trainable = [w for module in (backbone.whole, head) for w in module.parameters() if w.requires_grad]
    # Fused: 0.03 s instead of 0.11 s a step on 135 million parameters.
    optimizer = torch.optim.AdamW(groups or [{"params": trainable}], lr=p.learning_rate, weight_decay=p.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(len(inputs), p))
    training = Training(trainable=sum(w.numel() for w in trainable), cut=inputs.cut)
    backbone.whole.train()
    for _ in range(p.epochs):
        order = streams.order.permutation(len(inputs))
        for start in range(0, len(order), p.batch_size):
            batch = inputs.take(order[start : start + p.batch_size])
            loss = 0.0
            for rows in lay(head, batch, backbone.device):  # gradients of a batch's parts add up to the batch's
                part = head.loss(read(backbone, rows), batch.labels[rows.texts].to(backbone.device)) / len(batch)
                part.backward()
                loss += part.item()
            must_be_finite(loss, "learning_rate", p.learning_rate, len(training.losses) + 1, steps(len(inputs), p))
            clip(trainable)
            training.learning_rates.append(schedule.get_last_lr()[-1])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            training.losses.append(loss)
            training.tokens += (sum(map(len, batch.ids)) if head.everywhere else batch.tokens) + len(batch) * sum(map(len, head.branches))
    return training


def balanced(labels: torch.Tensor) -> torch.Tensor:
    """A weight a class, (labels,): examples / (classes * examples of the class), as scikit-learn's "balanced" has it; 1 on average over examples.

    Of several labels a text, (texts, labels): of a label's texts that have it, so that they count as much as those that do not."""
    if labels.ndim == 2:
        return (len(labels) - labels.sum(0)) / labels.sum(0).clamp(min=1)
    counts = labels.bincount()
    return len(labels) / (len(counts) * counts)


def must_be_finite(loss: float, key: str, rate: float, step: int, last: int) -> None:
    """Raises Diverged for a loss that is no number: what such a model answers is its first label, and would count as a result."""
    if not math.isfinite(loss):
        raise Diverged(f"{key}: {rate:g}: the loss is {loss} at step {step} of {last}: the training has diverged")


def clip(weights: Iterable[nn.Parameter]) -> None:
    """Scales the gradients so that their norm is at most CLIP."""
    given = [weight for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in given])
    if not norm <= CLIP:  # else a pass over all gradients for nothing: 0.04 s of 0.76. One that is no number spoils all weights: the next loss tells
        nn.utils.clip_grads_with_norm_(given, CLIP, norm)


def steps(examples: int, p) -> int:
    return -(-examples // p.batch_size) * p.epochs


def warmup_steps(examples: int, p) -> int:
    """Never 0 as described. As coded, the authors divide the examples by the batch size and round down before all else:
    int(0.1 * (N // 32) * 40), so that a training set below one batch has no warm-up at all."""
    if p.fidelity == "as_coded":
        return int(p.warmup_ratio * (examples // p.batch_size) * p.epochs)
    total = steps(examples, p)
    return min(max(1, round(p.warmup_ratio * total)), total - 1)  # a warm-up's first step has rate 0: a single step gets none


def linear_schedule(examples: int, p):
    """Step -> the factor of the learning rate: up from 0 over the warm-up, then down to 0 at the end."""
    total, warmup = steps(examples, p), warmup_steps(examples, p)
    return lambda step: step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
