"""A study becomes a site whole or not at all, and what cannot be told is said in a sentence."""

import base64
import json
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from markupsafe import Markup
from site_study import write_notebooks
from synthetic import METHODS, fill, make_study

from lowres.files import ROOT, BadInput, write_whole
from lowres.runs.execute import analysis_mark
from lowres.runs.study import Study, read_study
from lowres.site.publish import Site, _pictures_apart, _put_in_place, _sweep, publish
from lowres.site.render import Body, clean, markdown

pytestmark = pytest.mark.usefixtures("forking")


def executed(folder: Path, **options) -> Study:
    study = read_study(make_study(folder, **options), outputs=str(folder / "outputs"))
    fill(study)
    write_notebooks(study)
    return study


def published(study: Study) -> tuple[Path, list[str]]:
    index, left_out = publish(str(study.path), str(study.folder.parent))
    return index.parent, left_out


def text(page: Path) -> str:
    return " ".join(BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").get_text(" ").split())


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def older(run) -> None:
    file = run.folder / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 0}))


SMALL = {"shots": (2,), "seeds": range(2), "methods": METHODS[:2]}


def test_an_empty_study_is_told_in_a_sentence_and_nothing_is_written(tmp_path):
    path = make_study(tmp_path)
    with pytest.raises(BadInput, match="nothing to publish, as no run of the study has results that count: `lowres run made_up` makes them"):
        publish(path, str(tmp_path / "outputs"))
    assert not (tmp_path / "outputs").exists()


