"""The paper's figures drawn anew: 2 (vanilla), 3 (PBFT), 4 (adaptive), 5 (LoRA by rank), and in-domain against out-of-domain.

Each can lay the authors' published numbers over ours: hollow grey marks, one a distinct published result. They are description: a
setting has one or two distinct runs, other weights and, on CoLA in domain, other rows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from lowres.analysis import plots
from lowres.analysis.claims import series
from lowres.analysis.plots import DOMAINS, PUBLISHED, YARDSTICK, Picture, counted, plain
from lowres.runs.summary import interval, score_name

NUMBERS = {"vanilla": "Figure 2 of the paper drawn anew", "pbft": "Figure 3 of the paper drawn anew", "adaptive": "Figure 4 of the paper drawn anew",
           "lora": "Figure 5 of the paper drawn anew", "distillation": "Context distillation", "in_context": "In-context learning (not in the paper)"}
AVERAGED = "mean over ranks"
LAID_OVER = "; hollow grey: the authors' published runs, one mark a distinct result (description only)"


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
    """Figures 2 to 5, by method in the order of the study, then LoRA by rank. They are of accuracy."""
    trials = trials[trials["metric"] == "accuracy"] if len(trials) else trials
    methods = [method for method in NUMBERS if method != "lora"]
    return [drawn for method in methods for drawn in method_against_shots(trials, method, published)] + lora_by_rank(trials, published)
