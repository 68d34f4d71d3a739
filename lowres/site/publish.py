"""A study as a static site in outputs/STUDY/site: the answer first, a page for every executed notebook, the record behind each.

Made in a scratch folder beside it and moved in at the end, so that a reader finds the old site or the new.
"""

from __future__ import annotations

import ast
import base64
import html
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbformat import NotebookNode

from lowres import locks
from lowres.analysis import tables, verdicts
from lowres.analysis.advice import Budget, advise
from lowres.analysis.collect import EXERCISE, Collected, collect_study, opening
from lowres.analysis.tables import at_most_shots, most_shots, of_machines, readable_results, result_table
from lowres.files import BadInput, located, safe, shown
from lowres.runs import records
from lowres.runs.execute import NOTEBOOKS, analysis_mark
from lowres.runs.records import TRAINING, peak_memory, seconds_of
from lowres.runs.study import Run, Study, read_study
from lowres.runs.summary import RUN, UNTRAINED, accuracy_interval, interval, verdict
from lowres.site.render import TEMPLATES, markdown, notebook_body, read_notebook

FIRST = ("shots-", "in_against_out-", "cost-")  # of the front page; the analysis page has all


def figures_shown(analysis: NotebookNode, figures: Path, site: Path) -> list[dict[str, str]]:
    """The front page's figures as the analysis shows them now, copied into the site's folder: address and alternative text.

    A file in the study's folder of `figures` counts if the notebook shows the very same picture: others are an earlier analysis's.
    """
    files = {path.read_bytes(): path for path in sorted(figures.glob("*.png"))}
    found = []
    for cell in analysis.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            path = files.get(base64.b64decode(picture)) if picture else None
            if path is None or not path.name.startswith(FIRST):
                continue
            drawn = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
            (site / "figures").mkdir(exist_ok=True)
            shutil.copyfile(drawn, site / "figures" / drawn.name)
            found.append({"address": f"figures/{drawn.name}", "alt": output.get("metadata", {}).get("image/png", {}).get("alt", path.stem)})
    return found


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


PARTS = ("parameters", "environment", "provenance")


def record_tables(page: Page, record: dict[str, Any]) -> list[Table]:
    """What there is of a record; a part that is missing is left out."""
    found = [_trials(page)] if page.trials else []
    rest = {key: record[key] for key in ("labels", "notes", "start", "end", "load_seconds", "distinct_trials") if key in record}
    for name, part in (*((name, record.get(name)) for name in PARTS), ("other", rest)):
        lines = [[Cell(key), Cell(value)] for key, value in _pairs(part)]
        if lines:
            found.append(Table(name.capitalize(), ["name", "value"], lines))
    return found


