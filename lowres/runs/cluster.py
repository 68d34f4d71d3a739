"""Many runs on Dask, to the end or until told to stop. What is kept, and where, is each run's own business (execution)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Future, LocalCluster, as_completed
from distributed import Status as WorkerStatus
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.system import MEMORY_LIMIT

from lowres import locks
from lowres.files import BadInput, located, shown
from lowres.runs.execute import Options, Result, execute, keep_failure, now, pinned
from lowres.runs.process import NotebookResult, forks, kill_kernels
from lowres.runs.progress import Expected, Progress
from lowres.runs.records import RESULTS_VERSION
from lowres.runs.status import Status
from lowres.runs.study import Run, Study

MEMORY_A_WORKER = 5e9  # what training the 135M model takes at most: no more workers than fit
PATIENCE = 20  # seconds until a scheduler that does not answer is given up


@dataclass
class Cluster:
    client: Client
    workers: int
    threads: int  # of each kernel
    gpus: tuple[str, ...] = ()  # by worker, of our own cluster
    resources: dict[str, float] | None = None  # what a run asks of a worker
    heal: Callable[[], None] = lambda: None  # to be called now and then


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


@contextmanager
def own_cluster(workers: int, retries: int, folder: Path) -> Iterator[Cluster]:
    """Worker processes on this host with `folder` for their files, the cores split evenly."""
    for name in ("distributed", "tornado.application"):  # a killed worker is told in our own words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    devices = gpus()
    settings = {
        "distributed.scheduler.allowed-failures": retries,
        "distributed.deploy.lost-worker-timeout": "5s",
        "temporary-directory": str(folder),
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
    }
    with dask.config.set(settings):
        local = LocalCluster(
            n_workers=0, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0, silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0", local_directory=str(folder),
        )
        try:
            with Client(local, set_as_default=False) as client:
                client.register_plugin(IgnoreInterrupts())
                heal = partial(_heal, local, workers)
                _wait_for_workers(client, workers, heal)
                yield Cluster(client, workers, max(1, CPU_COUNT // workers), devices, heal=heal)
        finally:
            # Dask's watcher stumbles over a worker that was killed when the scheduler had forgotten it already (distributed#5407), and tells it
            # at the very end, when all is closed: no reason to fail a study.
            with suppress(KeyError):
                local.close()


def _heal(local: LocalCluster, workers: int) -> None:
    """Starts workers that are missing. Dask restarts one that was killed, but not one that was killed while it started."""
    async def mend() -> None:
        for name, nanny in list(local.workers.items()):
            if nanny.status in (WorkerStatus.failed, WorkerStatus.closed):
                del local.workers[name]
        local.scale(workers)

    local.loop.add_callback(mend)


def _wait_for_workers(client: Client, workers: int, heal: Callable[[], None]) -> None:
    for _ in range(6):
        heal()
        with suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=10)
            return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise RuntimeError("no worker process could be started in a minute")


@contextmanager
def given_cluster(address: str, outputs: Path) -> Iterator[Cluster]:
    """A running cluster, by `tcp://host:port` or the scheduler's file. Raises BadInput for one that cannot do the work."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    where = {"scheduler_file": str(located(address))} if located(address).is_file() else {"address": address}
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadInput(f"--scheduler: no Dask scheduler answers at {address!r}: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise BadInput(f"--scheduler: the cluster at {address!r} has no workers") from None
        threads = _checked(client, outputs)
        details = client.scheduler_info(n_workers=-1)["workers"].values()
        with_gpu = all(worker.get("resources", {}).get("GPU") for worker in details)
        yield Cluster(client, sum(worker["nthreads"] for worker in details), threads, resources={"GPU": 1} if with_gpu else None)


def _checked(client: Client, outputs: Path) -> int:
    """Every worker has the project, this version of it, and sees the outputs. Returns the threads that each run may use."""
    outputs.mkdir(parents=True, exist_ok=True)
    token = outputs / f".seen-{secrets.token_hex(4)}"
    token.touch()

    def look(place: str) -> dict[str, Any]:  # sent by value: a worker without the project could not look it up
        import os

        try:
            from dask.system import CPU_COUNT

            from lowres.files import located
            from lowres.runs.execute import execute  # noqa: F401
            from lowres.runs.records import RESULTS_VERSION
        except ImportError as error:
            return {"error": f"does not have the project installed ({error})"}
        seen = located(place).is_file()
        return {"seen": seen, "place": str(located(place).parent), "version": RESULTS_VERSION, "cores": CPU_COUNT, "host": os.uname().nodename}

    try:
        answers = client.run(look, shown(token))
    finally:
        token.unlink(missing_ok=True)
    slots: dict[str, int] = {}
    running = client.scheduler_info(n_workers=-1)["workers"]
    for address, answer in answers.items():
        if "error" in answer:
            raise BadInput(f"--scheduler: the worker {address} {answer['error']}: every worker needs it, and a shared outputs folder")
        if not answer["seen"]:
            where = f"{shown(outputs)} (it looked in {answer['place']})"
            raise BadInput(f"--scheduler: the worker {address} does not see {where}: a shared folder is needed")
        if answer["version"] != RESULTS_VERSION:
            versions = f"RESULTS_VERSION {answer['version']}, here {RESULTS_VERSION}"
            raise BadInput(f"--scheduler: the worker {address} has another version of the project ({versions})")
        slots[answer["host"]] = slots.get(answer["host"], 0) + (running[address]["nthreads"] if address in running else 1)
    # The same count everywhere: it changes the last digits of results.
    return min(max(1, answer["cores"] // slots[answer["host"]]) for answer in answers.values())


ASK_AGAIN = 2.0  # seconds until a run that another process is at work on is asked for again
HEAL_EVERY = 5.0
LOST = "the connection to the Dask scheduler is lost; what is finished is kept: lowres run continues after it"
WORKER_DIED = "the worker process died under it {times} times; the system kills what takes too much memory: fewer --workers leave more for each"


@dataclass
class Outcome:
    """Of a study's runs that were to be executed."""

    results: list[Result]
    interrupted: bool = False


def run_study(
    study: Study, statuses: list[Status], todo: list[Run], options: Options, tell: Callable[[str], None] = print, expected: Expected | None = None,
) -> Outcome:
    """Executes `todo`. One failure never stops the others, unless that is asked for."""
    locks.sweep()
    _sweep_stops(study)
    stop = study.folder / f".stop-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        with locks.scratch_folder() as folder, Interrupts() as interrupts:
            own, workers = not options.scheduler, options.workers or default_workers()
            forked_by = forking(workers, start=len(todo) > workers) if own else ""
            with own_cluster(workers, options.retries, folder) if own else \
                    given_cluster(options.scheduler, study.folder) as cluster:
                options = replace(options, threads=cluster.threads, gpus=cluster.gpus, stop=shown(stop), begun=now(), forked_by=forked_by)
                with Progress(study, statuses, todo, cluster.workers, tell, expected) as progress:
                    if find_spec("bokeh"):  # Dask has no dashboard without it
                        progress.line(f"the cluster's dashboard: {cluster.client.dashboard_link}")
                    return Loop(cluster, todo, options, progress, interrupts).run()
    finally:
        stop.unlink(missing_ok=True)
        for run in todo:
            locks.remove_dead_lock(run.folder)
        locks.sweep()
        locks.remove_empty(study.folder)


class Interrupts:
    """Counts Ctrl-C (and what a cluster's own scheduler sends before it kills: SIGTERM counts as two)."""

    def __init__(self) -> None:
        self.count = 0

    def _heard(self, number: int, _frame: Any) -> None:
        self.count += 2 if number == signal.SIGTERM else 1
        if self.count > 3:  # somebody is in a hurry: kernels and workers die with us, and finished trials are on disk
            os._exit(130)

    def __enter__(self) -> Interrupts:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Loop:
    """Hands runs to the cluster and takes their results, until none is left."""

    def __init__(self, cluster: Cluster, todo: list[Run], options: Options, progress: Progress, interrupts: Interrupts):
        self.cluster, self.options, self.progress, self.interrupts = cluster, options, progress, interrupts
        self.waiting = deque(todo)
        self.runs: dict[Future, Run] = {}  # in workers' hands
        self.later: list[tuple[float, Run]] = []  # another process is at work on them
        self.results: list[Result] = []
        self.completed = as_completed(loop=cluster.client.loop)
        self.asked_to_stop, self.healed = 0, time.monotonic()

    def run(self) -> Outcome:
        self._hand_out()
        while self.runs or self.waiting or self.later:
            finished = self._finished()
            for future in finished:
                self._take(future)
            again = [one for one in self.later if one[0] < time.monotonic()]
            for one in again:
                self.later.remove(one)
                self.waiting.append(one[1])
            heal = time.monotonic() > self.healed + HEAL_EVERY
            if heal:
                self.healed = time.monotonic()
                self.cluster.heal()
            if finished or again or heal:  # or workers came
                self._hand_out()
            self._heed()
            if self.asked_to_stop == 2 and time.monotonic() > self.give_up:
                break
            self.progress.poll()
            time.sleep(0.2)
        return Outcome(self.results, self.interrupts.count > 0)

    def _hand_out(self) -> None:
        """As many runs as the workers have threads. Dask would queue more of them at workers, and move them by how long it guesses that each
        takes: it knows nothing of runs, and leaves a worker idle beside another's queue."""
        if not self.waiting:
            return
        try:
            threads = sum(self.cluster.client.nthreads().values())
        except OSError:
            raise ConnectionError(LOST) from None
        for _ in range(min(threads - len(self.runs), len(self.waiting))):
            self._submit(self.waiting.popleft())

    def _submit(self, run: Run) -> None:
        future = self.cluster.client.submit(
            execute, run, self.options, key=f"{run.name}-{secrets.token_hex(4)}", pure=False, resources=self.cluster.resources,
        )
        self.runs[future] = run
        self.completed.add(future)

    def _finished(self) -> list[Future]:
        if self.cluster.client.status != "running":
            raise ConnectionError(LOST)
        return list(self.completed.next_batch(block=False)) if not self.completed.is_empty() else []

    def _take(self, future: Future) -> None:
        if future.status in ("cancelled", "lost"):
            raise ConnectionError(LOST)
        run = self.runs.pop(future)
        result = future.result() if future.status == "finished" else self._lost(run, future)
        if result.state == "busy":
            if self.asked_to_stop:
                result = Result(run.name, "stopped")
            else:
                self.later.append((time.monotonic() + ASK_AGAIN, run))
                return
        self.results.append(result)
        self.progress.ended(result)
        if result.state == "failed" and self.options.fail_fast and not self.asked_to_stop:
            self.progress.line("stopping at the first failure (--fail-fast), once the trials at work are finished")
            self._ask_to_stop()

    def _lost(self, run: Run, future: Future) -> Result:
        """A run that Dask gave up: its worker died again and again, or cannot load the project."""
        error = future.exception()
        killed = type(error).__name__ == "KilledWorker"
        message = WORKER_DIED.format(times=self.options.retries + 1) if killed else f"the worker failed: {error!r}"
        with suppress(OSError, locks.Busy), locks.locked(run.folder):
            keep_failure(run, NotebookResult("died", message, again=True), None, self.options)
        return Result(run.name, "failed", 0.0, message)

    def _heed(self) -> None:
        if self.interrupts.count and not self.asked_to_stop:
            self.progress.line("stopping once the trials at work are finished; Ctrl-C again to stop now (finished trials are kept)")
            self._ask_to_stop()
        if self.interrupts.count > 1 and self.asked_to_stop < 2:
            self.asked_to_stop, self.give_up = 2, time.monotonic() + 10
            self._ask_to_stop()
            with suppress(Exception):  # on our way out: whatever answers is enough, the rest dies with its worker
                self.cluster.client.run(kill_kernels, on_error="ignore")

    def _ask_to_stop(self) -> None:
        self.asked_to_stop = max(1, self.asked_to_stop)
        self.waiting.clear()
        self.later.clear()
        try:
            located(self.options.stop).touch()
        except OSError:  # a full disk: then nothing can be finished either
            self.interrupts.count = max(2, self.interrupts.count)


def _sweep_stops(study: Study) -> None:
    """Signs that a killed runner of this host left."""
    for sign in study.folder.glob(f".stop-{socket.gethostname()}-*"):
        with suppress(OSError, ValueError):
            try:
                os.kill(int(sign.name.split("-")[-2]), 0)
            except ProcessLookupError:
                sign.unlink()
