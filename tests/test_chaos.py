"""Kernels, workers, runners and schedulers that are killed at random moments: every finished trial is kept, none is run twice, nothing is left
over, and the end is the same (`make chaos`; other faults are in test_faults.py)."""

import json
import os
import random
import subprocess
import sys
from contextlib import suppress

import pytest
from distributed import Client
from faults import interrupt, kill_relatives, kill_runners, stages, wait_for
from stand_ins import BORROWED, PATIENCE, finish, kernels, noted, short_folder, start_process, start_runner, workers, write_notebook, write_study

from lowres.files import ROOT
from lowres.runs.execute import Options, pinned
from lowres.runs.process import forks
from lowres.runs.status import all_statuses

pytestmark = pytest.mark.chaos
KILLS = {"runner": 60, "kernel": 30, "worker": 30}


def disturbed(victim, study, start, toll, temporary, chance, times) -> None:
    """Kills so many times, or until the study is done, then lets it finish, and looks that nothing is left."""
    if victim == "runner":
        relatives = kill_runners(start, study, toll, chance, times)
    else:
        relatives = kill_relatives(start(), victim, study, toll, chance, times)
    runner = start()
    said, _ = runner.communicate(timeout=900)
    assert runner.returncode == 0, said
    toll.end(study, temporary, relatives)


@pytest.mark.parametrize("victim", KILLS)
def test_a_study_whose_processes_are_killed_now_and_then_ends_as_if_nothing_had_been(tmp_path, temporary, toll, victim):
    """Each runner with all processes that it has in earnest, so also the one that forks kernels."""
    toll.fault = f"{victim} killed, all else its own"
    study = write_study(tmp_path, seeds=[0, 1, 2], shots=[2, 4, 8])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(0.3)")
    disturbed(victim, study, lambda: start_runner(study, notebooks, temporary), toll, temporary, random.Random(victim), 2)
    assert toll.times == 2
    (tmp_path / "calm").mkdir()
    calm = write_study(tmp_path / "calm", seeds=[0, 1, 2], shots=[2, 4, 8])
    for run in calm.runs:
        finish(run)
    toll.compare(study, calm, whole=False)


def real(model: str) -> dict:
    return {"seeds": range(5), "shots": [2, 4, 8], "methods": ["vanilla", "pbft"], "model": model, "evaluation_rows": 20, "epochs": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_llama):
    """A study of a tiny model that nobody disturbs."""
    study = write_study(tmp_path_factory.mktemp("undisturbed"), **real(tiny_llama))
    with short_folder() as temporary:
        runner = start_runner(study, "notebooks", temporary, **{BORROWED: forks.wanted(pinned(Options()), start=True)})
        said, _ = runner.communicate(timeout=900)
        assert runner.returncode == 0, said
    return study


@pytest.mark.parametrize("victim", KILLS)
def test_many_kills_change_no_prediction_and_no_record(tmp_path, temporary, forking, tiny_llama, undisturbed, toll, victim):
    toll.fault, chance = f"{victim} killed, a tiny model", random.Random(victim)
    while toll.times < KILLS[victim]:  # a study is finished before it was disturbed enough: then another one
        folder = tmp_path / str(toll.times)
        folder.mkdir()
        study, before = write_study(folder, **real(tiny_llama)), toll.times
        start = lambda: start_runner(study, "notebooks", temporary, 2 if victim == "worker" else chance.choice((1, 2)), KILLS[victim],  # noqa: B023, E731
                                     **{BORROWED: forking})
        disturbed(victim, study, start, toll, temporary, chance, KILLS[victim] - toll.times)
        toll.compare(study, undisturbed)
        assert toll.times > before, "a study was finished before anything was killed"


def test_two_runners_of_which_one_is_killed_again_and_again_lose_nothing(tmp_path, temporary, forking, toll):
    toll.fault = "one of two runners killed"
    study = write_study(tmp_path, seeds=range(4), shots=[2, 4, 8, 16])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(1)")
    start = lambda: start_runner(study, notebooks, temporary, **{BORROWED: forking})  # noqa: E731
    steady = start()
    relatives = kill_runners(start, study, toll, random.Random("two"), 6)
    assert toll.times and steady.wait(900) == 0, steady.stdout.read()
    again = start()  # sweeps what was killed
    assert again.wait(300) == 0, again.stdout.read()
    toll.end(study, temporary, relatives)


@pytest.fixture
def cluster(tmp_path, temporary, forking, monkeypatch):
    """A scheduler at a TCP address, and a function that starts so many worker processes, which nobody restarts."""
    monkeypatch.setenv(BORROWED, forking)
    file, processes = tmp_path / "scheduler.json", []

    def start(module: str, *words: str) -> subprocess.Popen:
        words = [*words, "--scheduler-file", str(file), "--no-dashboard"]
        processes.append(subprocess.Popen([sys.executable, "-m", f"distributed.cli.{module}", *words], cwd=ROOT, stderr=subprocess.DEVNULL,
                                          env={**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}))
        return processes[-1]

    def start_workers(count: int) -> list[subprocess.Popen]:
        found = [start("dask_worker", "--nthreads", "1", "--no-nanny", "--preload", "tests.stand_ins") for _ in range(count)]
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(count, timeout=PATIENCE)
        return found

    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
    wait_for(scheduler, lambda: file.is_file() and file.stat().st_size)
    yield json.loads(file.read_text())["address"], scheduler, start_workers
    for process in processes[::-1]:
        process.terminate()
    for process in processes:
        process.wait(120)


