"""The other figures of a study: parts of a set, calibration, training curves, cost."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from lowres.analysis.collect import Collected
from lowres.analysis.plots import (
    DOMAINS,
    YARDSTICK,
    Picture,
    capital,
    counted,
    error_line,
    file_name,
    legend_below,
    line_name,
    panels,
    plain,
    shot_axis,
    styles,
)
from lowres.analysis.tables import at_most_shots, most_shots, of_machines
from lowres.runs.summary import RUN, interval, score_name

FEWEST = 25  # answers that a calibration point is made of: its standard error is at most 10 points
FEW_ROWS = 20


def parts_figures(parts: pd.DataFrame) -> list[Picture]:
    """Accuracy in the parts of each set (HANS: heuristic and label; CoLA: source) at the most shots; a figure a model, task and set.

    Parts of a few rows, where one row is more than 5 points, are left to the table, unless there is no other.
    """
    found = []
    for (model, task, name), part in parts.groupby(["model", "task", "set"], sort=False) if len(parts) else ():
        every, absent = at_most_shots(part)
        part = every if (every["rows"] < FEW_ROWS).all() else every[every["rows"] >= FEW_ROWS]
        few = every["part"].nunique() - part["part"].nunique()
        looks, order = styles(part), list(part["part"].unique())
        figure, (axes,) = panels(1, width=8.4, height=1.5 + 0.12 * (len(looks) + 2) * len(order))
        for i, (key, line) in enumerate(part.groupby(["method", "variant"], sort=False)):
            ends = [(100 * group["accuracy"].mean(), *(100 * np.array(interval(group["accuracy"])))) for _, group in line.groupby("part", sort=False)]
            mean, low, high = np.array(ends).T
            place = np.array([order.index(p) for p in line["part"].unique()]) + 0.7 * ((i + 0.5) / len(looks) - 0.5)
            axes.errorbar(mean, place, xerr=np.nan_to_num([mean - low, high - mean]), capsize=2, markersize=5, label=line_name(*key),
                          **{**looks[key], "linestyle": "none"})
        constants = part.groupby("part", sort=False)["constant"].mean()
        mixed = constants < 1  # a part with rows of one label alone has no constant prediction to be held against
        for i in np.flatnonzero(mixed):
            axes.plot([100 * constants.iloc[i]] * 2, [i - 0.4, i + 0.4], label=None if mixed.iloc[:i].any() else "constant prediction", **YARDSTICK)
        if not mixed.all():
            axes.axvline(100 * part["guessing"].iloc[0], label="guessing", **YARDSTICK)
        axes.set_yticks(range(len(order)), [plain(f"{p} ({n:,} rows)") for p, n in part.groupby("part", sort=False)["rows"].first().items()])
        axes.set(xlabel=f"{score_name(part)}, %", xlim=(-2, 102), ylim=(len(order) - 0.4, -0.6))  # the first part at the top
        figure.suptitle(f"{plain(task)}: {plain(name)} by part, {plain(model)}\n{shots_text(part)}; "
                        f"{counted(part)}, bars: 95 % over seeds{below(absent)}", fontsize="medium")
        legend_below(figure, [axes])
        alt = (f"{capital(score_name(part))} by part of {name} ({task}, {model}), {shots_text(part)}: parts {', '.join(order)}; {counted(part)}. "
               + (f"{few} more, of fewer than {FEW_ROWS} rows, are in the table alone. " if few else "")
               + f"One label's parts near 100 % and the other's near 0 % mean a constant answer. {absent}")
        found.append(Picture(figure, file_name("parts", task, name, model), alt))
    return found


def below(notes: str) -> str:
    """A title's last lines: what must be known before the figure is read."""
    return "".join(f"\n{plain(line)}" for line in textwrap.wrap(notes, 100))


def shots_text(lines: pd.DataFrame) -> str:
    return f"{most_shots(lines)} shots a class"


