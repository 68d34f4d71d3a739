"""Workers on Dask that runs are given to: processes of this host, a running cluster's, or those of a cluster that a file describes."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed import Status as WorkerStatus
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.system import MEMORY_LIMIT

from lowres.files import BadInput, located, read_yaml, shown
from lowres.runs.execute import Options, pinned
from lowres.runs.process import forks
from lowres.runs.workers import Fitness, connected

MEMORY_A_WORKER = 5e9  # what training the 135M model takes at most: no more workers than fit
MOST_ENDED = 2  # jobs for each worker that may end before any worker came
PATIENCE = 20  # seconds until a scheduler that does not answer is given up
STARTING = 300  # seconds until it is given up that this host's workers start
SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # who dies under a run is counted by us
    "distributed.deploy.lost-worker-timeout": "5s",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
}


class Cluster:
    """This host's worker processes."""

    died = "the worker process died under it {times} times; the system kills what takes too much memory: fewer --workers leave more for each"

    def __init__(self, client: Client, workers: int, threads: int = 1, gpus: tuple[str, ...] = (), heal: Callable[[], None] = lambda: None):
        self.client, self.workers, self.threads, self.gpus, self.heal = client, workers, threads, gpus, heal

    def slots(self, tell: Callable[[str], None]) -> dict[str, int]:
        """How many runs at a time each worker takes, by its address."""
        with connected():
            return self.client.nthreads()

    def resources(self, worker: str) -> dict[str, float] | None:
        """Which of Dask's a run asks for there."""
        return None


class Healing:
    """Starts workers that are missing. Dask restarts one that was killed, but not one that was killed while it started, nor a job that ended
    before its worker came."""

    def __init__(self, cluster: SpecCluster, workers: int):
        self.cluster, self.workers, self.ended, self.fault, self.at_work = cluster, workers, 0, "", False
        self.came: set[str] = set()  # jobs of which a worker was there: when that is gone, Dask sees to it

    def __call__(self) -> None:
        self.cluster.loop.add_callback(self._one_at_a_time)

    @property
    def pending(self) -> bool:
        """Whether a batch system has a job of ours, of which a worker may come yet."""
        return any(getattr(job, "job_id", None) for job in list(self.cluster.workers.values()))

    async def _one_at_a_time(self) -> None:
        if not self.at_work:  # else a job of this time's would be taken for one that ended before
            self.at_work = True
            try:
                await self._mend()
            finally:
                self.at_work = False

    async def _mend(self) -> None:
        ended = await self._jobs_that_ended()
        self.ended += len(ended)
        for name, process in list(self.cluster.workers.items()):
            if process.status in (WorkerStatus.created, WorkerStatus.failed, WorkerStatus.closed) or name in ended:
                del self.cluster.workers[name]
        self.cluster.scale(self.workers)
        try:
            await self.cluster._correct_state()  # scale() does the same, and tells nobody why it failed
            self.fault = ""
        except Exception as error:
            self.fault = _sentence(error)

    async def _jobs_that_ended(self) -> list[Any]:
        """The workers whose job Slurm has no more, though none of their processes ever came: Dask would wait for them for good."""
        there = {worker["name"] for worker in self.cluster.scheduler_info["workers"].values()}
        jobs = {name: job for name, job in self.cluster.workers.items() if getattr(job, "cancel_command", "") == "scancel" and job.job_id}
        self.came |= {job.job_id for name, job in jobs.items() if name in there}
        jobs = {name: job for name, job in jobs.items() if job.job_id not in self.came}
        if not jobs:
            return []
        try:
            queued = (await next(iter(jobs.values()))._call(["squeue", "-h", "--me", "-o", "%A"])).split()
        except (OSError, RuntimeError):  # it is asked again
            return []
        return [name for name, job in jobs.items() if job.job_id not in queued]


