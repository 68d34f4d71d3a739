"""A kind whose rows have several labels or none, `multi_label`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowres.tasks.classification import Classification, greedily

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import TaskFile

JOINED = "|"  # between the labels of a row, where they are written


class MultiLabel(Classification):
    """Several labels a row, or none: a tuple with 1 for each label that it has and 0 for the others. A label is given where its logit is above 0."""

    name, metric, loss, several, kept, form = "multi_label", "micro_f1", "sigmoid", True, "multi_label_classification", tuple
    without = {"method": ("distillation",), "adapt": ("pattern",), "loss": ("vocabulary",), "classifier": ("brought",), "scoring": ("likelihood",),
               "word_score": ("character", "unconditional"), "demonstrations": (), "calibrate": (), "choose": ()}

    def parts(self, cell: str, separator: str) -> list[str]:
        return [part.strip() for part in cell.split(separator) if part.strip()]

    def named_in(self, table: Table, spec: TaskFile) -> pd.Series:
        return table.text(spec.label, spec.separator).fillna("")

    def label(self, found: list[str | None], labels: list[str]) -> tuple[int, ...]:
        return tuple(int(label in found) for label in labels)

    def written(self, label: tuple[int, ...], labels: list[str]) -> str:
        return JOINED.join(itertools.compress(labels, label))

    def gold(self, rows: pd.DataFrame) -> np.ndarray:
        """(rows, labels): 0 and 1."""
        return np.array(rows["label"].tolist(), dtype=int)

    def counts(self, rows: pd.DataFrame, labels: int) -> np.ndarray:
        return self.gold(rows).sum(axis=0) if len(rows) else np.zeros(labels, int)

    def drawn(self, pool: pd.DataFrame, shots: int, stream: np.random.Generator, uneven: bool) -> list[int]:
        """Places in the pool, as `greedily` draws them; at each round's end a row without any label follows, while the pool has one."""
        return greedily(self.gold(pool), shots, stream, uneven, unlabelled=True)

    def options(self, labels: int) -> int:
        return 2**labels

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        """Micro-F1, by its name as `metric`; macro-F1, the share of rows with exactly the right labels, count, and the share of the commonest answer.

        The yardsticks beside them are `constant`, the micro-F1 of the best constant set of labels, and that set's macro-F1.
        """
        from sklearn.metrics import f1_score

        predicted, best = logits > 0, np.tile(self.best_constant(gold), (len(gold), 1))
        macro = lambda answer: float(f1_score(gold, answer, average="macro", zero_division=0))  # noqa: E731
        return {
            "metric": self.metric, self.metric: micro_f1(gold, predicted), "macro_f1": macro(predicted),
            "exact_match": float((gold == predicted).all(axis=1).mean()), "n": len(gold), "constant": micro_f1(gold, best),
            "constant_macro_f1": macro(best), "commonest_prediction": float(np.unique(predicted, axis=0, return_counts=True)[1].max() / len(gold)),
        }

    def best_constant(self, gold: np.ndarray) -> np.ndarray:
        """(labels,): the set of labels that has the highest micro-F1 if every row gets it. Of so many labels the commonest are the best, so that
        their numbers alone are tried."""
        counts = gold.sum(axis=0)
        order = np.argsort(-counts, kind="stable")
        scores = 2 * counts[order].cumsum() / (len(gold) * np.arange(1, len(counts) + 1) + max(counts.sum(), 1))
        best = np.zeros(len(counts), int)
        best[order[: scores.argmax() + 1]] = 1
        return best

    def constant(self, gold: np.ndarray) -> float:
        return micro_f1(gold, np.tile(self.best_constant(gold), (len(gold), 1)))

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        return {"metric": self.metric, self.metric: micro_f1(gold, logits > 0), "n": len(gold), "constant": self.constant(gold)}

    def chosen(self, logits: np.ndarray) -> np.ndarray:
        """(rows, labels): whether each is given."""
        return logits > 0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(logits)

    def stored(self, found: Sequence, labels: list[str]) -> list[str]:
        return [self.written(label, labels) for label in found]

    def named(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        return predictions.assign(**{name: predictions[name].replace("", "(none)") for name in ("label", "prediction")})

    def decisions(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """One a row and label: whether the label is there."""
        import pandas as pd

        parts = []
        for label in labels:
            told = lambda cells, label=label: [label if label in cell.split(JOINED) else f"not {label}" for cell in cells]  # noqa: E731
            parts.append(predictions[["set"]].assign(label=told(predictions["label"]), prediction=told(predictions["prediction"])))
        return pd.concat(parts, ignore_index=True)

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        return np.maximum(probabilities, 1 - probabilities).prod(axis=1)


def micro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Over all decisions, a row and label each: 2 TP / (2 TP + FP + FN). Where there is nothing to be found, and nothing is said, it is 0."""
    right = (gold * predicted).sum()
    return float(2 * right / max(1, gold.sum() + predicted.sum()))
