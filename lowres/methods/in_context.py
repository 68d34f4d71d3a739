"""In-context learning: what stands in front of an input (labelled demonstrations or an instruction, read by the backbone once); and, without a
prompt, how probable the text itself is, and a threshold on that.

A demonstration is a text in the same pattern as the input, its label word (the very tokens that the head compares), and an empty line. The
context's keys and values are then shared by all inputs (`Backbone.encode_context`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.methods.evaluation import predict
from lowres.models.batches import Inputs, encode, pack
from lowres.models.heads import PIECE, read_behind
from lowres.models.inputs import tokens_after_text
from lowres.tasks.kinds import kind_of_file
from lowres.tasks.shots import draw
from lowres.tasks.task_file import CHOICE, TaskFile, filled, read_task

if TYPE_CHECKING:
    import pandas as pd


SEPARATOR = "\n\n"
CONTENT_FREE = "N/A"  # Zhao et al. 2021
BUDGET = 2048  # tokens in one forward pass


@dataclass
class Context:
    """tokens: with the backbone's prefix in front. rows: the pool rows of the demonstrations, in their order. without: labels that have none."""

    tokens: list[int]
    rows: list[int] = field(default_factory=list)
    per_label: int = 0
    without: int = 0

    def described(self) -> dict:
        """For the record."""
        return {"per_label": self.per_label, "rows": self.rows, "tokens": len(self.tokens)} | ({"without": self.without} if self.without else {})

    def sentence(self) -> str:
        """For the reader."""
        shown = "an instruction" if not self.rows else f"{self.per_label} demonstrations of each label fit" if not self.without else \
            f"one demonstration of each of {len(self.rows)} labels fits ({self.without} labels have none)"
        return f"{shown}, {len(self.tokens):,} tokens"


def without_prefix(backbone, inputs: Inputs) -> Inputs:
    """The same texts without the backbone's prefix, to stand behind a context."""
    return Inputs([ids[len(backbone.prefix):] for ids in inputs.ids], inputs.labels, inputs.cut, choices=inputs.choices)


def longest(sets: dict[str, Inputs]) -> int:
    """Tokens of the longest input."""
    return max(len(ids) for inputs in sets.values() for ids in inputs.ids)


def demonstrated(
    backbone, shots: pd.DataFrame, order: np.ndarray, pattern: str, words: list[str], most: int | str, max_length: int, room: int
) -> Context:
    """As many demonstrations of each label as there are, as `most` asks for and as leave `room` tokens for an input.

    They are the first of the draw (so 16 contain the 2), in the order of `order`, a number a shot. Where not one a label fits, one of each label that
    still fits, in that order; where that is one alone, of the labels whose texts are shortest. Raises BadInput if there are not two.
    """
    answers, end = [tokens_after_text(backbone.tokenizer, word) for word in words], tokens_after_text(backbone.tokenizer, SEPARATOR)
    room += max(read_behind(backbone.tokenizer, words))
    labels = shots["label"].to_numpy()
    texts = without_prefix(backbone, encode(backbone, shots, pattern, max_length)).ids
    pieces = [text + answers[label] + end for text, label in zip(texts, labels)]
    nth = shots.groupby("label").cumcount().to_numpy()  # how many of its label stand before it
    available = int(np.bincount(labels, minlength=len(words)).min())
    wanted = available if most == "all" else min(most, available)
    for per_label in range(wanted, 0, -1):
        chosen = [i for i in np.argsort(order) if nth[i] < per_label]
        tokens = sum((pieces[i] for i in chosen), list(backbone.prefix))
        if len(tokens) + room <= backbone.context_length:
            return Context(tokens, [int(row) for row in shots.index[chosen]], per_label)
    if not wanted:
        raise BadInput(f"demonstrations: {most!r} of each label cannot be had from these {len(shots)} shots: a label has none")
    first = [i for i in np.argsort(order) if nth[i] == 0]
    for by in (first, sorted(first, key=lambda i: len(pieces[i]))):
        some, left = set(), backbone.context_length - len(backbone.prefix) - room
        for i in by:
            if len(pieces[i]) <= left:
                some, left = some | {i}, left - len(pieces[i])
        if len(some) > 1:
            chosen = [i for i in first if i in some]
            tokens = sum((pieces[i] for i in chosen), list(backbone.prefix))
            return Context(tokens, [int(row) for row in shots.index[chosen]], 1, len(words) - len(chosen))
    needed = sum(len(pieces[i]) for i in first) + len(backbone.prefix) + room
    raise BadInput(f"demonstrations: not even one of each label fits: with the longest input of {room} tokens they take {needed}, "
                   f"and {backbone.name!r} reads {backbone.context_length}")


