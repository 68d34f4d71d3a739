"""What the runner itself costs: python tests/benchmarks/runner.py [RUNS]

Runs notebooks that only sleep. Wants a quiet machine; prints figures, judges nothing.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stand_ins import finish, noted, short_folder, write_notebook, write_study  # noqa: E402

from lowres import locks  # noqa: E402
from lowres.locks import SCRATCH  # noqa: E402
from lowres.runs.execute import Options, execute  # noqa: E402
from lowres.runs.process import run_notebook  # noqa: E402
from lowres.runs.scheduling import run_study  # noqa: E402
from lowres.runs.status import all_statuses  # noqa: E402
from lowres.runs.study import Study  # noqa: E402

SLEEP = 3.0
BEGIN = "begun = time.time()"
NOTE = """
from tests.stand_ins import note
from lowres.files import located
note(located(output_dir).parents[3], f'own work {time.time() - begun}')"""


def overhead(folder: Path, runs: int = 8) -> None:
    """Wall time of a run less the time between its notebook's first line and its last."""
    study = write_study(folder, shots=range(1, runs + 1), name="overhead")
    notebooks = write_notebook(folder / "o", before=BEGIN, work="time.sleep(1)" + NOTE)
    results = [execute(run, Options(notebooks=notebooks)) for run in study.runs]
    own = [float(line.split()[-1]) for line in noted(study) if line.startswith("own work")]
    extra = [result.seconds - seconds for result, seconds in zip(results, own)]
    print(f"overhead per run: median {statistics.median(extra):.2f} s, worst {max(extra):.2f} s (of {runs} runs)")


def kernel_start(folder: Path) -> float:
    """An empty notebook: kernel up, one cell, kernel down."""
    notebook = Path(write_notebook(folder / "k", method="empty")) / "empty.ipynb"
    for line in ("keep_trials('empty', globals(), work)", "from tests.stand_ins import keep_trials"):
        notebook.write_text(notebook.read_text().replace(line, "pass"))
    times = []
    for _ in range(5):
        start = time.monotonic()
        with locks.scratch_folder() as private:
            ended = run_notebook(notebook, private / "out.ipynb", {}, private, {})
        assert not ended.kind, ended
        times.append(time.monotonic() - start)
    print(f"a kernel's start and end: median {statistics.median(times):.2f} s")
    return statistics.median(times)


def only_sleeping(folder: Path, study: Study) -> str:
    """A notebook that sleeps and lays down results that were made before: its own work is the sleep and nothing else."""
    for run in study.runs:
        finish(run)
    ready = folder / "ready"
    shutil.move(study.folder, ready)
    notebook = Path(write_notebook(folder / "t")) / "vanilla.ipynb"
    cells = nbformat.read(notebook, as_version=4)
    cells.cells[1:] = [nbformat.v4.new_code_cell(
        f"import os, shutil, time\nfrom pathlib import Path\ntime.sleep({SLEEP})\n"
        f"made = os.path.join({str(ready)!r}, *output_dir.split('/')[-4:])\n"
        f"from lowres.runs import records\npredictions = records.read_predictions(Path(made))\n"
        f"for seed, trial in records.read_trials(made)[0].items():\n"
        f"    records.write_trial(Path(output_dir), trial, predictions[predictions['trial'] == seed])\n"
        f"shutil.copy(os.path.join(made, 'record.json'), os.environ[{SCRATCH!r}])")]
    nbformat.write(cells, notebook)
    return str(notebook.parent)


def throughput(folder: Path, runs: int, start: float) -> None:
    """Many runs on two workers, against what two workers that did nothing but start kernels and sleep would need."""
    study = write_study(folder, shots=range(1, runs + 1), name="throughput")
    notebooks = only_sleeping(folder, study)
    memory: list[float] = []
    done = threading.Event()
    watch = threading.Thread(target=lambda: [memory.append(psutil.Process().memory_info().rss / 1e6) for _ in iter(lambda: done.wait(1), True)])
    watch.start()
    begun = time.monotonic()
    run_study(study, all_statuses(study), list(study.runs), Options(notebooks=notebooks, workers=2), tell=lambda line: None)
    wall = time.monotonic() - begun
    done.set()
    watch.join()
    assert {status.state for status in all_statuses(study)} == {"done"}, (study.folder / "run.log").read_text()
    ideal = (SLEEP + start) * runs / 2
    print(f"{runs} runs that sleep {SLEEP:.0f} s on 2 workers: {wall:.0f} s, {wall / ideal:.3f} of (3 s + a kernel's start) x {runs // 2}")
    print(f"memory of runner and scheduler (one process): {statistics.median(memory):.0f} MB, at most {max(memory):.0f} MB")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with short_folder() as temporary, tempfile.TemporaryDirectory() as place:
        tempfile.tempdir = str(temporary)
        folder = Path(place)
        start = kernel_start(folder)
        throughput(folder, runs, start)
        overhead(folder)


if __name__ == "__main__":
    main()
