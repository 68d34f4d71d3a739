"""JupyterLab in a real browser: every notebook opens and runs top to bottom, and a control changes what is shown.

The notebooks are copies with a tiny model and few rows, so that each takes seconds.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from site_study import browser
from stand_ins import eventually
from synthetic import METHODS as METHODS_MADE_UP
from synthetic import fill, make_study

from lowres.files import ROOT
from lowres.parameters import METHODS
from lowres.runs.study import read_study

SMALL = {"shots": "2", "evaluation_rows": "8", "epochs": "2"}


def small(notebook: Path, target: Path, **changes: str) -> None:
    """A copy of a notebook with other values in its parameters cell."""
    copy = nbformat.read(notebook, as_version=4)
    cell = next(cell for cell in copy.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in {**SMALL, **changes}.items():
        cell.source = re.sub(rf"^({name}: [^=]+=) [^#]*(#|$)", lambda found, value=value: f"{found[1]} {value}  {found[2]}", cell.source, flags=re.M)
    known = METHODS[notebook.stem].model_fields if notebook.stem in METHODS else {}
    cell.source += "".join(f"\n{name} = {value}" for name, value in SMALL.items() if name in known and f"{name}:" not in cell.source)
    nbformat.write(copy, target)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory, tiny_llama) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name in ("vanilla", "explore"):
        small(ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", model=repr(tiny_llama))
    path = make_study(folder, seeds=range(3), shots=(2, 16), methods=METHODS_MADE_UP[:2])  # every cell has something to show
    fill(read_study(path, outputs=str(folder / "outputs")))
    small(ROOT / "notebooks" / "analysis.ipynb", folder / "analysis.ipynb", study=repr(path), outputs=repr(str(folder / "outputs")))
    return folder


@pytest.fixture(scope="module")
def lab(notebooks, tmp_path_factory):
    """JupyterLab over the copies, opened in a browser that can call the application's own commands."""
    with browser() as chromium:
        port, token, own = free_port(), secrets.token_hex(8), tmp_path_factory.mktemp("jupyter")
        words = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--notebook-dir={notebooks}",
                 "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        environment = os.environ | {"JUPYTER_CONFIG_DIR": str(own), "JUPYTER_RUNTIME_DIR": str(own), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(own / "log", "w") as log:
            server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words], env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}")
            chromium.open(f"http://127.0.0.1:{port}/lab?token={token}&reset")
            ready = "return !!(window.jupyterapp && window.jupyterapp.commands.hasCommand('notebook:run-all-cells'))"
            eventually(lambda: chromium.run(ready), "JupyterLab")
            yield chromium
        finally:
            server.terminate()
            server.wait(30)


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def wait_for(address: str) -> None:
    def answers() -> bool:
        try:
            return urlopen(address).status == 200
        except (URLError, ConnectionError):
            return False
    eventually(answers, "the server")


def run_all(lab, name: str) -> None:
    """Opens a notebook, runs its cells by JupyterLab's own command, and saves it."""
    lab.driver.execute_script("""
        const [path] = arguments, app = window.jupyterapp;
        window.said = null;
        (async () => {
            const panel = await app.commands.execute('docmanager:open', {path, factory: 'Notebook', kernel: {name: 'python3'}});
            await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
            await app.commands.execute('notebook:run-all-cells');
            await panel.context.save();
            window.panel = panel;
            window.said = 'saved';
        })().catch(error => { window.said = String(error); });""", name)
    eventually(lambda: lab.run("return window.said"), "all cells to run")
    assert lab.run("return window.said") == "saved"


def ran_without_fault(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("name", ["vanilla", "analysis"])  # papermill runs the others in test_notebooks
def test_a_notebook_opens_and_runs_top_to_bottom(lab, notebooks, name):
    run_all(lab, f"{name}.ipynb")
    ran_without_fault(notebooks / f"{name}.ipynb")
    lab.run("window.panel.sessionContext.shutdown()")


def test_explore_runs_top_to_bottom_and_a_control_changes_what_is_shown(lab, notebooks):
    run_all(lab, "explore.ipynb")
    ran_without_fault(notebooks / "explore.ipynb")
    board = "[...document.querySelectorAll('.jp-OutputArea .widget-vbox')].pop()"
    eventually(lambda: lab.run(f"""
        const outer = [...document.querySelectorAll('.jp-WindowedPanel-outer')].pop(); outer.scrollTop = outer.scrollHeight;
        return !!({board} && {board}.querySelector('table'))"""), "the board")
    before = lab.run(f"return {board}.textContent")
    lab.run(f"""
        const box = {board}.querySelector('input'); box.value = '{{sentence}} Correct:';
        box.dispatchEvent(new Event('input', {{bubbles: true}})); box.dispatchEvent(new Event('change', {{bubbles: true}}))""")
    eventually(lambda: "text_pattern = '{sentence} Correct:'" in lab.run(f"return {board}.textContent"), "the board to be made anew")
    assert lab.run(f"return {board}.textContent") != before
