"""What a task's kind decides: what the label of a row is, which rows a draw takes, how label logits are answered, scored and told.

A kind is one class here. Who needs one of these asks `task.kind`; its loss and heads are in `lowres.models.heads`. Logits are (rows, labels), and
`gold` is what `Classification.gold` or its like makes of a frame's column `label`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowres.files import BadInput, near
from lowres.tasks.spans import Answer, Extraction
from lowres.tasks.tags import Tagged, Tagging
from lowres.tasks.task_file import choice_columns

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import Source, TaskFile

UNEVEN = 3
ORDER = "choices, order 0"  # the seed of the order in which a row's choices stand
JOINED = "|"  # between the labels of a row, where they are written
ALL_OTHERS = "*"  # in `relabel`: every value that is not named


class Classification:
    """One label a row: its index."""

    name, metric, loss, several = "classification", "accuracy", "softmax", False
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
        return {"label": self.stored(rows["label"], labels), "prediction": self.stored(self.chosen(logits), labels)}

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


class MultiLabel(Classification):
    """Several labels a row, or none: a tuple with 1 for each label that it has and 0 for the others. A label is given where its logit is above 0."""

    name, metric, loss, several, kept = "multi_label", "micro_f1", "sigmoid", True, "multi_label_classification"
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
        """Places in the pool, greedily: in each of `shots` rounds every label, the pool's rarest first, that has not as many rows as there were
        rounds gets its next row of the permuted pool; then a row without any label follows, while the pool has one.

        So the draw of 2 shots is the first rows of that of 16, each label has at least `shots` rows, and a common one has more.
        """
        gold, order = self.gold(pool), stream.permutation(len(pool))
        for label, count in enumerate(gold.sum(axis=0)):
            enough(label, int(count), shots, uneven)
        waiting = {label: iter(order[gold[order, label] == 1]) for label in np.argsort(gold.sum(axis=0), kind="stable")}
        unlabelled = iter(order[gold[order].sum(axis=1) == 0])
        found: dict[int, None] = {}  # in the order in which they are drawn
        have = np.zeros(gold.shape[1], int)
        for nth in range(1, shots + 1):
            for label, rows in waiting.items():
                if have[label] < nth and (row := next((row for row in rows if row not in found), None)) is not None:
                    found[row] = None
                    have += gold[row]
            if (row := next(unlabelled, None)) is not None:
                found[row] = None
        return list(found)

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


SCALE = Scale()  # a classification whose file says `scale`
KINDS = {kind.name: kind for kind in (Classification(), MultiLabel(), MultipleChoice(), Extraction(), Tagging())}
FORMS = {tuple: "multi_label", Answer: "extraction", Tagged: "tagging"}  # by a label's type; an index of choices is drawn like any


def refuse(kind: str, method: str, p) -> None:
    """Raises BadInput for a method, or a parameter's value, that has no meaning for tasks of this kind; of those that list no value, for any."""
    for key, values in KINDS[kind].without.items():
        asked = method if key == "method" else getattr(p, key, None)
        if asked and (not values or asked in values):
            what = f"method {asked}" if key == "method" else f"{key} = {asked}" if values else key
            raise BadInput(f"{what}: has no meaning yet for tasks of kind {kind}")


def kind_of(rows: pd.DataFrame) -> Classification | Extraction:
    """The kind of a task whose rows these are, told by the form of their labels."""
    return KINDS[FORMS.get(type(next(iter(rows["label"]), 0)), "classification")]


def enough(label: int, rows: int, shots: int, uneven: bool) -> None:
    """Raises BadInput if a label has too few examples, unless it may give what it has."""
    if rows < shots and not uneven:
        raise BadInput(f"shots: {shots} is more than the {rows} examples that the pool has of label {label}")


def micro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Over all decisions, a row and label each: 2 TP / (2 TP + FP + FN). Where there is nothing to be found, and nothing is said, it is 0."""
    right = (gold * predicted).sum()
    return float(2 * right / max(1, gold.sum() + predicted.sum()))
