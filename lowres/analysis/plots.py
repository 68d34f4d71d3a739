"""The plots' common ground: one theme, one colour a method everywhere (colour-blind safe), no figure without its yardstick.

A figure is a `Picture`: the picture and the sentence that stands for it where it cannot be seen. `show` writes PNG and SVG files. Panels and lines
are a seaborn.FacetGrid's, whose table has a column `panel` and a column `line`; what every figure needs besides is here.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from seaborn import FacetGrid

from lowres.methods.show import Picture, show, theme
from lowres.runs.study import variant
from lowres.runs.summary import RUN, interval, score_name

METHODS = ("vanilla", "pbft", "adaptive", "lora", "distillation", "in_context", "baselines")
COLOURS = dict(zip(METHODS, sns.color_palette("colorblind").as_hex()))
MARKERS = dict(zip(METHODS, "osD^vPX"))  # readable in grey, too
FILLED = ("full", "none", "left", "bottom", "right", "top")
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 1)), (0, (1, 1)))  # a method's variants
DOMAINS = {"in": "in-domain", "out": "out-of-domain"}
WHERE = {"in": "in domain", "out": "out of domain"}  # the same behind a noun
FEWEST_NUMBERS = 3  # of a setting that make a figure
YARDSTICK = {"color": "0.35", "linestyle": ":", "linewidth": 1.8}
PUBLISHED = {"color": "0.45", "linestyle": "none", "markerfacecolor": "none", "markersize": 9, "zorder": 1}


def show_all(figures: Iterable[Picture], folder: Path | None = None, none: str = "There is nothing to draw yet.") -> None:
    from IPython.display import Markdown, display

    figures = list(figures)
    for drawn in figures:
        show(drawn, folder)
    if not figures:
        display(Markdown(none))


def plain(text: object) -> str:
    """A name as matplotlib draws it letter by letter: no formula begins in it."""
    return str(text).replace("$", r"\$")


def file_name(*words: object) -> str:
    """A figure's, of a model's, a task's and other names; what lies in two folders under one name has two."""
    def one(word: str) -> str:
        last = "".join(c if c.isalnum() or c in "._" else "_" for c in word.split("/")[-1])
        return last if "/" not in word else f"{last}_{hashlib.sha256(word.encode()).hexdigest()[:6]}"

    return "-".join(one(str(word)) for word in words)


def named(lines: pd.DataFrame, by: str = "variant") -> pd.DataFrame:
    """With a column `line`: the method and what tells its lines apart."""
    return lines.assign(line=[plain(f"{method} {other}".strip()) for method, other in zip(lines["method"], lines[by])])