class Remote(Cluster):
    """Workers that may be other machines: each is looked at before it is given a run, whenever it comes."""

    died = "its worker ended under it {times} times, at last after {seconds:.0f} s: at a limit of time or memory of the cluster's, most likely"

    def __init__(self, client: Client, workers: int, fitness: Fitness, heal: Healing | None = None):
        super().__init__(client, workers, heal=heal or (lambda: None))
        self.fitness, self.healing = fitness, heal

    def slots(self, tell: Callable[[str], None]) -> dict[str, int]:
        if self.healing and not self.fitness.answers:  # none has come yet
            if self.healing.ended > MOST_ENDED * self.workers:
                raise BadInput(f"{self.fitness.where}: jobs end before a worker of theirs comes: log_directory, under kwargs, is where they say why")
            if self.healing.fault and not self.healing.pending:
                raise BadInput(f"{self.fitness.where}: a worker could not be started: {self.healing.fault}")
        found = self.fitness.slots(tell)
        self.threads = self.fitness.threads or self.threads
        return found

    def resources(self, worker: str) -> dict[str, float] | None:
        return {"GPU": 1} if worker in self.fitness.with_gpu else None


class IgnoreInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal; only the runner heeds it, and tells the workers what to do."""

    name = "lowres-ignore-interrupts"

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def gpus() -> tuple[str, ...]:
    """The GPUs of this host that we may use, told without torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return tuple(name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1"))
    if not shutil.which("nvidia-smi"):
        return ()
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
        return tuple(listed.stdout.split()) if listed.returncode == 0 else ()
    return ()


def default_workers() -> int:
    """One a GPU; else one a core, as far as memory goes: measured, two workers of one thread do 19 to 40 % more on short text
    than one of two, and 0 to 7 % more on longer."""
    return len(gpus()) or max(1, min(CPU_COUNT, int(MEMORY_LIMIT // MEMORY_A_WORKER)))


def forking(workers: int, start: bool) -> str:
    """The name of the process that forks kernels for so many workers of this host; '' for none."""
    if gpus():  # CUDA does not survive a fork
        return ""
    return forks.wanted(pinned(Options(threads=max(1, CPU_COUNT // workers))), start)


def _silenced() -> None:
    for name in ("distributed", "distributed.client", "tornado.application", "asyncssh"):  # a killed worker is told in our own words
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def own_cluster(workers: int, folder: Path) -> Iterator[Cluster]:
    """Worker processes on this host with `folder` for their files, the cores split evenly."""
    _silenced()
    with dask.config.set(SETTINGS | {"distributed.deploy.lost-worker-timeout": "60s", "temporary-directory": str(folder)}):  # it is restarted
        local = LocalCluster(
            n_workers=0, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0, silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0", local_directory=str(folder),
        )
        with _closing(local), Client(local, set_as_default=False) as client:
            client.register_plugin(IgnoreInterrupts())
            heal = Healing(local, workers)
            _wait_for_workers(client, workers, heal)
            yield Cluster(client, workers, max(1, CPU_COUNT // workers), gpus(), heal)


@contextmanager
def _closing(cluster: Any) -> Iterator[None]:
    try:
        yield
    finally:
        # Dask's watcher stumbles over a worker that was killed when the scheduler had forgotten it already (distributed#5407), and tells it
        # at the very end, when all is closed: no reason to fail a study.
        with suppress(KeyError):
            cluster.close()


def _wait_for_workers(client: Client, workers: int, heal: Callable[[], None]) -> None:
    """Until all are there, or some after a minute: the others come later. On a crowded machine the first may take minutes."""
    for times in range(1, STARTING // 10 + 1):
        heal()
        with suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=10)
            return
        if times >= 6 and client.scheduler_info(n_workers=-1)["workers"]:
            return
    raise RuntimeError(f"no worker process could be started in {STARTING} s")


@contextmanager
def given_cluster(address: str, outputs: Path, asked: tuple = ()) -> Iterator[Cluster]:
    """A running cluster, by `tcp://host:port` or the scheduler's file, for what is `asked` (methods and parameters). Raises BadInput for one that
    cannot do the work."""
    _silenced()
    where = {"scheduler_file": str(located(address))} if located(address).is_file() else {"address": address}
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadInput(f"--scheduler: no Dask scheduler answers at {address!r}: {error}") from None
    with client:
        fitness = Fitness(client, f"--scheduler {address}", outputs, asked)
        with connected():
            try:
                client.wait_for_workers(1, timeout=30)
            except TimeoutError:
                raise BadInput(f"--scheduler: the cluster at {address!r} has no workers") from None
        try:
            fitness.wait()
            yield Remote(client, sum(client.nthreads().values()), fitness)
        finally:
            fitness.close()


@contextmanager
def described_cluster(file: str, workers: int | None, outputs: Path, asked: tuple = ()) -> Iterator[Cluster]:
    """A cluster that a file describes in Dask's own words; it is started, kept whole and closed. Raises BadInput for what cannot be started."""
    where = f"--cluster {shown(located(file))}"
    make, settings = _described(file, where)
    _silenced()
    with dask.config.set(settings):
        try:
            cluster = make()
        except Exception as error:  # whatever a batch system, a host or a keyword argument is at fault for
            raise BadInput(f"{where}: the cluster could not be started: {_sentence(error)}") from None
        with _closing(cluster):
            started = isinstance(cluster, SpecCluster)  # others keep themselves whole
            workers = workers or (len(cluster.worker_spec) if started else 0)
            if started and not workers:
                raise BadInput(f"{where}: no worker is asked for: n_workers, under kwargs, or --workers says how many")
            if started and workers > len(cluster.worker_spec) and cluster.new_spec is None:
                raise BadInput(f"{where}: --workers {workers}: the file names {len(cluster.worker_spec)}, and such a cluster cannot grow")
            if workers:
                cluster.scale(workers)
            with Client(cluster, timeout=PATIENCE, set_as_default=False) as client:
                if isinstance(cluster, LocalCluster):  # its workers hear this terminal's Ctrl-C
                    client.register_plugin(IgnoreInterrupts())
                fitness = Fitness(client, where, outputs, asked, workers)
                try:
                    yield Remote(client, workers, fitness, Healing(cluster, workers) if started else None)
                finally:
                    fitness.close()


def _described(file: str, where: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Who makes a cluster, and Dask's settings meanwhile. `version`, `module`, `class`, `args` and `kwargs` are as in dask-ctl's files; all else in
    the file is Dask's configuration."""
    content = read_yaml(located(file))
    spec = {key: content.pop(key) for key in ("version", "module", "class", "args", "kwargs") if key in content}
    for key, kind in (("module", str), ("class", str)):
        if not isinstance(spec.get(key), kind):
            raise BadInput(f"{where}: {key}: is missing: such as module: dask_jobqueue and class: SLURMCluster")
    if spec.get("version", 1) != 1 or not isinstance(spec.get("args", []), list) or not isinstance(spec.get("kwargs", {}), dict):
        raise BadInput(f"{where}: wanted are version: 1, a list of args, and kwargs by their names")
    before = signal.getsignal(signal.SIGINT)
    try:
        made = getattr(import_module(spec["module"]), spec["class"])
    except Exception as error:  # whatever a foreign module does when it is imported
        if isinstance(error, AttributeError) and spec["module"] in sys.modules:
            raise BadInput(f"{where}: class: {spec['module']} has no {spec['class']!r}") from None
        extra = " (pip install 'lowres[slurm]')" if spec["module"].startswith("dask_jobqueue") else ""
        raise BadInput(f"{where}: module: {spec['module']!r} cannot be loaded{extra}: {error}") from None
    if signal.getsignal(signal.SIGINT) is not before:  # dask_jobqueue 0.9 takes Ctrl-C away as it is imported
        signal.signal(signal.SIGINT, before)
    kwargs = {str(key).replace("-", "_"): value for key, value in spec.get("kwargs", {}).items()}
    with dask.config.set(SETTINGS):
        settings = dask.config.merge(dask.config.config, content)
    return partial(made, *spec.get("args", []), **kwargs), settings


def _sentence(error: BaseException) -> str:
    """What a failed command said on stderr, in one line; else the error."""
    return " ".join(str(error).rpartition("stderr:\n")[2].split()) or type(error).__name__