def calibration_figures(table: pd.DataFrame) -> list[Picture]:
    """Reliability diagrams (`predicted.calibration`) at the most shots: a figure a model and task, a panel an evaluation set."""
    found = []
    for (model, task), part in table.groupby(["model", "task"], sort=False) if len(table) else ():
        part, absent = at_most_shots(part)
        sets, looks = list(part.groupby(["domain", "set"], sort=False)), styles(part)
        figure, grid = panels(len(sets), width=5.6, height=4.2 + 0.19 * len(looks))
        for axes, ((domain, name), panel) in zip(grid, sets):
            axes.plot([50, 100], [50, 100], **YARDSTICK)
            for key, line in panel.groupby(["method", "variant"], sort=False):
                label = f"{line_name(*key)}: ECE {100 * line['ece'].iloc[0]:.1f}"
                line = line[line["rows"] >= FEWEST]
                axes.plot(100 * line["confidence"], 100 * line["right"], **looks[key], label=label)
            axes.set(xlabel="confidence, %", ylabel="of these right, %", xlim=(min(48, 100 * part["confidence"].min() - 2), 101), ylim=(0, 101),
                     title=f"{DOMAINS[domain]} ({plain(name)})")
            axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.18))  # its errors are the panel's own
        trials = sorted(part["trials"].unique())
        count = f"{trials[0]} trials a line" if len(trials) == 1 else f"{trials[0]} to {trials[-1]} trials a line"
        figure.suptitle(f"{plain(task)}, {plain(model)}: calibration at {shots_text(part)}; {count};\n"
                        f"dotted: perfectly calibrated; ECE in points; points of at least {FEWEST} answers{below(absent)}", fontsize="medium")
        alt = (f"Reliability diagrams on {task} with {model} at {shots_text(part)}, share right against confidence; {count}; "
               f"the dotted diagonal is perfect calibration, below it a method is too sure. The legend has each expected calibration error. {absent}")
        found.append(Picture(figure, file_name("calibration", task, model), alt))
    return found


