"""Many runs on Dask: which are executed, what one failure does to the others, stopping, and clusters that are not ours."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from dask.system import CPU_COUNT
from distributed import Client
from distributed.deploy.cluster import Cluster
from stand_ins import BORROWED, eventually, family, finish, left_over, noted, nothing_is_left, start_runner, write_notebook, write_study
from toys import GRAMMAR

from lowres.files import ROOT, BadInput
from lowres.parameters import defaults
from lowres.runs import records
from lowres.runs.cluster import default_workers, given_cluster, own_cluster
from lowres.runs.command import chosen, run_command
from lowres.runs.execute import Options, analyse, execute
from lowres.runs.process import NotebookResult
from lowres.runs.progress import START, TimeLeft, as_json
from lowres.runs.scheduling import Outcome, run_study
from lowres.runs.status import all_statuses, remaining
from lowres.runs.study import read_study, select

pytestmark = pytest.mark.usefixtures("forking")

# The worker that holds a run's lock, whoever the kernel's own parent is.
KILL_WORKER = "from lowres.files import located; os.kill(int((located(output_dir) / '.lock').read_text().split()[1]), 9)"


def run(study, notebooks, rerun=frozenset(), workers=2, **more):
    statuses = all_statuses(study)
    options = Options(notebooks=notebooks, rerun=rerun, workers=workers, **more)
    return run_study(study, statuses, chosen(statuses, rerun), options, tell=lambda line: None)


def states(study) -> list[str]:
    return [status.state for status in all_statuses(study)]


def test_one_failure_never_stops_the_others_and_every_trial_has_its_line_in_the_log(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1], shots=[2, 4, 8])
    run(study, write_notebook(tmp_path / "n", work="assert shots != 4, 'four'"))
    assert states(study) == ["done", "failed", "done"]
    lines = (study.folder / "run.log").read_text().splitlines()
    assert sum(" seed " in line and "accuracy" not in line and "in_domain 0.500" in line for line in lines) == 4
    assert sum("4-shot: failed" in line and "AssertionError: four" in line for line in lines) == 1
    nothing_is_left(study, temporary)


def test_the_first_failure_stops_the_others_when_asked_to(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4, 8, 16, 32, 64, 128])
    failed = str(study.folder / "failed")
    work = f"assert shots != 2\nwhile not os.path.exists({failed!r}): time.sleep(0.05)\ntime.sleep(1)"
    run(study, write_notebook(tmp_path / "n", work=work), fail_fast=True)
    assert states(study)[0] == "failed" and "missing" in states(study)
    nothing_is_left(study, temporary)


def test_adding_seeds_to_a_finished_study_runs_only_the_new_trials(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1], shots=[2, 4])
    for one in study.runs:
        finish(one)
    before = {file: file.read_bytes() for file in study.folder.rglob("seed-*")}
    larger = write_study(tmp_path, seeds=[0, 1, 2], shots=[2, 4])
    assert states(larger) == ["partial", "partial"]
    executed, options = noted(study), Options(notebooks=write_notebook(tmp_path / "n"))
    for one in chosen(all_statuses(larger), frozenset()):
        execute(one, options)
    assert states(larger) == ["done", "done"] and sorted(noted(larger)[len(executed):]) == ["vanilla 2 2", "vanilla 4 2"]
    assert all(file.read_bytes() == content for file, content in before.items())


def test_two_runners_on_one_study_execute_no_run_twice_and_lose_none(tmp_path, temporary, forking):
    study = write_study(tmp_path, seeds=[0, 1], shots=[2, 4, 8])
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(0.3)")
    runners = [start_runner(study, notebooks, temporary, **{BORROWED: forking}) for _ in range(2)]
    assert [runner.wait(300) for runner in runners] == [0, 0], [runner.stdout.read() for runner in runners]
    assert sorted(noted(study)) == sorted(f"vanilla {shots} {seed}" for shots in (2, 4, 8) for seed in (0, 1))
    nothing_is_left(study, temporary)


def test_ctrl_c_lets_the_trials_at_work_finish_and_keeps_them(tmp_path, temporary):
    study = write_study(tmp_path, seeds=range(50), shots=[2, 4, 8])
    runner = start_runner(study, write_notebook(tmp_path / "n", work="time.sleep(0.5)"), temporary)
    eventually(lambda: len(noted(study)) >= 4, "trials to begin")
    processes = family(runner)
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does: to workers too
    assert runner.wait(120) == 130, runner.stdout.read()
    finished = {f"vanilla {run.parameters.shots} {seed}" for run in study.runs for seed in records.read_trials(run.folder)[0]}
    assert set(noted(study)) == finished, "every trial that was begun was finished and written"
    assert set(states(study)) <= {"partial", "missing"} and not (study.folder / "failed").exists()
    nothing_is_left(study, temporary, processes)


def test_ctrl_c_twice_stops_now_and_loses_no_finished_trial(tmp_path, temporary, forking):
    study = write_study(tmp_path, seeds=[0, 1], shots=[2, 4])
    runner = start_runner(study, write_notebook(tmp_path / "n", work="time.sleep(600 if seed else 0)"), temporary, **{BORROWED: forking})
    eventually(lambda: len(noted(study)) == 4, "the second trials to begin")
    processes = family(runner)
    os.killpg(runner.pid, signal.SIGINT)
    eventually(lambda: list(study.folder.glob(".stop-*")), "the first to be heard")
    os.killpg(runner.pid, signal.SIGINT)
    assert runner.wait(120) == 130, runner.stdout.read()
    assert states(study) == ["partial", "partial"] and [status.finished for status in all_statuses(study)] == [1, 1]
    assert not (study.folder / "failed").exists()
    nothing_is_left(study, temporary, processes)


def test_no_worker_is_idle_while_a_run_waits(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4], methods=("vanilla", "pbft", "lora"))
    begun = str(study.folder / "executed.txt")
    write_notebook(tmp_path / "n", work="time.sleep(7 if shots == 2 else 5)")  # when one ends, the other seems to have long to go
    together = f"end = time.time() + 30\nwhile len(open({begun!r}).readlines()) < 4: assert time.time() < end, 'alone'; time.sleep(0.05)"
    notebooks = [write_notebook(tmp_path / "n", together, method=method) for method in ("pbft", "lora")]
    run(study, notebooks[0])
    assert states(study) == ["done"] * 6, [status.failure for status in all_statuses(study)]


def test_each_worker_has_a_gpu_and_its_part_of_the_threads(tmp_path, temporary, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert default_workers() == 2
    study = write_study(tmp_path, shots=[2, 4])
    place, notes = str(tmp_path), str(tmp_path / "executed.txt")
    meet = f"note({place!r}, os.environ['CUDA_VISIBLE_DEVICES'] + ' ' + os.environ['OMP_NUM_THREADS'])\n"
    meet += f"while len(open({notes!r}).readlines()) < 2: time.sleep(0.05)"
    run(study, write_notebook(tmp_path / "n", work=f"from tests.stand_ins import note\n{meet}"))
    assert sorted((tmp_path / "executed.txt").read_text().splitlines()) == [f"{gpu} {max(1, CPU_COUNT // 2)}" for gpu in (3, 7)]


def test_a_worker_that_dies_under_a_run_again_and_again_is_told_and_the_others_go_on(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4, 8])
    run(study, write_notebook(tmp_path / "n", work=f"if shots == 2: {KILL_WORKER}; time.sleep(600)"))
    assert states(study) == ["failed", "done", "done"]
    assert noted(study).count("vanilla 2 0") == 3 and "worker process died under it 3 times" in all_statuses(study)[0].failure["message"]
    nothing_is_left(study, temporary)


def test_a_run_whose_only_worker_died_goes_on_at_the_next(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr("lowres.runs.cluster.CPU_COUNT", 1)  # a thread a kernel, as elsewhere here: no other process has to fork it
    study = write_study(tmp_path, shots=[2, 4])
    died = str(tmp_path / "died")
    work = f"if not os.path.exists({died!r}): open({died!r}, 'w'); {KILL_WORKER}; time.sleep(600)"
    run(study, write_notebook(tmp_path / "n", work), workers=1)
    assert states(study) == ["done", "done"] and len(noted(study)) == 3
    nothing_is_left(study, temporary)


def test_a_run_that_gets_on_between_the_deaths_of_its_workers_is_finished(tmp_path, temporary):
    study = write_study(tmp_path, seeds=[0, 1, 2], shots=[2])
    died = str(tmp_path / "died")
    work = f"if not os.path.exists({died!r} + str(seed)): open({died!r} + str(seed), 'w'); {KILL_WORKER}; time.sleep(600)"
    run(study, write_notebook(tmp_path / "n", work), retries=1)
    assert states(study) == ["done"] and len(noted(study)) == 6
    nothing_is_left(study, temporary)


def test_where_the_process_that_forks_kernels_dies_they_are_started_and_nothing_is_lost(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4, 8])
    died = str(tmp_path / "died")
    work = f"if not os.path.exists({died!r}): open({died!r}, 'w'); os.kill(os.getppid(), 9); time.sleep(600)"
    run(study, write_notebook(tmp_path / "n", work))
    assert states(study) == ["done"] * 3 and 4 <= len(noted(study)) <= 5
    nothing_is_left(study, temporary)


@pytest.fixture
def other_cluster(temporary):
    """Somebody's scheduler at a TCP address; the function starts a worker of it, with more environment if need be."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    file = temporary / "scheduler.json"
    processes = [subprocess.Popen([*command, "--scheduler-file", str(file)], cwd=temporary, stderr=subprocess.DEVNULL)]
    eventually(lambda: file.is_file() and file.stat().st_size, "the scheduler to start")

    def worker(**environment: str) -> str:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--nworkers", "1"]
        command += ["--no-dashboard", "--local-directory", str(temporary)]
        processes.append(subprocess.Popen(command, cwd=temporary, env={**os.environ, **environment}, stderr=subprocess.DEVNULL))
        return json.loads(file.read_text())["address"]

    yield worker
    for process in processes[::-1]:
        process.terminate()
        process.wait(30)


