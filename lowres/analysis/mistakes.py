"""Which rows a study's trials get wrong: those that every draw of the examples gets wrong are hard, or wrongly labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from lowres.analysis.collect import Collected
from lowres.files import BadInput
from lowres.runs import records
from lowres.runs.study import Run
from lowres.tasks.load import load_task
from lowres.tasks.task_file import read_task


def mistakes(found: Collected) -> pd.DataFrame:
    """A line a run, set and row that some trial got wrong, those that most got wrong and were surest of first.

    `wrong`: in how many of the `trials`; `confidence`: what these gave their wrong label, on average. Texts stand there where the task may show
    its rows and they are at hand.
    """
    parts = [_of_run(run, [trial["seed"] for trial in trials]) for run, trials in found.runs if trials]
    if not parts:
        return pd.DataFrame()
    return pd.concat(parts, ignore_index=True).sort_values(["share", "confidence"], ascending=False, kind="stable").drop(columns="share")


def _of_run(run: Run, seeds: list[int]) -> pd.DataFrame:
    p, spec = run.parameters, read_task(run.parameters.task)
    table = records.read_predictions(run.folder)
    table = table[table["trial"].isin(seeds)]
    logits = table[[f"logit_{label}" for label in spec.labels]].to_numpy(float)
    table = table.assign(confidence=softmax(logits, axis=1).max(axis=1), wrong=table["label"] != table["prediction"])
    lines = []
    for (name, row), part in table[table["wrong"]].groupby(["set", "row"], sort=False):
        commonest = int(part["prediction"].mode().iloc[0])
        lines.append({"method": run.method, "variant": run.variant, "task": Path(p.task).stem, "shots": p.shots, "set": name, "row": row,
                      "label": spec.labels[part["label"].iloc[0]], "predicted": spec.labels[commonest], "wrong": len(part), "trials": len(seeds),
                      "share": len(part) / len(seeds), "confidence": round(float(np.mean(part["confidence"])), 3)})
    return _with_texts(pd.DataFrame(lines), run) if lines else pd.DataFrame()


def _with_texts(lines: pd.DataFrame, run: Run) -> pd.DataFrame:
    p = run.parameters
    if not read_task(p.task).show_rows:
        return lines
    try:
        task = load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate)
    except BadInput:  # the rows are not at hand
        return lines
    for column in task.file.text:
        lines[column] = [task.evaluation[name][column].get(row, "") for name, row in zip(lines["set"], lines["row"])]
    return lines
