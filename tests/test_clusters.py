"""Clusters that a file describes: what is wrong with one is a sentence; Slurm and SSH on this host (make clusters).

Those of Slurm and SSH are skipped, with a sentence, where their daemons or Dask's packages for them are not installed.
"""

import asyncio
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from faults import same_results
from stand_ins import eventually, noted, write_notebook, write_study
from toys import GRAMMAR

from lowres import files
from lowres.files import ROOT, BadInput
from lowres.runs.cluster import Healing, described_cluster
from lowres.runs.execute import Options
from lowres.runs.records import RESULTS_VERSION
from lowres.runs.scheduling import run_study
from lowres.runs.status import all_statuses
from lowres.runs.study import Study
from lowres.runs.workers import asked_of_workers

LONG = 3600  # seconds that a whole study may take on a machine that does other work
LOCAL = {"module": "distributed", "class": "LocalCluster", "kwargs": {
    "n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0}}


def described(folder: Path, **content) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"version": 1} | content))
    return str(path)


def run(study: Study, notebooks: str = "notebooks", **asked) -> list[str]:
    said = []
    run_study(study, all_statuses(study), list(study.runs), Options(notebooks=notebooks, **asked), tell=said.append)
    return said


def states(study: Study) -> set[str]:
    return {status.state for status in all_statuses(study)}


@pytest.mark.parametrize(("content", "said"), [
    ({"class": "LocalCluster"}, "module: is missing"),
    ({"module": "distributed"}, "class: is missing"),
    ({"module": "no_such_package", "class": "Cluster"}, "module: 'no_such_package' cannot be loaded"),
    ({"module": "distributed", "class": "LocalClutser"}, "distributed has no 'LocalClutser'"),
    ({"module": "distributed", "class": "LocalCluster", "version": 2}, "wanted are version: 1"),
    ({"module": "distributed", "class": "LocalCluster", "kwargs": [1]}, "wanted are version: 1"),
    ({"module": "distributed", "class": "SSHCluster", "kwargs": {"hosts": []}}, "could not be started: .*hosts.* must be a non empty list"),
    (LOCAL | {"kwargs": LOCAL["kwargs"] | {"n_workers": 0}}, "no worker is asked for"),
])
def test_what_is_wrong_with_a_clusters_file_is_told_in_a_sentence(tmp_path, content, said):
    with pytest.raises(BadInput, match=f"cluster.yaml: .*{said}") as told, described_cluster(described(tmp_path, **content), None, tmp_path):
        pass
    assert "\n" not in str(told.value)


def test_a_study_on_a_described_cluster_goes_on_though_a_worker_is_killed(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4, 8, 16])
    died = str(tmp_path / "died")
    kill = "from lowres.files import located; os.kill(int((located(output_dir) / '.lock').read_text().split()[1]), 9)"
    work = f"if not os.path.exists({died!r}): open({died!r}, 'w'); {kill}; time.sleep(600)"
    file = described(tmp_path, **LOCAL, distributed={"worker": {"profile": {"enabled": False}}})
    said = run(study, write_notebook(tmp_path / "n", work), cluster=file)
    assert states(study) == {"done"} and len(noted(study)) == 5, said
    assert not list(study.folder.rglob(".*")), "no signs are left"


def test_a_jobs_worker_has_the_jobs_cores_however_many_it_sees(tmp_path, monkeypatch):
    (tmp_path / ".seen").touch()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    answer = asked_of_workers()(str(tmp_path / ".seen"), pickle.dumps(()), RESULTS_VERSION)
    assert answer["cores"] == 3 and answer["place"][1] == "7" and "fault" not in answer
    assert "RESULTS_VERSION" in asked_of_workers()(str(tmp_path / ".seen"), b"of another version", -1)["fault"]


def test_a_clusters_module_does_not_take_ctrl_c_away_from_the_runner(tmp_path, monkeypatch):
    rude = "import signal, sys\nfrom distributed import LocalCluster\nsignal.signal(signal.SIGINT, lambda *_: sys.exit())\n"
    (tmp_path / "rude.py").write_text(rude)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(BadInput, match="no worker is asked for"), described_cluster(described(tmp_path, **{
            "module": "rude", "class": "LocalCluster", "kwargs": LOCAL["kwargs"] | {"n_workers": 0}}), None, tmp_path):
        pass
    assert signal.getsignal(signal.SIGINT) is before


class Job:
    """Of a batch system, as dask_jobqueue's: one that has ended before a worker of its came."""

    status, cancel_command, job_id = "running", "scancel", "101"

    async def _call(self, command):
        await asyncio.sleep(0.05)
        return ""


