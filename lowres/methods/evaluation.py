"""Label logits on evaluation sets, and what they are worth beside their yardsticks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowres.methods.search import found_spans
from lowres.models import store
from lowres.models.batches import pack, read
from lowres.models.inputs import Choices, Inputs, unconditional

if TYPE_CHECKING:
    import pandas as pd

BUDGET = 4096  # tokens in one forward pass, when no gradient is kept


@torch.inference_mode()
def predict(backbone, head, sets: dict[str, Inputs], cache=None) -> dict[str, np.ndarray]:
    """Label logits (rows, labels) of every set, in one sorted pass over all of them.

    `cache`: what stands in front of every text, from `Backbone.encode_context`; the texts are then without the backbone's prefix.
    """
    if any(inputs.answers for inputs in sets.values()):
        backbone.whole.eval()
        return {name: found_spans(backbone, head, inputs, BUDGET).numpy() for name, inputs in sets.items()}
    ids, choices = [text for inputs in sets.values() for text in inputs.ids], [row for inputs in sets.values() for row in inputs.choices]
    if head.branches or choices:
        logits = last_states(backbone, ids, cache, head, choices)
        if getattr(head, "score", "") == "unconditional":
            logits -= last_states(backbone, unconditional(backbone, ids, choices), None, head, choices)
    else:
        logits = head.logits(last_states(backbone, ids, cache))
    logits = logits.float().cpu().numpy()
    ends = np.cumsum([len(inputs) for inputs in sets.values()])
    return dict(zip(sets, np.split(logits, ends[:-1])))


@torch.inference_mode()
def last_states(backbone, ids: list[list[int]], cache=None, head=None, choices: Sequence[Choices] = ()) -> torch.Tensor:
    """The final hidden state at each text's last token, without dropout: (texts, width). Of a backbone as it came they may have been kept.

    With a `head` that reads behind the text, or of texts with `choices`, its label logits instead, (texts, labels): the states would be too many.
    """
    if not head:
        return store.states(backbone, ids, cache, lambda: _read_all(backbone, ids, cache, None, ()), BUDGET)
    return _read_all(backbone, ids, cache, head, choices)


def _read_all(backbone, ids: list[list[int]], cache, head, choices: Sequence[Choices]) -> torch.Tensor:
    backbone.whole.eval()
    states = torch.empty(len(ids), head.labels if head else backbone.width, device=backbone.device)
    before, branches = cache[0][0].shape[2] if cache else 0, head.branches if head else ()
    for rows in pack(ids, backbone.device, before, BUDGET, branches, choices, bool(head and head.whole)):
        states[rows.texts] = head.logits(read(backbone, rows, cache)) if head else backbone.hidden(rows, cache)
    return states


def evaluated(task, logits: dict[str, np.ndarray], shots: pd.DataFrame | None = None) -> dict[str, dict]:
    """Per evaluation set: its domain, the kind's metrics, what a rule made of the shots gets, where they are given and the kind has such; and score,
    count and yardstick by each break-down the task file names."""
    result = {}
    for name, rows in task.evaluation.items():
        gold = task.kind.gold(rows)
        by = [column if column != "label" else "gold" for column in task.file.evaluation[name].break_down_by]
        result[name] = {"domain": task.file.evaluation[name].domain, **task.kind.metrics(gold, logits[name]), "by": {}}
        result[name] |= task.kind.ruled(gold, shots) if shots is not None else {}
        for group, part in rows[by].reset_index(drop=True).groupby(by) if by else []:
            result[name]["by"]["/".join(map(str, group))] = task.kind.part(gold[part.index], logits[name][part.index])
    return result


def predictions(task, logits: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """One line a prediction, with no text: trial, set, row, label, prediction, a logit a label (or what else the kind's are)."""
    import pandas as pd

    parts = []
    for name, rows in task.evaluation.items():
        parts.append(pd.DataFrame({
            "trial": seed, "set": name, "row": rows.index, **task.kind.answers(rows, logits[name], task.labels),
            **{f"logit_{what}": logits[name][:, i] for i, what in enumerate(task.kind.outputs(task.labels))},
        }))
    return pd.concat(parts, ignore_index=True).astype({"row": "int32"})


def scored(task, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """For the key `also` of an outcome's `extra`: metrics, and what tells equal results."""
    outcome = hashlib.sha256(b"".join(part.tobytes() for part in logits.values())).hexdigest()[:16]
    return {"sets": evaluated(task, logits), "outcome_sha256": outcome}
