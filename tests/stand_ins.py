"""Tiny notebooks that stand for a method: they keep trials and a record as real ones do, and train nothing.

    python tests/stand_ins.py STUDY OUTPUTS NOTEBOOKS WORKERS RETRIES    runs a study as `lowres run` does, without its check of models
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
import yaml

from lowres import files
from lowres.files import ROOT, located
from lowres.locks import NOTEBOOK, SCRATCH, STOP, Interrupted, tidy
from lowres.parameters import METHODS, validated
from lowres.runs import records
from lowres.runs.command import chosen
from lowres.runs.status import FingerprintInputs, all_statuses
from lowres.runs.study import Run, Study, read_study

if TYPE_CHECKING:
    import nbformat

PATIENCE = 600  # seconds until something that must happen is given up; nothing waits so long when all is well
BORROWED = "STAND_INS_FORKS"  # an environment variable: the name of who forks kernels for this process, instead of one of its own


def keep_trials(method: str, values: dict, work: Callable[[int], None] = lambda seed: None) -> None:
    """What a stand-in's cell calls: each seed not yet there is worked at and kept, then the record. Notes every execution."""
    parameters = validated(method, {key: values[key] for key in METHODS[method].model_fields if key in values}, "stand-in")
    folder, record = located(parameters.output_dir), {"provenance": {"code": records.code_checksum(os.environ.get(NOTEBOOK, ""))}}
    marks = FingerprintInputs().fingerprints(Run(method, {}, parameters), parameters.seeds, record)
    for seed in parameters.seeds:
        if records.read_trial(folder, seed, marks[seed]):
            continue
        if os.environ.get(STOP) and Path(os.environ[STOP]).exists():
            raise Interrupted(f"before seed {seed}")
        note(folder.parents[3], f"{method} {parameters.shots} {seed}")
        start = time.monotonic()
        work(seed)
        mark = np.frombuffer(hashlib.sha256(marks[seed].encode()).digest(), np.uint8)
        predictions = pd.DataFrame({"trial": seed, "set": "in_domain", "row": np.arange(len(mark)), "logit_no": mark.astype(np.float32)})
        records.write_trial(folder, {
            "seed": seed, "fingerprint": marks[seed], "seconds": {"other": time.monotonic() - start}, "sets": {"in_domain": {"accuracy": 0.5}},
        }, predictions)
    trials = [records.read_trial(folder, seed, marks[seed]) for seed in parameters.seeds]
    record |= {"schema_version": records.SCHEMA_VERSION, "trials": trials}
    files.write_json(Path(os.environ[SCRATCH]) / "record.json", record)


def finish(run: Run) -> None:
    """What executing a stand-in for the run leaves behind, without a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SCRATCH] = folder
        keep_trials(run.method, run.parameters.model_dump())
        records.merge(run.folder, files.read_json(Path(folder) / "record.json"))
        del os.environ[SCRATCH]
    (run.folder / "run.ipynb").write_text("{}")


def note(place: Path | str, text: str) -> None:
    """A line, whole, however many processes write at once."""
    place = Path(place)
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place / "executed.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)


def noted(study: Study) -> list[str]:
    file = study.folder / "executed.txt"
    return file.read_text().splitlines() if file.is_file() else []


def write_notebook(folder: Path, work: str = "pass", before: str = "pass", method: str = "vanilla") -> str:
    """A notebook for `method`: runs `before`, then for each seed `work`. Returns the folder."""
    import nbformat  # not by the stand-ins' kernels

    cells = [
        nbformat.v4.new_code_cell("shots = 16", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"import os, sys, time\n{before}"),
        nbformat.v4.new_code_cell(
            "from tests.stand_ins import keep_trials\n\ndef work(seed):\n    " + work.replace("\n", "\n    ")
            + f"\n\nkeep_trials({method!r}, globals(), work)"
        ),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / f"{method}.ipynb")
    return str(folder)


def write_study(folder: Path, seeds=(0,), shots=(2,), methods=("vanilla",), name: str = "small", **settings) -> Study:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({
        "description": "a test's", "set": {"seeds": list(seeds), **settings}, "vary": {"shots": list(shots)},
        "methods": [{"method": method} for method in methods],
    }))
    return read_study(str(path), outputs=str(folder / "outputs"))


def by_papermill(name: str, output: Path, parameters: dict) -> nbformat.NotebookNode:
    """A notebook of the project by papermill as anybody calls it, but in a kernel that is a fork where there is who forks: 10 s less."""
    import papermill  # not by the stand-ins' kernels

    from lowres.runs.execute import Options, pinned
    from lowres.runs.process import Kernel, forks

    environment = pinned(Options())
    with short_folder() as folder:
        kernel = Kernel(folder, environment, forks.wanted(environment))
        try:
            return papermill.execute_notebook(ROOT / "notebooks" / f"{name}.ipynb", output, parameters, progress_bar=False, cwd=str(ROOT),
                                              km=kernel, kernel_name="python3", language="python")
        finally:
            kernel.close()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A private folder for temporary files: sockets want short paths."""
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_runner(study: Study, notebooks: str, temporary: Path, workers: int = 2, retries: int = 2, **environment: str) -> subprocess.Popen:
    """A runner in a process of its own, and in a process group of its own, as a terminal's."""
    command = [__file__, str(study.path), str(study.folder.parent), notebooks, str(workers), str(retries)]
    return start_process(command, temporary, **environment)


