"""Many runs on Dask, to the end or until told to stop. What is kept, and where, is each run's own business (execution)."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from distributed import Future, as_completed

from lowres import scratch
from lowres.cluster import Cluster, default_workers, given_cluster, own_cluster
from lowres.execution import Options, Result, execute, keep_failure, now
from lowres.files import located, shown
from lowres.progress import Progress
from lowres.running import Ended, kill_kernels
from lowres.status import Status
from lowres.study import Run, Study

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
    study: Study, statuses: list[Status], todo: list[Run], options: Options, workers: int | None = None, scheduler: str | None = None,
    fail_fast: bool = False, tell: Callable[[str], None] = print,
) -> Outcome:
    """Executes `todo`. One failure never stops the others, unless `fail_fast`."""
    scratch.sweep()
    _sweep_stops(study)
    stop = study.folder / f".stop-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        with scratch.scratch_folder() as folder, Interrupts() as interrupts:
            started = given_cluster(scheduler, study.folder) if scheduler else own_cluster(workers or default_workers(), options.retries, folder)
            with started as cluster:
                options = replace(options, threads=cluster.threads, gpus=cluster.gpus, stop=shown(stop), begun=now())
                with Progress(study, statuses, todo, cluster.workers, tell) as progress:
                    if find_spec("bokeh"):  # Dask has no dashboard without it
                        progress.line(f"the cluster's dashboard: {cluster.client.dashboard_link}")
                    return Loop(cluster, todo, options, progress, interrupts, fail_fast).run()
    finally:
        stop.unlink(missing_ok=True)
        for run in todo:
            scratch.remove_dead_lock(run.folder)
        scratch.sweep()
        scratch.remove_empty(study.folder)


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

    def __init__(self, cluster: Cluster, todo: list[Run], options: Options, progress: Progress, interrupts: Interrupts, fail_fast: bool):
        self.cluster, self.options, self.progress, self.interrupts, self.fail_fast = cluster, options, progress, interrupts, fail_fast
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
        if result.state == "failed" and self.fail_fast and not self.asked_to_stop:
            self.progress.line("stopping at the first failure (--fail-fast), once the trials at work are finished")
            self._ask_to_stop()

    def _lost(self, run: Run, future: Future) -> Result:
        """A run that Dask gave up: its worker died again and again, or cannot load the project."""
        error = future.exception()
        killed = type(error).__name__ == "KilledWorker"
        message = WORKER_DIED.format(times=self.options.retries + 1) if killed else f"the worker failed: {error!r}"
        with suppress(OSError, scratch.Busy), scratch.locked(run.folder):
            keep_failure(run, Ended("died", message, again=True), None, self.options)
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