def test_a_job_that_ended_is_replaced_once_though_the_batch_system_answers_late():
    submitted = []

    async def twice():
        scale = lambda _: submitted.append(cluster.workers.setdefault(0, Job()))  # noqa: E731
        cluster = SimpleNamespace(workers={0: Job()}, scheduler_info={"workers": {}}, scale=scale, _correct_state=lambda: asyncio.sleep(0))
        healing = Healing(cluster, 1)
        cluster.loop = SimpleNamespace(add_callback=lambda call: tasks.append(asyncio.ensure_future(call())))
        tasks = []
        healing()
        healing()
        await asyncio.gather(*tasks)
        return healing

    healing = asyncio.run(twice())
    assert healing.ended == 1 and len(submitted) == 1 and healing.pending


def test_a_cluster_of_named_hosts_cannot_grow(tmp_path, temporary, monkeypatch):
    (tmp_path / "named_hosts.py").write_text("from distributed.deploy.spec import SpecCluster\nfrom distributed import Nanny, Scheduler\n"
                                             "def Named():\n    return SpecCluster({0: {'cls': Nanny, 'options': {'nthreads': 1}}}, "
                                             "scheduler={'cls': Scheduler, 'options': {'dashboard': False}})\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hosts.yaml").write_text("module: named_hosts\nclass: Named\n")
    with pytest.raises(BadInput, match="--workers 3: the file names 1"), described_cluster(str(tmp_path / "hosts.yaml"), 3, tmp_path / "outputs"):
        pass