def test_a_workers_missing_project_is_told_at_the_start(tmp_path, other_cluster):
    (tmp_path / "elsewhere" / "lowres").mkdir(parents=True)
    (tmp_path / "elsewhere" / "lowres" / "__init__.py").write_text("raise ImportError('no lowres here')")
    address = other_cluster(PYTHONPATH=str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="does not have the project installed"), given_cluster(address, tmp_path / "outputs"):
        pass


def test_outputs_that_a_worker_does_not_see_are_told_at_the_start(tmp_path, other_cluster, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # in the home folder, which is another one there
    address = other_cluster(HOME=str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="a shared folder is needed"), given_cluster(address, tmp_path / "outputs"):
        pass


def test_a_worker_without_the_models_weights_is_told_and_the_others_do_the_work(tmp_path, temporary, other_cluster, tiny_llama, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model").symlink_to(tiny_llama)
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    study = write_study(tmp_path, shots=[2, 4, 8], model="~/model", task=GRAMMAR)
    other_cluster(HOME=str(tmp_path / "there"))
    address = other_cluster()
    eventually(lambda: len(Client(address, set_as_default=False).nthreads()) == 2, "both workers")
    said = []
    options = Options(notebooks=write_notebook(tmp_path / "n"), scheduler=address)
    run_study(study, all_statuses(study), list(study.runs), options, tell=said.append)
    assert states(study) == ["done"] * 3 and len(noted(study)) == 3
    assert sum("cannot do the work: model: " in line and "it is given no run" in line for line in said) == 1, said
    assert not list(study.folder.rglob(".*"))


def test_workers_and_schedulers_of_another_version_are_told(tmp_path, other_cluster, monkeypatch):
    other = tmp_path / "other" / "distributed-2020.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed\nVersion: 2020.1.0\n")
    address = other_cluster(PYTHONPATH=f"{other.parent}:{ROOT}")
    with pytest.raises(BadInput, match="the worker .* has distributed 2020.1.0, here is"), given_cluster(address, tmp_path / "outputs"):
        pass
    monkeypatch.setattr("distributed.versions._version_cached", lambda package: "2019.1.0")
    with pytest.raises(BadInput, match="the scheduler has dask .*, here is 2019.1.0: both must have the same"):
        with given_cluster(address, tmp_path / "outputs"):
            pass


def test_a_scheduler_that_does_not_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("lowres.runs.cluster.PATIENCE", 1)
    with pytest.raises(BadInput, match="no Dask scheduler answers"), given_cluster("tcp://127.0.0.1:9", tmp_path):
        pass


def test_planning_and_status_of_10000_runs_load_neither_torch_nor_pandas(tmp_path):
    study = write_study(tmp_path, shots=range(1, 5001), methods=["vanilla", "pbft"])
    for one in study.runs[:20]:
        finish(one)
    code = f"""
import sys
from lowres.runs.scheduling import Outcome, run_study
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study
study = read_study({str(study.path)!r}, outputs={str(study.folder.parent)!r})
found = [status.state for status in all_statuses(study)]
print(len(found), found.count("done"), {{"torch", "pandas", "transformers"}} & set(sys.modules))
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "10000 20 set()", answer.stderr


def test_only_takes_a_part_of_the_study(tmp_path):
    study = write_study(tmp_path, shots=[2, 4], methods=["vanilla", "pbft"])
    assert [one.name for one in select(study, "method=pbft,shots=4").runs] == [study.runs[3].name]
    assert len(select(study, "shots=2,shots=4").runs) == 4
    for rate in ("5e-5", "5e-05", "0.00005"):
        assert [one.method for one in select(study, f"learning_rate={rate}").runs] == ["pbft", "pbft"]
    for wrong in ("method", "metod=pbft", "method=none", "learning_rate=fast"):
        with pytest.raises(BadInput, match="--only"):
            select(study, wrong)


def test_a_studys_defaults_take_the_place_of_a_methods_own_and_name_no_variant(tmp_path):
    path = tmp_path / "rated.yaml"
    text = "description: d\ndefaults: {vanilla: {learning_rate: 3.0e-5}, lora: {learning_rate: 4.0e-4, rank: 2}}\nset: {seeds: [0]}\nmethods:\n"
    path.write_text(text + "  - method: vanilla\n  - method: pbft\n  - method: lora\n  - {method: lora, set: {rank: 4}}\n")
    vanilla, pbft, lora, other = read_study(str(path)).runs
    assert (vanilla.parameters.learning_rate, lora.parameters.learning_rate, other.parameters.learning_rate) == (3e-5, 4e-4, 4e-4)
    assert pbft.parameters.learning_rate == defaults("pbft")["learning_rate"] and (lora.parameters.rank, other.parameters.rank) == (2, 4)
    assert [run.variant for run in (vanilla, lora, other)] == ["", "", "rank=4"]
    for wrong, said in (("vanila: {epochs: 1}", "'vanila' is no method"), ("vanilla: {learning_rat: 1.0e-5}", 'did you mean "learning_rate"'),
                        ("vanilla: {output_dir: here}", "'output_dir' is no parameter of vanilla")):
        path.write_text(text.replace("vanilla: {learning_rate: 3.0e-5}", wrong) + "  - method: vanilla\n")
        with pytest.raises(BadInput, match=f"rated.yaml: defaults: .*{re.escape(said)}"):
            read_study(str(path))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    study = write_study(tmp_path, shots=[2, 4])
    assert run_command(str(study.path), Options(), outputs=str(study.folder.parent), dry_run=True) == 0
    assert capsys.readouterr().out.count("would execute") == 2 and not study.folder.exists()


def test_the_time_left_comes_from_what_was_measured(tmp_path):
    study = write_study(tmp_path, shots=[2, 4, 8])
    statuses = all_statuses(study)
    assert TimeLeft(statuses).of(remaining(statuses), 2) is None
    time_left = TimeLeft(statuses)
    time_left.add(study.runs[0], 10.0)
    time_left.add(study.runs[1], 30.0)
    assert time_left.of({study.runs[0]: 2, study.runs[1]: 1}, 2) == 30 + START, "the longer of the two, each with its kernel's start"
    assert time_left.of({study.runs[0]: 2, study.runs[1]: 1}, 1) == 2 * 10 + 30 + 2 * START
    finish(study.runs[0])
    answer = json.loads(as_json(study, all_statuses(study), 2))
    assert answer["counts"] == {"done": 1, "missing": 2} and answer["finished"] == 1 and len(answer["runs"]) == 3


def test_a_run_that_was_not_measured_takes_what_its_method_took_on_its_task_or_any_run(tmp_path):
    """Where nothing was expected beforehand, as on a cluster; else see test_estimate."""
    study = write_study(tmp_path, shots=[2, 4], methods=["vanilla", "pbft"])
    time_left = TimeLeft([])
    time_left.add(study.runs[0], 10.0)
    assert time_left.of({study.runs[1]: 1}, 1) == 10 + START and time_left.of({study.runs[2]: 1}, 1) == 10 + START
    time_left.add(study.runs[2], 30.0)
    assert time_left.of({study.runs[3]: 2}, 1) == 60 + START and time_left.of({study.runs[1]: 1}, 1) == 10 + START


@pytest.fixture
def orders(tmp_path, monkeypatch):
    """A study by way of the command line's own steps, but without a cluster, and without its check of models."""
    study = write_study(tmp_path, shots=[2, 4])
    monkeypatch.setattr("lowres.runs.process.elsewhere", lambda *_: (["days: a warning"], {}))

    def in_turn(study, statuses, todo, options, *_, **__):
        return Outcome([execute(one, options) for one in todo])

    monkeypatch.setattr("lowres.runs.scheduling.run_study", in_turn)
    return study, lambda **asked: run_command(str(study.path), Options(notebooks=str(tmp_path / "n"), **asked), outputs=str(study.folder.parent))


def test_the_exit_code_says_whether_all_is_done(tmp_path, temporary, orders, monkeypatch, capsys):
    monkeypatch.setattr("lowres.runs.command._analysed", lambda *_: None)
    study, order = orders
    write_notebook(tmp_path / "n", work="assert shots != 4")
    assert order() == 1 and states(study) == ["done", "failed"]
    said = capsys.readouterr()
    assert "1 failed runs wait for --retry-failed" in said.err and said.out.startswith("days: a warning\n")
    assert order() == 1 and len(noted(study)) == 2, "a failed run is not tried again unasked"
    finish(study.runs[1])
    assert order() == 0


def test_what_a_killed_runner_left_goes_with_the_next_start_though_all_is_done(tmp_path, temporary, orders, monkeypatch):
    monkeypatch.setattr("lowres.runs.command._analysed", lambda *_: None)
    study, order = orders
    for one in study.runs:
        finish(one)
    code = f"""
import os, socket; from pathlib import Path; from lowres import locks
with locks.scratch_folder() as folder, locks.locked(Path({str(study.runs[0].folder)!r})):
    Path({str(study.folder)!r}, f".stop-{{socket.gethostname()}}-{{os.getpid()}}-abc").touch()
    os.kill(os.getpid(), 9)"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    halves = [study.folder / ".results.csv-abcd1234", study.folder / ".analysis.ipynb-abcd1234"]
    for half in halves:
        half.write_text("half")
    os.utime(halves[0], (0, 0))
    assert len(left_over(study, temporary)) == 6, "a folder with its lock, a run's lock, a sign, what an analysis was writing"
    assert order() == 0
    assert left_over(study, temporary) == [str(halves[1])], "somebody may be writing that"


def test_a_finished_study_is_analysed_again_only_when_something_changed(tmp_path, monkeypatch):
    study = write_study(tmp_path, shots=[2, 4])
    finish(study.runs[0])
    analysed = []

    def run_notebook(notebook, output, *_):
        analysed.append(notebook)
        output.write_text((ROOT / "notebooks" / "analysis.ipynb").read_text())
        return NotebookResult()

    monkeypatch.setattr("lowres.runs.execute.run_notebook", run_notebook)
    assert analyse(study, force=False) == "" and analyse(study, force=False) is None and len(analysed) == 1
    finish(study.runs[1])
    assert analyse(study, force=False) == "" and len(analysed) == 2
    assert analyse(study) == "" and len(analysed) == 3


def test_a_worker_that_dies_while_the_cluster_closes_fails_no_study(temporary, monkeypatch):
    """Dask's own watcher then raises KeyError with the worker's address, once everything is closed (distributed#5407)."""

    async def stumble(self, close=Cluster._close):
        await close(self)
        raise KeyError("tcp://127.0.0.1:1")
    monkeypatch.setattr(Cluster, "_close", stumble)
    with own_cluster(1, temporary) as cluster:
        assert cluster.client.submit(sum, (1, 2)).result() == 3
    with pytest.raises(RuntimeError, match="the study's own"), own_cluster(1, temporary):
        raise RuntimeError("the study's own")