def instructed(backbone, spec: TaskFile, words: list[str], room: int) -> Context:
    """The task file's instruction as a context. Raises BadInput if it and the longest input do not fit."""
    tokens = backbone.prefix + backbone.tokenize([instruction(spec, words) + SEPARATOR])[0]
    room += max(read_behind(backbone.tokenizer, words))
    if len(tokens) + room > backbone.context_length:
        raise BadInput(f"context: instruction and longest input take {len(tokens) + room} tokens; {backbone.name!r} reads {backbone.context_length}")
    return Context(tokens)


def instruction(spec: TaskFile, words: list[str]) -> str:
    """The instruction with the label words in it. Raises BadInput if the task has none."""
    if not spec.instruction:
        raise BadInput(f"context: 'instruction' asks for the key `instruction` in the task file of {spec.name!r}, which has none")
    return filled(spec.instruction, {label: word.strip() for label, word in zip(spec.labels, words)})


def predict_after(
    backbone, head, sets: dict[str, Inputs], contexts: list[Context], which: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What `evaluation.predict` says of the (bare) inputs, each behind its context. Every context is read once.

    `which`: for a set, the number of each input's context; where it says nothing, inputs take turns.
    """
    turns = {name: np.arange(len(inputs)) % len(contexts) for name, inputs in sets.items()} | (which or {})
    logits: dict[str, np.ndarray] = {}
    for number, context in enumerate(contexts):
        index = {name: np.flatnonzero(turn == number) for name, turn in turns.items()}
        parts = predict(backbone, head, {name: inputs.take(index[name]) for name, inputs in sets.items()}, backbone.encode_context(context.tokens))
        for name, part in parts.items():
            logits.setdefault(name, np.empty((len(sets[name]), part.shape[1]), part.dtype))[index[name]] = part
    return logits


def empty_example(spec: TaskFile) -> pd.DataFrame:
    """A row that says nothing: every text column is "N/A"."""
    import pandas as pd

    return pd.DataFrame([{**dict.fromkeys(spec.text, CONTENT_FREE), "label": kind_of_file(spec).blank(CONTENT_FREE)}])


def content_free(backbone, spec: TaskFile, pattern: str) -> Inputs:
    """The same as an input, in a pattern."""
    return encode(backbone, empty_example(spec), pattern, backbone.context_length)


def calibrated(logits: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): p(y | x) / p(y | "N/A"), normalised; as log-probabilities."""
    from scipy.special import log_softmax

    return log_softmax(log_softmax(logits, axis=1) - log_softmax(content_free, axis=1), axis=1)


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


def likelihoods(run) -> dict[str, np.ndarray]:
    """The plain texts' mean log-probability a token, by evaluation set of a notebook's `run`."""
    plain, p = run.task.file.patterns["plain"], run.parameters
    sets = {name: encode(run.backbone, rows, plain, p.max_length) for name, rows in run.task.evaluation.items()}
    return {name: token_log_probability(run.backbone, inputs) for name, inputs in sets.items()}


def answer_by_likelihood(run, scored: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], dict]:
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
    if p.scoring == "likelihood":
        check_likelihood(read_task(p.task))
    if p.word_score == "unconditional" and read_task(p.task).pattern(p.pattern) == f"{{{CHOICE}}}":
        raise BadInput("word_score: 'unconditional' takes off what a choice scores alone, and in this pattern it stands alone")
