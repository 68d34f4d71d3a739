"""A study's figures beside its answer: the paper's drawn anew, in domain against out of domain, parts of a set, calibration, training curves, cost.

The paper's are 2 (vanilla), 3 (PBFT), 4 (adaptive) and 5 (LoRA by rank). They can lay the authors' published numbers over ours: hollow grey marks,
one a distinct published result. They are description: a setting has one or two distinct runs, other weights and, on CoLA in domain, other rows.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from lowres.analysis import plots
from lowres.analysis.claims import series
from lowres.analysis.collect import Collected
from lowres.analysis.plots import DOMAINS, PUBLISHED, YARDSTICK, Picture, counted, plain
from lowres.analysis.tables import at_most_shots, most_shots, of_machines
from lowres.runs.summary import RUN, interval, score_name
from lowres.tasks.kinds import kind_of_file
from lowres.tasks.task_file import TaskFile, read_task

NUMBERS = {"vanilla": "Figure 2 of the paper drawn anew", "pbft": "Figure 3 of the paper drawn anew", "adaptive": "Figure 4 of the paper drawn anew",
           "lora": "Figure 5 of the paper drawn anew", "distillation": "Context distillation", "in_context": "In-context learning (not in the paper)"}
AVERAGED = "mean over ranks"
LAID_OVER = "; hollow grey: the authors' published runs, one mark a distinct result (description only)"
FEWEST = 25  # answers that a calibration point is made of: its standard error is at most 10 points
FEW_ROWS = 20


def method_against_shots(trials: pd.DataFrame, method: str, published: bool = False) -> list[Picture]:
    """Accuracy against shots of one method: a column a task, in domain above out of domain, a line a model and variant."""
    lines = trials[trials["method"] == method].sort_values("domain", kind="stable") if len(trials) else trials
    if not len(lines):
        return []
    lines = lines.assign(line=[plain(f"{model} {variant}".strip()) for model, variant in zip(lines["model"], lines["variant"])],
                         panel=[f"{plain(task)}, {DOMAINS[domain]}" for task, domain in zip(lines["task"], lines["domain"])])
    grid, overlaid = _shaded(lines, published, lines[lines["domain"] == lines["domain"].iloc[0]]["task"].nunique())
    alt = f"{NUMBERS[method]}: accuracy of {method} against shots, {len(grid.hue_names)} lines; {plots.explained(lines)}{overlaid}."
    title = f"{NUMBERS[method]}: {method}; {counted(lines)}, bars: 95 % over seeds"
    return [plots.finished(grid, plots.file_name("paper", method), title, alt)]


def _shaded(lines: pd.DataFrame, published: bool, across: int) -> tuple[sns.FacetGrid, str]:
    """One method's accuracy against shots, in shades of its colour (an average over its lines thick and black), and what was laid over it."""
    table, method = plots.over_seeds(lines, "shots"), lines["method"].iloc[0]
    names = [name for name in table["line"].unique() if name != AVERAGED]
    shades = sns.light_palette(plots.COLOURS.get(method, "0.2"), len(names) + 2)[2:][::-1]
    looks = {name: {"color": shade, "markeredgecolor": shade, "marker": "osD^vX*"[i % 7], "linestyle": ("-", "--", "-.")[i % 3], "linewidth": 1.5}
             for i, (name, shade) in enumerate(zip(names, shades))}
    looks |= {AVERAGED: {"color": "black", "marker": "P", "linewidth": 2.6}} if (table["line"] == AVERAGED).any() else {}
    grid, places, overlaid = plots.against(table, looks, "shots", across=across), plots.places_of(table["shots"]), ""
    plots.yardsticks(grid)
    for (task, domain, panel), _ in lines.groupby(["task", "domain", "panel"]) if published else ():
        known = series(method, task, domain)
        for marker, (model, part) in zip("os", known[known["shots"].isin(list(places))].groupby("model", sort=False)):
            label, overlaid = f"published, {model.split('/')[-1]}", LAID_OVER
            grid.axes_dict[panel].plot(part["shots"].map(places), part["accuracy"], marker=marker, label=label, **PUBLISHED)
    return grid, overlaid


