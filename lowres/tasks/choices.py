"""A kind whose labels are places of a row's own choices, `multiple_choice`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowres.tasks.classification import Classification
from lowres.tasks.task_file import choice_columns

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import TaskFile

ORDER = "choices, order 0"  # the seed of the order in which a row's choices stand


class MultipleChoice(Classification):
    """One of a row's choices is right: its place is the label. Choices are texts; each is scored in the pattern, and the answer is the highest."""

    name, loss, kept = "multiple_choice", "choice", ""
    without = {"method": ("distillation", "baselines"), "adapt": ("pattern", "corpus"), "loss": ("vocabulary",), "word_score": ("first",),
               "scoring": ("likelihood",), "class_weights": ("balanced",), "label_words": (), "demonstrations": (), "calibrate": (), "choose": ()}

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """As of labels; but places are no classes that could be uneven: accuracy is what to look at."""
        return super().metrics(gold, logits) | {"uneven": False}

    def named_in(self, table: Table, spec: TaskFile) -> pd.Series:
        if not spec.right:
            return super().named_in(table, spec)
        return table.text(spec.right).map(lambda _: spec.labels[spec.choices.index(spec.right)])

    def arranged(self, rows: pd.DataFrame, spec: TaskFile) -> tuple[pd.DataFrame, list[str]]:
        """Without rows in which another choice is the same as the right one. Where one column has the right choice of every row, each row's choices
        stand in an order that its texts decide alone, whichever is right: a constant answer is at chance."""
        names = choice_columns(rows)
        choices, right = rows[names].to_numpy(object), rows["label"].to_numpy(int)
        kept = np.array([list(map(str.strip, row)).count(row[i].strip()) == 1 for row, i in zip(choices, right)], bool)
        rows, choices, right = rows[kept].copy(), choices[kept], right[kept]
        if spec.right and len(rows):
            about = rows[[name for name in spec.text if name not in names]].to_numpy(object)
            orders = np.array([in_order(texts, row) for texts, row in zip(about, choices)])
            rows[names], rows["label"] = np.take_along_axis(choices, orders, axis=1), (orders == right[:, None]).argmax(axis=1)
        dropped = int((~kept).sum())
        return rows, [f"{dropped:,} of {len(kept):,} rows dropped, in which another choice is the same as the right one"] if dropped else []


def in_order(about: Sequence[str], choices: Sequence[str]) -> list[int]:
    """Places of choices, by SHA-256 of each behind all of the row's texts: those of another row say nothing of this one's."""
    row = "\x1f".join([ORDER, *about, *sorted(choices)])
    return sorted(range(len(choices)), key=lambda i: hashlib.sha256(f"{row}\x1f\x1f{choices[i]}".encode()).digest())
