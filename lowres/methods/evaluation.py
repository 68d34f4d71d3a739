"""Label logits on evaluation sets, and what they are worth beside their yardsticks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowres.models.batches import Inputs, pack

if TYPE_CHECKING:
    import pandas as pd


UNEVEN = 3
BUDGET = 4096  # tokens in one forward pass, when no gradient is kept


@torch.inference_mode()
def predict(backbone, head, sets: dict[str, Inputs], cache=None) -> dict[str, np.ndarray]:
    """Label logits (rows, labels) of every set, in one sorted pass over all of them.

    `cache`: what stands in front of every text, from `Backbone.encode_context`; the texts are then without the backbone's prefix.
    """
    ids = [text for inputs in sets.values() for text in inputs.ids]
    if head.branches:
        logits = last_states(backbone, ids, cache, head)
    else:
        logits = head.logits(last_states(backbone, ids, cache))
    logits = logits.float().cpu().numpy()
    ends = np.cumsum([len(inputs) for inputs in sets.values()])
    return dict(zip(sets, np.split(logits, ends[:-1])))


@torch.inference_mode()
def last_states(backbone, ids: list[list[int]], cache=None, head=None) -> torch.Tensor:
    """The final hidden state at each text's last token, without dropout: (texts, width).

    With a `head` that reads behind the text, its label logits instead, (texts, labels): the states would be too many to keep.
    """
    backbone.whole.eval()
    states = torch.empty(len(ids), len(head.ids) if head else backbone.width, device=backbone.device)
    before, branches = cache[0][0].shape[2] if cache else 0, head.branches if head else ()
    for rows in pack(ids, backbone.device, before, BUDGET, branches):
        states[rows.texts] = head.logits(backbone.hidden(rows, cache)) if head else backbone.hidden(rows, cache)
    return states


def metrics(gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy, Matthews correlation, macro-F1, count, and the share of the label that is predicted most.

    The yardsticks beside them are `constant`, the accuracy of always predicting the set's commonest label, and its macro-F1. Where the commonest
    label has UNEVEN times the rarest one's rows, macro-F1 is what to look at first.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, counts = logits.argmax(axis=1), np.bincount(gold)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "mcc": float(matthews_corrcoef(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0)),
        "n": len(gold),
        "constant": constant_accuracy(gold),
        "constant_macro_f1": float(f1_score(gold, np.full(len(gold), counts.argmax()), average="macro", zero_division=0)),
        "uneven": bool(counts.max() >= UNEVEN * counts[counts > 0].min()),
        "commonest_prediction": float(np.bincount(predicted).max() / len(predicted)),
    }


def constant_accuracy(gold: np.ndarray) -> float:
    return float(np.bincount(gold).max() / len(gold))


def evaluated(task, logits: dict[str, np.ndarray]) -> dict[str, dict]:
    """Per evaluation set: its domain, metrics, and accuracy, count and constant accuracy by each break-down the task file names."""
    result = {}
    for name, rows in task.evaluation.items():
        gold = rows["label"].to_numpy()
        by = [column if column != "label" else "gold" for column in task.file.evaluation[name].break_down_by]
        result[name] = {"domain": task.file.evaluation[name].domain, **metrics(gold, logits[name]), "by": {}}
        right = logits[name].argmax(axis=1) == gold
        for group, part in rows[by].reset_index(drop=True).groupby(by) if by else []:
            scores = {"accuracy": float(right[part.index].mean()), "n": len(part), "constant": constant_accuracy(gold[part.index])}
            result[name]["by"]["/".join(map(str, group))] = scores
    return result


def predictions(task, logits: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """One line a prediction, with no text: trial, set, row, label, prediction, a logit a label."""
    import pandas as pd

    parts = []
    for name, rows in task.evaluation.items():
        parts.append(pd.DataFrame({
            "trial": seed, "set": name, "row": rows.index, "label": rows["label"].to_numpy(), "prediction": logits[name].argmax(axis=1),
            **{f"logit_{label}": logits[name][:, i] for i, label in enumerate(task.labels)},
        }))
    return pd.concat(parts, ignore_index=True).astype({"row": "int32", "label": "int16", "prediction": "int16"})


def scored(task, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """For the key `also` of an outcome's `extra`: metrics, and what tells equal results."""
    outcome = hashlib.sha256(b"".join(part.tobytes() for part in logits.values())).hexdigest()[:16]
    return {"sets": evaluated(task, logits), "outcome_sha256": outcome}