def test_if_no_worker_can_do_the_work_that_is_told_and_nothing_is_written(tmp_path, temporary):
    study = write_study(tmp_path, shots=[2, 4], model="~/no_such_model", task=GRAMMAR)
    with pytest.raises(BadInput, match="cluster.yaml: the worker tcp://.* cannot do the work: model: "):
        run(study, write_notebook(tmp_path / "n"), cluster=described(tmp_path, **LOCAL))
    assert states(study) == {"missing"} and not list(study.folder.rglob("*.json"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Two nodes of Slurm on this host; the cluster's file is given by a function."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install 'lowres[slurm]'")
    folder = Path("/tmp") / f"ls-{os.getpid()}"
    script = str(ROOT / "tests" / "cluster" / "slurm.sh")
    started = subprocess.run([script, "start", str(folder), str(20000 + os.getpid() % 10000)], capture_output=True, text=True)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        yield folder
        subprocess.run([script, "stop", str(folder)], check=True)
    shutil.rmtree(folder)


def slurm_file(folder: Path, **more) -> str:
    content = yaml.safe_load((ROOT / "parameters" / "clusters" / "slurm.yaml").read_text())
    content["kwargs"] |= {"n_workers": 3, "cores": 1, "memory": "2500MB", "log_directory": str(folder / "jobs"),
                          "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}} | more
    return described(folder, **content)


def jobs(*columns: str) -> list[list[str]]:
    said = subprocess.run(["squeue", "-h", "-o", " ".join(columns)], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in said.splitlines()]


EATS = """if shots == 5 and os.path.exists({hungry!r}):
    os.remove({hungry!r})
    eaten = bytearray(35 * 10**8)
    for i in range(0, len(eaten), 4096): eaten[i] = 1
    time.sleep(600)"""
RUNNER = """
from lowres.runs.execute import Options
from lowres.runs.scheduling import run_study
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study
study = read_study({path!r}, outputs={outputs!r})
run_study(study, all_statuses(study), list(study.runs), Options(notebooks={notebooks!r}, cluster={file!r}))
"""


@pytest.mark.cluster
def test_of_forty_runs_none_is_lost_or_done_twice_though_a_job_is_cancelled_one_eats_too_much_and_a_node_is_drained(tmp_path, slurm):
    study = write_study(tmp_path, shots=range(2, 22), methods=["vanilla", "pbft"], task=GRAMMAR)
    hungry, log, start = tmp_path / "hungry", (tmp_path / "log").open("w+"), time.monotonic()
    hungry.touch()
    notebooks = [write_notebook(tmp_path / "n", EATS.format(hungry=str(hungry)), method=method) for method in ("vanilla", "pbft")][0]
    code = RUNNER.format(path=str(study.path), outputs=str(study.folder.parent), notebooks=notebooks, file=slurm_file(tmp_path))
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def finished(count: int) -> bool:
        return runner.poll() is not None or sum((run.folder / "record.json").exists() for run in study.runs) >= count

    eventually(lambda: finished(6), "the first runs", LONG)
    cancelled = next(number for number, state in jobs("%i", "%T") if state == "RUNNING")
    subprocess.run(["scancel", cancelled], check=True)
    eventually(lambda: finished(12), "more of them", LONG)
    subprocess.run(["scontrol", "update", "nodename=node2", "state=drain", "reason=test"], check=True)
    on_it = [number for number, *node in jobs("%i", "%N") if node == ["node2"]]
    subprocess.run(["scancel", *on_it], check=bool(on_it))
    assert runner.wait(LONG) == 0, Path(log.name).read_text()
    subprocess.run(["scontrol", "update", "nodename=node2", "state=resume"], check=True)
    eventually(lambda: not jobs("%i"), "the jobs to end")
    begun, said = noted(study), Path(log.name).read_text()
    print(f"{time.monotonic() - start:.0f} s; {len(begun)} trials begun for 40; cancelled: {cancelled} and, of node2, {on_it}")
    assert states(study) == {"done"} and not hungry.exists() and len(set(begun)) == 40, said
    assert len(begun) <= 40 + 2 + len(on_it), "only what was at work in jobs that ended is begun again"
    assert said.count(" seed 0: ") == 40 and not (study.folder / "failed").exists() and not list(study.folder.rglob(".*"))
    for one in study.runs:
        assert [trial["seed"] for trial in files.read_json(one.folder / "record.json")["trials"]] == [0]


@pytest.mark.cluster
def test_what_is_trained_on_slurm_is_what_is_trained_here_to_the_digit(tmp_path, slurm, tiny_llama):
    studies = []
    for name, asked in (("here", {"workers": 2}), ("there", {"cluster": slurm_file(tmp_path, n_workers=2)})):
        (tmp_path / name).mkdir()
        studies.append(write_study(tmp_path / name, shots=[2, 4], methods=["vanilla", "pbft"], model=tiny_llama, task=GRAMMAR, evaluation_rows=20))
        run(studies[-1], **asked)
        assert states(studies[-1]) == {"done"}
    same_results(*studies)


@pytest.mark.cluster
def test_a_run_that_is_longer_than_a_jobs_time_is_told_and_the_others_are_done(tmp_path, slurm):
    study = write_study(tmp_path, shots=[2, 4, 8], task=GRAMMAR)
    notebooks = write_notebook(tmp_path / "n", work="time.sleep(3000 if shots == 2 else 0)")
    said = run(study, notebooks, cluster=slurm_file(tmp_path, n_workers=2, walltime="00:02:00"), retries=0)
    failures = [status.failure["message"] for status in all_statuses(study) if status.failure]
    assert states(study) == {"failed", "done"} and len(failures) == 1, said
    assert "its worker ended under it 1 times" in failures[0] and "a limit of time or memory" in failures[0]


@pytest.mark.cluster
def test_what_slurm_refuses_and_jobs_that_end_at_once_are_told(tmp_path, slurm):
    study = write_study(tmp_path, shots=[2], task=GRAMMAR)
    with pytest.raises(BadInput, match="a worker could not be started: sbatch: error: invalid partition specified: nowhere"):
        run(study, cluster=slurm_file(tmp_path, queue="nowhere"))
    with pytest.raises(BadInput, match="jobs end before a worker of theirs comes"):
        run(study, cluster=slurm_file(tmp_path, python="/bin/false", n_workers=1))


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """The arguments of connections to an SSH daemon on this host, with a key for this test alone."""
    pytest.importorskip("asyncssh", reason="asyncssh is not installed: pip install 'lowres[ssh]'")
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    if not sshd:
        pytest.skip("sshd is missing: apt-get install openssh-server")
    port, folder = 30000 + os.getpid() % 10000, tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    config = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub", "UsePAM": "no",
              "StrictModes": "no", "PasswordAuthentication": "no", "PermitRootLogin": "prohibit-password", "PidFile": folder / "pid",
              "SetEnv": f"PYTHONPATH={ROOT}"}
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen([sshd, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")])
    eventually((folder / "pid").exists, "the SSH daemon")
    yield {"port": port, "client_keys": [str(folder / "user")], "known_hosts": None}
    daemon.terminate()
    daemon.wait(30)


@pytest.mark.cluster
def test_a_study_over_ssh_goes_on_though_a_worker_is_killed_and_an_unreachable_host_is_told(tmp_path, temporary, ssh):
    study = write_study(tmp_path, shots=[2, 4, 8, 16], task=GRAMMAR)
    died = str(tmp_path / "died")
    kill = "from lowres.files import located; os.kill(int((located(output_dir) / '.lock').read_text().split()[1]), 9)"
    notebooks = write_notebook(tmp_path / "n", f"if not os.path.exists({died!r}): open({died!r}, 'w'); {kill}; time.sleep(600)")
    content = yaml.safe_load((ROOT / "parameters" / "clusters" / "ssh.yaml").read_text())
    content["kwargs"] |= {"hosts": ["127.0.0.1"] * 3, "connect_options": ssh, "scheduler_options": {"dashboard_address": "127.0.0.1:0"}}
    said = run(study, notebooks, cluster=described(tmp_path, **content))
    assert states(study) == {"done"} and len(noted(study)) == 5, said
    assert not list(study.folder.rglob(".*"))
    content["kwargs"]["connect_options"] |= {"port": 1}
    with pytest.raises(BadInput, match="could not be started: .*[Cc]onnect"):
        run(study, notebooks, cluster=described(tmp_path, **content))
