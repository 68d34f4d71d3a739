"""What a practitioner would try first, on the same shots: a probe on frozen states, TF-IDF, or answers that another program gave.

A linear probe on a small model's states is strong with few labels (Buckmann and Hill 2024, arXiv 2408.03414). Both classifiers are
scikit-learn's logistic regression with its own defaults, since nobody has labels to choose others by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lowres.files import BadInput, located, near, shown
from lowres.methods.evaluation import last_states
from lowres.models.batches import Inputs
from lowres.tasks.load import Task, load_task
from lowres.tasks.table import read_table

if TYPE_CHECKING:
    import pandas as pd

LEAST = 1e-12  # a probability of 0 has no logarithm
KEYS = ["set", "row"]


def classifier(p, several: bool = False) -> Pipeline:
    """Logistic regression on hidden states, each of their numbers brought to mean 0 and spread 1 over the shots (probe); or on weighted counts of
    words and pairs of words, without a language model (tfidf). Of `several` labels a row each has a regression of its own."""
    features = StandardScaler() if p.classifier == "probe" else TfidfVectorizer(ngram_range=(1, 2))
    regression = LogisticRegression(max_iter=1000, class_weight=None if p.class_weights == "none" else p.class_weights)
    return make_pipeline(features, OneVsRestClassifier(regression) if several else regression)


NO_BACKBONE = {"parameters": 1, "flops": 0.0}  # of a trial that a backbone has no part in


def states(backbone, inputs: Inputs) -> np.ndarray:
    """The frozen backbone's final hidden state at each text's last token: (rows, width)."""
    return last_states(backbone, inputs.ids).cpu().numpy()


def joined(rows: pd.DataFrame, columns: list[str]) -> list[str]:
    """A row's texts as one, for words to be counted in."""
    return rows[columns].agg(" ".join, axis=1).tolist()


def answers(classifier: Pipeline, sets: dict) -> dict[str, np.ndarray]:
    """Log-probabilities (rows, labels) of every set; of one that is 0 to the last digit, of the smallest number above. Of several labels a row
    log-odds."""
    if isinstance(classifier[-1], OneVsRestClassifier):
        return {name: classifier.decision_function(rows).astype(np.float32) for name, rows in sets.items()}
    smallest = np.finfo(np.float32).tiny
    return {name: np.log(np.maximum(classifier.predict_proba(rows), smallest)).astype(np.float32) for name, rows in sets.items()}


def weights(classifier: Pipeline) -> int:
    """How many numbers of the classifier were fitted."""
    fitted = getattr(classifier[-1], "estimators_", [classifier[-1]])
    return sum(one.coef_.size + one.intercept_.size for one in fitted if hasattr(one, "coef_"))  # none where all shots say the same of a label


def arrays(classifier: Pipeline) -> tuple[dict[str, np.ndarray], list[str]]:
    """All that was fitted, as plain arrays, and the words and pairs that were counted (none by a probe)."""
    features, regression = classifier[0], classifier[-1]
    if several := getattr(regression, "estimators_", None):  # where all shots say the same of a label, that is the answer
        width = len(features.idf_ if hasattr(features, "idf_") else features.mean_)
        found = {"coef": np.concatenate([getattr(one, "coef_", np.zeros((1, width))) for one in several]),
                 "intercept": np.concatenate([one.intercept_ if hasattr(one, "coef_") else one.y_.astype(float) for one in several])}
    else:
        found = {"coef": regression.coef_, "intercept": regression.intercept_}
    if isinstance(features, StandardScaler):
        return found | {"mean": features.mean_, "scale": features.scale_}, []
    return found | {"idf": features.idf_}, list(features.get_feature_names_out())


def rebuilt(found: dict[str, np.ndarray], words: list[str], several: bool = False) -> Pipeline:
    """The classifier that `arrays` came from; of `several` labels a row, a regression each."""
    if words:
        features = TfidfVectorizer(ngram_range=(1, 2), vocabulary=words)
        features.idf_ = found["idf"]
    else:
        features = StandardScaler()
        features.mean_, features.scale_, features.n_features_in_ = found["mean"], found["scale"], len(found["mean"])
    regression = _regression(found["coef"], found["intercept"])
    if several:
        regression = OneVsRestClassifier(regression)
        regression.estimators_ = [_regression(found["coef"][[i]], found["intercept"][[i]]) for i in range(len(found["coef"]))]
    return Pipeline([("features", features), ("regression", regression)])


