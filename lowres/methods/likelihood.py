"""How probable a text is to the frozen backbone, and a threshold on it: what a language model knows of grammar without a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.models.batches import Inputs, encode, pack
from lowres.tasks.shots import draw

BUDGET = 2048  # tokens in one forward pass
PIECE = 256  # tokens whose logits over the whole vocabulary are held at a time: 50 MB for 50,000 words


@torch.inference_mode()
def token_log_probability(backbone, inputs: Inputs) -> np.ndarray:
    """Each text's mean log-probability a token, (texts,): transformers' own loss, negated. A first token with nothing before it has none."""
    backbone.model.eval()
    result = np.zeros(len(inputs), np.float64)
    for rows in pack(inputs.ids, backbone.device, budget=BUDGET):
        lengths = [len(inputs.ids[i]) - 1 for i in rows.texts]  # every token but the last says what comes next
        before = torch.cat([torch.arange(end - n, end) for end, n in zip(rows.last.tolist(), lengths)]).to(backbone.device)
        following = rows.ids.flatten()[before + 1]
        hidden = backbone.hidden(replace(rows, last=before))
        parts = [-F.cross_entropy(h @ backbone.output.T, t, reduction="none") for h, t in zip(hidden.split(PIECE), following.split(PIECE))]
        for i, part in zip(rows.texts, torch.cat(parts).split(lengths)):
            result[i] = part.double().mean().item() if len(part) else 0.0
    return result


@dataclass
class Threshold:
    """A text is of label `above` if its score is higher than `at`, else of the other of two."""

    at: float
    above: int

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """(texts, 2): the distance to the threshold, with either sign. On the threshold itself the lower label wins."""
        margin = np.asarray(scores) - self.at
        return np.stack([-margin, margin] if self.above == 1 else [margin, -margin], axis=1).astype(np.float32)


def fit_threshold(scores: np.ndarray, labels: np.ndarray) -> Threshold:
    """The cut between two labels' scores with the most shots on the right side.

    Above it lies the label whose shots score higher on average (label 1 if neither does). Candidates are the midpoints of neighbouring
    scores; of equally good ones the middle one is taken (of two middle ones the lower), and if all scores are equal, that score.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    above = int(scores[labels == 1].mean() >= scores[labels == 0].mean())
    values = np.unique(scores)
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    right = np.array([np.sum((scores > cut) == (labels == above)) for cut in cuts])
    best = cuts[right == right.max()]
    return Threshold(float(best[(len(best) - 1) // 2]), above)


def scores(run) -> dict[str, np.ndarray]:
    """The plain texts' mean log-probability a token, by evaluation set of a notebook's `run`."""
    plain, p = run.task.file.patterns["plain"], run.parameters
    sets = {name: encode(run.backbone, rows, plain, p.max_length) for name, rows in run.task.evaluation.items()}
    return {name: token_log_probability(run.backbone, inputs) for name, inputs in sets.items()}


def answer(run, scored: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], dict]:
    """Label logits by set, from a threshold that the seed's shots give; and that threshold, for the record."""
    plain, p = run.task.file.patterns["plain"], run.parameters
    shots = draw(run.task.pool, p.shots, seed, p.uneven)
    threshold = fit_threshold(token_log_probability(run.backbone, encode(run.backbone, shots, plain, p.max_length)), shots["label"].to_numpy())
    return {name: threshold.logits(part) for name, part in scored.items()}, {"threshold": vars(threshold)}


def check_likelihood(spec) -> None:
    """Raises BadInput for a task whose labels a threshold on one text's likelihood cannot tell apart."""
    if len(spec.text) > 1:
        raise BadInput(f"scoring: 'likelihood' is of one text, and the task {spec.name!r} has {len(spec.text)} ({', '.join(spec.text)})")
    if len(spec.labels) != 2:
        raise BadInput(f"scoring: 'likelihood' tells two labels apart, and the task {spec.name!r} has {len(spec.labels)}")


def check(p) -> None:
    """What in-context learning asks besides, by likelihood. Raises BadInput."""
    from lowres.tasks.task_file import read_task

    if p.scoring == "likelihood":
        check_likelihood(read_task(p.task))
