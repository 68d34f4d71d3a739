"""A study as a static site in outputs/STUDY/site: the answer first, a page for every executed notebook, the record behind each.

Made in a scratch folder beside it and moved in at the end, so that a reader finds the old site or the new.
"""

from __future__ import annotations

import ast
import html
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbformat import NotebookNode

from lowres import front_page, records, scratch, tables, verdicts
from lowres.advice import Budget, advise
from lowres.collection import EXERCISE, Collected, collect_study, opening, safe
from lowres.errors import BadInput
from lowres.execution import NOTEBOOKS, analysis_mark
from lowres.figure_files import figures_shown
from lowres.files import located, shown
from lowres.front_page import Cell, Page, Table
from lowres.rendering import TEMPLATES, markdown, notebook_body, read_notebook
from lowres.run_page import record_tables
from lowres.study import Study, read_study

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
        with scratch.locked(study.folder):
            _sweep(study.folder)
            site = Path(tempfile.mkdtemp(prefix=".site-", dir=study.folder))
            try:
                Site(study, found, site).write()
                _swap(site, study.folder / "site")
            finally:
                _sweep(study.folder)
    except scratch.Busy as busy:
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
        (folder / "trials").mkdir(parents=True)
        names = ["run.ipynb", "record.json", "parameters.yaml", *(f"trials/seed-{trial['seed']}.parquet" for trial in page.trials)]
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
            glances=front_page.glances(trials), about_claims=markdown(tables.about_verdicts(self.found, margin)),
            claims=_as_table("Each claim is decided by a rule that was written down before the data.", tables.verdict_table(judged, margin)),
            figures=figures_shown(self.analysis, self.study.folder / "figures", self.folder) if self.analysis else [],
            results=front_page.results(self.found, self.pages),
            grids=front_page.grids(self.pages), analysis=bool(self.analysis), files=self._downloads(),
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