def lora_by_rank(trials: pd.DataFrame, published: bool = False) -> list[Picture]:
    """Figure 5: LoRA by rank and, thick, averaged over ranks where all were run; a figure a model and task, in domain beside out of domain.

    Of several heads, fidelities or learning rates, the first that the study lists; the seeds are those that all ranks have, so that the mean is
    over the same draws (each rank's own, and no mean, if they have none in common).
    """
    lines = trials[(trials["method"] == "lora") & (trials["peft_type"] == "LORA") & trials["main"]] if len(trials) else trials
    for setting in ("head", "fidelity"):
        lines = lines[lines[setting] == lines[setting].iloc[0]] if len(lines) else lines
    found = []
    for (model, task), part in lines.groupby(["model", "task"], sort=False) if len(lines) else ():
        ranks = sorted(part["rank"].unique())
        common = set.intersection(*(set(line["seed"]) for _, line in part.groupby("rank")))
        part = part[part["seed"].isin(common)] if common else part
        whole = part.groupby(["shots", "rank"])["seed"].nunique().eq(len(common)).groupby("shots").sum()  # ranks with all of them
        everywhere = set(whole.index[whole.eq(len(ranks))]) if len(ranks) > 1 else set()
        part = part.assign(line=part["rank"].map("rank {}".format), panel=part["domain"].map(DOMAINS)).sort_values(["domain", "rank"], kind="stable")
        grid, overlaid = _shaded(pd.concat([part, part[part["shots"].isin(everywhere)].assign(line=AVERAGED)]), published, across=2)
        averaged = " and averaged over ranks" if everywhere else ""
        alt = f"LoRA on {task} with {model} by rank ({', '.join(map(str, ranks))}){averaged}, against shots; {plots.explained(part)}{overlaid}."
        title = f"Figure 5 anew: LoRA on {plain(task)}, {plain(model)}; {counted(part)}, bars: 95 % over seeds"
        found.append(plots.finished(grid, plots.file_name("paper-lora-rank", task, model), title, alt))
    return found


def in_against_out(trials: pd.DataFrame, published: bool = False) -> list[Picture]:
    """A figure a model and task, a panel a method: out-of-domain against in-domain accuracy, the points joined in the order of shots."""
    found = []
    for (model, task), part in trials.groupby(["model", "task"], sort=False) if len(trials) else ():
        if part["domain"].nunique() < 2:
            continue
        part, overlaid, score = plots.named(part).assign(panel=part["method"]), "", score_name(part)
        grid = plots.facets(part, plots.styles(part["line"]), across=3, width=3.3, height=3.3, share=True).map_dataframe(_path)
        constant = 100 * part.groupby("domain")["constant"].mean()
        for method, axes in grid.axes_dict.items():
            inside, outside = (series(method, task, domain)["accuracy"] for domain in DOMAINS)
            if published and len(inside):
                overlaid = LAID_OVER
                axes.plot(inside, outside, marker="o", label="published", **PUBLISHED)
            axes.axvline(constant["in"], label="constant prediction", **YARDSTICK)
            axes.axhline(constant["out"], **YARDSTICK)
            axes.axline((50, 50), slope=1, color="0.6", linestyle="--", linewidth=1, zorder=0, label="as good out of domain as in")
        ends = [end for axes in grid.axes.flat for end in (*axes.get_xlim(), *axes.get_ylim())]
        grid.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)))  # one range on both axes: the diagonal is a diagonal
        grid.set_axis_labels(f"in-domain {score}, %", f"out-of-domain {score}, %")
        alt = (f"Out-of-domain against in-domain {score} on {task} with {model}, a panel for each of {', '.join(grid.axes_dict)}; points "
               f"joined from few to many shots; {counted(part)}; dotted lines are constant prediction, "
               f"the diagonal is equal {score}{overlaid}.")
        title = f"{plain(task)}, {plain(model)}: {counted(part)}, bars: 95 % over seeds; numbers: shots"
        found.append(plots.finished(grid, plots.file_name("in-against-out", task, model), title, alt))
    return found


def _path(data: pd.DataFrame, **look) -> None:
    """One line, with bars both ways, which no function of seaborn draws; the first of a panel has its shots written beside its ends."""
    each, axes = 100 * data.pivot_table(index=["shots", "seed"], columns="domain", values="accuracy"), plt.gca()
    points = []
    for shots, group in each.groupby("shots", sort=False):
        points.append((shots, *(value for domain in ("in", "out") for value in (group[domain].mean(), *interval(group[domain])))))
    points.sort(key=lambda point: np.inf if isinstance(point[0], str) else point[0])
    shots, x, x_low, x_high, y, y_low, y_high = (np.array(column) for column in zip(*points))
    axes.errorbar(x, y, xerr=np.nan_to_num([x - x_low, x_high - x]), yerr=np.nan_to_num([y - y_low, y_high - y]), elinewidth=0.7, **look)
    for i in () if axes.texts else {0, len(shots) - 1}:
        axes.annotate(str(shots[i]), (x[i], y[i]), xytext=(5, 5), textcoords="offset points", fontsize="small")