def start_process(arguments: list[str], temporary: Path, **environment: str) -> subprocess.Popen:
    """Python, in a session of its own, and with its temporary files apart. It hears Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, and so would be whatever is started
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary), **environment}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )


def borrow() -> None:
    """This process has its kernels forked by another one's, if it was given one: half of what a runner's start takes are its own's imports."""
    from lowres.runs.process import forks

    if name := os.environ.get(BORROWED, ""):
        forks.name, forks.wanted, forks.fits = name, lambda *_, **__: name, lambda *_: True


def dask_setup(_worker: object) -> None:
    """For a Dask worker with `--preload tests.stand_ins`."""
    borrow()


def family(runner: subprocess.Popen) -> list[psutil.Process]:
    """Its processes, and the kernels that this process's have forked for it (for one at a time)."""
    from lowres.runs.process import forks

    found = []
    for process in (runner, forks.process):
        with suppress(psutil.NoSuchProcess):
            found += psutil.Process(process.pid).children(recursive=True) if process else []
    return found


def kernels(runner: subprocess.Popen) -> list[psutil.Process]:
    """Those that were started anew, and the forks of the process that forks them, which have its command line."""
    return [process for process in family(runner) if "lowres.runs.kernel" in (line := command_line(process))
            and (" --fork " not in line or " --fork " in command_line(parent_of(process)))]


def workers(runner: subprocess.Popen) -> list[psutil.Process]:
    return [process for process in family(runner) if "spawn_main" in command_line(process)]


def parent_of(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return process.parent()


def command_line(process: psutil.Process | None) -> str:
    """'' of one that has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()) if process else ""
    return ""


def eventually(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> object:
    """Waits until a condition holds: tests never guess how long something takes."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {patience} s in vain for {what}")


def nothing_is_left(study: Study, temporary: Path, processes: Iterable[psutil.Process] = ()) -> None:
    """No kernels, sockets, scratch folders or locks, and no half files."""
    eventually(lambda: not [p for p in processes if lives(p)], "processes to end")
    left = left_over(study, temporary)
    assert not left, left


def left_over(study: Study, temporary: Path) -> list[str]:
    return [str(file) for file in (*temporary.rglob("*"), *study.folder.rglob(".*"))]


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def main() -> None:
    from lowres.runs.execute import Options
    from lowres.runs.scheduling import run_study

    borrow()
    path, outputs, notebooks, count, retries = sys.argv[1:]
    study = read_study(path, outputs=outputs)
    statuses = all_statuses(study)
    todo = chosen(statuses, frozenset())
    if not todo:
        tidy(study.folder, (run.folder for run in study.runs))
    outcome = run_study(study, statuses, todo, Options(notebooks=notebooks, retries=int(retries), workers=int(count))) if todo else None
    states = [status.state for status in all_statuses(study)]
    sys.exit(130 if outcome and outcome.interrupted else 0 if set(states) == {"done"} else 1)


if __name__ == "__main__":
    main()
