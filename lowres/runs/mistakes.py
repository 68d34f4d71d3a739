"""Which rows trials get wrong, and which label they take for which. What every draw of the examples gets wrong is hard, or wrongly labelled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lowres.files import BadInput
from lowres.runs import records
from lowres.runs.study import Run
from lowres.tasks.kinds import KINDS, kind_of_file
from lowres.tasks.load import Task, load_task
from lowres.tasks.task_file import read_task


def mistakes(runs: Iterable[tuple[Run, list[dict[str, Any]]]]) -> pd.DataFrame:
    """Of runs with their trials: a line a run, set and row that some trial got wrong, those that most got wrong and were surest of first.

    `wrong`: in how many of the `trials`; `confidence`: what these gave their wrong label, on average. Texts stand there where the task may show
    its rows and they are at hand.
    """
    parts = []
    for run, trials in runs:
        p, seeds = run.parameters, [trial["seed"] for trial in trials]
        table = records.read_predictions(run.folder) if trials else pd.DataFrame()
        spec = read_task(p.task)
        if len(table) and len(lines := wrong_rows(table[table["trial"].isin(seeds)], spec.labels, kind_of_file(spec))):
            asked = {"method": run.method, "variant": run.variant, "task": Path(p.task).stem, "shots": p.shots}
            parts.append(_with_texts(lines.assign(**asked)[[*asked, *lines]], p))
    return in_order(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def hardest(lines: pd.DataFrame, runs: Iterable[tuple[Run, list[dict[str, Any]]]], most: int = 10) -> pd.DataFrame:
    """Of `mistakes`: the rows that the most trials of all runs get wrong, a line a row."""
    if not len(lines):
        return lines
    total = pd.DataFrame([(Path(run.parameters.task).stem, len(found)) for run, found in runs], columns=["task", "n"]).groupby("task")["n"].sum()
    weighted = lines.assign(sure=lines["confidence"] * lines["wrong"])
    texts = list(lines.columns[list(lines.columns).index("confidence") + 1:])
    kept = {name: (name, "first") for name in ("predicted", *texts)}
    found = weighted.sort_values("wrong", ascending=False, kind="stable").groupby(["task", "set", "row", "label"], sort=False).agg(
        **kept, wrong=("wrong", "sum"), sure=("sure", "sum")).reset_index()
    found = found.assign(trials=found["task"].map(total), confidence=(found.pop("sure") / found["wrong"]).round(2))
    return in_order(found)[["task", "set", "row", "label", "predicted", "wrong", "trials", "confidence", *texts]].head(most)


def wrong_rows(predictions: pd.DataFrame, labels: list[str], kind=KINDS["classification"]) -> pd.DataFrame:
    """The same of one run's predictions (`evaluation.predictions`); `predicted` is the label that most of its wrong trials gave."""
    trials = predictions["trial"].nunique()
    sure = kind.confidence(predictions[[column for column in predictions if column.startswith("logit_")]].to_numpy(float))
    wrong = kind.named(predictions.assign(sure=sure)[predictions["label"] != predictions["prediction"]], labels)
    each = wrong.groupby(["set", "row", "label", "prediction"], sort=False)["sure"].agg(["size", "sum"]).reset_index()
    each = each.sort_values("size", ascending=False, kind="stable")
    found = each.groupby(["set", "row", "label"], sort=False).agg(prediction=("prediction", "first"), wrong=("size", "sum"), sure=("sum", "sum"))
    found = found.reset_index()
    return in_order(pd.DataFrame({
        "set": found["set"], "row": found["row"], "label": found["label"], "predicted": found["prediction"], "wrong": found["wrong"],
        "trials": trials, "confidence": (found["sure"] / found["wrong"]).round(3),
    }))


def in_order(lines: pd.DataFrame) -> pd.DataFrame:
    share = lines["wrong"] / lines["trials"]
    return lines.assign(share=share).sort_values(["share", "confidence"], ascending=False, kind="stable").drop(columns="share")


def confusions(predictions: pd.DataFrame, labels: list[str], kind=KINDS["classification"], most: int = 10) -> pd.DataFrame:
    """The commonest ones: a line a set, label and another that it is taken for, with the share of the label's answers, over all trials. Of several
    labels a row each is taken for its absence, or its absence for it."""
    counts = kind.decisions(predictions, labels).groupby(["set", "label", "prediction"], sort=False).size().rename("answers").reset_index()
    counts["share"] = counts["answers"] / counts.groupby(["set", "label"])["answers"].transform("sum")
    wrong = counts[counts["label"] != counts["prediction"]].sort_values(["answers", "share"], ascending=False, kind="stable").head(most)
    return pd.DataFrame({"set": wrong["set"], "label": wrong["label"], "taken for": wrong["prediction"], "answers": wrong["answers"],
                         "of the label's, %": (100 * wrong["share"]).round(1)})


def with_texts(lines: pd.DataFrame, task: Task) -> pd.DataFrame:
    """With a column for each text, where the task may show its rows."""
    columns = task.file.text if task.file.show_rows else []
    texts = {column: [task.evaluation[name][column].get(row, "") for name, row in zip(lines["set"], lines["row"])] for column in columns}
    return lines.assign(**texts)


def _with_texts(lines: pd.DataFrame, p) -> pd.DataFrame:
    if not read_task(p.task).show_rows:
        return lines
    try:
        return with_texts(lines, load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate))
    except BadInput:  # the rows are not at hand
        return lines
