"""One run through papermill, in a kernel of its own.

A run's notebook and record are made in scratch and moved in at the end, the record last: papermill calls the cells of a
killed kernel completed, so only the record says that a run is done. Finished trials go into the run's folder at once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lowres import files, locks
from lowres.files import ROOT, located, shown, without_secrets
from lowres.runs import records
from lowres.runs.process import THREADS, NotebookResult, run_notebook
from lowres.runs.status import NOTEBOOKS, FingerprintInputs, Status, failure_folder, status_of
from lowres.runs.study import Run, Study

COMPUTED_BY = ("analysis/*.py", "runs/mistakes.py", "runs/records.py", "runs/summary.py", "methods/show.py")  # what an analysis says and draws
MOST = 200_000  # characters of one output's text, and
MOST_IMAGE = 2_000_000  # of one image; what is larger gives way to a line that says so


def cleaned(notebook: Path, **marks: str) -> str:
    """Without papermill's metadata (it breaks diff tools), outputs that are too long, paths, and secrets; `marks` go into its metadata."""
    import nbformat  # not by who only asks

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    if marks:
        content.metadata["lowres"] = marks
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _shorten(output)
    return without_secrets(nbformat.writes(content, indent=1)) + "\n"


def _shorten(output) -> None:
    if output.output_type == "stream" and len(output.text) > MOST:
        output.text = output.text[:MOST] + f"\n[lowres: {len(output.text) - MOST:,} more characters are not kept]\n"
    for form, content in output.get("data", {}).items():
        length = len(content) if isinstance(content, str) else len(str(content))
        if length > (MOST_IMAGE if form.startswith("image/") else MOST):
            output.data[form] = f"[lowres: {length:,} characters of {form} are not kept]"


@dataclass(frozen=True)
class Options:
    """How a study's runs are executed: what was asked for, and what the cluster adds to it."""

    timeout: int | None = None  # seconds a cell may take
    retries: int = 2  # of a run whose kernel died
    rerun: frozenset[str] = frozenset()  # states that are executed again: failed, stale
    notebooks: str = NOTEBOOKS
    workers: int | None = None  # runs at a time; None: as many as this host has cores or GPUs for
    scheduler: str | None = None  # a running Dask cluster instead
    fail_fast: bool = False
    cluster: str | None = None  # a file that describes one, to be started
    threads: int = 1
    gpus: tuple[str, ...] = ()  # of the worker 0, 1, … of this host
    forked_by: str = ""  # who forks the kernels (process.Forks); '': each is started anew
    stop: str = ""  # a file: once it is there, no trial is begun any more
    failed_before: frozenset[str] | None = None  # when failed what had as the study began: another is a second runner's, and not repeated

    @property
    def here(self) -> bool:
        return not (self.scheduler or self.cluster)

    @property
    def stopping(self) -> bool:
        return bool(self.stop) and located(self.stop).exists()


@dataclass
class Result:
    """How a run ended: done, failed, stopped (asked to), or busy: another process is at work on it."""

    name: str
    state: str
    seconds: float = 0.0
    message: str = ""


def execute(run: Run, options: Options) -> Result:
    """Executes what is left of a run and moves what it made into its folder. A failure goes to `failed/`. Raises nothing."""
    start = time.monotonic()
    try:
        with locks.locked(run.folder):
            state, message = _under_lock(run, options)
    except locks.Busy as busy:
        state, message = "busy", f"another process is at work on it ({busy})"
    except OSError as error:
        state, message = "failed", os_error(error)
    return Result(run.name, state, time.monotonic() - start, message)


def _under_lock(run: Run, options: Options) -> tuple[str, str]:
    """Looks again what there is to do, now that nobody else does it: another runner may have been here."""
    if options.stopping:
        return "stopped", ""
    for place in (run.folder, failure_folder(run)):
        locks.remove_leftovers(place)
    status = status_of(run, mine=True)
    if status.state == "done" or (status.state == "stale" and "stale" not in options.rerun):
        return status.state, ""
    failure = status.failure
    of_another = failure and options.failed_before is not None and failure["when"] not in options.failed_before
    if failure and (of_another or not (failure["again"] or "failed" in options.rerun)):
        return "failed", failure["message"]
    put_aside(run, status)
    for _ in range(options.retries + 1):
        ended = _attempt(run, options)
        if ended.kind != "died" or options.stopping:
            break
    if ended.kind == "stopped" or (ended.kind == "died" and options.stopping):
        return "stopped", ""
    return ("failed", ended.message) if ended.kind else ("done", "")


def _attempt(run: Run, options: Options) -> NotebookResult:
    with locks.scratch_folder() as folder:
        notebook = located(options.notebooks) / f"{run.method}.ipynb"
        stop = str(located(options.stop)) if options.stop else ""
        environment = {locks.SCRATCH: str(folder), locks.STOP: stop, locks.NOTEBOOK: str(notebook), **pinned(options)}
        given = run.parameters.model_dump(exclude_defaults=True)
        ended = run_notebook(notebook, folder / "run.ipynb", given, folder, environment, options.timeout, options.forked_by)
        try:
            if not ended.kind:
                ended = _moved_in(run, folder)
            if ended.kind in ("error", "timeout") or (ended.kind == "died" and not options.stopping):
                keep_failure(run, ended, folder, options)
        except OSError as error:  # a full disk
            ended = NotebookResult("error", os_error(error))
        return ended


