"""The site of a study in a real browser: it reads, it sorts, it asks nothing of the world, and untrusted text does no harm."""

import re
from pathlib import Path
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen

import pytest
from site_study import browser, display, served, write_notebooks
from synthetic import METHODS, PARTS, SETS, fill, make_study
from toys import GRAMMAR

from lowres import files
from lowres.files import ROOT
from lowres.runs.execute import analyse
from lowres.runs.study import read_study
from lowres.site.publish import publish

pytestmark = pytest.mark.usefixtures("forking")

PAGES = ("index.html", "runs/pbft/facebook_opt-125m/cola/16-shot/index.html")
HARM = "<script>harmed = 1</script><img src=x onerror='harmed = 1'>"


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory, chromium) -> Path:  # no browser, no site: the tests are skipped at once
    folder = tmp_path_factory.mktemp("site")
    path = make_study(folder, shots=(2, 16), seeds=range(6), methods=[METHODS[0], METHODS[1], METHODS[3]])
    study = read_study(path, outputs=str(folder / "outputs"))
    fill(study)
    write_notebooks(study)
    assert not analyse(study)
    return publish(path, str(folder / "outputs"))[0].parent


@pytest.fixture(scope="module")
def address(site):
    with served(site) as found:
        yield found


@pytest.fixture(params=PAGES)
def page(request, chromium, address) -> str:
    chromium.open(address + request.param)
    return address + request.param


def every_page(site: Path) -> list[str]:
    return [quote(path.relative_to(site).as_posix()) for path in site.rglob("*.html")]


def test_every_link_resolves(site, chromium, address):
    pages, links = every_page(site), set()
    assert len(pages) == 9  # the front page, two shots of vanilla, PBFT and two ranks of LoRA
    for name in pages:
        chromium.open(address + name)
        links |= set(chromium.run("return [...document.querySelectorAll('[href], [src]')].map(e => e.href || e.src)"))
    local = {link.split("#")[0] for link in links if link.startswith("http")}
    assert {address + name for name in pages} <= local, "every page is reached from another"
    for link in local:
        assert link.startswith(address), link
        with urlopen(Request(link, method="HEAD")) as answer:
            assert answer.status == 200
    anchors = [link.split("#") for link in links if "#" in link and link.startswith(address)]
    for target, anchor in anchors:
        file = site / unquote(target.removeprefix(address))
        assert f'id="{anchor}"' in file.read_text(), (target, anchor)


def test_back_links_lead_to_the_index_and_along_the_notebooks(chromium, address):
    chromium.open(address + PAGES[1])
    start = chromium.run("return document.title")
    chromium.run("document.querySelector('a[rel=prev]').click()")
    assert chromium.run("return document.title") != start
    chromium.run("document.querySelector('a[rel=next]').click()")
    assert chromium.run("return document.title") == start
    chromium.run("document.querySelector('header a').click()")
    assert chromium.driver.current_url == address + "index.html"


def test_the_console_is_silent_and_no_request_leaves_the_machine(chromium, address, page):
    assert chromium.requests() and [url for url in chromium.requests() if not url.startswith((address, "data:"))] == []
    assert chromium.complaints() == []


def test_a_request_that_would_leave_is_seen(chromium, site, address):
    """The test above can fail: a picture from outside is noticed, with the page's policy and without it."""
    text = (site / "index.html").read_text().replace("<h1>", "<img src='http://example.org/x.png' alt=''><h1>")
    (site / "planted.html").write_text(text)
    (site / "naked.html").write_text(re.sub("<meta http-equiv.*?>", "", text))
    try:
        chromium.open(address + "planted.html")
        assert any("Content Security Policy" in line for line in chromium.complaints())
        chromium.open(address + "naked.html")
        assert "http://example.org/x.png" in chromium.requests()
        assert any("example.org" in line for line in chromium.complaints())
    finally:
        (site / "planted.html").unlink(), (site / "naked.html").unlink()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(chromium, page, width, dark):
    chromium.open(page, width, dark)
    chromium.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert chromium.faults() == []


def test_axe_finds_a_fault_that_is_there(chromium, address):
    chromium.open(address + "index.html")
    chromium.run("document.querySelector('h1').style.color = '#999999'; document.querySelector('.notebook img').removeAttribute('alt')")
    assert {"color-contrast", "image-alt"} <= {fault.split(":")[0] for fault in chromium.faults()}


def test_a_phone_need_not_scroll_sideways(chromium, page):
    chromium.open(page, width=390)
    assert chromium.run("return document.documentElement.scrollWidth") <= 390
    assert chromium.run("return Math.max(...[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth))") > 0