RUNNER = """
from lowres.runs.execute import Options
from lowres.runs.scheduling import run_study
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study
study = read_study({study!r}, outputs={outputs!r})
run_study(study, all_statuses(study), list(study.runs), Options(notebooks={notebooks!r}, scheduler={address!r}))
"""


def runner_of(address: str, study, notebooks: str, temporary) -> subprocess.Popen:
    code = RUNNER.format(study=str(study.path), outputs=str(study.folder.parent), notebooks=notebooks, address=address)
    return start_process(["-c", code], temporary)


def test_a_study_on_a_cluster_over_tcp_finishes_though_one_of_4_workers_is_killed(tmp_path, temporary, cluster, toll):
    toll.fault = "one of a cluster's 4 workers killed"
    study = write_study(tmp_path, seeds=[0, 1, 2], shots=[2, 4, 8, 16, 32, 64])
    address, _, start_workers = cluster
    workers = start_workers(4)
    runner = runner_of(address, study, write_notebook(tmp_path / "n", work="time.sleep(1)"), temporary)
    wait_for(runner, lambda: len(noted(study)) >= 5)
    toll.look(study)
    workers[2].kill()
    toll.times += 1
    said, _ = runner.communicate(timeout=600)
    assert runner.returncode == 0, said
    toll.look(study)
    assert {status.state for status in all_statuses(study)} == {"done"}, said
    assert len(noted(study)) <= 18 + 1, "only the trial that was killed may be done again"
    toll.finished = len(toll.before)


@pytest.mark.parametrize("when", ["its workers are looked at", "trials are at work"])
def test_a_scheduler_that_dies_ends_the_study_and_loses_no_finished_trial(tmp_path, temporary, cluster, toll, when):
    toll.fault = f"scheduler killed as {when}"
    study = write_study(tmp_path, seeds=range(6), shots=[2, 4, 8])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(1)")
    address, scheduler, start_workers = cluster
    workers = start_workers(2)
    runner = runner_of(address, study, notebooks, temporary)
    reached = (lambda: list(study.folder.glob(".seen-*"))) if when == "its workers are looked at" else (lambda: len(noted(study)) >= 4)
    wait_for(runner, reached)
    scheduler.kill()
    toll.times += 1
    toll.look(study)
    said, _ = runner.communicate(timeout=120)
    assert said.splitlines()[-1].startswith("ConnectionError: ") and "lowres run continues after it" in said, said
    assert "distributed.client" not in said and "CommClosedError" not in said, said
    assert not (study.folder / "failed").exists()
    for worker in workers:  # one that has not met its scheduler looks for it for ever
        worker.terminate()
    for worker in workers:
        worker.wait(120)
    again = start_runner(study, notebooks, temporary)
    assert again.wait(600) == 0, again.stdout.read()
    toll.end(study, temporary)


COMMAND = "from tests.stand_ins import borrow; borrow(); from lowres.__main__ import main; main()"


def lowres_run(study, temporary, forking: str) -> subprocess.Popen:
    """The command as it is typed, analysis and all."""
    words = ["run", str(study.path), "--outputs", str(study.folder.parent), "--workers", "2"]
    return start_process(["-c", COMMAND, *words], temporary, **{BORROWED: forking})


def being_read(study) -> int | None:
    """A study's file that is a pipe, opened to write to: only while somebody waits to read it."""
    with suppress(OSError):
        return os.open(study.path, os.O_WRONLY | os.O_NONBLOCK)


def test_ctrl_c_at_every_stage_loses_nothing_and_the_next_start_goes_on(tmp_path, temporary, forking, tiny_llama, undisturbed, toll):
    toll.fault = "Ctrl-C at each stage"
    study = write_study(tmp_path, **real(tiny_llama))
    content = study.path.read_text()
    study.path.unlink()
    os.mkfifo(study.path)
    interrupt(lowres_run(study, temporary, forking), lambda: being_read(study), study, temporary, toll)
    assert not study.folder.exists()
    study.path.unlink()
    study.path.write_text(content)
    runner = lowres_run(study, temporary, forking)
    interrupt(runner, lambda: kernels(runner), study, temporary, toll)
    assert not study.folder.exists(), "models and data were looked at, no more"
    for stage in ("it has workers", "a run is at work", "it has kept a trial"):
        runner = lowres_run(study, temporary, forking)
        said = interrupt(runner, stages(study, runner)[stage], study, temporary, toll)
        assert "nothing that was finished is lost. To continue: lowres run" in said
    runner, merged = lowres_run(study, temporary, forking), predictions(study)
    interrupt(runner, lambda: predictions(study) - merged, study, temporary, toll)
    runner = lowres_run(study, temporary, forking)
    interrupt(runner, lambda: all((run.folder / "record.json").exists() for run in study.runs) and not workers(runner) and kernels(runner),
                study, temporary, toll)
    assert not (study.folder / "analysis.ipynb").exists()
    runner = lowres_run(study, temporary, forking)
    said, _ = runner.communicate(timeout=600)
    assert runner.returncode == 0 and (study.folder / "analysis.ipynb").exists(), said
    toll.end(study, temporary)
    toll.compare(study, undisturbed)


def predictions(study) -> set:
    """The runs that are being merged, or were."""
    return {run for run in study.runs if (run.folder / "predictions.parquet").exists()}
