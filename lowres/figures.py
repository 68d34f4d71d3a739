"""The plots: one theme, one colour a method everywhere (colour-blind safe), no figure without its yardstick."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lowres.analysis import interval

METHODS = ("vanilla", "pbft", "adaptive", "lora", "distillation", "in_context")
COLOURS = dict(zip(METHODS, sns.color_palette("colorblind", len(METHODS))))
MARKERS = dict(zip(METHODS, "osD^vP"))  # readable in grey, too
DOMAINS = {"in": "in-domain", "out": "out-of-domain"}


def theme() -> None:
    sns.set_theme(context="notebook", style="whitegrid", rc={"figure.dpi": 100, "axes.titlesize": "medium", "legend.frameon": False})


def training_curves(trials: list[dict], labels: int = 0) -> Figure:
    """Training loss against the step, a line a trial; beside the loss of knowing nothing, log(labels), for a cross-entropy of so many labels."""
    theme()
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for trial, colour in zip(trials, sns.color_palette("crest", len(trials))):
        axes.plot(np.arange(1, len(trial["losses"]) + 1), trial["losses"], color=colour, label=f"seed {trial['seed']}")
    if labels:
        axes.axhline(np.log(labels), color="0.4", linestyle=":", label="knowing nothing")
    axes.set(xlabel="optimizer step", ylabel="training loss", title=f"Training loss, {len(trials)} trials")
    axes.set_ylim(bottom=min([0, *(loss for trial in trials for loss in trial["losses"])]))
    axes.legend()
    plt.close(figure)  # the notebook shows the returned figure once
    return figure


def accuracy_against_shots(trials: pd.DataFrame) -> Figure:
    """Mean accuracy over seeds with its 95 % interval, a panel an evaluation set, a line a method and variant."""
    theme()
    panels = list(trials.groupby(["task", "domain", "set"], sort=False))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained")
    for axes, ((task, domain, name), panel) in zip(grid.flat, panels):
        for (method, variant), line in panel.groupby(["method", "variant"], sort=False):
            _line(axes, line, method, f"{method} {variant}".strip())
        axes.axhline(100 * panel["constant"].iloc[0], color="0.35", linestyle=":", label="constant prediction")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(panel["shots"].unique()), [str(n) for n in sorted(panel["shots"].unique())])
        axes.minorticks_off()
        few, most = panel.groupby(["method", "variant", "shots"])["outcome"].nunique().agg(["min", "max"])
        count = f"{few}" if few == most else f"{few} to {most}"
        axes.set(xlabel="shots (labelled examples per class)", ylabel="accuracy, %")
        axes.set_title(f"{task}, {DOMAINS[domain]} ({name})\n{panel['n'].iloc[0]:,} rows; {count} distinct trials a point, bars: 95 % intervals")
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    plt.close(figure)
    return figure


def by_task(trials: pd.DataFrame) -> list[Figure]:
    """A figure a model and task: its evaluation sets side by side."""
    return [accuracy_against_shots(part) for _, part in trials.groupby(["model", "task"], sort=False)]


def _line(axes, line: pd.DataFrame, method: str, label: str) -> None:
    shots, mean, low, high = [], [], [], []
    for n, group in line.groupby("shots"):
        shots.append(n)
        mean.append(100 * group["accuracy"].mean())
        bounds = 100 * np.asarray(interval(group["accuracy"]))
        low.append(mean[-1] - bounds[0])
        high.append(bounds[1] - mean[-1])
    # Methods are set a little apart, so that their bars do not hide one another.
    apart = 2 ** (0.06 * (METHODS.index(method) - len(METHODS) / 2)) if method in METHODS else 1
    axes.errorbar(np.array(shots) * apart, mean, yerr=np.nan_to_num([low, high]), color=COLOURS.get(method, "0.2"),
                  marker=MARKERS.get(method, "o"), capsize=3, label=label)