def over_seeds(lines: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Accuracy and its yardsticks in percent by panel, line, seed and what else is asked, each evaluation set as much as another."""
    return lines.groupby(["panel", "line", *by, "seed"], sort=False)[["accuracy", "constant", "untrained"]].mean().mul(100).reset_index()


def styles(lines: Iterable[str]) -> dict[str, dict]:
    """By a line's name: its method's colour and marker; a method's variants differ in dashes and in which part of a marker is filled."""
    found: dict[str, dict] = {}
    for name in dict.fromkeys(lines):
        method = name.split()[0]
        nth = sum(other.split()[0] == method for other in found)
        colour = COLOURS.get(method, "0.2")
        found[name] = {"color": colour, "markeredgecolor": colour, "marker": MARKERS.get(method, "o"), "linestyle": DASHES[nth % len(DASHES)],
                       "fillstyle": FILLED[(nth + nth // len(DASHES)) % len(FILLED)], "markerfacecoloralt": "white"}
    return found


def span(counts: pd.Series) -> str:
    few, most = counts.min(), counts.max()
    return f"{few}" if few == most else f"{few} to {most}"


def counted(lines: pd.DataFrame) -> str:
    """How many distinct trials stand behind a point."""
    trials = lines.groupby(RUN)["outcome"].nunique()
    return f"{span(trials)} distinct trial{'' if trials.max() == 1 else 's'} a point"


def explained(lines: pd.DataFrame) -> str:
    """What stands behind the points, bars and level lines of accuracies, for who cannot see them."""
    return (f"{counted(lines)}, bars are 95 % intervals over seeds, the dotted line is constant prediction"
            + (", the long-dashed one the untrained model" if lines["untrained"].notna().any() else ""))


def facets(table: pd.DataFrame, looks: dict[str, dict], across: int = 2, width: float = 4.4, height: float = 3.5, share: bool = False) -> FacetGrid:
    """A panel for each `panel` of the table, ready to draw in it each `line` as it looks in every figure."""
    theme()
    given = {key: [look.get(key) for look in looks.values()] for key in dict.fromkeys(key for look in looks.values() for key in look)}
    grid = sns.FacetGrid(table, col="panel", col_wrap=min(across, table["panel"].nunique()), height=height, aspect=width / height, sharex=share,
                         sharey=share, hue="line", hue_order=list(looks), palette=given.pop("color"), hue_kws=given)
    grid.tight_layout = lambda *args, **how: grid  # `finished` seeks the places once, when all is drawn; seaborn does after each step
    return grid.set_titles("{col_name}", size="medium")


def means(grid: FacetGrid, x: str, y: str, **how) -> FacetGrid:
    """Draws each line's mean over seeds with its 95 % interval."""
    most = 100 if "accuracy" in (x, y) else None  # no accuracy, time or memory lies beyond
    return grid.map_dataframe(sns.lineplot, x=x, y=y, errorbar=lambda each: np.clip(interval(each), 0, most), err_style="bars",
                              err_kws={"capsize": 3, "elinewidth": 1.2}, legend=False, **how)


def against(table: pd.DataFrame, looks: dict[str, dict], x: str, y: str = "accuracy", across: int = 2, called: str = "accuracy") -> FacetGrid:
    """Lines against shots or another number; a little beside one another, so that bars do not hide each other."""
    places = places_of(table[x])
    aside = {name: 2 ** (min(0.12, 0.9 / len(looks)) * (i - (len(looks) - 1) / 2)) for i, name in enumerate(looks)}
    grid = means(facets(table.assign(at=table[x].map(places).astype(float) * table["line"].map(aside)), looks, across), "at", y)
    for axes in grid.axes.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(places.values()), [str(n) for n in places])
        axes.set_xlim(min(places.values()) / 1.5, max(places.values()) * 1.5)
        axes.minorticks_off()
    return grid.set_axis_labels({"shots": "shots (labelled examples per class)"}.get(x, x.replace("_", " ")), f"{called}, %")


def places_of(counts: Iterable) -> dict:
    """Where each number of shots, or rate, stands on its axis ('all' to the right of the others, 0 to the left)."""
    numbers = sorted({n for n in counts if not isinstance(n, str)})
    least = min((n for n in numbers if n > 0), default=1)
    return {n: float(n) or least / 4 for n in numbers} | ({"all": 4.0 * max(numbers, default=1)} if any(isinstance(n, str) for n in counts) else {})


def below_one_another(table: pd.DataFrame, looks: dict[str, dict], y: str, called: str, **form) -> FacetGrid:
    """Scores without an order: a row for each `y`, in it each line's mean over seeds."""
    order, spread = list(table[y].unique()), {name: 0.7 * ((i + 0.5) / len(looks) - 0.5) for i, name in enumerate(looks)}
    at = table[y].map(order.index) + (0 if y == "line" else table["line"].map(spread))
    dots = {name: {**look, "linestyle": "none"} for name, look in looks.items()}
    grid = means(facets(table.assign(at=at), dots, share=True, **form), "accuracy", "at", orient="y")
    grid.set(yticks=range(len(order)), yticklabels=[broken(name) for name in order], ylim=(len(order) - 0.4, -0.6))  # the first on top
    return grid.set_axis_labels(f"{called}, %", "").tick_params(axis="y", labelsize="small")


def yardsticks(grid: FacetGrid, upright: bool = False) -> None:
    """The constant answer and, where it was measured, the untrained model, in each panel."""
    for panel, here in grid.data.groupby("panel", sort=False):
        line = grid.axes_dict[panel].axvline if upright else grid.axes_dict[panel].axhline
        line(here["constant"].mean(), label="constant prediction", **YARDSTICK)
        if here["untrained"].notna().any():
            line(here["untrained"].mean(), label="untrained model", **{**YARDSTICK, "linestyle": (0, (8, 4))})


def capital(text: str) -> str:
    """With a capital letter in front, and the others as they are."""
    return text[:1].upper() + text[1:]


def broken(name: str) -> str:
    """A long name on several lines, broken behind commas."""
    return textwrap.fill(name.replace(",", ", "), 40, break_long_words=False, break_on_hyphens=False).replace(", ", ",")


def finished(grid: FacetGrid, name: str, title: str, alt: str) -> Picture:
    """With its title above, and beside the panels one legend of all that has a name in them and not yet a row."""
    figure = grid.figure
    title = [part for line in title.splitlines() for part in textwrap.wrap(line, int(figure.get_figwidth() / 0.085))]
    figure.suptitle("\n".join(title), x=0.01, ha="left", fontsize="medium")
    found = {broken(label): handle for axes in grid.axes.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    rows = [tick.get_text() for tick in grid.axes.flat[0].get_yticklabels()]
    order = [label for label in dict.fromkeys([*map(broken, grid.hue_names), *found]) if label in found and label not in rows]
    legend = figure.legend([found[label] for label in order], order, loc="outside right center", borderpad=1)
    (width, height), box = figure.get_size_inches(), legend.get_window_extent()
    figure.set_size_inches(width + box.width / figure.dpi, max(height + 0.22 * len(title), box.height / figure.dpi + 0.2))
    figure.set_layout_engine("constrained")
    _titles_kept_apart(grid)
    plt.close(figure)
    return Picture(figure, name, alt)


def _titles_kept_apart(grid: FacetGrid) -> None:
    """Breaks a panel's title that is wider than the panel: a task may be a path, and long names of rows may leave a panel half of its width."""
    grid.figure.draw_without_rendering()
    for axes in grid.axes.flat:
        room = axes.get_window_extent().width / max(axes.title.get_window_extent().width, 1)
        if room < 1:
            axes.set_title(textwrap.fill(axes.get_title(), int(room * len(axes.get_title()))), size="medium")


def answer(lines: pd.DataFrame) -> list[Picture]:
    """One figure: accuracy against shots, a panel a task and evaluation set, a line a method, beside the constant answer and the untrained model."""
    lines = lines[~lines["shots"].map(lambda shots: isinstance(shots, str))] if len(lines) else lines
    return [_sets(lines, "answer", "the study's methods")] if len(lines) else []


def accuracy_against_shots(trials: pd.DataFrame) -> list[Picture]:
    """A figure a model and task: the same of all that was run, a line a method and variant."""
    places = trials.groupby(["model", "task"], sort=False) if len(trials) else ()
    return [_sets(part, file_name("shots", task, model), f"{task}, {model}") for (model, task), part in places]


def _sets(lines: pd.DataFrame, name: str, what: str) -> Picture:
    """Mean accuracy over seeds with its 95 % interval, a panel an evaluation set."""
    panel = [(f"{plain(task)}: " if lines["task"].nunique() > 1 else "") + f"{DOMAINS[domain]} ({plain(name)}), {rows:,} rows"
             for task, domain, name, rows in zip(lines["task"], lines["domain"], lines["set"], lines["n"])]
    table, several = over_seeds(named(lines.assign(panel=panel)), "shots"), lines["shots"].nunique() > 1
    looks = styles(table["line"])
    score = score_name(lines)
    if several:
        grid = against(table, looks, "shots", called=score)
    else:  # one number of examples is no axis: a line a row
        lines_a_row = max(broken(name).count("\n") + 1 for name in looks)
        grid = below_one_another(table, looks, "line", score, height=1.2 + max(0.3, 0.17 * lines_a_row) * len(looks))
    yardsticks(grid, upright=not several)
    shots = "against shots" if several else f"from {lines['shots'].iloc[0]} shots a class"
    alt = (f"{capital(score)} {shots}: {what}, {len(grid.axes_dict)} evaluation sets side by side; lines: {'; '.join(looks)}; {explained(lines)}. "
           "The numbers are in the result table.")
    return finished(grid, name, f"{plain(what)}, {shots}: {counted(lines)}, bars: 95 % over seeds", alt)


def against_settings(trials: pd.DataFrame) -> list[Picture]:
    """A figure a model, task, number of shots and setting that some method has at least FEWEST_NUMBERS numbers of (a rate, a rank, a temperature):
    accuracy against it, a panel a domain, a line for what else tells the method's runs apart; the study's other methods are level lines."""
    found = []
    for place, part in trials.groupby(["model", "task", "shots"], sort=False) if len(trials) else ():
        each = part["settings"].map(_apart)
        swept = {name: _swept(part, each, name) for name in dict.fromkeys(name for numbers, _ in each for name in numbers)}
        others = ~part["method"].isin([method for lines in swept.values() for method in lines["method"]])
        level = part[part["main"] & ~part["ablation"] & others]
        found += [_against_setting(lines, level, name, *place) for name, lines in swept.items() if len(lines)]
    return found


def _apart(settings: dict) -> tuple[dict, dict]:
    """A run's settings that are numbers, those within another setting too; and the others."""
    inner = {name: value for setting in settings.values() if isinstance(setting, dict) for name, value in setting.items()}
    flat = {name: value for name, value in settings.items() if not isinstance(value, dict)} | inner
    numbers = {name: value for name, value in flat.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return numbers, {name: value for name, value in flat.items() if name not in numbers}


def _swept(part: pd.DataFrame, each: pd.Series, name: str) -> pd.DataFrame:
    """The lines that have enough numbers of a setting, in a column of its name; with `rest`, what else tells a method's runs apart."""
    rest = [variant({other: value for other, value in (words | numbers).items() if other != name}) for numbers, words in each]
    lines = part.assign(rest=rest, **{name: [numbers.get(name) for numbers, _ in each]}).dropna(subset=name)
    return lines[lines.groupby(["method", "rest"])[name].transform("nunique") >= FEWEST_NUMBERS]


def _against_setting(lines: pd.DataFrame, level: pd.DataFrame, name: str, model: str, task: str, shots: object) -> Picture:
    ends = (lines[name].min(), lines[name].max()) if len(level) else ()
    table = pd.concat([named(lines, "rest"), *(named(level).assign(**{name: end}) for end in ends)])
    table = over_seeds(table.assign(panel=table["domain"].map(WHERE), **{name: table[name].map(_whole).astype(object)}), name)
    looks = styles(table["line"])
    grid = against(table, looks, name, called=score_name(lines))
    yardsticks(grid)
    alt = (f"{capital(score_name(lines))} on {Path(task).stem} from {shots} examples per class against the {name.replace('_', ' ')} ({model}), "
           f"{' and '.join(grid.axes_dict)} (the mean over its sets): {'; '.join(looks)}. {capital(explained(lines))}.")
    title = f"{plain(task)}, {plain(model)}, {shots} shots a class: {counted(lines)}, bars: 95 % over seeds"
    return finished(grid, file_name(name, task, model, shots), title, alt)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def profiles(points: pd.DataFrame) -> list[Picture]:
    """One figure: the share of runs that gain at least so many points on the constant answer, a line a method, a task as much as another
    (performance profiles, Agarwal et al. 2021, arXiv 2108.13264, section 4). `points`: what `rates.by_task` gives."""
    if not len(points):
        return []
    units = points.groupby(["task", "shots"])
    count = f"{units.ngroups} tasks and numbers of shots with {units.size().min()} seeds each"
    table = points.melt(ignore_index=False, var_name="line", value_name="points").reset_index()
    table["weight"] = 1 / table.groupby(["task", "shots", "line"])["points"].transform("size")
    looks = {name: {key: look[key] for key in ("color", "linestyle")} for name, look in styles(points).items()}
    grid = facets(table.assign(panel=""), looks, width=5.7, height=3.8)
    grid.map_dataframe(sns.ecdfplot, x="points", weights="weight", complementary=True, legend=False)
    grid.axes[0].axvline(0, label="constant prediction", **YARDSTICK)
    grid.set_axis_labels("points above the constant answer, at least", "share of the runs")
    alt = (f"The share of runs that gain at least so many points on the constant answer, over {count}: {'; '.join(looks)}. "
           "The table beside it has the means.")
    return [finished(grid, "profiles", count, alt)]
