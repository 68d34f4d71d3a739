"""A study as a static site in outputs/STUDY/site: its executed analysis, a grid of links to the runs, a page and the files of each.

The answer is computed once, in the analysis notebook. `site` is a link to the newest version, replaced at once, so that a reader never
finds a gap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lowres import locks
from lowres.analysis.collect import Collected, collect_study, opening
from lowres.files import BadInput, located, safe, shown
from lowres.runs import records
from lowres.runs.execute import analysis_mark
from lowres.runs.status import NOTEBOOKS
from lowres.runs.study import Run, Study, read_study
from lowres.site.render import TEMPLATES, Body, markdown, notebook_body, read_notebook
from lowres.tasks.kinds import kind_of_file
from lowres.tasks.task_file import read_task

ASSETS = ("site.css", "site.js")
TABLES = ("analysis.ipynb", "results.csv", "claims.csv", "contrasts.csv")
MOST_CELLS = 1000  # of the front page's grids; of more each has a page of its own
PICTURE = re.compile(r'src="data:image/(png|jpeg|svg\+xml);base64,([^"]+)"')


@dataclass
class Page:
    """A run on the site: its trials that count, and where its notebook stands there ('' without one)."""

    run: Run
    trials: list[dict[str, Any]]
    address: str = ""

    @property
    def line(self) -> str:
        return f"{self.run.method} {self.run.variant.replace(',', ', ')}".strip()  # a narrow column breaks it between settings

    @property
    def title(self) -> str:
        p = self.run.parameters
        return f"{self.line}, {Path(p.task).stem}, {p.shots} shots, {p.model}"

    @property
    def accuracy(self) -> str:
        """Means over seeds, percent: '71.2 / 63.0', in-domain / out-of-domain; else why there are none."""
        means = []
        for domain in ("in", "out"):
            found = [records.score(scores) for trial in self.trials for scores in trial["sets"].values() if scores["domain"] == domain]
            means.append(f"{100 * np.mean(found):.1f}" if found else "–")
        return " / ".join(means) if self.trials else "not counted" if self.address else "missing"


@dataclass
class Grid:
    """Methods by shots, of a model and task."""

    caption: str
    shots: list[int | str]
    address: str  # of its own page, where it has one
    lines: list[tuple[str, list[Page | None]]] = field(default_factory=list)


def grids(pages: list[Page]) -> list[Grid]:
    found = []
    for model, task in dict.fromkeys((page.run.parameters.model, page.run.parameters.task) for page in pages):
        here = [page for page in pages if (page.run.parameters.model, page.run.parameters.task) == (model, task)]
        shots = sorted({page.run.parameters.shots for page in here}, key=lambda count: float("inf") if isinstance(count, str) else count)
        metric = kind_of_file(read_task(task)).metric
        grid = Grid(f"{Path(task).stem}, {model}: {records.METRICS[metric]} in-domain / out-of-domain, %", shots,
                    f"grids/{len(found) + 1}.html")
        for line in dict.fromkeys(page.line for page in here):
            cells = {page.run.parameters.shots: page for page in here if page.line == line}
            grid.lines.append((line, [cells.get(count) for count in shots]))
        found.append(grid)
    return found


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
            site = study.folder / f".site-{secrets.token_hex(4)}"
            site.mkdir()
            try:
                Site(study, found, site).write()
                _put_in_place(site, study.folder / "site")
            finally:
                _sweep(study.folder)
    except locks.Busy as busy:
        raise BadInput(f"{shown(study.folder)}: another process is at work on its site ({busy})") from None
    return study.folder / "site" / "index.html", left_out


def _put_in_place(site: Path, place: Path) -> None:
    """Makes `place` a link to the new site, in one step."""
    link = site.with_name(f"{site.name}-link")
    link.symlink_to(site.name)
    if place.is_dir() and not place.is_symlink():  # made by an earlier version
        place.rename(site.with_name(f"{site.name}-old"))
    os.replace(link, place)


def _sweep(folder: Path) -> None:
    """Older versions, and what this or a killed publisher left half done. To be called by the lock's owner."""
    kept = (folder / "site").resolve()
    for left in folder.glob(".site-*"):
        if left.is_symlink():
            left.unlink()
        elif left.resolve() != kept:
            shutil.rmtree(left)