def test_the_command_says_where_to_read_or_what_is_wrong(tmp_path):
    def lowres(path: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "lowres", "publish", path, "--outputs", str(tmp_path / "outputs")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    empty = lowres(make_study(tmp_path))
    assert empty.returncode == 2 and empty.stderr.startswith("lowres: ") and empty.stderr.count("\n") == 1 and not empty.stdout
    study = executed(tmp_path, **SMALL)
    older(study.runs[0])
    said = lowres(str(study.path))
    assert said.returncode == 0 and not said.stderr and said.stdout.splitlines()[-1].endswith("made_up/site/index.html")
    assert said.stdout.startswith("not in the site's answer: ") and "schema_version" in said.stdout


def test_one_run_of_one_seed_has_a_site_that_says_there_is_no_interval(tmp_path):
    site, left_out = published(executed(tmp_path, shots=(2,), seeds=[3], methods=METHODS[:1]))
    said = text(site / "index.html")
    assert "There is one seed only : no interval, no test and no verdict" in said and not left_out
    assert "There is no analysis yet: lowres analyse made_up makes it" in said
    assert len(list(site.rglob("runs/**/index.html"))) == 1


def test_a_record_of_an_older_schema_is_named_and_not_counted(tmp_path):
    study = executed(tmp_path, **SMALL)
    older(study.runs[0])
    site, left_out = published(study)
    assert len(left_out) == 1 and "schema_version: 0, not 2" in left_out[0] and "&" not in left_out[0]
    assert "schema_version: 0" in text(site / "index.html") and "not counted" in text(site / "index.html")
    assert "No trial of this run counts" in text(site / "runs" / study.runs[0].name / "index.html")
    older(study.runs[1])
    with pytest.raises(BadInput, match="nothing to publish.*schema_version: 0, not 2"):
        published(study)


def test_records_of_another_study_are_named_and_left_out(tmp_path):
    study = executed(tmp_path, **SMALL)
    fill(read_study(make_study(tmp_path, shots=(64,), seeds=[0], methods=METHODS[:1]), outputs=str(tmp_path / "outputs")))
    make_study(tmp_path, **SMALL)
    site, left_out = published(study)
    assert len(left_out) == 1 and "belong to runs that the study does not ask for" in left_out[0]
    assert not list(site.rglob("64-shot"))


def test_what_is_missing_has_a_place_in_the_grid_and_no_page(tmp_path):
    study = executed(tmp_path, **SMALL)
    for file in [path for path in study.runs[1].folder.rglob("*") if path.is_file()]:
        file.unlink()
    site, _ = published(study)
    grid = BeautifulSoup((site / "index.html").read_text(), "html.parser").select_one(".grid")
    assert [cell.get_text() for cell in grid.select("td")][1] == "missing" and len(grid.select("a")) == 1


def test_a_damaged_notebook_is_named_and_the_old_site_stays(tmp_path):
    study = executed(tmp_path, **SMALL)
    site, _ = published(study)
    (study.runs[1].folder / "run.ipynb").write_text("{")
    before = files(study.folder)
    with pytest.raises(BadInput, match="pbft/.*/run.ipynb: not a notebook that can be read"):
        published(study)
    assert files(study.folder) == before and (site / "index.html").is_file()


def test_a_site_is_replaced_whole_and_a_killed_publishers_leftovers_go(tmp_path, monkeypatch):
    study = executed(tmp_path, **SMALL)
    site, _ = published(study)
    (site / "old.html").touch()
    (study.folder / ".site-killed").mkdir()
    before = files(site)
    with monkeypatch.context() as broken, pytest.raises(OSError):
        broken.setattr(Site, "_index", lambda self: (_ for _ in ()).throw(OSError("the disk is full")))
        published(study)
    assert files(site) == before and list(study.folder.glob(".*")) == [site.resolve()]
    published(study)
    assert not (site / "old.html").exists() and list(study.folder.glob(".*")) == [site.resolve()]


def test_a_reader_never_finds_a_gap(tmp_path):
    """A site and an analysis are opened again and again while they are made anew; a site that an earlier version left as a folder is replaced."""
    study = executed(tmp_path, **SMALL)
    nbformat.write(nbformat.v4.new_notebook(), study.folder / "analysis.ipynb")
    published(study)
    gaps, opened, done = [], [0], threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                assert "Notebooks" in (study.folder / "site" / "index.html").read_text()
                json.loads((study.folder / "analysis.ipynb").read_text())
                opened[0] += 1
            except (OSError, ValueError, AssertionError) as gap:
                gaps.append(gap)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        published(study)
    for number in range(50):
        new = study.folder / f".site-{number}"
        shutil.copytree((study.folder / "site").resolve(), new)
        _put_in_place(new, study.folder / "site")
        _sweep(study.folder)
        cell = nbformat.v4.new_markdown_cell(f"{number} " * 30_000)
        write_whole(study.folder / "analysis.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
        time.sleep(0.02)
    done.set()
    reader.join()
    assert not gaps and opened[0] > 500
    link = study.folder / "site"
    kept = link.resolve()
    link.unlink()
    kept.rename(link)
    assert published(study)[0].is_symlink()


def test_the_front_page_is_the_executed_analysis_and_says_when_it_is_older_than_the_records(tmp_path):
    study = executed(tmp_path, **SMALL)
    cells = [nbformat.v4.new_markdown_cell("# What it says"), nbformat.v4.new_code_cell("1", outputs=[
        nbformat.v4.new_output("display_data", data={"text/html": "<details><summary>All</summary><table><tr><td>42</td></tr></table></details>"})])]
    mark = analysis_mark(study, ROOT / "notebooks" / "analysis.ipynb")
    for analysed, said in ((mark, False), ("another", True)):
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"lowres": {"analysed": analysed}})
        nbformat.write(notebook, study.folder / "analysis.ipynb")
        page = published(study)[0] / "index.html"
        assert "What it says" in text(page) and "<details><summary>All</summary>" in page.read_text() and ">42<" in page.read_text()
        assert ("made of other records" in text(page)) == said


