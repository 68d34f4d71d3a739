"""What a study's front page shows, from its collected trials: methods at a glance, the grid of notebooks, the result table.

Everything here is text and numbers; the templates escape it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowres.analysis import RUN, UNTRAINED, accuracy_interval, interval, verdict
from lowres.collection import Collected
from lowres.study import Run
from lowres.tables import at_most_shots, most_shots, of_machines, readable_results, result_table


@dataclass
class Page:
    """A run on the site: its trials that count, and where its notebook stands there ('' without one)."""

    run: Run
    trials: list[dict[str, Any]]
    address: str = ""

    @property
    def line(self) -> str:
        return _line(self.run.method, self.run.variant)

    @property
    def title(self) -> str:
        p = self.run.parameters
        return f"{self.line}, {Path(p.task).stem}, {p.shots} shots, {p.model}"

    @property
    def accuracy(self) -> str:
        """Means over seeds, percent: '71.2 / 63.0', in-domain / out-of-domain."""
        means = []
        for domain in ("in", "out"):
            found = [scores["accuracy"] for trial in self.trials for scores in trial["sets"].values() if scores["domain"] == domain]
            means.append(f"{100 * np.mean(found):.1f}" if found else "–")
        return " / ".join(means) if self.trials else ""


@dataclass
class Cell:
    """One of a table: its text; perhaps a link, and what is read out before it; perhaps what it is sorted by instead."""

    text: str
    address: str = ""
    says: str = ""
    order: str = ""


@dataclass
class Table:
    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def grids(pages: list[Page]) -> list[Table]:
    """A table a model and task, methods by shots: each cell leads to a notebook, and has its accuracies."""
    found = []
    for model, task in dict.fromkeys((page.run.parameters.model, page.run.parameters.task) for page in pages):
        here = [page for page in pages if (page.run.parameters.model, page.run.parameters.task) == (model, task)]
        shots = sorted({page.run.parameters.shots for page in here}, key=_count)
        table = Table(f"{Path(task).stem}, {model}: accuracy in-domain / out-of-domain, %", ["method", *map(_shots, shots)])
        for line in dict.fromkeys(page.line for page in here):
            places = {page.run.parameters.shots: page for page in here if page.line == line}
            table.rows.append([Cell(line), *(_cell(places.get(count)) for count in shots)])
        found.append(table)
    return found


def _cell(page: Page | None) -> Cell:
    if page is None:
        return Cell("")
    return Cell(page.accuracy or ("not counted" if page.address else "missing"), page.address, f"Notebook of {page.title}: ")


def _count(shots: int | str) -> float:
    return float("inf") if isinstance(shots, str) else shots


def _shots(shots: int | str) -> str:
    return f"{shots} shots"


def glances(trials: pd.DataFrame) -> list[Table]:
    """A table a model and task: every method at the most shots, the best first; how good, how sure, at what cost."""
    found = []
    for (model, task), part in trials.groupby(["model", "task"], sort=False):
        shots = most_shots(part)
        part, absent = at_most_shots(part)
        lines = sorted((_glance(key, run) for key, run in part.groupby(["method", "variant"], sort=False)), key=lambda line: -line[0])
        caption = f"{Path(task).stem}, {model}, at {_shots(shots)} a class. A constant answer scores {_by_domain(part, 'constant')}"
        caption += f"; the untrained model {_by_domain(part, 'untrained')}." if part["untrained"].notna().any() else "."
        caption += "".join(f" {note}" for note in (absent, of_machines(part)) if note)
        columns = ["method", "in domain, %", "out of domain, %", "against the yardsticks", "trials", "seconds a trial", "peak memory, GB"]
        found.append(Table(caption, columns, [list(map(Cell, line)) for _, line in lines]))
    return found


def _by_domain(part: pd.DataFrame, yardstick: str) -> str:
    means = part.groupby("domain")[yardstick].mean()
    return " and ".join(f"{100 * mean:.1f} % {'in' if domain == 'in' else 'out of'} domain" for domain, mean in means.items())


def _glance(key: tuple, run: pd.DataFrame) -> tuple[float, list[str]]:
    once, means, texts, readings = run.drop_duplicates("seed"), [], [], {}
    for domain in ("in", "out"):
        scores = run[run["domain"] == domain].groupby("seed")[["accuracy", "constant", "mcc", *UNTRAINED]].mean()
        if not len(scores):
            texts.append("–")
            continue
        low, high = accuracy_interval(scores["accuracy"])
        means.append(scores["accuracy"].mean())
        texts.append(f"{100 * means[-1]:.1f}" + ("" if np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"))
        measured = {"low": low, "high": high, "trials": len(scores), "mcc low": interval(scores["mcc"])[0],
                    **scores[["constant", *UNTRAINED]].mean()}
        readings[domain] = verdict(pd.Series(measured))
    same = len(set(readings.values())) == 1 and len(readings) > 1
    reading = f"both: {readings['in']}" if same else "; ".join(f"{domain}: {text}" for domain, text in readings.items())
    cost = [str(len(once)), f"{once['seconds'].mean():.1f}", f"{once['memory'].mean():.2f}"]
    return float(np.mean(means)), [_line(*key), *texts, reading, *cost]


def _line(method: str, variant: str) -> str:
    return f"{method} {variant.replace(',', ', ')}".strip()  # a narrow column breaks it between settings


def results(found: Collected, pages: list[Page]) -> Table:
    """The analysis's result table; each line leads to its notebook."""
    table = result_table(found.trials)
    text = readable_results(table)
    addresses = {(p.run.method, p.run.variant, p.run.parameters.model, p.run.parameters.task, p.run.parameters.shots): p.address for p in pages}
    rows = []
    for keys, line in zip(table[RUN].itertuples(index=False, name=None), text.itertuples(index=False, name=None)):
        cells = [Cell(str(value), order=leading_number(str(value)) or str(value)) for value in line]
        cells[0].address = addresses.get(keys, "")
        rows.append(cells)
    return Table("Every run and evaluation set. Choose a column's name to sort by it.", list(text.columns), rows)


def leading_number(text: str) -> str:
    """What a column of numbers with remarks is sorted by: '71.2 [65.0, 77.4]' by 71.2; '' for words."""
    found = re.match(r"[+-]?\d+(\.\d+)?", text.replace(",", ""))
    return str(float(found[0])) if found else ""