def training_figures(found: Collected) -> list[Picture]:
    """Training loss, mean over seeds, at the most shots: a panel a model and task, a line a method and variant."""
    lines = [
        {"method": run.method, "variant": run.variant, "model": run.parameters.model, "task": run.parameters.task, "shots": run.parameters.shots,
         "losses": trial["losses"], "labels": len(trial_labels(run))}
        for run, trials in found.runs for trial in trials if trial["losses"]
    ]
    if not lines:
        return []
    table = pd.DataFrame(lines)
    places = [(place, *at_most_shots(part)) for place, part in table.groupby(["model", "task"], sort=False)]
    looks = styles(table)
    figure, grid = panels(len(places))
    for axes, ((model, task), part, _) in zip(grid, places):
        for key, line in part.groupby(["method", "variant"], sort=False):
            steps = min(map(len, line["losses"]))
            mean = np.mean([losses[:steps] for losses in line["losses"]], axis=0)
            axes.plot(np.linspace(0, 100, steps), mean, label=line_name(*key), markevery=max(1, steps // 6), markersize=5, **looks[key])
        axes.axhline(np.log(part["labels"].iloc[0]), label="knowing nothing, log(labels)", **YARDSTICK)
        axes.set(xlabel="part of the training, %", ylabel="training loss", title=f"{plain(task)}, {plain(model.split('/')[-1])}, {shots_text(part)}")
    trials = pd.concat([part for _, part, _ in places]).groupby(["method", "variant", "model", "task"]).size()
    count = f"{trials.min()}" if trials.min() == trials.max() else f"{trials.min()} to {trials.max()}"
    figure.suptitle(f"Training loss, mean of {count} trials a line", fontsize="medium")
    legend_below(figure, grid)
    alt = (f"Training loss against the part of the training done, mean of {count} trials a line; dotted: the cross-entropy of knowing nothing. "
           "Losses over the vocabulary and distillation's are other losses, and compare only with themselves."
           + "".join(f" {task}, {model}: {absent}" for (model, task), _, absent in places if absent))
    return [Picture(figure, "training", alt)]


def trial_labels(run) -> list[str]:
    from lowres.tasks.task_file import read_task

    return read_task(run.parameters.task).labels


COSTS = {"seconds": "seconds a trial", "memory": "peak memory, GB", "trainable": "trained parameters"}


def cost_figures(trials: pd.DataFrame) -> list[Picture]:
    """Accuracy against each cost at the most shots, the Pareto front drawn: a figure a model, task and domain."""
    found = []
    for (model, task, domain), part in trials.groupby(["model", "task", "domain"], sort=False) if len(trials) else ():
        part, absent = at_most_shots(part)
        notes = f"{of_machines(part)} {absent}".strip()
        looks = styles(part)
        figure, grid = panels(len(COSTS), across=3, width=4.2, height=3.9)
        for axes, (cost, text) in zip(grid, COSTS.items()):
            points = {}
            for key, line in part.groupby(["method", "variant"], sort=False):
                each = 100 * line.groupby("seed")["accuracy"].mean()
                (low, high), x = interval(each), line.drop_duplicates("seed")[cost].mean()
                points[key] = (x, each.mean())
                axes.errorbar(x, each.mean(), yerr=np.nan_to_num([[each.mean() - low], [high - each.mean()]]), capsize=3, markersize=8,
                              label=line_name(*key), **{**looks[key], "linestyle": "none"})
            front = pareto(list(points.values()))
            axes.step(*np.array(front).T, where="post", color="0.3", linewidth=1.2, zorder=0, label="Pareto front")
            axes.axhline(100 * part["constant"].mean(), label="constant prediction", **YARDSTICK)
            _cost_scale(axes, cost, [x for x, _ in points.values()])
            axes.set(xlabel=text, ylabel=f"{score_name(part)}, %" if cost == "seconds" else "")
        figure.suptitle(f"{plain(task)}, {DOMAINS[domain]}, {plain(model)}, {shots_text(part)}: {counted(part)}, "
                        f"bars: 95 % over seeds{below(notes)}", fontsize="medium")
        legend_below(figure, grid)
        alt = (f"{capital(score_name(part))} {DOMAINS[domain]} on {task} with {model} at {shots_text(part)} against seconds, peak memory and trained "
               f"parameters; {counted(part)}; "
               f"the stepped line is the Pareto front of these (nothing cheaper is better), dotted is constant prediction. {notes}")
        found.append(Picture(figure, file_name("cost", task, domain, model), alt))
    return found


def _cost_scale(axes, cost: str, values: list[float]) -> None:
    """Costs that lie far apart are drawn by their logarithm; no trained parameter at all has a place of its own."""
    if cost == "trainable":
        axes.set_xscale("symlog", linthresh=1e4)
        axes.set_xlim(-3e3, 3 * max(max(values), 1e4))
        axes.set_xticks([0, 1e4, 1e6, 1e8], ["0", "10⁴", "10⁶", "10⁸"])
        axes.minorticks_off()
    else:
        axes.set_xlim(0, 1.12 * max(values))


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy) points, those that no cheaper one reaches, by cost."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def cost_against_shots(trials: pd.DataFrame) -> list[Picture]:
    """Seconds a trial against shots; and, with several models, against the model's size."""
    if not len(trials):
        return []
    once = trials.drop_duplicates([*RUN, "seed"])
    looks, found = styles(once), []
    places_of = list(once.groupby(["model", "task"], sort=False))
    figure, grid = panels(len(places_of))
    for axes, ((model, task), part) in zip(grid, places_of):
        places = shot_axis(axes, part["shots"].unique())
        for key, line in part.groupby(["method", "variant"], sort=False):
            error_line(axes, line, places, value="seconds", times=1, label=line_name(*key), **looks[key])
        cheapest = part.groupby(["method", "variant", "shots"])["seconds"].mean().min()
        axes.axhline(cheapest, label="the cheapest run", **YARDSTICK)
        axes.set(ylabel="seconds a trial", ylim=(0, None), title=f"{plain(task)}, {plain(model.split('/')[-1])}")
    figure.suptitle(f"What a trial takes: {counted(once)}, bars: 95 % over seeds{below(of_machines(once))}", fontsize="medium")
    legend_below(figure, grid)
    alt = (f"Seconds a trial against shots by method; {counted(once)}; dotted: the cheapest run. "
           f"The numbers are in the table of costs. {of_machines(once)}")
    found.append(Picture(figure, "cost-shots", alt))
    if once["model"].nunique() > 1:
        found.append(_against_size(once, looks))
    return found


def _against_size(once: pd.DataFrame, looks: dict) -> Picture:
    once = once[once["shots"] == most_shots(once)]
    once = once.assign(size=once.groupby("model")["parameters"].transform("min"))  # without adapters
    figure, grid = panels(2)
    for axes, (measure, text) in zip(grid, (("seconds", "seconds a trial"), ("memory", "peak memory, GB"))):
        for key, line in once.groupby(["method", "variant"], sort=False):
            mean = line.groupby("size")[measure].mean()
            axes.plot(mean.index / 1e6, mean, label=line_name(*key), **looks[key])
        smallest = once.groupby(["method", "variant", "size"])[measure].mean().min()
        axes.axhline(smallest, label="the cheapest run", **YARDSTICK)
        axes.set(xlabel="model size, million parameters", ylabel=text, ylim=(0, None))
    figure.suptitle(f"Cost against model size, {shots_text(once)}, mean over tasks: {counted(once)}", fontsize="medium")
    legend_below(figure, grid)
    return Picture(figure, "cost-size",
                   f"Seconds and peak memory of a trial against model size by method; {counted(once)}; dotted: the cheapest run.")