def _regression(coef: np.ndarray, intercept: np.ndarray) -> LogisticRegression:
    regression = LogisticRegression()
    regression.coef_, regression.intercept_, regression.classes_ = coef, intercept, np.arange(max(2, len(intercept)))
    return regression


def check(p) -> None:
    """Raises BadInput for answers that are nowhere."""
    if p.predictions and not located(p.predictions).is_file():
        raise BadInput(f"predictions: there is no file {shown(located(p.predictions))}")


def brought(p, task: Task, seed: int) -> dict[str, np.ndarray]:
    """Another program's answers as logits (rows, labels) by set, from a table with the columns `set` and `row` (the row's number in its file,
    from 0) and either `label` or a probability for each label under its name; with a column `trial`, those of this `seed`.

    Answers to rows that `p.evaluation_rows` leaves out may be there. Raises BadInput for a set, row or
    label that is unknown, missing or there twice, or numbers that are no probabilities.
    """
    path = located(p.predictions)
    table, where, whole = read_table(path, KEYS).frame, shown(path), load_task(p.task, p.data_dir, 0, p.also_evaluate)
    for column in KEYS:
        if column not in table:
            raise BadInput(f"{where}: column {column!r} is missing{near(column, table.columns)}")
    if "trial" in table:
        table = table[table["trial"].astype(str) == str(seed)]
        if not len(table):
            raise BadInput(f"{where}: trial: no row is of the seed {seed}")
    table = table.assign(row=_whole_numbers(table["row"], where))
    if unknown := sorted(set(table["set"]) - set(task.evaluation)):
        raise BadInput(f"{where}: set: {unknown[0]!r} is no evaluation set of {task.file.name}{near(unknown[0], task.evaluation)}")
    logits = _logits(table, task.labels, where)
    return {name: _of_set(table, logits, name, (rows.index, whole.evaluation[name].index), where) for name, rows in task.evaluation.items()}


def _whole_numbers(column: pd.Series, where: str) -> pd.Series:
    wrong = ~column.astype(str).str.fullmatch(r"\d+")
    if wrong.any():
        raise BadInput(f"{where}: row: {column[wrong].iloc[0]!r} is no row's number")
    return column.astype(int)


def _logits(table: pd.DataFrame, labels: list[str], where: str) -> np.ndarray:
    """(rows of the table, labels): logarithms of its probabilities, or 0 for the label given and a very small one for the others."""
    if all(label in table for label in labels):
        try:
            probabilities = table[labels].to_numpy(float)
        except ValueError as error:
            raise BadInput(f"{where}: {labels}: not a number: {error}") from None
        wrong = ~((probabilities >= 0) & (probabilities <= 1)).all(axis=1) | ~np.isclose(probabilities.sum(axis=1), 1, atol=0.01)
        if wrong.any():
            line = table[wrong].iloc[0]
            raise BadInput(f"{where}: set {line['set']}, row {line['row']}: {probabilities[wrong][0].tolist()} are no probabilities that add up to 1")
        return np.log(np.maximum(probabilities, LEAST)).astype(np.float32)
    if "label" not in table:
        raise BadInput(f"{where}: neither a column 'label' nor one for each of {labels}")
    given = table["label"].astype(str)
    if unknown := sorted(set(given) - set(labels)):
        raise BadInput(f"{where}: label: {unknown[0]!r} is no label{near(unknown[0], labels)}")
    return np.where(given.to_numpy()[:, None] == np.array(labels), 0.0, np.log(LEAST)).astype(np.float32)


def _of_set(table: pd.DataFrame, logits: np.ndarray, name: str, rows: tuple[pd.Index, pd.Index], where: str) -> np.ndarray:
    """Its logits in the order of the rows asked for, the first of `rows`; the second are all that there are."""
    here = (table["set"] == name).to_numpy()
    numbers, (wanted, known) = table["row"].to_numpy()[here], rows
    found, times = np.unique(numbers, return_counts=True)
    if (times > 1).any():
        raise BadInput(f"{where}: set {name}, row {found[times > 1][0]}: is there {times.max()} times")
    if len(unknown := np.setdiff1d(found, known)):
        raise BadInput(f"{where}: set {name}: there is no row {unknown[0]}")
    if len(missing := np.setdiff1d(wanted, found)):
        raise BadInput(f"{where}: set {name}: row {missing[0]} is missing ({len(missing):,} of {len(wanted):,} are)")
    order = np.argsort(numbers)
    return logits[here][order][np.searchsorted(found, wanted)]
