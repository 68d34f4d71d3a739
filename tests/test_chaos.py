"""Kernels, workers and runners that are killed at random moments: every finished trial is kept, and the end is the same.

The long ones (`make chaos`) kill at 20 moments a tiny model that trains; the short ones at 2, with stand-ins.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest
from stand_ins import eventually, family, finish, kernels, noted, nothing_is_left, short_folder, start_runner, workers, write_notebook, write_study

from lowres import files, locks
from lowres.files import ROOT
from lowres.runs import records
from lowres.runs.execute import Options, execute
from lowres.runs.scheduling import run_study
from lowres.runs.status import all_statuses

# Of records: times and memory; the environment holds the host; and somebody may commit while the test runs.
VARYING = {"seconds", "load_seconds", "memory", "start", "end", "commit", "dirty"}
VICTIMS = {"kernel": kernels, "worker": workers}


def kept(study) -> dict:
    """Every finished trial, by its run and seed."""
    return {f"{run.name} {seed}": trial for run in study.runs for seed, trial in records.read_trials(run.folder)[0].items()}


def still_there(study, before: dict) -> None:
    now = kept(study)
    changed = [name for name, trial in before.items() if now.get(name) != trial]
    assert not changed, f"these were finished, and are gone or others now: {changed}"


def kill_one(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass


def kill_runners(study, notebooks, temporary, moments, chance, longest) -> tuple[int, set[psutil.Process]]:
    """Starts a runner again and again and kills it, so many times or until the study is done; what it left dies with it."""
    relatives = set()
    for killed in range(moments):
        runner = start_runner(study, notebooks, temporary)
        time.sleep(chance.uniform(0, longest))
        if runner.poll() is not None:
            return killed, relatives
        before = kept(study)
        relatives |= set(family(runner))
        runner.kill()
        runner.wait()
        runner.stdout.close()
        still_there(study, before)
    return moments, relatives


def kill_relatives(victim, study, notebooks, temporary, moments, chance, longest) -> tuple[int, set[psutil.Process]]:
    """One runner, whose kernels or workers are killed, so many times or until it is done."""
    runner = start_runner(study, notebooks, temporary, retries=moments)
    relatives, killed = set(), 0
    while killed < moments and runner.poll() is None:
        time.sleep(chance.uniform(0, longest))
        relatives |= set(family(runner))
        if found := sorted(VICTIMS[victim](runner), key=lambda process: process.pid):
            before = kept(study)
            kill_one(chance.choice(found))
            killed += 1
            still_there(study, before)
    assert runner.wait(900) == 0, runner.stdout.read()
    return killed, relatives


def disturbed(victim, study, notebooks, temporary, moments, longest) -> int:
    """Kills at seeded random moments, then lets the study finish, and looks that nothing is left. Returns how many it killed."""
    chance = random.Random(f"{victim} {moments}")
    if victim == "runner":
        killed, relatives = kill_runners(study, notebooks, temporary, moments, chance, longest)
    else:
        killed, relatives = kill_relatives(victim, study, notebooks, temporary, moments, chance, longest)
    eventually(lambda: not [p for p in relatives if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "the killed one's relatives to die")
    before = kept(study)
    runner = start_runner(study, notebooks, temporary)
    assert runner.wait(900) == 0, runner.stdout.read()
    still_there(study, before)
    assert {status.state for status in all_statuses(study)} == {"done"}
    nothing_is_left(study, temporary, relatives)
    return killed


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["kernel", "runner", "worker"])
def test_a_study_whose_processes_are_killed_now_and_then_ends_as_if_nothing_had_been(tmp_path, temporary, victim):
    study = write_study(tmp_path, seeds=[0, 1, 2], shots=[2, 4])
    assert disturbed(victim, study, write_notebook(tmp_path / "n", work="time.sleep(0.3)"), temporary, moments=2, longest=4)
    (tmp_path / "calm").mkdir()
    calm = write_study(tmp_path / "calm", seeds=[0, 1, 2], shots=[2, 4])
    for run in calm.runs:
        finish(run)
    for run, quiet in zip(study.runs, calm.runs):
        pd.testing.assert_frame_equal(records.read_predictions(run.folder), records.read_predictions(quiet.folder))


def without_what_varies(content):
    if isinstance(content, dict):
        return {key: without_what_varies(value) for key, value in content.items() if key not in VARYING | {"environment", "output_dir"}}
    return [without_what_varies(value) for value in content] if isinstance(content, list) else content


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_llama):
    """A study of a tiny model that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = write_study(folder, **real(tiny_llama))
    with short_folder() as temporary:
        runner = start_runner(study, "notebooks", temporary)
        assert runner.wait(900) == 0, runner.stdout.read()
    return study