class Site:
    """One study's pages, written into a folder."""

    def __init__(self, study: Study, found: Collected, folder: Path) -> None:
        self.study, self.found, self.folder = study, found, folder
        self.pages = [Page(run, trials, f"runs/{quote(run.name)}/index.html" if (run.folder / "run.ipynb").is_file() else "")
                      for run, trials in found.runs]
        self.templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)

    def write(self) -> None:
        for asset in ASSETS:
            shutil.copy(TEMPLATES / asset, self.folder)
        with_notebook = [page for page in self.pages if page.address]
        for before, page, after in zip([None, *with_notebook], with_notebook, [*with_notebook[1:], None]):
            self._run(page, before, after)
        self._index()

    def _page(self, template: str, file: str, root: str = "", **content: Any) -> None:
        text = self.templates.get_template(template).render(study=self.study, root=root, **content)
        (self.folder / file).write_text(text, encoding="utf-8")

    def _run(self, page: Page, before: Page | None, after: Page | None) -> None:
        folder = self.folder / "runs" / page.run.name
        folder.mkdir(parents=True)
        files = _copied(page.run.folder, folder, (*records.RUN_FILES, records.PREDICTIONS))
        try:
            records.read_record(page.run.folder)
            reason = "they are not what the study asks for now."
        except BadInput as error:
            reason = str(error)
        self._page("run.html", f"runs/{page.run.name}/index.html", "../../../../../", page=page, before=before, after=after, reason=reason,
                   body=_pictures_apart(notebook_body(page.run.folder / "run.ipynb"), folder), files=files)

    def _index(self) -> None:
        analysis = self.study.folder / "analysis.ipynb"
        body = _pictures_apart(notebook_body(analysis), self.folder) if analysis.is_file() else None
        files = [*_copied(self.study.folder, self.folder, TABLES), *_copied(self.study.path.parent, self.folder, (self.study.path.name,))]
        here, apart = grids(self.pages), len(self.pages) > MOST_CELLS
        if apart:
            (self.folder / "grids").mkdir()
            for grid in here:
                self._page("grid.html", grid.address, "../", grid=grid)
        self._page("index.html", "index.html", body=body, said=markdown(self._said(analysis)), grids=here, apart=apart, files=files)

    def _said(self, analysis: Path) -> str:
        """What stands above the analysis: that there is none, or that it is older than the records."""
        if not analysis.is_file():
            text = opening(self.found).removeprefix(f"**{safe(self.study.name)}**: ")  # the page's title
            return f"{text}\n\nThere is no analysis yet: `lowres analyse {self.study.name}` makes it."
        made_of = read_notebook(analysis).metadata.get("lowres", {}).get("analysed")
        if made_of and made_of != analysis_mark(self.study, located(NOTEBOOKS) / "analysis.ipynb"):
            return (f"The analysis below was made of other records, or by other code, than are here now: `lowres analyse {self.study.name}` brings "
                    "it up to date.")
        return ""


def _pictures_apart(body: Body, folder: Path) -> Body:
    """A page whose pictures are files beside it: written into it, a large analysis' come to several megabytes."""
    def written(found: re.Match) -> str:
        try:
            content = base64.b64decode("".join(found[2].split()), validate=True)
        except binascii.Error:  # what a notebook has written there is no picture
            return found[0]
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.{found[1].removesuffix('+xml')}"
        (folder / name).write_bytes(content)
        return f'src="{name}"'

    return Body(Markup(PICTURE.sub(written, body.html)), body.headings)


def _copied(source: Path, target: Path, names: tuple[str, ...]) -> list[dict[str, str]]:
    """Those of the files that are there: name, address and size."""
    found = []
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            size = (source / name).stat().st_size
            found.append({"name": name, "address": quote(name), "size": f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{max(size, 100) / 1e3:.1f} kB"})
    return found
