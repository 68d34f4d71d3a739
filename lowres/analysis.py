"""From records to tables: means over seeds, their intervals, and the yardsticks beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lowres import records

RUN = ["method", "variant", "model", "task", "shots"]  # what tells a run from another


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean over seeds; (nan, nan) where the values say nothing about spread: one alone, or all equal."""
    from scipy import stats  # takes 0.4 s, which no trial has to wait for

    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return (np.nan, np.nan)
    low, high = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    return (float(low), float(high))


def accuracy_interval(values) -> tuple[float, float]:
    """The same for accuracies, 0 to 1: two trials' interval may reach beyond what an accuracy can be."""
    low, high = np.clip(interval(values), 0, 1)
    return (float(low), float(high))


def summary(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A line a group: mean accuracy over seeds with its 95 % interval, MCC, the constant prediction's accuracy, cost."""
    def one(group: pd.DataFrame) -> pd.Series:
        low, high = accuracy_interval(group["accuracy"])
        return pd.Series({
            "accuracy": group["accuracy"].mean(), "low": low, "high": high, "constant": group["constant"].mean(),
            "mcc": group["mcc"].mean(), "trials": len(group), "distinct": group["outcome"].nunique(),
            "one label": group["commonest_prediction"].mean(), "seconds": group["seconds"].mean(), "rows": group["n"].iloc[0],
        })

    return trials.groupby(by, sort=False).apply(one, include_groups=False).reset_index()


def verdict(row: pd.Series) -> str:
    """Whether anything was learnt: the interval against the yardstick of constant prediction."""
    if np.isnan(row["low"]):
        return "one trial: no interval" if row["trials"] == 1 else "trials agree: no interval"
    if row["low"] > row["constant"]:
        return "above constant"
    return "below constant" if row["high"] < row["constant"] else "not told from constant"


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as it is read: percentages and one text for mean and interval; every viewer shows it."""
    shown = table.drop(columns=["accuracy", "low", "high", "constant", "mcc", "one label", "seconds", "trials", "distinct", "rows"])
    percent = lambda value: f"{100 * value:.1f}"  # noqa: E731
    shown["accuracy, % [95 % interval]"] = [
        percent(a) + (f" [{percent(low)}, {percent(high)}]" if not np.isnan(low) else " [no interval]")
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
         "peak memory, GB": f"{records.peak_memory(trial):.2f}", "trained parameters": f"{trial['trainable']:,}",
         "of all, %": f"{100 * trial['trainable'] / trial['parameters']:.2f}", "TFLOP (estimate)": f"{trial['flops'] / 1e12:.1f}"}
        for trial in trials
    ]).set_index("seed")