def test_pictures_are_files_beside_their_page_and_each_is_written_once(tmp_path):
    study = executed(tmp_path, **SMALL)
    site, _ = published(study)
    folder = site / "runs" / study.runs[0].name
    page = (folder / "index.html").read_text()
    sources = {picture["src"] for picture in BeautifulSoup(page, "html.parser")("img")}
    assert sources == {file.name for file in folder.glob("*.png")} and len(sources) == 1 and "data:image" not in page
    kept = nbformat.read(study.runs[0].folder / "run.ipynb", 4).cells[1].outputs[2]["data"]["image/png"]
    assert (folder / sources.pop()).read_bytes() == base64.b64decode(kept)


def test_what_is_no_picture_stays_in_its_page(tmp_path):
    body = Body(Markup('<img src="data:image/png;base64,left out: 12 MB"><img src="data:image/png;base64,aGk=\n">'), [])
    assert _pictures_apart(body, tmp_path).html.startswith('<img src="data:image/png;base64,left out: 12 MB"><img src="')
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"hi"]


def test_of_many_runs_each_grid_has_a_page_whose_links_lead_to_the_notebooks(tmp_path, monkeypatch):
    study = executed(tmp_path, models=("a/one", "a/two"), **SMALL)
    here = published(study)[0]
    assert len(BeautifulSoup((here / "index.html").read_text(), "html.parser").select(".grid")) == 2 and not (here / "grids").exists()
    monkeypatch.setattr("lowres.site.publish.MOST_CELLS", 3)
    site = published(study)[0]
    front = BeautifulSoup((site / "index.html").read_text(), "html.parser")
    pages = [site / link["href"] for link in front.select("#notebooks a")]
    assert not front.select(".grid") and ["a/one" in text(pages[0]), "a/two" in text(pages[1])] == [True, True]
    links = [page.parent / link["href"] for page in pages for link in BeautifulSoup(page.read_text(), "html.parser").select(".grid a")]
    assert len(links) == len(study.runs) and all(link.is_file() for link in links)


def test_downloads_are_the_runs_own_files(tmp_path):
    study = executed(tmp_path, **SMALL)
    site, _ = published(study)
    run = study.runs[0]
    for name in ("run.ipynb", "record.json", "parameters.yaml", "predictions.parquet"):
        assert (site / "runs" / run.name / name).read_bytes() == (run.folder / name).read_bytes()


@pytest.mark.parametrize(("written", "shown"), [
    ("<b onclick='x()'>bold</b>", "<b>bold</b>"),
    ("<script>x()</script>after", "after"),
    ("<a href='javascript:x()'>link</a>", "<a>link</a>"),
    ("<a href='https://arxiv.org/abs/2405.13181'>link</a>", '<a href="https://arxiv.org/abs/2405.13181">link</a>'),
    ("<img src='https://example.org/x.png' alt='words'>", '<img alt="words">'),
    ("<table><tr><th scope='col' style='color: red'>a</th></tr></table>", '<table><tbody><tr><th scope="col">a</th></tr></tbody></table>'),
    ("<iframe src='https://example.org'></iframe><form action='x'><input></form>", ""),
])
def test_only_harmless_markup_is_left(written, shown):
    assert clean(written).strip() == shown


def test_equations_become_mathml_and_what_is_none_stays_as_written():
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in markdown("so $x^2$ grows")
    assert "<code>\\nonsense{x}</code>" in markdown(r"so $\nonsense{x}$ grows")
    assert "<script" not in markdown(r"$\text{<script>x()</script>}$")


def test_an_installed_package_brings_what_the_site_is_made_of():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lowres.site"]
    packed = {path for pattern in patterns for path in (ROOT / "lowres" / "site").glob(pattern)} | set((ROOT / "lowres" / "site").glob("*.py"))
    assert packed >= {path for path in (ROOT / "lowres" / "site").rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.mark.slow
def test_two_hundred_notebooks_take_less_than_three_minutes(tmp_path):
    study = executed(tmp_path, shots=range(1, 201), seeds=[0, 1], methods=METHODS[:1])
    start = time.monotonic()
    site, _ = published(study)
    assert len(list(site.rglob("runs/**/index.html"))) == 200 and time.monotonic() - start < 180