def all_of_the_paper(trials: pd.DataFrame, published: bool = False) -> list[Picture]:
    """Figures 2 to 5, by method in the order of the study, then LoRA by rank: of accuracy, against shots, of which there have to be several."""
    if not len(trials) or trials["shots"].nunique() < 2:
        return []
    trials = trials[trials["metric"] == "accuracy"]
    methods = [method for method in NUMBERS if method != "lora"]
    return [drawn for method in methods for drawn in method_against_shots(trials, method, published)] + lora_by_rank(trials, published)



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
         "loss": trial["losses"], "steps": min(len(other["losses"]) for other in trials), "answers": _options(read_task(run.parameters.task))}
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
        if answers := here["answers"].iloc[0]:
            grid.axes_dict[panel].axhline(math.log(answers), label="knowing nothing, log(answers)", **YARDSTICK)
    grid.set_axis_labels("part of the training, %", "training loss")
    alt = (f"Training loss against the part of the training done, mean of {count} trials a line; dotted: the cross-entropy of knowing nothing. "
           "Losses over the vocabulary and distillation's are other losses, and compare only with themselves."
           + "".join(f" {task}, {model}: {absent}" for (model, task), _, absent in places if absent))
    return [plots.finished(grid, "training", f"Training loss, mean of {count} trials a line", alt)]


def _options(task: TaskFile) -> int:
    """How many answers a row may have; 0 where that is another number for each row."""
    return kind_of_file(task).options(len(task.labels))


COSTS = {"seconds": "seconds a trial", "memory": "peak memory, GB", "trainable": "trained parameters"}


def cost_figures(trials: pd.DataFrame) -> list[Picture]:
    """Accuracy, the mean over domains, against each cost at the most shots, the Pareto front drawn: a figure a model and task."""
    found = []
    for (model, task), part in trials.groupby(["model", "task"], sort=False) if len(trials) else ():
        part, absent = at_most_shots(part)
        notes = f"{of_machines(part)} {absent}".strip()
        each = plots.named(part.assign(panel=""))
        costs = each.drop_duplicates(["line", "seed"]).groupby("line")[list(COSTS)].mean()
        once = plots.over_seeds(each, "domain").groupby(["panel", "line", "seed"], sort=False).mean(numeric_only=True).reset_index()
        where = " and ".join(plots.DOMAINS[domain] for domain in part["domain"].unique())
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
        title = f"{plain(task)}, {where}, {plain(model)}, {shots_text(part)}: {counted(part)}, bars: 95 % over seeds\n{plain(notes)}"
        alt = (f"{plots.capital(score_name(part))} {where} on {task} with {model} at {shots_text(part)} against seconds, peak memory and "
               f"trained parameters; {plots.explained(part)}; the stepped line is the Pareto front of these (nothing cheaper is better). {notes}")
        found.append(plots.finished(grid, plots.file_name("cost", task, model), title, alt))
    return found


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy) points, those that no cheaper one reaches, by cost."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def cost_against_shots(trials: pd.DataFrame) -> list[Picture]:
    """Seconds a trial against shots, if these are several; and, with several models, against the model's size."""
    if not len(trials):
        return []
    sizes = [_against_size] if trials["model"].nunique() > 1 else []
    once = plots.named(trials.drop_duplicates([*RUN, "seed"]))
    if trials["shots"].nunique() < 2:
        return [draw(once) for draw in sizes]
    once["panel"] = [f"{plain(task)}, {plain(model)}" for model, task in zip(once["model"], once["task"])]
    grid = plots.against(once, plots.styles(once["line"]), "shots", "seconds")
    _cheapest(grid, once.groupby(["panel", "line", "shots"])["seconds"].mean())
    title = f"What a trial takes: {counted(once)}, bars: 95 % over seeds\n{of_machines(once)}"
    alt = (f"Seconds a trial against shots by method; {counted(once)}; dotted: the cheapest run. "
           f"The numbers are in the table of costs. {of_machines(once)}")
    found = [plots.finished(grid.set_axis_labels(y_var="seconds a trial"), "cost-shots", title, alt)]
    return found + [draw(once) for draw in sizes]


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
