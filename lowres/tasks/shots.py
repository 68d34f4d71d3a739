"""Which labelled examples a trial sees, and where its randomness comes from.

The paper's runs reset every seed to 42 and so repeated one run ten times. Here a seed spawns independent streams
(`numpy.random.SeedSequence`), nothing reads a global generator that something else may have set, and the draw's
checksum goes into the record, so that equal trials are seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowres.tasks.kinds import kind_of

CLOSE = 0.1  # a mean over n of N rows drawn without replacement spreads sqrt(1 - n / N) times as much as over new ones: 5 % less


@dataclass
class Streams:
    """The independent randomness of one trial, by use."""

    seed: int

    def __post_init__(self) -> None:
        shots, weights, order, dropout, unlabelled, demonstrations, teacher, folds = np.random.SeedSequence(self.seed).spawn(8)
        self.shots = np.random.default_rng(shots)
        self.order = np.random.default_rng(order)
        self.unlabelled = np.random.default_rng(unlabelled)
        self.demonstrations = np.random.default_rng(demonstrations)  # their order in a prompt
        self.folds = np.random.default_rng(folds)
        self.weights = int(weights.generate_state(1)[0])  # seeds for torch's own generators
        self.dropout = int(dropout.generate_state(1)[0])
        self.teacher = int(teacher.generate_state(1)[0])  # as coded, a teacher has new weights, too


def draw(pool: pd.DataFrame, shots: int, seed: int, uneven: bool = False) -> pd.DataFrame:
    """`shots` examples of each label from the pool, alternating labels: a frame of (shots * labels) rows. Where rows may have several labels, at
    least so many of each (`several.MultiLabel.drawn`).

    Depends on the seed and the pool alone, so every method sees the same examples. Draws are nested: those of 2 shots
    are the first of those of 16. Raises BadInput if a label has too few examples, unless `uneven`: then it gives what it has.
    """
    return pool.iloc[kind_of(pool).drawn(pool, shots, Streams(seed).shots, uneven)]


def fewest(pool: pd.DataFrame) -> int:
    """Rows of the rarest label."""
    counts = kind_of(pool).counts(pool, 1)
    return int(counts[counts > 0].min())


def in_common(rows: int, shots: int | str) -> float:
    """The share of its examples that a draw has in common with another, on average, of a label with so many rows."""
    return 1.0 if shots == "all" else min(1.0, shots / rows)


def close_draws(share: float) -> str:
    """A sentence where two draws have so much in common that an interval over them, which takes them for independent, is too narrow."""
    if share <= CLOSE:
        return ""
    return (f"Two draws have on average {share:.0%} of their examples in common, since the pool is small: intervals over seeds are too narrow "
            "for new examples")


def checksum(examples: pd.DataFrame) -> str:
    """Sixteen hexadecimal digits that name a draw: its rows, their texts and labels, in order."""
    return hashlib.sha256(examples.to_csv(index=True).encode()).hexdigest()[:16]