def _moved_in(run: Run, folder: Path) -> NotebookResult:
    """What the notebook made into the run's folder, the record last. Believes nothing until it is read back."""
    record = files.read_json(folder / "record.json")
    if record is None:
        return NotebookResult("error", "the notebook ended without a record: its last cell is run.finish(...)")
    if kept := _too_few(run):
        return kept
    files.write_whole(run.folder / "run.ipynb", cleaned(folder / "run.ipynb"))
    files.write_whole(run.folder / "parameters.yaml", records.as_yaml(run.parameters))
    records.merge(run.folder, json.loads(without_secrets(json.dumps(record))))
    failed = failure_folder(run)
    for file in failed.glob("*") if failed.is_dir() else []:
        file.unlink()
    locks.remove_empty(failed)
    return _too_few(run) or NotebookResult()


def _too_few(run: Run) -> NotebookResult | None:
    status = status_of(run, mine=True)
    if status.finished == status.wanted:
        return None
    found = f"{status.finished} of {status.wanted} trials"
    return NotebookResult("error", f"the notebook ended, but only {found} can be read back: {'; '.join(status.faults)}")


def keep_failure(run: Run, ended: NotebookResult, folder: Path | None, options: Options) -> None:
    """Notebook, message and the kernel's own log under failed/, and what was tried, so that it is known when that changes."""
    failed = failure_folder(run)
    if folder and files.read_json(folder / "run.ipynb"):  # papermill may not have got far
        files.write_whole(failed / "run.ipynb", cleaned(folder / "run.ipynb"))
    if folder and (folder / "kernel.log").is_file():
        files.write_whole(failed / "kernel.log", without_secrets((folder / "kernel.log").read_text(errors="replace")[-20_000:]))
    files.write_whole(failed / "parameters.yaml", records.as_yaml(run.parameters))
    files.write_whole(failed / "error.txt", without_secrets(f"{ended.message}\n\n{ended.traceback}").rstrip() + "\n")
    files.write_json(failed / "failure.json", {
        "message": without_secrets(ended.message), "kind": ended.kind, "again": ended.again, "when": now(),
        "fingerprints": sorted(FingerprintInputs().fingerprints(run, run.parameters.seeds, None).values()),
        "notebook": options.notebooks, "notebook_sha256": records.file_checksum(located(options.notebooks) / f"{run.method}.ipynb"),
    })


def put_aside(run: Run, status: Status) -> None:
    """Moves what other parameters, data or code left, or what is damaged, out of the way: nothing is overwritten."""
    if status.state == "stale" or status.faults:
        records.put_aside(run.folder, status.counting)


def analyse(study: Study, force: bool = True) -> str | None:
    """Executes the analysis notebook over what there is. Returns what went wrong, or ''; without `force`, None if nothing changed."""
    notebook, output = located(NOTEBOOKS) / "analysis.ipynb", study.folder / "analysis.ipynb"
    mark = analysis_mark(study, notebook)
    kept = files.read_json(output)
    if not force and kept and kept.get("metadata", {}).get("lowres", {}).get("analysed") == mark:
        return None
    with locks.scratch_folder() as folder:
        ended = run_notebook(
            notebook, folder / "analysis.ipynb", {"study": shown(study.path), "outputs": shown(study.folder.parent), "write": True}, folder,
            pinned(Options()),
        )
        if not ended.kind:
            files.write_whole(output, cleaned(folder / "analysis.ipynb", analysed=mark))
    return ended.message


def analysis_mark(study: Study, notebook: Path) -> str:
    """Names what an analysis was made of: the study, the records, the notebook and what it computes with."""
    digest = hashlib.sha256(f"{study.description} {[run.name for run in study.runs]}".encode())
    code = [file for part in COMPUTED_BY for file in sorted((ROOT / "lowres").glob(part))]
    for file in [notebook, *code, *(run.folder / "record.json" for run in study.runs)]:
        digest.update(file.read_bytes() if file.is_file() else b"missing")
    for run in study.runs:  # a trial counts before its run has a record
        digest.update(repr(records.journalled(run.folder)).encode())
    return digest.hexdigest()[:24]


def pinned(options: Options) -> dict[str, str]:
    """A kernel's threads, set before torch is imported in it (too many are a cliff: 6 times slower), and its GPU."""
    environment = dict.fromkeys(THREADS, str(options.threads))
    if options.gpus:
        from distributed import get_worker

        environment["CUDA_VISIBLE_DEVICES"] = options.gpus[int(get_worker().name) % len(options.gpus)]
    return environment


def os_error(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return without_secrets(f"{'the disk is full: ' if full else ''}{error}")


def now() -> str:
    return datetime.now(UTC).isoformat()