@pytest.mark.parametrize("place", ["server", "folder"])
def test_a_long_table_sorts_by_the_number_its_cells_begin_with(chromium, site, address, place):
    chromium.open((address if place == "server" else f"{site.as_uri()}/") + "index.html")
    chromium.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    results = "[...document.querySelectorAll('details')].find(part => part.querySelector('summary').innerText.endsWith('evaluation set'))"
    headings = chromium.run(f"return [...{results}.querySelectorAll('thead th')].map(cell => cell.innerText)")
    place = next(i for i, heading in enumerate(headings) if heading.startswith("accuracy"))
    table = f"{results}.querySelector('table')"
    column = f"return [...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[{place}].innerText))"
    heading = f"{table}.tHead.rows[0].cells[{place}]"
    before = chromium.run(column)
    assert len(before) == 16
    chromium.run(f"{heading}.querySelector('button').click()")
    assert chromium.run(column) == sorted(before) != before
    chromium.run(f"{heading}.querySelector('button').click()")
    assert chromium.run(column) == sorted(before, reverse=True)
    assert chromium.run(f"return {heading}.getAttribute('aria-sort')") == "descending"
    assert chromium.complaints() == []


def test_a_notebook_shows_its_figures_and_equations(chromium, address):
    chromium.open(address + PAGES[1])
    pictures = chromium.run("return [...document.images].map(i => [i.naturalWidth, i.alt])")
    assert [width for width, _ in pictures] == [600, 600]
    assert pictures[0][1] == "A line that rises." and "under “The data”" in pictures[1][1]
    assert chromium.run("return [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().width > 5)") == [True] * 3
    colour = "return getComputedStyle(document.querySelector('%s')).color"
    assert chromium.run(colour % ".highlight .c1") != chromium.run(colour % "body")


def test_the_front_page_has_the_answer_the_verdicts_and_figures_with_words(chromium, address):
    chromium.open(address + "index.html")
    tables = chromium.run("return [...document.querySelectorAll('.output table')].map(table => table.innerText)")
    assert "constant answer" in tables[0] and "pbft" in tables[0], "the answer stands first"
    assert any("undecided" in table for table in tables)
    alts = chromium.run("return [...document.querySelectorAll('.output img')].map(i => i.alt)")
    assert alts and all("trial" in alt for alt in alts)


def test_a_script_in_a_name_a_label_or_an_output_does_no_harm(chromium, tmp_path, monkeypatch):
    place = tmp_path / "<script>harmed=1<"
    place.mkdir()
    task = place / "script>.yaml"
    text = (ROOT / GRAMMAR).read_text().replace("in_domain:", f'"{HARM} in":', 1).replace("folder: grammar", f"folder: {ROOT}/tests/tasks/grammar")
    task.write_text(text)
    monkeypatch.setitem(SETS, str(task), {f"{HARM} in": ("in", 200, 0.5, HARM), "out_of_domain": ("out", 200, 0.5, HARM)})
    monkeypatch.setitem(PARTS, HARM, [HARM])
    study = read_study(make_study(tmp_path, tasks=[str(task)], shots=(2,), seeds=range(2), methods=METHODS[:1], models=(HARM,)),
                       outputs=str(tmp_path / "outputs"))
    fill(study)
    write_notebooks(
        study, display({"text/html": HARM}), display({"text/markdown": f"{HARM} [link](javascript:harmed=1) ![](http://example.org/x.png)"}),
        display({"application/javascript": "harmed = 1", "text/plain": HARM}), display({"image/svg+xml": f"<svg onload='harmed = 1'>{HARM}</svg>"}),
        display({"text/html": "<svg><style><img src=x onerror=harmed=1></style></svg>"}),
        display({"text/html": "<math><mtext><table><mglyph><style><img src=x onerror=harmed=1>"}),
        display({"image/png": "\"><script>harmed = 1</script>"}, {"image/png": {"alt": f"\">{HARM}"}}),
        prose=f"# {HARM}\n\n{HARM}\n\n$\\text{{{HARM}}}$ <style>body {{ display: none }}</style>",
    )
    file = study.runs[0].folder / "record.json"
    record = files.read_json(file)
    record |= {"labels": [HARM], "notes": [HARM], "parameters": {HARM: HARM}, "environment": {HARM: HARM}}
    files.write_json(file, record)
    with served(publish(str(study.path), str(tmp_path / "outputs"))[0].parent) as address:
        chromium.open(address + "index.html")
        notebook = chromium.run("return document.querySelector('.grid a').href")
        for page in (address + "index.html", notebook):
            chromium.open(page)
            chromium.run("document.querySelectorAll('th, th button').forEach(cell => cell.click())")
            assert chromium.run("return typeof harmed") == "undefined"
            assert chromium.run("return document.body.innerText.includes('harmed')"), "it is shown, as text"
            assert [url for url in chromium.requests() if not url.startswith((address, "data:"))] == []
            left = [line for line in chromium.complaints() if "ERR_INVALID_URL" not in line]  # the picture that is none
            assert left == [], "nothing is left for the page's policy to refuse"
