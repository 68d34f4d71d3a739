"""From records to tables: means over seeds, their intervals, and the yardsticks beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from lowres import records
from lowres.tasks import read_task

RUN = ["method", "variant", "model", "task", "shots"]  # what tells a run from another


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean over seeds; (nan, nan) for fewer than two, which say nothing about spread."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return (np.nan, np.nan)
    if np.ptp(values) == 0:
        return (float(values[0]), float(values[0]))
    low, high = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    return (float(low), float(high))


def study_table(study) -> pd.DataFrame:
    """One line a trial and evaluation set of all finished runs of a study: what `records.as_table` says, with the run's labels."""
    parts = []
    for run in study.runs:
        record = records.read_record(run.folder)
        if record:
            p = run.parameters
            parts.append(records.as_table(record, method=run.method, variant=run.variant, model=p.model, task=p.task, shots=p.shots))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def opening(study, trials: pd.DataFrame) -> str:
    """The study in a few lines: what it asks, how much of it is there, and whether its trials are trials. Markdown."""
    present = len(trials.drop_duplicates(RUN)) if len(trials) else 0
    lines = [f"**{study.name}**: {study.description}", f"{present} of {len(study.runs)} runs are finished."]
    if any(read_task(run.parameters.task).embedded for run in study.runs):
        lines.append("**Its embedded tasks are for learning the tool: nothing here is a verdict about the paper or about a method.**")
    if present < len(study.runs):
        missing = [run.name for run in study.runs if records.read_record(run.folder) is None]
        lines.append("Missing: " + ", ".join(f"`{name}`" for name in missing[:12]) + (" …" if len(missing) > 12 else ""))
    copied = [name for name, run in trials.groupby(RUN) if run["outcome"].nunique() < run["seed"].nunique()] if present else []
    if copied:
        lines.append(f'<span style="color:#b00020">**{len(copied)} runs have trials that are copies of each other**: {copied[:5]}</span>')
    return "\n\n".join(lines)


def static_table(trials: pd.DataFrame) -> pd.DataFrame | str:
    if not len(trials):
        return "No run of this study is finished yet."
    return printable(summary(trials, [*RUN, "set", "domain"])).style.hide(axis="index")


def parts(study) -> pd.DataFrame:
    """Mean accuracy over seeds in each part of the sets that the task files break down; a column a run's method and shots."""
    lines = []
    for run in study.runs:
        for trial in (records.read_record(run.folder) or {"trials": []})["trials"]:
            line = f"{run.method} {run.variant}".strip() + f", {run.parameters.shots}"
            lines += [
                {"task": run.parameters.task, "set": name, "part": part, "rows": found["n"], "line": line, "accuracy": 100 * found["accuracy"]}
                for name, scores in trial["sets"].items() for part, found in scores["by"].items()
            ]
    if not lines:
        return pd.DataFrame({"part": ["nothing is broken down"]})
    return pd.DataFrame(lines).pivot_table(index=["task", "set", "part", "rows"], columns="line", values="accuracy", sort=False).round(1)


def costs(trials: pd.DataFrame) -> pd.DataFrame | str:
    """Seconds, peak memory and trained parameters of a trial, by method, variant, task and shots."""
    if not len(trials):
        return "No run of this study is finished yet."
    once = trials.drop_duplicates([*RUN, "seed"])
    table = once.groupby(RUN, sort=False)[["seconds", "memory", "trainable"]].mean().reset_index()
    table["trainable"] = table["trainable"].map("{:,.0f}".format)
    return table.rename(columns={"seconds": "s a trial", "memory": "peak memory, GB", "trainable": "trained parameters"}).round(2)


def summary(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A line a group: mean accuracy over seeds with its 95 % interval, MCC, the constant prediction's accuracy, cost."""
    def one(group: pd.DataFrame) -> pd.Series:
        low, high = interval(group["accuracy"])
        return pd.Series({
            "accuracy": group["accuracy"].mean(), "low": low, "high": high, "constant": group["constant"].mean(),
            "mcc": group["mcc"].mean(), "trials": len(group), "distinct": group["outcome"].nunique(),
            "one label": group["commonest_prediction"].mean(), "seconds": group["seconds"].mean(), "rows": group["n"].iloc[0],
        })

    return trials.groupby(by, sort=False).apply(one, include_groups=False).reset_index()


def verdict(row: pd.Series) -> str:
    """Whether anything was learnt: the interval against the yardstick of constant prediction."""
    if np.isnan(row["low"]):
        return "one trial: no interval"
    if row["low"] > row["constant"]:
        return "above constant"
    return "below constant" if row["high"] < row["constant"] else "not told from constant"


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as it is read: percentages and one text for mean and interval; every viewer shows it."""
    shown = table.drop(columns=["accuracy", "low", "high", "constant", "mcc", "one label", "seconds", "trials", "distinct", "rows"])
    percent = lambda value: f"{100 * value:.1f}"  # noqa: E731
    shown["accuracy, % [95 % interval]"] = [
        percent(a) + (f" [{percent(low)}, {percent(high)}]" if not np.isnan(low) else " [one trial]")
        for a, low, high in zip(table["accuracy"], table["low"], table["high"])
    ]
    shown["constant, %"] = table["constant"].map(percent)
    shown["reading"] = table.apply(verdict, axis=1)
    shown["MCC"] = table["mcc"].map("{:.3f}".format)
    shown["one label, %"] = table["one label"].map(percent)
    shown["rows"] = table["rows"].astype(int)
    shown["trials (distinct)"] = [f"{int(n)} ({int(d)})" for n, d in zip(table["trials"], table["distinct"])]
    shown["s a trial"] = table["seconds"].map("{:.1f}".format)
    return shown


def results(trials: list[dict]) -> pd.DataFrame:
    """The result table of one run, a line an evaluation set."""
    return printable(summary(records.as_table({"trials": trials}), ["set", "domain"]))


def breakdown(trials: list[dict]) -> pd.DataFrame:
    """Accuracy in each part that the task file names (HANS: heuristic and label), mean over seeds; a line a part."""
    lines = [
        {"set": name, "part": part, "rows": found["n"], "accuracy, %": 100 * found["accuracy"]}
        for trial in trials for name, scores in trial["sets"].items() for part, found in scores["by"].items()
    ]
    if not lines:
        return pd.DataFrame({"part": ["the task file breaks nothing down"]})
    return pd.DataFrame(lines).groupby(["set", "part", "rows"], sort=False).mean().round(1).reset_index()


def cost(trials: list[dict]) -> pd.DataFrame:
    """What each trial cost, a line a seed."""
    return pd.DataFrame([
        {"seed": trial["seed"], **{f"{phase}, s": f"{value:.1f}" for phase, value in trial["seconds"].items()},
         "peak memory, GB": f"{trial['memory']['resident']:.2f}", "trained parameters": f"{trial['trainable']:,}",
         "of all, %": f"{100 * trial['trainable'] / trial['parameters']:.2f}", "TFLOP (estimate)": f"{trial['flops'] / 1e12:.1f}"}
        for trial in trials
    ]).set_index("seed")
