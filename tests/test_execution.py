"""One run in a kernel of its own: what is kept when it ends well, and what is told when it does not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from site_study import write_notebooks
from stand_ins import eventually, finish, noted, nothing_is_left, write_notebook, write_study
from synthetic import METHODS, fill, make_study
from toys import GRAMMAR

from lowres import files, locks
from lowres.files import ROOT, without_secrets
from lowres.models.identity import identity
from lowres.runs import records
from lowres.runs.execute import Options, execute, keep_failure
from lowres.runs.process import NotebookResult
from lowres.runs.progress import problems
from lowres.runs.status import all_statuses, failure_folder, status_of
from lowres.runs.study import read_study

pytestmark = pytest.mark.usefixtures("forking")


def only_run(study):
    return study.runs[0]


def executed(study, notebooks, **options):
    return execute(only_run(study), Options(notebooks=notebooks, **options))


def test_a_run_that_ends_well_is_moved_in_whole_and_nothing_else_is_left(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1])
    assert executed(study, write_notebook(tmp_path / "n")).state == "done"
    run = only_run(study)
    files = {str(file.relative_to(run.folder)) for file in run.folder.rglob("*") if file.is_file()}
    assert files == {"run.ipynb", "parameters.yaml", "record.json", "predictions.parquet"}
    assert status_of(run).state == "done"
    nothing_is_left(study, temporary)


def test_a_name_is_a_secret_by_its_own_words_and_a_value_is_taken_out_whole(monkeypatch):
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Martin")
    monkeypatch.setenv("KEYBOARD_LAYOUT", "german")
    monkeypatch.setenv("SERVICE_API_KEY", "planted")
    monkeypatch.setenv("HF_TOKEN", "hf_abc.def")
    assert without_secrets("Martin transplanted german words") == "Martin transplanted german words"
    assert without_secrets("key=planted, hf_abc.def") == "key=<SERVICE_API_KEY>, <HF_TOKEN>"


@pytest.mark.parametrize("edited", ["trial", "parameters"])
def test_a_run_made_by_another_notebook_stays_done_and_says_so(tmp_path, temporary, edited):
    study, notebooks = write_study(tmp_path), Path(write_notebook(tmp_path / "n"))
    assert executed(study, str(notebooks)).state == "done"
    assert not status_of(only_run(study), notebooks=str(notebooks)).by_another_notebook
    notebook = nbformat.read(notebooks / "vanilla.ipynb", as_version=4)
    notebook.cells[0 if edited == "parameters" else -1].source += "\nlearning = 2"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("What it does, in other words."))
    nbformat.write(notebook, notebooks / "vanilla.ipynb")
    status = status_of(only_run(study), notebooks=str(notebooks))
    assert status.state == "done" and status.by_another_notebook == (edited == "trial")
    assert problems([status]) == ([f"done by another notebook: {only_run(study).name}"] if edited == "trial" else [])


def test_a_python_error_is_kept_with_notebook_and_traceback_and_never_retried(tmp_path, temporary):
    study = write_study(tmp_path)
    result = executed(study, write_notebook(tmp_path / "n", work="raise ValueError('this is wrong')"))
    assert (result.state, result.message) == ("failed", "ValueError: this is wrong")
    assert len(noted(study)) == 1
    failed = failure_folder(only_run(study))
    assert "this is wrong" in (failed / "run.ipynb").read_text() and "Traceback" in (failed / "error.txt").read_text()
    assert (failed / "kernel.log").is_file()
    assert status_of(only_run(study)).state == "failed"
    nothing_is_left(study, temporary)


def test_a_failed_run_waits_until_it_is_asked_for_or_its_notebook_changes(tmp_path, temporary):
    study = write_study(tmp_path)
    notebooks = write_notebook(tmp_path / "n", work="raise ValueError('this is wrong')")
    executed(study, notebooks)
    assert executed(study, notebooks).state == "failed" and len(noted(study)) == 1
    executed(study, notebooks, rerun=frozenset({"failed"}))
    assert len(noted(study)) == 2
    write_notebook(tmp_path / "n")
    assert status_of(only_run(study)).state == "missing"
    assert executed(study, notebooks).state == "done"
    assert not (study.folder / "failed").exists()


def test_a_failure_is_tried_again_though_the_clock_was_set_back_and_another_runners_is_not(tmp_path, monkeypatch):
    study, tried = write_study(tmp_path), []
    asked = Options(notebooks=write_notebook(tmp_path / "n"), rerun=frozenset({"failed"}))
    keep_failure(study.runs[0], NotebookResult("error", "of last time"), None, asked)
    file = failure_folder(study.runs[0]) / "failure.json"
    files.write_json(file, {**files.read_json(file), "when": "2999-12-31T23:59:59+00:00"})
    monkeypatch.setattr("lowres.runs.execute._attempt", lambda *_: tried.append(True) or NotebookResult())
    known = frozenset(status.failure["when"] for status in all_statuses(study))
    assert execute(study.runs[0], replace(asked, failed_before=frozenset())).message == "of last time" and not tried
    assert execute(study.runs[0], replace(asked, failed_before=known)).state == "done" and tried


def test_a_dead_kernel_is_retried_twice_then_named_with_its_peak(tmp_path, temporary):
    study = write_study(tmp_path)
    result = executed(study, write_notebook(tmp_path / "n", work="os.kill(os.getpid(), 9)"))
    assert result.state == "failed" and "killed (SIGKILL), with 0." in result.message and "GB in use at its peak" in result.message
    assert len(noted(study)) == 3
    assert status_of(only_run(study)).failure["again"], "the machine was at fault: the next run tries it again"
    nothing_is_left(study, temporary)


def test_a_retried_run_continues_after_its_finished_trials(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1, 2])
    mark = str(tmp_path / "died")
    once = f"if seed == 1 and not os.path.exists({mark!r}):\n    open({mark!r}, 'w').close()\n    os.kill(os.getpid(), 9)"
    assert executed(study, write_notebook(tmp_path / "n", work=once)).state == "done"
    assert [line.split()[-1] for line in noted(study)] == ["0", "1", "1", "2"]


def test_a_hung_cell_times_out(tmp_path, temporary):
    study = write_study(tmp_path)
    result = executed(study, write_notebook(tmp_path / "n", work="time.sleep(600)"), timeout=2)
    assert result.state == "failed" and "longer than the 2 s allowed" in result.message
    nothing_is_left(study, temporary)


def test_memory_that_runs_out_is_named_with_the_peak(tmp_path, temporary):
    study = write_study(tmp_path)
    result = executed(study, write_notebook(tmp_path / "n", work="raise MemoryError('no room for 3 GB')"))
    assert result.message.startswith("out of memory, with 0.") and len(noted(study)) == 1


@pytest.mark.parametrize("how", ["for _ in range(100_000): print('x' * 1000)", "os.system('yes | head -c 100000000')"])
def test_a_kernel_that_prints_100_megabytes_neither_dies_nor_fills_the_disk(tmp_path, temporary, monkeypatch, how):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # ipykernel does not look after child processes' output under pytest
    study = write_study(tmp_path)
    assert executed(study, write_notebook(tmp_path / "n", before=how)).state == "done"
    notebook = only_run(study).folder / "run.ipynb"
    assert notebook.stat().st_size < 1_000_000 and "this cell printed more" in notebook.read_text()


def test_no_secret_and_no_home_folder_reaches_a_notebook_a_record_or_a_failure(tmp_path, temporary, monkeypatch):
    home = tmp_path / "home-of-somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SOMEBODYS_TOKEN", "hf_planted-secret")
    tell = "print(os.environ); print(os.path.expanduser('~'))"
    study = write_study(tmp_path, seeds=[0])
    assert executed(study, write_notebook(tmp_path / "n", before=tell)).state == "done"
    broken = write_study(tmp_path, name="broken")
    work = "raise RuntimeError(os.environ['SOMEBODYS_TOKEN'] + os.environ['HOME'])"
    assert executed(broken, write_notebook(tmp_path / "b", before=tell, work=work)).state == "failed"
    for file in (tmp_path / "outputs").rglob("*"):
        if file.is_file():
            content = file.read_text(errors="replace")
            assert "planted-secret" not in content and "home-of-somebody" not in content, file


@pytest.fixture
def small_disk(tmp_path):
    """1 MB, mounted for the test."""
    disk = tmp_path / "outputs"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_fails_the_run_with_that_message_and_leaves_no_half_file(tmp_path, temporary, small_disk):
    study = write_study(tmp_path, seeds=[0, 1, 2])
    ballast = small_disk / "ballast"
    mark = str(tmp_path / "filled")
    fill = f"""
