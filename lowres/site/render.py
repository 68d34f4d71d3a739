"""Notebooks and Markdown -> HTML that is safe to show: no script, no style, no address outside; equations as MathML.

Whatever stands in a notebook is untrusted: a task's name, a label, a text. All markup goes through one list of what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import bleach
import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from markupsafe import Markup, escape
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from lowres.files import BadInput, shown

TEMPLATES = Path(__file__).with_name("templates")
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
MATHEMATICS = (
    "math merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle msub msubsup msup "
    "mtable mtd mtext mtr munder munderover"
).split()
TAGS = {
    *HEADINGS, *MATHEMATICS, *"a b blockquote br caption code dd del div dl dt em hr i img li ol p pre s span strong sub sup table tbody "
    "td tfoot th thead tr ul details summary".split(),
}
ATTRIBUTES = {
    *"alt class colspan rowspan scope".split(),
    *"accent accentunder columnalign columnspan depth display displaystyle fence form height largeop linethickness lspace mathvariant "
    "maxsize minsize movablelimits rowspacing rspace scriptlevel separator stretchy symmetric voffset width".split(),
}
SHOWN_FIRST = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]


@dataclass(frozen=True)
class Body:
    """A notebook's content as HTML, and its headings as (level, anchor, text)."""

    html: Markup
    headings: list[tuple[int, str, str]]


def clean(html: str) -> Markup:
    """Only what is allowed is left of `html`; links lead to the web or are none, and pictures carry their own data."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "style"]):  # bleach would leave what they contain as text
        element.decompose()
    for picture in soup("img"):
        picture["alt"] = picture.get("alt", "")  # `notebook_body` finds words for it
    return Markup(bleach.clean(str(soup), tags=TAGS, attributes=_allowed, protocols={"http", "https", "data"}, strip=True))


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "href":
        return tag == "a" and value.startswith(("https://", "http://"))
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    return name in ATTRIBUTES


class _Renderer(IPythonRenderer):
    """Markdown's parts; an equation that cannot be set stays what was written."""

    def block_math(self, body: str) -> str:
        return f"<span class='equation'>{mathml(body, True)}</span>"  # a paragraph stands around it

    def inline_math(self, body: str) -> str:
        return mathml(body, False)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def mathml(tex: str, display: bool) -> str:
    try:
        return _converter().convert_with_local_state(tex, displaystyle=display)
    except LatexError:
        return f"<code>{escape(tex)}</code>"


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML()


def markdown(text: str, attachments: dict[str, Any] | None = None) -> Markup:
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments or {})
    return clean(MarkdownWithMath(renderer=renderer).render(text))


@cache
def _exporter() -> HTMLExporter:
    """One for all notebooks: making it takes as long as converting ten."""
    options = Config({"NbConvertBase": {"display_data_priority": SHOWN_FIRST}})
    exporter = HTMLExporter(config=options, template_name="notebook", extra_template_basedirs=[str(TEMPLATES)], sanitize_html=True)

    @pass_context
    def of_cell(context, source: str) -> Markup:
        return markdown(source, context.get("cell", {}).get("attachments", {}))

    exporter.register_filter("markdown2html", of_cell)
    exporter.register_filter("clean_html", clean)  # nbconvert's own allows no paragraph, heading or table header
    return exporter


def notebook_body(path: Path) -> Body:
    """A notebook's cells and outputs, its headings one level down (the page has a title of its own). Raises BadInput."""
    try:
        html, _ = _exporter().from_notebook_node(read_notebook(path))
    except InvalidNotebook as error:
        raise BadInput(f"{shown(path)}: {error}") from None
    soup = BeautifulSoup(html, "html.parser")
    headings = [_anchored(heading, number) for number, heading in enumerate(soup(HEADINGS), 1)]
    for picture in soup("img"):
        if not picture.get("alt"):
            before = picture.find_previous(HEADINGS)
            picture["alt"] = f"A figure without a description, under “{before.get_text().strip()}”" if before else "A figure without a description"
    for table in soup("table"):
        _readable(soup, table)
    for block in soup("pre"):
        block["tabindex"] = "0"  # it scrolls by itself, and the keyboard must reach it
    return Body(Markup(str(soup)), headings)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises BadInput for a file that is no notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
        raise BadInput(f"{shown(path)}: not a notebook that can be read: {str(error).splitlines()[0][:120]}") from None
    return notebook


def _anchored(heading: Tag, number: int) -> tuple[int, str, str]:
    level = min(6, int(heading.name[1]) + 1)
    heading.name, heading["id"] = f"h{level}", f"part-{number}"
    return level, heading["id"], heading.get_text().strip()


SHORT = 24  # characters of a cell that does not wrap


def _readable(soup: BeautifulSoup, table: Tag) -> None:
    """A table scrolls in a box of its own, and says which cells are headers of what; what is short stays in one line."""
    for cell in table("td"):
        if len(cell.get_text()) <= SHORT:
            cell["class"] = "short"
    for cell in table("th"):
        cell["scope"] = "col" if cell.find_parent("thead") else "row"
    box = soup.new_tag("div", attrs={"class": "scroll", "role": "group", "tabindex": "0", "aria-label": "table"})
    table.wrap(box)