def real(model: str) -> dict:
    return {"seeds": [0, 1, 2], "shots": [2, 4], "methods": ["vanilla", "pbft"], "model": model, "evaluation_rows": 20, "epochs": 2}


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["kernel", "worker", "runner"])
def test_20_kills_change_no_prediction_and_no_record(tmp_path, temporary, tiny_llama, undisturbed, victim):
    killed = 0
    for attempt in range(10):  # a fast machine finishes a study before it was disturbed enough: then another one
        folder = tmp_path / str(attempt)
        folder.mkdir()
        study = write_study(folder, **real(tiny_llama))
        killed += disturbed(victim, study, "notebooks", temporary, moments=20 - killed, longest=12)
        same_results(study, undisturbed)
        if killed == 20:
            return
    pytest.fail(f"only {killed} could be killed")


def same_results(study, undisturbed) -> None:
    for run, calm in zip(study.runs, undisturbed.runs):
        pd.testing.assert_frame_equal(records.read_predictions(run.folder), records.read_predictions(calm.folder))
        ours, theirs = (without_what_varies(files.read_json(one.folder / "record.json")) for one in (run, calm))
        assert ours == theirs
        environments = [files.read_json(one.folder / "record.json")["environment"] for one in (run, calm)]
        assert environments[0]["threads"] == environments[1]["threads"] and environments[0]["precision"] == environments[1]["precision"]


@pytest.mark.chaos
def test_two_runners_of_which_one_is_killed_again_and_again_lose_nothing(tmp_path, temporary):
    study = write_study(tmp_path, seeds=range(4), shots=[2, 4, 8, 16])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(1)")
    steady = start_runner(study, notebooks, temporary)
    kill_runners(study, notebooks, temporary, 6, random.Random("two"), 8)
    assert steady.wait(900) == 0, steady.stdout.read()
    assert {status.state for status in all_statuses(study)} == {"done"}
    again = start_runner(study, notebooks, temporary)
    assert again.wait(300) == 0
    locks.sweep()
    nothing_is_left(study, temporary)


def start_cluster(temporary, count: int) -> tuple[str, list[subprocess.Popen]]:
    """A scheduler at a TCP address with so many worker processes, that nobody restarts."""
    module = [sys.executable, "-m"]
    file = temporary / "scheduler.json"
    scheduler = [*module, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    processes = [subprocess.Popen(scheduler, cwd=temporary, stderr=subprocess.DEVNULL)]
    eventually(lambda: file.is_file() and file.stat().st_size, "the scheduler to start")
    worker = [*module, "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    for _ in range(count):
        processes.append(subprocess.Popen([*worker, "--local-directory", str(temporary)], cwd=temporary, stderr=subprocess.DEVNULL))
    return json.loads(file.read_text())["address"], processes


@pytest.mark.chaos
def test_a_study_on_a_cluster_over_tcp_finishes_though_one_of_4_workers_is_killed(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1, 2], shots=[2, 4, 8, 16, 32, 64])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(1)")
    address, processes = start_cluster(temporary, 4)
    try:
        code = f"""
from lowres.runs.execute import Options
from lowres.runs.scheduling import run_study
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study
study = read_study({str(study.path)!r}, outputs={str(study.folder.parent)!r})
run_study(study, all_statuses(study), list(study.runs), Options(notebooks={notebooks!r}, scheduler={address!r}))
"""
        runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        eventually(lambda: len(noted(study)) >= 5, "the study to be midway")
        before = kept(study)
        processes[2].kill()
        assert runner.wait(600) == 0, runner.stdout.read()
        still_there(study, before)
        assert {status.state for status in all_statuses(study)} == {"done"}, runner.stdout.read()
        assert len(noted(study)) <= 18 + 1, "only the trial that was killed may be done again"
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait(60)


@pytest.mark.chaos
def test_runners_that_find_no_room_for_temporary_files_say_so(tmp_path, temporary, monkeypatch):
    study = write_study(tmp_path)
    disk = temporary / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    try:
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            with pytest.raises(OSError):
                while True:
                    ballast.write(b"0" * 1024)
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        result = execute(study.runs[0], Options(notebooks=write_notebook(tmp_path / "n")))
        assert result.state == "failed" and "the disk is full" in result.message
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.chaos
def test_a_scheduler_that_dies_ends_the_study_and_loses_no_finished_trial(tmp_path, temporary):
    study = write_study(tmp_path, seeds=range(20), shots=[2, 4, 8])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(1)")
    address, processes = start_cluster(temporary, 2)
    try:
        with pytest.raises(ConnectionError, match="lowres run continues after it"):
            killer = threading.Timer(0, lambda: (eventually(lambda: len(noted(study)) >= 4, "the study to be midway"), processes[0].kill()))
            killer.start()
            run_study(study, all_statuses(study), list(study.runs), Options(notebooks=notebooks, scheduler=address), tell=lambda line: None)
        before = kept(study)
        assert len(before) >= 2
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait(60)
    still_there(study, before)
    assert not (study.folder / "failed").exists()
