"""The other figures of a study: parts of a set, calibration, training curves, cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from lowres.analysis import plots
from lowres.analysis.collect import Collected
from lowres.analysis.plots import DOMAINS, YARDSTICK, Picture, counted, plain
from lowres.analysis.tables import at_most_shots, most_shots, of_machines
from lowres.runs.summary import RUN, score_name
from lowres.tasks.task_file import read_task

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
        few, order = every["part"].nunique() - part["part"].nunique(), list(part["part"].unique())
        table = plots.named(part).assign(panel="", accuracy=100 * part["accuracy"])
        table["row"] = [plain(f"{p} ({n:,} rows)") for p, n in zip(part["part"], part["rows"])]
        looks = plots.styles(table["line"])
        grid = plots.below_one_another(table, looks, "row", score_name(part), height=1.5 + 0.12 * (len(looks) + 2) * len(order), width=7)
        constants = part.groupby("part", sort=False)["constant"].mean()
        mixed = constants < 1  # a part with rows of one label alone has no constant prediction to be held against
        for i in np.flatnonzero(mixed):
            grid.axes[0].plot([100 * constants.iloc[i]] * 2, [i - 0.4, i + 0.4], label="constant prediction", **YARDSTICK)
        if not mixed.all():
            grid.axes[0].axvline(100 * part["guessing"].iloc[0], label="guessing", **YARDSTICK)
        grid.set(xlim=(-2, 102))
        title = f"{plain(task)}: {plain(name)} by part, {plain(model)}\n{shots_text(part)}; {counted(part)}, bars: 95 % over seeds\n{plain(absent)}"
        alt = (f"{plots.capital(score_name(part))} by part of {name} ({task}, {model}), {shots_text(part)}: parts {', '.join(order)}; "
               f"{counted(part)}. "
               + (f"{few} more, of fewer than {FEW_ROWS} rows, are in the table alone. " if few else "")
               + f"One label's parts near 100 % and the other's near 0 % mean a constant answer. {absent}")
        found.append(plots.finished(grid, plots.file_name("parts", task, name, model), title, alt))
    return found


def shots_text(lines: pd.DataFrame) -> str:
    return f"{most_shots(lines)} shots a class"


def calibration_figures(table: pd.DataFrame) -> list[Picture]:
    """Reliability diagrams (`predicted.calibration`) at the most shots: a figure a model and task, a panel an evaluation set."""
    found = []
    for (model, task), part in table.groupby(["model", "task"], sort=False) if len(table) else ():
        part, absent = at_most_shots(part)
        part = plots.named(part).assign(panel=[f"{DOMAINS[domain]} ({plain(name)})" for domain, name in zip(part["domain"], part["set"])])
        part = part.assign(confidence=100 * part["confidence"], right=100 * part["right"]).sort_values("domain", kind="stable")
        errors = part.pivot_table(index="line", columns="panel", values="ece", sort=False)[part["panel"].unique()].mul(100)
        told = {line: f"{line}: " + "\u00a0/\u00a0".join(f"{error:.1f}" for error in each) for line, each in zip(errors.index, errors.to_numpy())}
        looks = {told[line]: look for line, look in plots.styles(part["line"]).items()}
        grid = plots.facets(part.assign(line=part["line"].map(told), right=part["right"].where(part["rows"] >= FEWEST)), looks)
        grid.map_dataframe(sns.lineplot, x="confidence", y="right", estimator=None, legend=False)
        for axes in grid.axes.flat:
            axes.plot([50, 100], [50, 100], label="perfectly calibrated", **YARDSTICK)
        grid.set(xlim=(min(48, part["confidence"].min() - 2), 101), ylim=(0, 101)).set_axis_labels("confidence, %", "of these right, %")
        count = f"{plots.span(part['trials'])} trials a line"
        title = (f"{plain(task)}, {plain(model)}: calibration at {shots_text(part)}; {count}; points of at least {FEWEST} answers\n"
                 f"behind the names: expected calibration error, points, a panel after the other\n{plain(absent)}")
        alt = (f"Reliability diagrams on {task} with {model} at {shots_text(part)}, share right against confidence; {count}; "
               f"the dotted diagonal is perfect calibration, below it a method is too sure. The legend has each expected calibration error. {absent}")
        found.append(plots.finished(grid, plots.file_name("calibration", task, model), title, alt))
    return found


def training_figures(found: Collected) -> list[Picture]:
    """Training loss, mean over seeds, at the most shots: a panel a model and task, a line a method and variant."""
    lines = [
        {"method": run.method, "variant": run.variant, "model": run.parameters.model, "task": run.parameters.task, "shots": run.parameters.shots,
         "loss": trial["losses"], "steps": min(len(other["losses"]) for other in trials), "labels": len(read_task(run.parameters.task).labels)}
        for run, trials in found.runs for trial in trials if trial["losses"]
    ]
    if not lines:
        return []
    places = [(place, *at_most_shots(part)) for place, part in pd.DataFrame(lines).groupby(["model", "task"], sort=False)]
    table = plots.named(pd.concat([part.assign(panel=f"{plain(task)}, {plain(model)}, {shots_text(part)}") for (model, task), part, _ in places]))
    count = plots.span(table.groupby(["line", "panel"]).size())
    steps = table.assign(loss=[losses[:n] for losses, n in zip(table["loss"], table["steps"])],
                         done=[np.linspace(0, 100, n) for n in table["steps"]]).explode(["loss", "done"]).astype({"loss": float, "done": float})
    grid = plots.facets(steps, plots.styles(table["line"]))
    grid.map_dataframe(sns.lineplot, x="done", y="loss", errorbar=None, markevery=0.2, legend=False)
    for panel, here in table.groupby("panel"):
        grid.axes_dict[panel].axhline(np.log(here["labels"].iloc[0]), label="knowing nothing, log(labels)", **YARDSTICK)
    grid.set_axis_labels("part of the training, %", "training loss")
    alt = (f"Training loss against the part of the training done, mean of {count} trials a line; dotted: the cross-entropy of knowing nothing. "
           "Losses over the vocabulary and distillation's are other losses, and compare only with themselves."
           + "".join(f" {task}, {model}: {absent}" for (model, task), _, absent in places if absent))
    return [plots.finished(grid, "training", f"Training loss, mean of {count} trials a line", alt)]


COSTS = {"seconds": "seconds a trial", "memory": "peak memory, GB", "trainable": "trained parameters"}


def cost_figures(trials: pd.DataFrame) -> list[Picture]:
    """Accuracy against each cost at the most shots, the Pareto front drawn: a figure a model, task and domain."""
    found = []
    for (model, task, domain), part in trials.groupby(["model", "task", "domain"], sort=False) if len(trials) else ():
        part, absent = at_most_shots(part)
        notes = f"{of_machines(part)} {absent}".strip()
        each = plots.named(part.assign(panel=""))
        costs = each.drop_duplicates(["line", "seed"]).groupby("line")[list(COSTS)].mean()
        once = plots.over_seeds(each)
        table = pd.concat([once.assign(panel=text, cost=once["line"].map(costs[cost])) for cost, text in COSTS.items()])
        looks = {name: {**look, "linestyle": "none", "markersize": 8} for name, look in plots.styles(table["line"]).items()}
        grid = plots.means(plots.facets(table, looks, across=3, width=3.5), "cost", "accuracy").set_titles("")
        for (cost, text), axes in zip(COSTS.items(), grid.axes.flat):
            front = pareto(list(zip(costs[cost], once.groupby("line")["accuracy"].mean()[costs.index])))
            axes.step(*np.array(front).T, where="post", color="0.3", linewidth=1.2, zorder=0, label="Pareto front")
            most = costs[cost].max()
            axes.set(xlabel=text, ylabel=f"{score_name(part)}, %" if cost == "seconds" else "", xlim=(-0.03 * most, 1.12 * most))
        axes.set_xscale("symlog", linthresh=1e4)  # trained parameters lie far apart, and none at all has a place of its own
        axes.set(xlim=(-3e3, 3 * max(most, 1e4)), xticks=[0, 1e4, 1e6, 1e8], xticklabels=["0", "10⁴", "10⁶", "10⁸"])
        axes.minorticks_off()
        plots.yardsticks(grid)
        title = f"{plain(task)}, {DOMAINS[domain]}, {plain(model)}, {shots_text(part)}: {counted(part)}, bars: 95 % over seeds\n{plain(notes)}"
        alt = (f"{plots.capital(score_name(part))} {DOMAINS[domain]} on {task} with {model} at {shots_text(part)} against seconds, peak memory and "
               f"trained parameters; {plots.explained(part)}; the stepped line is the Pareto front of these (nothing cheaper is better). {notes}")
        found.append(plots.finished(grid, plots.file_name("cost", task, domain, model), title, alt))
    return found


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
    once = plots.named(trials.drop_duplicates([*RUN, "seed"]))
    once["panel"] = [f"{plain(task)}, {plain(model)}" for model, task in zip(once["model"], once["task"])]
    grid = plots.against(once, plots.styles(once["line"]), "shots", "seconds")
    _cheapest(grid, once.groupby(["panel", "line", "shots"])["seconds"].mean())
    title = f"What a trial takes: {counted(once)}, bars: 95 % over seeds\n{of_machines(once)}"
    alt = (f"Seconds a trial against shots by method; {counted(once)}; dotted: the cheapest run. "
           f"The numbers are in the table of costs. {of_machines(once)}")
    found = [plots.finished(grid.set_axis_labels(y_var="seconds a trial"), "cost-shots", title, alt)]
    return found + ([_against_size(once)] if once["model"].nunique() > 1 else [])


def _against_size(once: pd.DataFrame) -> Picture:
    once = once[once["shots"] == most_shots(once)]
    once = once.assign(size=once.groupby("model")["parameters"].transform("min") / 1e6)  # without adapters
    table = pd.concat([once.assign(panel=COSTS[cost], cost=once[cost]) for cost in ("seconds", "memory")])
    grid = plots.facets(table, plots.styles(once["line"])).map_dataframe(sns.lineplot, x="size", y="cost", errorbar=None, legend=False)
    _cheapest(grid, table.groupby(["panel", "line", "size"])["cost"].mean())
    grid.set_axis_labels("model size, million parameters", "")
    return plots.finished(grid, "cost-size", f"Cost against model size, {shots_text(once)}, mean over tasks: {counted(once)}",
                    f"Seconds and peak memory of a trial against model size by method; {counted(once)}; dotted: the cheapest run.")


def _cheapest(grid: sns.FacetGrid, costs: pd.Series) -> None:
    """Costs have the cheapest run for a yardstick, and begin at nothing."""
    for panel, cheapest in costs.groupby("panel").min().items():
        grid.axes_dict[panel].axhline(cheapest, label="the cheapest run", **YARDSTICK)
    grid.set(ylim=(0, None))
