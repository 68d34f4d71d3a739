"""One run through papermill, in a kernel of its own; then a study, run by run.

A run's notebook and record are made in scratch and moved in at the end, the record last: papermill calls the cells of a
killed kernel completed, so only the record says that a run is done. Finished trials go into the run's folder at once.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from lowres import records
from lowres.notebook import SCRATCH, as_yaml
from lowres.parameters import ROOT, shown
from lowres.study import Run, Study

NOTEBOOKS = ROOT / "notebooks"

# Set before a kernel starts. Large blocks are kept, not given back and faulted in anew at each step: 1.2 to 0.7 s a step.
KERNEL_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
    "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


@dataclass
class Result:
    """How a run ended: done, failed, or left to another process that is at work on it."""

    name: str
    state: str
    seconds: float = 0.0
    message: str = ""


def execute(run: Run, failed: Path) -> Result:
    """Executes one run and moves what it made into its folder. A failure's notebook and traceback go to `failed`."""
    start = time.monotonic()
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.folder / ".lock", timeout=0)
    try:
        with lock:
            message = _executed(run, failed)
    except Timeout:
        return Result(run.name, "running elsewhere")
    finally:
        if not lock.is_locked:
            (run.folder / ".lock").unlink(missing_ok=True)
    return Result(run.name, "failed" if message else "done", time.monotonic() - start, message)


def _executed(run: Run, failed: Path) -> str:
    """Returns why the run failed; empty if it did not."""
    put_aside(run)
    scratch = Path(tempfile.mkdtemp(prefix="lowres-"))  # short: a socket's path has at most 107 characters
    os.environ[SCRATCH] = str(scratch)
    try:
        message = run_notebook(NOTEBOOKS / f"{run.method}.ipynb", scratch / "run.ipynb", run.parameters.model_dump(), scratch)
        if not message and not (scratch / "record.json").is_file():
            message = "the kernel ended before the notebook did"
        if message:
            _keep_failure(run, scratch, failed, message)
            return message
        records.write_whole(run.folder / "run.ipynb", cleaned(scratch / "run.ipynb"))
        records.write_whole(run.folder / "parameters.yaml", as_yaml(run.parameters))
        records.write_whole(run.folder / "record.json", (scratch / "record.json").read_bytes())
        shutil.rmtree(failed, ignore_errors=True)
        return ""
    finally:
        del os.environ[SCRATCH]
        shutil.rmtree(scratch, ignore_errors=True)
        if run.folder.is_dir() and not any(run.folder.glob("[!.]*")):
            (run.folder / ".lock").unlink(missing_ok=True)
            run.folder.rmdir()


def run_notebook(notebook: Path, output: Path, parameters: dict, scratch: Path) -> str:
    """Executes a notebook in a kernel over IPC sockets (TCP ports of parallel kernels clash). Returns what went wrong, or ''."""
    import papermill
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    os.environ.update({key: os.environ.get(key, value) for key, value in KERNEL_ENVIRONMENT.items()})
    kernel = AsyncKernelManager(transport="ipc", ip=str(scratch / "k"), kernel_name="python3")
    try:
        papermill.execute_notebook(
            notebook, output, parameters, km=kernel, kernel_name="python3", progress_bar=False, log_output=False,
            cwd=str(ROOT), iopub_timeout=60, raise_on_iopub_timeout=False,
        )
        return ""
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {_plain(error.evalue)}"
    except DeadKernelError:
        return "the kernel died"
    except CellTimeoutError as error:
        return f"a cell took too long: {_plain(str(error))}"
    finally:
        if kernel.has_kernel:
            run_sync(kernel.shutdown_kernel)(now=True)
        kernel.cleanup_connection_file()


def put_aside(run: Run) -> None:
    """Moves what other parameters, data or code left in the run's folder out of the way: nothing is overwritten."""
    wanted = run.fingerprints()
    stale = [
        file for file in run.folder.glob("trials/seed-*.json")
        if (trial := records.read_json(file)) is None or (trial.get("seed") in wanted and wanted[trial["seed"]] != trial.get("fingerprint"))
    ]
    if not stale:
        return
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    aside = run.folder.parents[3] / "stale" / run.folder.relative_to(run.folder.parents[3]).with_name(f"{run.folder.name}.{stamp}")
    (aside / "trials").mkdir(parents=True)
    for file in [*stale, *(file.with_suffix(".parquet") for file in stale)]:
        if file.is_file():
            file.rename(aside / "trials" / file.name)
    for file in ("record.json", "run.ipynb", "parameters.yaml"):
        if (run.folder / file).is_file():
            (run.folder / file).rename(aside / file)


def cleaned(notebook: Path) -> str:
    """An executed notebook as it is kept: no papermill metadata (it breaks diff tools), no path of this machine."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    return without_paths(nbformat.writes(content, indent=1)) + "\n"


def without_paths(text: str) -> str:
    for folder, name in ((ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(folder), name)
    return text


def run_study(study: Study, tell: Callable[[str], None]) -> list[Result]:
    """Every run of a study that is not done, one after another. A failure does not stop the others."""
    results = []
    waiting = [run for run in study.runs if run.state() != "done"]
    tell(f"{study.name}: {len(study.runs)} runs ({study.trials} trials), {len(study.runs) - len(waiting)} done, {len(waiting)} to do")
    begun = time.monotonic()
    for number, run in enumerate(waiting, 1):
        result = execute(run, study.folder / "failed" / run.name)
        results.append(result)
        left = (time.monotonic() - begun) / number * (len(waiting) - number)
        tell(f"[{number}/{len(waiting)}] {run.name}: {result.state}{': ' + result.message if result.message else ''} "
             f"({result.seconds:.0f} s, about {left / 60:.0f} min left)")
    return results


def analyse(study: Study) -> str:
    """Executes the analysis notebook over what there is. Returns what went wrong, or ''."""
    scratch = Path(tempfile.mkdtemp(prefix="lowres-"))
    try:
        message = run_notebook(NOTEBOOKS / "analysis.ipynb", scratch / "analysis.ipynb", {"study": shown(study.path), "outputs": shown(study.folder.parent)}, scratch)
        if not message:
            records.write_whole(study.folder / "analysis.ipynb", cleaned(scratch / "analysis.ipynb"))
        return message
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_failure(run: Run, scratch: Path, failed: Path, message: str) -> None:
    if (scratch / "run.ipynb").is_file():
        records.write_whole(failed / "run.ipynb", cleaned(scratch / "run.ipynb"))
    records.write_whole(failed / "parameters.yaml", as_yaml(run.parameters))
    records.write_whole(failed / "error.txt", without_paths(message) + "\n")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