def _pairs(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping, line by line: 'data.cola/train', 'sha256…'."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _pairs(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def _trials(page: Page) -> Table:
    sets = list(dict.fromkeys(name for trial in page.trials for name in trial["sets"]))
    columns = ["seed", *(f"{name}, %" for name in sets), "training, s", "whole trial, s", "peak memory, GB", "shots drawn", "fingerprint"]
    table = Table("Trials: accuracy in each set, and what it cost", columns)
    for trial in page.trials:
        accuracies = [f"{100 * trial['sets'][name]['accuracy']:.1f}" if name in trial["sets"] else "" for name in sets]
        cost = [f"{seconds_of(trial, TRAINING):.1f}", f"{seconds_of(trial):.1f}", f"{peak_memory(trial):.2f}"]
        texts = [str(trial["seed"]), *accuracies, *cost, trial["shots_sha256"], trial["fingerprint"]]
        table.rows.append(list(map(Cell, texts)))
    return table


ASSETS = ("site.css", "site.js")
TABLES = ("results.csv", "results.tex", "claims.csv", "claims.tex", "contrasts.csv", "contrasts.tex")


def publish(name: str, outputs: str = "outputs") -> tuple[Path, list[str]]:
    """Makes a study's site. Returns its index.html, and a sentence for all that was left out. Raises BadInput; then nothing has changed."""
    study = read_study(name, outputs=outputs)
    found = collect_study(study)
    left_out = [html.unescape(problem).replace("`", "") for problem in found.problems]
    if not len(found.trials):
        why = left_out[0] if left_out else f"`lowres run {study.name}` makes them"
        raise BadInput(f"{shown(study.folder)}: there is nothing to publish, as no run of the study has results that count: {why}")
    try:
        with locks.locked(study.folder):
            _sweep(study.folder)
            site = Path(tempfile.mkdtemp(prefix=".site-", dir=study.folder))
            try:
                Site(study, found, site).write()
                _swap(site, study.folder / "site")
            finally:
                _sweep(study.folder)
    except locks.Busy as busy:
        raise BadInput(f"{shown(study.folder)}: another process is at work on its site ({busy})") from None
    return study.folder / "site" / "index.html", left_out


def _sweep(folder: Path) -> None:
    """What this or a killed publisher left half done. To be called by the lock's owner."""
    for left in folder.glob(".site-*"):
        shutil.rmtree(left)


def _swap(new: Path, place: Path) -> None:
    os.chmod(new, 0o755)  # a web server reads it, too
    old = new.with_name(f"{new.name}-old")
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise


class Site:
    """One study's pages, written into a folder."""

    def __init__(self, study: Study, found: Collected, folder: Path) -> None:
        self.study, self.found, self.folder = study, found, folder
        self.pages = [Page(run, trials, _address(run.name) if (run.folder / "run.ipynb").is_file() else "") for run, trials in found.runs]
        self.templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
        path = study.folder / "analysis.ipynb"
        self.analysis = read_notebook(path) if path.is_file() else None

    def write(self) -> None:
        for asset in ASSETS:
            shutil.copy(TEMPLATES / asset, self.folder)
        (self.folder / "datatables.js").write_text(sorting_library(), encoding="utf-8")
        with_notebook = [page for page in self.pages if page.address]
        for before, page, after in zip([None, *with_notebook], with_notebook, [*with_notebook[1:], None]):
            self._run(page, before, after)
        if self.analysis:
            self._page("analysis.html", "analysis.html", body=notebook_body(self.study.folder / "analysis.ipynb"))
        self._index()

    def _page(self, template: str, file: str, root: str = "", **content: Any) -> None:
        text = self.templates.get_template(template).render(study=self.study, root=root, **content)
        (self.folder / file).write_text(text, encoding="utf-8")

    def _run(self, page: Page, before: Page | None, after: Page | None) -> None:
        folder = self.folder / "runs" / page.run.name
        folder.mkdir(parents=True)
        names = [*records.RUN_FILES, records.PREDICTIONS]
        files = [_copied(page.run.folder / name, folder / name, name) for name in names if (page.run.folder / name).is_file()]
        try:
            record, reason = records.read_record(page.run.folder) or {}, "they are not what the study asks for now."
        except BadInput as error:
            record, reason = {}, str(error)
        self._page("run.html", f"runs/{page.run.name}/index.html", "../../../../../", page=page, before=before, after=after, reason=reason,
                   body=notebook_body(page.run.folder / "run.ipynb"), record=record_tables(page, record), files=files)

    def _index(self) -> None:
        trials, chosen = self.found.trials, _chosen(self.analysis)
        margin = chosen.pop("margin")
        judged = verdicts.marked(self.study.folder, verdicts.judge(trials, margin), margin)
        self._page(
            "index.html", "index.html", opening=markdown(self._opening()),
            advice=markdown(advise(trials, Budget(**chosen)).removeprefix(EXERCISE)),  # stands in the opening
            glances=glances(trials), about_claims=markdown(tables.about_verdicts(self.found, margin)),
            claims=_as_table("Each claim is decided by a rule that was written down before the data.", tables.verdict_table(judged, margin)),
            figures=figures_shown(self.analysis, self.study.folder / "figures", self.folder) if self.analysis else [],
            results=results(self.found, self.pages),
            grids=grids(self.pages), analysis=bool(self.analysis), files=self._downloads(),
        )

    def _opening(self) -> str:
        text = opening(self.found).removeprefix(f"**{safe(self.study.name)}**: ")  # the page's title
        if not self.analysis:
            return f"{text}\n\nThere is no analysis notebook yet, so there are no figures: `lowres analyse {self.study.name}` makes both."
        made_of = self.analysis.metadata.get("lowres", {}).get("analysed")
        if made_of and made_of != analysis_mark(self.study, located(NOTEBOOKS) / "analysis.ipynb"):
            text += ("\n\nThe figures and the analysis notebook were made of other records, or by other code, than the tables here: "
                     f"`lowres analyse {self.study.name}` brings them up to date.")
        return text

    def _downloads(self) -> list[dict[str, str]]:
        names = [name for name in ("analysis.ipynb", *TABLES) if (self.study.folder / name).is_file()]
        files = [_copied(self.study.folder / name, self.folder / name, name) for name in names]
        return [*files, _copied(self.study.path, self.folder / self.study.path.name, self.study.path.name)]


def _address(name: str) -> str:
    return f"runs/{quote(name)}/index.html"


def _copied(source: Path, target: Path, name: str) -> dict[str, str]:
    shutil.copyfile(source, target)
    size = source.stat().st_size
    return {"name": name, "address": quote(name), "size": f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{max(size, 100) / 1e3:.1f} kB"}


def _as_table(caption: str, content) -> Table:
    rows = [[Cell(str(value)) for value in line] for line in content.itertuples(index=False, name=None)]
    return Table(caption, list(content.columns), rows)


def _chosen(analysis: NotebookNode | None) -> dict[str, Any]:
    """The margin and the budget that the executed analysis had (else the notebook's own), so that the site says what it says."""
    values: dict[str, Any] = {}
    for cell in (analysis or read_notebook(located(NOTEBOOKS) / "analysis.ipynb")).cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            for line in ast.parse(cell.source).body:
                target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
                values[target.id] = ast.literal_eval(line.value)
    return {key: values[key] for key in ("margin", "labels_per_class", "memory_gb", "seconds", "out_of_domain_matters")}


def sorting_library() -> str:
    """DataTables as itables bundles it, as a plain script: browsers refuse modules in a page opened from a folder."""
    bundle = Path(find_spec("itables").origin).with_name("html") / "dt_bundle.js"
    code, _, names = bundle.read_text(encoding="utf-8").rpartition("export{")
    names, _, rest = names.partition("}")
    exported = dict(reversed(name.split(" as ")) for name in names.split(","))
    return f'window.DataTable = (() => {{ "use strict"; {code}\nreturn {exported["default"]}; }})();\n{rest.lstrip(";")}'
