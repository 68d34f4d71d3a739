"""Executed notebooks for made-up records (tests/synthetic.py), and a browser to look at the site that comes of them."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from lowres import files
from lowres.runs.records import as_yaml
from lowres.runs.study import Study

PROSE = r"""# A method

Text with $e_w$ and $h(P(x))$, and an equation:

$$p(y \mid x) = \frac{\exp\bigl(e_{V(y)} \cdot h(x)\bigr)}{\sum_{y'} \exp\bigl(e_{V(y')} \cdot h(x)\bigr)}$$

## The data

| a | b |
| --- | --- |
| 1 | 2 |
"""


def write_notebooks(study: Study, *outputs: dict, prose: str = PROSE) -> None:
    """A run.ipynb and a parameters.yaml for every run: prose, code, text, a wide table, a figure, and the `outputs` given."""
    table = pd.DataFrame({f"a rather long column {i}": [0.5, 0.75] for i in range(12)}, index=pd.Index(["in", "out"], name="set"))
    shown = [
        nbformat.v4.new_output("stream", text="a printed line\n"), display({"text/html": table._repr_html_()}),
        display({"image/png": picture()}, {"image/png": {"alt": "A line that rises."}}), display({"image/png": picture()}), *outputs,
    ]
    code = "print('a line')  # a comment\nx = 1.5 if None else 'text'"
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code, outputs=shown)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    for run in study.runs:
        files.write_whole(run.folder / "run.ipynb", nbformat.writes(notebook))
        files.write_whole(run.folder / "parameters.yaml", as_yaml(run.parameters))


def display(data: dict, metadata: dict | None = None) -> dict:
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata or {})


def picture() -> str:
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot([0, 1], [0, 1])
    plt.close(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)  # whatever figures look like in this process
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder at an address of this machine's."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """Chromium: what a page says in its console, what it asks of the network, what axe-core finds in it."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        # A name outside cannot be found, so that a page that asks for one fails here, and is seen to.
        for word in ("headless=new", "disable-gpu", "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
            options.add_argument(f"--{word}")
        if os.geteuid() == 0:  # Chromium's sandbox is not for the administrator
            options.add_argument("--no-sandbox")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(60)
        self.axe = axe_source()

    def open(self, address: str, width: int = 1280, dark: bool = False) -> None:
        """Opens a page anew, as wide as a desk's or a phone's window; what was logged before is forgotten."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600,
        })
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        })
        self.driver.get("about:blank")
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(address)

    def run(self, script: str):
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """Whatever stands in the console: errors, warnings, and what the page's own policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def faults(self) -> list[str]:
        """axe-core's serious and critical findings."""
        self.run(self.axe)
        found = self.driver.execute_async_script("const done = arguments[arguments.length - 1]; axe.run().then(done)")
        grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {node['html'][:120]}" for one in grave for node in one["nodes"]]


def axe_source() -> str:
    return (Path(find_spec("axe_playwright_python").submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test, saying why, where a browser is missing."""
    for command in ("chromium", "chromedriver"):
        if not shutil.which(command):
            pytest.skip(f"{command} is not installed (Debian: apt-get install chromium chromium-driver)")
    for package in ("selenium", "axe_playwright_python"):
        if not find_spec(package):
            pytest.skip(f"the Python package {package} is not installed")
    opened = Browser()
    try:
        yield opened
    finally:
        opened.driver.quit()
