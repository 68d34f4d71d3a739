"""What stands in front of an input: labelled demonstrations or an instruction, read by the backbone once.

A demonstration is a text in the same pattern as the input, its label word (the very tokens that the head compares), and an empty line. The
context's keys and values are then shared by all inputs (`Backbone.encode_context`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lowres.files import BadInput
from lowres.tasks.task_file import TaskFile, filled

if TYPE_CHECKING:
    import pandas as pd

    from lowres.models.batches import Inputs


SEPARATOR = "\n\n"
CONTENT_FREE = "N/A"  # Zhao et al. 2021


@dataclass
class Context:
    """tokens: with the backbone's prefix in front. rows: the pool rows of the demonstrations, in their order."""

    tokens: list[int]
    rows: list[int] = field(default_factory=list)
    per_label: int = 0

    def described(self) -> dict:
        """For the record."""
        return {"per_label": self.per_label, "rows": self.rows, "tokens": len(self.tokens)}


def without_prefix(backbone, inputs: Inputs) -> Inputs:
    """The same texts without the backbone's prefix, to stand behind a context."""
    from lowres.models.batches import Inputs

    return Inputs([ids[len(backbone.prefix):] for ids in inputs.ids], inputs.labels, inputs.cut)


def longest(sets: dict[str, Inputs]) -> int:
    """Tokens of the longest input."""
    return max(len(ids) for inputs in sets.values() for ids in inputs.ids)


def longest_word(backbone, words: list[str]) -> int:
    """How many tokens are read behind an input to tell its label: those of the longest label word but its last."""
    from lowres.models.heads import tokens_after_text

    return max(len(tokens_after_text(backbone.tokenizer, word)) for word in words) - 1


def demonstrated(
    backbone, shots: pd.DataFrame, order: np.ndarray, pattern: str, words: list[str], most: int | str, max_length: int, room: int
) -> Context:
    """As many demonstrations of each label as there are, as `most` asks for and as leave `room` tokens for an input.

    They are the first of the draw (so 16 contain the 2), in the order of `order`, a number a shot. Raises BadInput if not one a label fits.
    """
    from lowres.models.batches import encode
    from lowres.models.heads import tokens_after_text

    answers, end = [tokens_after_text(backbone.tokenizer, word) for word in words], tokens_after_text(backbone.tokenizer, SEPARATOR)
    room += longest_word(backbone, words)
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
    raise BadInput(
        f"demonstrations: not even one of each label fits: with the longest input of {room} tokens they take {len(tokens) + room}, "
        f"and {backbone.name!r} reads {backbone.context_length}"
    )


def instructed(backbone, spec: TaskFile, words: list[str], room: int) -> Context:
    """The task file's instruction as a context. Raises BadInput if it and the longest input do not fit."""
    tokens = backbone.prefix + backbone.tokenize([instruction(spec, words) + SEPARATOR])[0]
    room += longest_word(backbone, words)
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
    from lowres.methods.evaluation import predict

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

    return pd.DataFrame([{**dict.fromkeys(spec.text, CONTENT_FREE), "label": 0}])


def content_free(backbone, spec: TaskFile, pattern: str) -> Inputs:
    """The same as an input, in a pattern."""
    from lowres.models.batches import encode

    return encode(backbone, empty_example(spec), pattern, backbone.context_length)


def calibrated(logits: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): p(y | x) / p(y | "N/A"), normalised; as log-probabilities."""
    from scipy.special import log_softmax

    return log_softmax(log_softmax(logits, axis=1) - log_softmax(content_free, axis=1), axis=1)
