"""Training as lowres does it follows the plain way's losses: packed against padded, autocast against float32."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from lowres.methods.training import steps, train, warmup_steps
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode
from lowres.models.heads import Verbalizer
from lowres.parameters import PBFT
from lowres.tasks.shots import Streams

WORDS = [" No", " Yes"]
P = PBFT(shots=16, epochs=12, batch_size=8, learning_rate=2e-3)
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04}  # of a loss that begins near 0.7: the largest difference in any of 48 steps


def texts() -> pd.DataFrame:
    """32 texts of 5 to 60 tokens, whose label can be learnt: it says which of two people comes first."""
    people = ["nurse", "pilot"]
    line = "The {} praised the {}" + " and the children were playing in the garden"
    return pd.DataFrame([{"sentence": line.format(people[i % 2], people[1 - i % 2])[: 30 + 2 * i], "label": i % 2} for i in range(32)])


def prepared(folder: str, precision: str):
    """A backbone without dropout, whose masks no two ways of training could share."""
    backbone = load_backbone(folder, precision=precision)
    for module in backbone.model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return backbone, encode(backbone, texts(), "{sentence} ?", 128)


def losses_of_lowres(folder: str, precision: str, seed: int = 0) -> np.ndarray:
    backbone, inputs = prepared(folder, precision)
    return np.array(train(backbone, Verbalizer(backbone, WORDS), inputs, P, Streams(seed)).losses)


def losses_of_the_plain_way(folder: str, seed: int = 0) -> np.ndarray:
    """transformers' own model on padded batches, in float32 with eager attention; every logit computed, one label's loss taken."""
    backbone, inputs = prepared(folder, "float32")
    model, order, losses = backbone.model.train(), Streams(seed).order, []
    words = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(backbone.tokenizer.tokenize("".join(WORDS))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=P.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps(32, P), steps(32, P))
    for _ in range(P.epochs):
        for batch in np.split(order.permutation(32), 4):
            padded = backbone.tokenizer.pad({"input_ids": [inputs.ids[i] for i in batch]}, padding_side="right", return_tensors="pt")
            logits = model(**padded).logits[torch.arange(8), padded["attention_mask"].sum(1) - 1][:, words]
            loss = torch.nn.functional.cross_entropy(logits, inputs.labels[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return np.array(losses)


@pytest.fixture(scope="module")
def curves(tiny_model) -> list[np.ndarray]:
    """Of two seeds, in the plain way."""
    return [losses_of_the_plain_way(tiny_model, seed) for seed in (0, 1)]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_loss_curve_is_that_of_padded_float32_training_and_nearer_than_another_seeds(tiny_model, curves, precision):
    plain, other = curves
    ours = losses_of_lowres(tiny_model, precision)
    assert plain[-8:].mean() < plain[:8].mean() / 2, "there is something to learn"
    assert np.abs(ours - plain).max() < TOLERANCE[precision] < np.abs(other - plain).max()