if seed == 1 and not os.path.exists({mark!r}):
    open({mark!r}, 'w').close()
    with open({str(ballast)!r}, 'wb', buffering=0) as f:
        try:
            while f.write(b'0' * 4096): pass
        except OSError: pass
"""
    notebooks = write_notebook(tmp_path / "n", work=fill)
    result = executed(study, notebooks)
    assert result.state == "failed" and result.message.startswith("the disk is full")
    nothing_is_left(study, temporary)
    status = status_of(only_run(study))
    assert status.state in ("failed", "partial") and status.finished == 1
    assert all(json.loads(file.read_text()) for file in study.folder.rglob("*.json") if file.stat().st_size)
    ballast.unlink()
    assert executed(study, notebooks).state == "done"
    assert [line.split()[-1] for line in noted(study)] == ["0", "1", "1", "2"]


HARMS = {
    "cut record": "record.json is empty or cut short",
    "predictions of another run": "seed 1: the predictions are not this trial's",
    "no predictions": "seed 0: the predictions are missing",
    "cut trial": "seed 1: the trial's file is empty, cut short or another's",
    "empty trial": "seed 1: the trial's file is empty, cut short or another's",
    "trial of another seed": "seed 1: the trial's file is empty, cut short or another's",
    "trial of other predictions": "seed 1: the predictions are not this trial's",
    "trial without predictions": "seed 1: the predictions are missing",
}


def damage(folder, harm: str) -> None:
    """Spoils a finished run, or (a trial of) one that was killed before its record was made."""
    if "trial" in harm:
        records.put_aside(folder, [0, 1])
        shutil.rmtree(folder / "aside")
    trials = folder / "trials"
    if harm == "cut record":
        (folder / "record.json").write_text((folder / "record.json").read_text()[:100])
    elif harm == "predictions of another run":
        table = pd.read_parquet(folder / "predictions.parquet")
        table.loc[table["trial"] == 1, "row"] += 1
        table.to_parquet(folder / "predictions.parquet")
    elif harm == "no predictions":
        (folder / "predictions.parquet").unlink()
    elif harm == "cut trial":
        (trials / "seed-1.json").write_text((trials / "seed-1.json").read_text()[:50])
    elif harm == "empty trial":
        (trials / "seed-1.json").write_text("")
    elif harm == "trial of another seed":
        shutil.copy(trials / "seed-0.json", trials / "seed-1.json")
    elif harm == "trial of other predictions":
        shutil.copy(trials / "seed-0.parquet", trials / "seed-1.parquet")
    else:
        (trials / "seed-1.parquet").unlink()


@pytest.mark.parametrize("harm, named", HARMS.items())
def test_what_is_damaged_is_noticed_and_named(tmp_path, harm, named):
    run = only_run(write_study(tmp_path, seeds=[0, 1]))
    finish(run)
    assert status_of(run).state == "done"
    damage(run.folder, harm)
    assert status_of(run).state == "partial" and status_of(run).faults[0] == named


@pytest.mark.parametrize("harm", ["no predictions", "empty trial", "predictions of another run"])
def test_what_is_damaged_is_redone_and_kept_aside_and_nothing_else_is(tmp_path, temporary, harm):
    study = write_study(tmp_path, seeds=[0, 1])
    run = only_run(study)
    finish(run)
    before, original = noted(study), records.read_predictions(run.folder)
    damage(run.folder, harm)
    assert executed(study, write_notebook(tmp_path / "n")).state == "done"
    assert noted(study)[len(before):] == [f"vanilla 2 {seed}" for seed in ([0, 1] if harm == "no predictions" else [1])]
    assert records.read_predictions(run.folder).equals(original)
    assert (run.folder / "aside").exists() and status_of(run).state == "done"


def test_stale_results_wait_to_be_asked_for_and_are_kept_aside(tmp_path, temporary, monkeypatch):
    study, notebooks = write_study(tmp_path, seeds=[0, 1]), write_notebook(tmp_path / "n")
    finish(only_run(study))
    files.write_whole(only_run(study).folder / "adapters" / "seed-1" / "adapter_model.safetensors", b"weights")
    before = {file.name: file.read_bytes() for file in only_run(study).folder.rglob("*") if file.is_file()}
    changed = write_study(tmp_path, seeds=[0, 1], learning_rate=0.5)
    assert status_of(only_run(changed)).state == "stale"
    assert executed(changed, notebooks).state == "stale" and len(noted(study)) == 2
    assert executed(changed, notebooks, rerun=frozenset({"stale"})).state == "done"
    aside = {file.name: file.read_bytes() for file in (only_run(study).folder / "aside").rglob("*") if file.is_file()}
    assert aside == before
    assert not (only_run(study).folder / "adapters" / "seed-1").exists()
    assert status_of(only_run(changed)).state == "done"


def test_a_run_that_a_living_process_is_at_work_on_is_left_to_it(tmp_path, temporary):
    study = write_study(tmp_path)
    run = only_run(study)
    with locks.locked(run.folder):
        status = status_of(run)
        assert status.state == "running" and status.owner.endswith(str(os.getpid()))
        result = executed(study, write_notebook(tmp_path / "n"))
    assert result.state == "busy" and noted(study) == []


def test_a_dead_owners_lock_is_broken(tmp_path, temporary):
    study = write_study(tmp_path)
    run = only_run(study)
    code = f"import os; from pathlib import Path; from lowres import locks\nwith locks.locked(Path({str(run.folder)!r})): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert (run.folder / ".lock").is_file() and status_of(run).state == "missing"
    assert executed(study, write_notebook(tmp_path / "n")).state == "done"
    nothing_is_left(study, temporary)


def test_a_kernel_dies_with_the_process_that_started_it(tmp_path, temporary):
    study = write_study(tmp_path)
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(600)")
    place = f"{str(study.path)!r}, outputs={str(study.folder.parent)!r}"
    code = "from lowres.runs.study import read_study; from lowres.runs.execute import *\n"
    code += f"execute(read_study({place}).runs[0], Options(notebooks={notebooks!r}))"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    eventually(lambda: noted(study), "the trial to begin")
    kernel = next(process for process in psutil.Process(runner.pid).children() if "lowres.runs.kernel" in " ".join(process.cmdline()))
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    scratch_left = list(temporary.iterdir())
    eventually(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, "the kernel to die")
    assert scratch_left, "nobody could clear up"
    locks.sweep()
    locks.remove_dead_lock(only_run(study).folder)
    nothing_is_left(study, temporary)


def test_a_folder_for_temporary_files_that_is_too_long_for_sockets_is_not_used(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with locks.scratch_folder() as folder:
        assert len(str(folder)) < locks.LONGEST and oct(folder.stat().st_mode)[-3:] == "700"
    assert not folder.exists()


TRICKS = [{"model": "../../../etc"}, {"model": "/etc/passwd"}, {"task": "../../{braces}/grammar.yaml"}, {"model": "a/../../.."}]


@pytest.mark.parametrize("settings", TRICKS)
def test_no_parameter_leads_out_of_the_outputs_folder(tmp_path, settings):
    if "task" in settings:  # a task of that path must exist to be read
        odd = tmp_path / "{braces}"
        odd.mkdir()
        (odd / "..grammar.yaml").write_text((ROOT / GRAMMAR).read_text())
        settings = {"task": str(odd / "..grammar.yaml")}
    study = write_study(tmp_path, **settings)
    folder = only_run(study).folder
    assert folder.is_relative_to(study.folder) and ".." not in folder.parts and "{" not in str(folder.relative_to(study.folder))
    assert len(folder.relative_to(study.folder).parts) == 4


def test_a_study_may_not_set_where_its_results_go(tmp_path):
    with pytest.raises(files.BadInput, match="output_dir: a study decides itself"):
        write_study(tmp_path, output_dir="/etc")


def test_a_fresh_clone_knows_committed_results_as_done_without_data_or_weights(tmp_path, tiny_llama):
    weights = shutil.copytree(tiny_llama, tmp_path / "weights")
    study = write_study(tmp_path, model=str(weights))
    finish(only_run(study))
    record = files.read_json(only_run(study).folder / "record.json")
    record["provenance"]["model"] = identity(str(weights))
    files.write_json(only_run(study).folder / "record.json", record)
    shutil.rmtree(weights)
    for file in study.folder.rglob("*"):  # a clone's files are all of the same, later time
        os.utime(file, (time.time(), time.time()))
    assert status_of(only_run(read_study(str(study.path), outputs=str(study.folder.parent)))).state == "done"


def test_a_fresh_clone_knows_results_of_a_data_folder_as_done_without_the_folder(tmp_path, monkeypatch):
    data = tmp_path / "data"
    study = read_study(make_study(tmp_path, shots=(2,), seeds=range(2), methods=METHODS[:1]), outputs=str(tmp_path))
    run = replace(study.runs[0], parameters=study.runs[0].parameters.model_copy(update={"data_dir": str(data)}))
    fill(replace(study, runs=(run,)))  # as a run with --data-dir leaves it
    write_notebooks(replace(study, runs=(run,)))
    assert not data.exists() and status_of(study.runs[0]).state == "done"
    changed = study.runs[0].parameters.model_copy(update={"learning_rate": 0.5})
    assert status_of(replace(study.runs[0], parameters=changed)).state == "stale"
