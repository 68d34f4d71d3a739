"""The paper's figures drawn anew: 2 (vanilla), 3 (PBFT), 4 (adaptive), 5 (LoRA by rank), and in-domain against out-of-domain.

Each can lay the authors' published numbers over ours: hollow grey marks, one a distinct published result. They are description: a
setting has one or two distinct runs, other weights and, on CoLA in domain, other rows.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns

from lowres.analysis.claims import series
from lowres.analysis.plots import (
    COLOURS,
    DOMAINS,
    MARKERS,
    PUBLISHED,
    YARDSTICK,
    Picture,
    counted,
    error_line,
    file_name,
    legend_below,
    panels,
    plain,
    shot_axis,
    styles,
)
from lowres.runs.summary import interval, score_name

NUMBERS = {"vanilla": "Figure 2 of the paper drawn anew", "pbft": "Figure 3 of the paper drawn anew", "adaptive": "Figure 4 of the paper drawn anew",
           "lora": "Figure 5 of the paper drawn anew", "distillation": "Context distillation", "in_context": "In-context learning (not in the paper)"}
LAID_OVER = "hollow grey: the authors' published runs, one mark a distinct result (description only)"


def method_against_shots(trials: pd.DataFrame, method: str, published: bool = False) -> list[Picture]:
    """Accuracy against shots of one method: a column a task, in domain above out of domain, a line a model and variant."""
    lines = trials[trials["method"] == method] if len(trials) else trials
    if not len(lines):
        return []
    cells = [(domain, task) for domain in DOMAINS for task in lines["task"].unique() if len(_at(lines, task, domain))]
    figure, grid = panels(len(cells), across=max(1, sum(domain == cells[0][0] for domain, _ in cells)))
    names = list(lines[["model", "variant"]].drop_duplicates().itertuples(index=False, name=None))
    shades = sns.light_palette(COLOURS.get(method, "0.2"), len(names) + 2)[2:][::-1]
    overlaid = False
    for axes, (domain, task) in zip(grid, cells):
        panel = _at(lines, task, domain)
        places = shot_axis(axes, panel["shots"].unique())
        for i, ((model, variant), shade) in enumerate(zip(names, shades)):
            line = panel[(panel["model"] == model) & (panel["variant"] == variant)]
            if len(line):
                error_line(axes, line, places, 2 ** (0.07 * (i - len(names) / 2)), color=shade, marker="osD^vP*X"[i % 8],
                           linestyle=("-", "--", "-.")[i % 3], label=plain(f"{model.split('/')[-1]} {variant}".strip()))
        _yardsticks(axes, panel)
        overlaid |= published and _lay_over(axes, series(method, task, domain), places)
        axes.set(ylabel="accuracy, %", title=f"{plain(task)}, {DOMAINS[domain]}")
    figure.suptitle(f"{NUMBERS.get(method, method)}: {method}; {counted(lines)}, bars: 95 % over seeds", fontsize="medium")
    legend_below(figure, grid)
    alt = (f"{NUMBERS.get(method, method)}: accuracy of {method} against shots, {len(names)} lines; {counted(lines)}, "
           f"bars are 95 % intervals over seeds, dotted is constant prediction" + (f"; {LAID_OVER}." if overlaid else "."))
    return [Picture(figure, file_name("paper", method), alt)]


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
        domains = [domain for domain in DOMAINS if (part["domain"] == domain).any()]
        figure, grid = panels(len(domains))
        ranks = sorted(part["rank"].unique())
        common = set.intersection(*(set(line["seed"]) for _, line in part.groupby("rank")))
        part = part[part["seed"].isin(common)] if common else part
        whole = part.groupby(["shots", "rank"])["seed"].nunique().eq(len(common)).groupby("shots").sum()  # ranks with all of them
        everywhere = set(whole.index[whole.eq(len(ranks))]) if len(ranks) > 1 else set()
        shades, overlaid = sns.dark_palette(COLOURS["lora"], len(ranks) + 2, reverse=True)[: len(ranks)], False
        for axes, domain in zip(grid, domains):
            panel = part[part["domain"] == domain]
            places = shot_axis(axes, panel["shots"].unique())
            for i, (rank, shade) in enumerate(zip(ranks, shades)):
                error_line(axes, panel[panel["rank"] == rank], places, 2 ** (0.07 * (i - len(ranks) / 2)), color=shade, marker="osD^v*X"[i % 7],
                           linestyle="--", linewidth=1.2, label=f"rank {rank}")
            if everywhere:
                error_line(axes, panel[panel["shots"].isin(everywhere)], places, 2 ** (0.07 * (len(ranks) / 2)), color="black", marker="P",
                           linewidth=2.6, label="mean over ranks")
            _yardsticks(axes, panel)
            overlaid |= published and _lay_over(axes, series("lora", task, domain), places)
            axes.set(ylabel="accuracy, %", title=DOMAINS[domain])
        figure.suptitle(f"Figure 5 anew: LoRA on {plain(task)}, {plain(model)}; {counted(part)}, bars: 95 % over seeds", fontsize="medium")
        legend_below(figure, grid)
        averaged = " and averaged over ranks" if everywhere else ""
        alt = (f"LoRA on {task} with {model} by rank ({', '.join(map(str, ranks))}){averaged}, against shots; {counted(part)}, "
               f"dotted is constant prediction" + (f"; {LAID_OVER}." if overlaid else "."))
        found.append(Picture(figure, file_name("paper-lora-rank", task, model), alt))
    return found


def in_against_out(trials: pd.DataFrame, published: bool = False) -> list[Picture]:
    """A figure a model and task, a panel a method: out-of-domain against in-domain accuracy, the points joined in the order of shots."""
    found = []
    for (model, task), part in trials.groupby(["model", "task"], sort=False) if len(trials) else ():
        if part["domain"].nunique() < 2:
            continue
        methods, looks, overlaid, name = list(part["method"].unique()), styles(part), False, score_name(part)
        figure, grid = panels(len(methods), across=3, width=4.2, height=4.0)
        for axes, method in zip(grid, methods):
            overlaid |= published and _published_pairs(axes, method, task)
            for i, (variant, line) in enumerate(part[part["method"] == method].groupby("variant", sort=False)):
                _path(axes, line, {**looks[method, variant], "label": _broken(plain(variant)) if variant else None}, numbers=i == 0)
            constant = 100 * part.groupby("domain")["constant"].mean()
            axes.axvline(constant["in"], **YARDSTICK)
            axes.axhline(constant["out"], **YARDSTICK)
            axes.set(title=method, xlabel=f"in-domain {name}, %", ylabel=f"out-of-domain {name}, %")
            if any(label for label in axes.get_legend_handles_labels()[1]):
                axes.legend(fontsize="x-small", loc="upper left")
        _same_limits(grid)
        figure.suptitle(f"{plain(task)}, {plain(model)}: {counted(part)}, bars: 95 % over seeds; dotted: constant prediction;\n"
                        "dashed: as good out of domain as in; numbers: shots", fontsize="medium")
        alt = (f"Out-of-domain against in-domain {name} on {task} with {model}, a panel for each of {', '.join(methods)}; points "
               f"joined from few to many shots; {counted(part)}; dotted lines are constant prediction, "
               f"the diagonal is equal {name}" + (f"; {LAID_OVER}." if overlaid else "."))
        found.append(Picture(figure, file_name("in-against-out", task, model), alt))
    return found


def _broken(name: str) -> str:
    """A variant's name on as many lines as its panel's legend has room for, each ending with a comma."""
    return textwrap.fill(name.replace(",", ", "), width=30, break_long_words=False, break_on_hyphens=False).replace(", ", ",")


def _path(axes, line: pd.DataFrame, look: dict, numbers: bool) -> None:
    each = 100 * line.pivot_table(index=["shots", "seed"], columns="domain", values="accuracy")
    points = []
    for shots, group in each.groupby("shots", sort=False):
        points.append((shots, *(value for domain in ("in", "out") for value in (group[domain].mean(), *interval(group[domain])))))
    points.sort(key=lambda point: np.inf if isinstance(point[0], str) else point[0])
    shots, x, x_low, x_high, y, y_low, y_high = (np.array(column) for column in zip(*points))
    axes.errorbar(x, y, xerr=np.nan_to_num([x - x_low, x_high - x]), yerr=np.nan_to_num([y - y_low, y_high - y]), elinewidth=0.7, **look)
    for i in {0, len(shots) - 1} if numbers else ():
        axes.annotate(str(shots[i]), (x[i], y[i]), xytext=(5, 5), textcoords="offset points", fontsize="small")


def _same_limits(grid) -> None:
    """Panels share one range on both axes, so that the diagonal is a diagonal."""
    ends = [end for axes in grid for end in (*axes.get_xlim(), *axes.get_ylim())]
    for axes in grid:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.6", linestyle="--", linewidth=1, zorder=0)
        axes.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)), aspect="equal")


def _published_pairs(axes, method: str, task: str) -> bool:
    inside, outside = (series(method, task, domain)["accuracy"] for domain in ("in", "out"))
    if len(inside):
        axes.plot(inside, outside, marker=MARKERS.get(method, "o"), label="published", **PUBLISHED)
    return bool(len(inside))


def _lay_over(axes, line: pd.DataFrame, places: dict) -> bool:
    """Whether there was anything to lay over."""
    line = line[line["shots"].isin(list(places))]
    for marker, (model, part) in zip("os", line.groupby("model", sort=False)):
        axes.plot([places[n] for n in part["shots"]], part["accuracy"], marker=marker, label=f"published, {model.split('/')[-1]}", **PUBLISHED)
    return bool(len(line))


def _yardsticks(axes, panel: pd.DataFrame) -> None:
    for value in sorted(panel["constant"].round(4).unique()):
        axes.axhline(100 * value, label="constant prediction", **YARDSTICK)


def _at(lines: pd.DataFrame, task: str, domain: str) -> pd.DataFrame:
    return lines[(lines["task"] == task) & (lines["domain"] == domain)]


def all_of_the_paper(trials: pd.DataFrame, published: bool = False) -> list[Picture]:
    """Figures 2 to 5, by method in the order of the study, then LoRA by rank. They are of accuracy."""
    trials = trials[trials["metric"] == "accuracy"] if len(trials) else trials
    methods = [method for method in NUMBERS if method != "lora" and len(trials) and (trials["method"] == method).any()]
    return [drawn for method in methods for drawn in method_against_shots(trials, method, published)] + lora_by_rank(trials, published)
