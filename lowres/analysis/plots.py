"""The plots' common ground: one theme, one colour a method everywhere (colour-blind safe), no figure without its yardstick.

A figure is a `Picture`: the picture and the sentence that stands for it where it cannot be seen. `show` writes PNG and SVG files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowres.methods.show import Picture, show, theme
from lowres.runs.summary import interval, score_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


METHODS = ("vanilla", "pbft", "adaptive", "lora", "distillation", "in_context", "baselines")
COLOURS = dict(zip(METHODS, ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4")))  # seaborn's palette "colorblind"
MARKERS = dict(zip(METHODS, "osD^vPX"))  # readable in grey, too
FILLED = ("full", "none", "left", "bottom", "right", "top")
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 1)), (0, (1, 1)))  # a method's variants
DOMAINS = {"in": "in-domain", "out": "out-of-domain"}
WHERE = {"in": "in domain", "out": "out of domain"}  # the same behind a noun
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


def line_name(method: str, variant: str) -> str:
    return plain(f"{method} {variant}".strip())


def styles(lines: pd.DataFrame) -> dict[tuple[str, str], dict]:
    """By method and variant: the method's colour and marker; its variants differ in dashes and in which part of a marker is filled."""
    found: dict[tuple[str, str], dict] = {}
    for method, variant in lines[["method", "variant"]].drop_duplicates().itertuples(index=False):
        nth = sum(other == method for other, _ in found)
        colour = COLOURS.get(method, "0.2")
        found[method, variant] = {"color": colour, "marker": MARKERS.get(method, "o"), "linestyle": DASHES[nth % len(DASHES)],
                                  "fillstyle": FILLED[(nth + nth // len(DASHES)) % len(FILLED)], "markerfacecoloralt": "white"}
    return found


def shot_axis(axes, shots: Iterable) -> dict:
    """Gives an axis of shots its ticks; where each count stands on it ('all' to the right of the others)."""
    counts = sorted({n for n in shots if not isinstance(n, str)})
    places = {n: float(n) for n in counts} | ({"all": 4.0 * max(counts, default=1)} if any(isinstance(n, str) for n in shots) else {})
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places.values()), [str(n) for n in places])
    axes.set_xlim(min(places.values()) / 1.5, max(places.values()) * 1.5)
    axes.minorticks_off()
    axes.set_xlabel("shots (labelled examples per class)")
    return places


def error_line(axes, line: pd.DataFrame, places: dict, apart: float = 1.0, value: str = "accuracy", times: float = 100, **style) -> None:
    """Mean over seeds against shots with 95 % intervals; `apart` sets lines beside one another so that bars do not hide each other."""
    points = []
    for n, group in line.groupby("shots", sort=False):
        each = times * group.groupby("seed")[value].mean()
        ends = np.clip(interval(each), 0, 100 if value == "accuracy" else None)  # no accuracy, time or memory lies beyond
        points.append((places[n] * apart, each.mean(), *ends))
    x, mean, low, high = np.array(sorted(points)).T
    axes.errorbar(x, mean, yerr=np.nan_to_num([mean - low, high - mean]), capsize=3, markersize=6.5, **style)


def counted(lines: pd.DataFrame, by=("method", "variant", "model", "task", "shots")) -> str:
    """How many distinct trials stand behind a point."""
    few, most = lines.groupby(list(by))["outcome"].nunique().agg(["min", "max"])
    return f"{few} distinct trial{'s' * (most > 1)} a point" if few == most else f"{few} to {most} distinct trials a point"


def legend_below(figure: Figure, grid) -> None:
    """One legend for all panels, each name once, below them; the figure grows by its lines."""
    found = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels())}
    width, height = figure.get_size_inches()
    columns = int(max(1, min(len(found), width / (0.75 + 0.095 * max(map(len, found))))))
    figure.set_size_inches(width, height + 0.26 * -(-len(found) // columns))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def capital(text: str) -> str:
    """With a capital letter in front, and the others as they are."""
    return text[:1].upper() + text[1:]


def title_legend(grid, untrained: bool) -> None:
    """Says what the level lines are above seaborn's legend, and makes room for it beside the panels."""
    grid.legend.set_title("dotted: constant answer" + "\nlong dashes: untrained" * bool(untrained))
    grid.figure.draw_without_rendering()
    legend, (width, height) = grid.legend.get_window_extent(), grid.figure.get_size_inches()
    grid.figure.set_size_inches(width, max(height, 1.05 * legend.height / grid.figure.dpi))
    grid.figure.subplots_adjust(right=0.98 - legend.width / grid.figure.bbox.width)


def panels(count: int, across: int = 2, width: float = 5.4, height: float = 3.9) -> tuple[Figure, np.ndarray]:
    import matplotlib.pyplot as plt

    theme()
    columns = max(1, min(across, count))
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    plt.close(figure)
    return figure, grid.ravel()[:count]


def answer(lines: pd.DataFrame) -> list[Picture]:
    """One figure: accuracy against shots, a panel a task and evaluation set, a line a method, beside the constant answer and the untrained model."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    lines = lines[~lines["shots"].map(lambda shots: isinstance(shots, str))] if len(lines) else lines
    if not len(lines):
        return []
    theme()
    across, tasks = lines["shots"].nunique() > 1, lines["task"].nunique()
    named = [line_name(*key).replace(",", ", " if across else ",\n") for key in zip(lines["method"], lines["variant"])]
    panel = [(f"{plain(Path(task).stem)}: " if tasks > 1 else "") + f"{plain(name)} ({WHERE[where]})"
             for task, name, where in zip(lines["task"], lines["set"], lines["domain"])]
    table = lines.assign(line=named, panel=panel, percent=100 * lines["accuracy"], shots=lines["shots"].astype(int))
    looks = {name: COLOURS.get(method, "0.2") for name, method in zip(named, lines["method"])}
    form = {"data": table, "hue": "line", "palette": looks, "col": "panel", "col_wrap": min(2, table["panel"].nunique()), "height": 3.4,
            "aspect": 1.4, "errorbar": lambda values: np.clip(interval(values), 0, 100)}
    if across:
        grid = sns.relplot(kind="line", x="shots", y="percent", style="line", markers=True, dashes=True, err_style="bars",
                           facet_kws={"sharey": False}, **form)
    else:  # one number of examples is no axis: a method a line
        grid = sns.catplot(kind="point", x="percent", y="line", linestyle="none", legend=False, **form)
    for name, axes in grid.axes_dict.items():
        here = table[table["panel"] == name]
        yardstick = axes.axhline if across else axes.axvline
        yardstick(100 * here["constant"].iloc[0], **YARDSTICK)
        if here["untrained"].notna().any():
            yardstick(100 * here["untrained"].mean(), **{**YARDSTICK, "linestyle": (0, (8, 4))})
        if across:
            shot_axis(axes, here["shots"].unique())
    percent = f"{score_name(table)}, %"
    grid.set_axis_labels(*(("labelled examples per class", percent) if across else (percent, ""))).set_titles("{col_name}", size="medium")
    if across:
        title_legend(grid, table["untrained"].notna().any())
    plt.close(grid.figure)
    alt = (f"{capital(score_name(table))} against the number of labelled examples per class, "
           f"{table['panel'].nunique()} evaluation sets side by side: "
           f"{'; '.join(name.replace(chr(10), ' ') for name in looks)}. "
           f"{counted(lines).capitalize()}, bars are 95 % intervals over seeds. The dotted line is a constant answer"
           + (", the long-dashed one the untrained model." if table["untrained"].notna().any() else "."))
    return [Picture(grid.figure, "answer", alt)]


def against_rates(trials: pd.DataFrame, rated: pd.DataFrame) -> list[Picture]:
    """A figure a model, task and number of shots: accuracy against the learning rate, a panel a domain, a line a method; methods that have no several
    rates as level lines, beside the constant answer and the untrained model. `rated`: what `rates.rated` gives of these trials."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    found, place = [], ["model", "task", "shots"]
    listed = rated[~rated["chose"]] if len(rated) else rated
    level = trials[trials["main"] & ~trials["ablation"] & ~trials["folder"].isin(listed["folder"])] if len(listed) else trials
    for key, lines in listed.groupby(place, sort=False) if len(listed) else ():
        table = _by_rate(lines, level[(level[place] == list(key)).all(axis=1)])
        looks = {line: COLOURS.get(method, "0.2") for line, method in zip(table["line"], table["method"])}
        theme()
        grid = sns.relplot(table, kind="line", x="rate", y="accuracy", hue="line", style="line", markers=True, palette=looks, col="domain",
                           height=3.6, aspect=1.2, err_style="bars", errorbar=lambda values: np.clip(interval(values), 0, 100))
        for domain, axes in grid.axes_dict.items():
            here = table[table["domain"] == domain]
            axes.set(xscale="log", title=WHERE[domain])
            axes.set_xticks(tried := sorted(lines["learning_rate"].astype(float).unique()), [f"{rate:g}" for rate in tried])
            axes.minorticks_off()
            axes.axhline(here["constant"].mean(), **YARDSTICK)
            if here["untrained"].notna().any():
                axes.axhline(here["untrained"].mean(), **{**YARDSTICK, "linestyle": (0, (8, 4))})
        grid.set_axis_labels("learning rate", "accuracy, %")
        title_legend(grid, table["untrained"].notna().any())
        plt.close(grid.figure)
        where = " and ".join(WHERE[domain] for domain in grid.axes_dict)
        alt = (f"Accuracy on {Path(key[1]).stem} from {key[2]} examples per class against the learning rate, {where} (the mean over its sets): "
               f"{'; '.join(looks)}. {counted(lines).capitalize()}, bars are 95 % intervals over seeds.")
        found.append(Picture(grid.figure, file_name("rates", key[1], key[0], key[2]), alt))
    return found


def _by_rate(lines: pd.DataFrame, level: pd.DataFrame) -> pd.DataFrame:
    """Percent by domain, line, rate and seed; what has no rate stands at the lowest and the highest."""
    import pandas as pd

    rate = lines["learning_rate"].astype(float)
    named = lambda part, setting: [line_name(*words) for words in zip(part["method"], part[setting])]
    parts = [lines.assign(line=named(lines, "setting"), rate=rate)]
    parts += [level.assign(line=named(level, "variant"), rate=end) for end in (rate.min(), rate.max()) if len(level)]
    columns = ["accuracy", "constant", "untrained"]
    return pd.concat(parts).groupby(["domain", "line", "method", "rate", "seed"], sort=False)[columns].mean().mul(100).reset_index()


def profiles(points: pd.DataFrame) -> list[Picture]:
    """One figure: the share of runs that gain at least so many points on the constant answer, a line a method, a task as much as another
    (performance profiles, Agarwal et al. 2021, arXiv 2108.13264, section 4). `points`: what `rates.by_task` gives."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    if not len(points):
        return []
    theme()
    units = points.groupby(["task", "shots"])
    table = points.melt(ignore_index=False, var_name="line", value_name="points").reset_index()
    table["weight"] = 1 / table.groupby(["task", "shots", "line"])["points"].transform("size")
    looks = {line: COLOURS.get(line.split()[0], "0.2") for line in points}
    grid = sns.displot(table, kind="ecdf", x="points", hue="line", palette=looks, weights="weight", complementary=True, height=3.8, aspect=1.5)
    for line, name in zip(grid.ax.lines[::-1], looks):  # seaborn draws the last name first
        same = [one for one in looks if looks[one] == looks[name]]
        line.set_linestyle(DASHES[same.index(name) % len(DASHES)])
    grid.ax.axvline(0, **YARDSTICK)
    grid.set_axis_labels("points above the constant answer, at least", "share of the runs")
    grid.legend.set_title("")
    plt.close(grid.figure)
    alt = (f"The share of runs that gain at least so many points on the constant answer, over {units.ngroups} tasks and numbers of shots with "
           f"{units.size().min()} seeds each: {'; '.join(looks)}. The table beside it has the means.")
    return [Picture(grid.figure, "profiles", alt)]


def accuracy_against_shots(trials: pd.DataFrame) -> list[Picture]:
    """A figure a model and task: mean accuracy over seeds with its 95 % interval, a panel an evaluation set, a line a method and variant."""
    found = []
    for (model, task), part in trials.groupby(["model", "task"], sort=False) if len(trials) else ():
        looks = styles(part)
        sets = list(part.groupby(["domain", "set"], sort=False))
        figure, grid = panels(len(sets))
        for axes, ((domain, name), panel) in zip(grid, sets):
            places = shot_axis(axes, part["shots"].unique())
            for i, (key, line) in enumerate(panel.groupby(["method", "variant"], sort=False)):
                error_line(axes, line, places, 2 ** (0.07 * (i - len(looks) / 2)), label=line_name(*key), **looks[key])
            axes.axhline(100 * panel["constant"].iloc[0], label="constant prediction", **YARDSTICK)
            if panel["untrained"].notna().any():
                axes.axhline(100 * panel["untrained"].mean(), label="untrained model", **{**YARDSTICK, "linestyle": (0, (8, 4))})
            axes.set(ylabel=f"{score_name(panel)}, %", title=f"{DOMAINS[domain]} ({plain(name)}), {panel['n'].iloc[0]:,} rows")
        figure.suptitle(f"{plain(task)}, {plain(model)}: {counted(part)}, bars: 95 % over seeds", fontsize="medium")
        legend_below(figure, grid)
        names = ", ".join(line_name(*key) for key in looks)
        untrained = ", a long-dashed grey one the untrained model" if part["untrained"].notna().any() else ""
        alt = (f"{capital(score_name(part))} against shots on {task} with {model}, {len(sets)} evaluation sets side by side; lines: {names}; "
               f"{counted(part)}, bars are 95 % intervals over seeds, the dotted line is constant prediction{untrained}. "
               "The numbers are in the result table.")
        found.append(Picture(figure, file_name("shots", task, model), alt))
    return found
