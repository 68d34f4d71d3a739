"""The kind of task that others are told beside, `classification`: what the label of a row is, which rows a draw takes, how label logits are answered,
scored and told.

A kind is one class, in a module of its own; `lowres.tasks.kinds` has them all. Who needs one of these asks `task.kind`; its loss and heads are in
`lowres.models.heads`. Logits are (rows, labels), and `gold` is what `Classification.gold` or its like makes of a frame's column `label`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowres.files import BadInput, near

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import Source, TaskFile

UNEVEN = 3
ALL_OTHERS = "*"  # in `relabel`: every value that is not named


class Classification:
    """One label a row: its index."""

    name, metric, loss, several = "classification", "accuracy", "softmax", False
    form: type | None = None  # what a label is, where that tells the kind
    kept = "single_label_classification"  # what transformers calls it where it is one row of logits a text; "": it is not, so no model can be kept
    # What has no meaning for this kind (yet), as `refuse` takes it.
    without: dict[str, tuple[str, ...]] = {"word_score": ("character", "unconditional")}

    def parts(self, cell: str, separator: str) -> list[str]:
        """The labels that a cell of the file names."""
        return [cell]

    def named_in(self, table: Table, spec: TaskFile) -> pd.Series:
        """Of each of a file's rows, the cell that names its label."""
        return table.text(spec.label).fillna("")

    def labels_in(self, table: Table, spec: TaskFile, source: Source) -> pd.Series:
        """Each row's label; None for one that is not asked for. Raises BadInput for a value that is no label."""
        values = self.named_in(table, spec)
        names = {"true": "True", "false": "False"} if {"True", "False"} <= set(spec.labels) else {}  # as Python writes what JSON writes small
        names |= {**{label: label for label in spec.labels}, **spec.relabel, **source.relabel}
        parts = {value: self.parts(value, spec.separator) for value in set(values)}
        if ALL_OTHERS in names:
            names = {found: names[ALL_OTHERS] for each in parts.values() for found in each if found.strip()} | names
        if unknown := sorted({found for each in parts.values() for found in each} - set(names)):
            row = int(values.map(lambda value: unknown[0] in parts[value]).idxmax())
            if not unknown[0].strip():
                raise BadInput(f"{table.where}: {spec.label}: is empty in {table.place(row)}")
            raise BadInput(f"{table.where}: {spec.label}: {unknown[0]!r} in {table.place(row)} is no label{near(unknown[0], names)}")
        coded = {value: self.label([names[found] for found in each], spec.labels) for value, each in parts.items()}
        return values.__class__([coded[value] for value in values], index=values.index, dtype=object)

    def arranged(self, rows: pd.DataFrame, spec: TaskFile) -> tuple[pd.DataFrame, list[str]]:
        """Rows as they are used, and what is to be said of them."""
        return rows, []

    def label(self, found: list[str | None], labels: list[str]) -> int | None:
        """What a row's `label` is, of the names in its cell; None for a row that is not asked for."""
        return None if found[0] is None else labels.index(found[0])

    def remarks(self, rows: pd.DataFrame) -> list[str]:
        """What a reader should know of a set's labels besides how they are spread."""
        return []

    def written(self, label: int, labels: list[str]) -> str:
        return labels[label]

    def blank(self, text: str) -> int:
        """The label of a row all of whose texts are `text`."""
        return 0

    def gold(self, rows: pd.DataFrame) -> np.ndarray:
        """(rows,): indices."""
        return rows["label"].to_numpy()

    def counts(self, rows: pd.DataFrame, labels: int) -> np.ndarray:
        """(labels,): rows of each."""
        return np.bincount(self.gold(rows), minlength=labels)

    def drawn(self, pool: pd.DataFrame, shots: int, stream: np.random.Generator, uneven: bool) -> list[int]:
        """Places in the pool: `shots` of each label, in turn."""
        found = []
        for label, rows in sorted(pool.groupby("label").indices.items()):
            enough(label, len(rows), shots, uneven)
            found.append(stream.permutation(rows)[:shots])
        return [row for each in itertools.zip_longest(*found) for row in each if row is not None]

    def options(self, labels: int) -> int:
        """How many answers there are: the loss of knowing nothing is the logarithm."""
        return labels

    def outputs(self, labels: list[str]) -> list[str]:
        """What the columns of logits are."""
        return labels

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
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
            "constant": self.constant(gold),
            "constant_macro_f1": float(f1_score(gold, np.full(len(gold), counts.argmax()), average="macro", zero_division=0)),
            "uneven": bool(counts.max() >= UNEVEN * counts[counts > 0].min()),
            "commonest_prediction": float(np.bincount(predicted).max() / len(predicted)),
        }

    def constant(self, gold: np.ndarray) -> float:
        """The accuracy of the best constant answer."""
        return float(np.bincount(gold).max() / len(gold))

    def ruled(self, gold: np.ndarray, shots: pd.DataFrame) -> dict[str, float]:
        """As `from_shots` the score of a fixed rule that a trial's examples make; empty where the kind has none but the constant answer."""
        return {}

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """What is told of a part of a set."""
        return {"accuracy": float((logits.argmax(axis=1) == gold).mean()), "n": len(gold), "constant": self.constant(gold)}

    def chosen(self, logits: np.ndarray) -> np.ndarray:
        """What logits answer, a row each."""
        return logits.argmax(axis=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(rows, labels): each label's."""
        from scipy.special import softmax

        return softmax(logits, axis=1)

    def answers(self, rows: pd.DataFrame, logits: np.ndarray, labels: list[str]) -> dict[str, np.ndarray]:
        """The columns `label` and `prediction` of the predictions that are kept."""
        return {"label": self.stored(rows["label"], labels), "prediction": self.answered(logits, labels)}

    def answered(self, logits: np.ndarray, labels: list[str]) -> np.ndarray | list[str]:
        """What logits answer, as predictions keep it."""
        return self.stored(self.chosen(logits), labels)

    def stored(self, found: Sequence, labels: list[str]) -> np.ndarray | list[str]:
        """Labels, a row each, as predictions keep them."""
        return np.asarray(found).astype("int16")

    def named(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """Kept predictions with labels by their names."""
        names = np.array(labels, dtype=object)
        return predictions.assign(label=names[predictions["label"]], prediction=names[predictions["prediction"]])

    def decisions(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """What was to be told apart and what was said, a line a decision: `set`, `label`, `prediction`, by their names."""
        return self.named(predictions, labels)

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        """(rows,): how probable the answers are."""
        return self.sure(self.probabilities(logits))

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        """The same, of (rows, labels)."""
        return probabilities.max(axis=1)


class Scale(Classification):
    """Labels that are steps, in their order, as ratings are: how far answers are off is told beside how many are right."""

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """As of labels, and the mean absolute error in steps; its yardstick is that of the best constant answer, a median."""
        return super().metrics(gold, logits) | {"mean_error": float(np.abs(logits.argmax(axis=1) - gold).mean()),
                                                "constant_mean_error": float(np.abs(gold - np.median(gold).round()).mean())}


def enough(label: int, rows: int, shots: int, uneven: bool) -> None:
    """Raises BadInput if a label has too few examples, unless it may give what it has."""
    if rows < shots and not uneven:
        raise BadInput(f"shots: {shots} is more than the {rows} examples that the pool has of label {label}")


def greedily(of_row: np.ndarray, shots: int, stream: np.random.Generator, uneven: bool, unlabelled: bool = False) -> list[int]:
    """Places of rows, of which each has so many examples of each label, (rows, labels), drawn greedily (Yang and Katiyar 2020, arXiv 2010.02405): in
    each of `shots` rounds every label, the rarest first, that has not as many examples as there were rounds gets its next row of the permuted ones;
    then, if asked for, one `unlabelled` follows, while there is one.

    So the draw of 2 shots is the first rows of that of 16, each label has at least `shots` examples, and a common one has more.
    """
    total, order = of_row.sum(axis=0), stream.permutation(len(of_row))
    for label, count in enumerate(total):
        enough(label, int(count), shots, uneven)
    waiting = {label: iter(order[of_row[order, label] > 0]) for label in np.argsort(total, kind="stable")}
    others = iter(order[of_row[order].sum(axis=1) == 0] if unlabelled else ())
    found: dict[int, None] = {}  # in the order in which they are drawn
    have = np.zeros(len(total), int)
    for nth in range(1, shots + 1):
        for label, rows in waiting.items():
            if have[label] < nth and (row := next((row for row in rows if row not in found), None)) is not None:
                found[row] = None
                have += of_row[row]
        if (row := next(others, None)) is not None:
            found[row] = None
    return list(found)
