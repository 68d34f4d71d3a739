"""A study's runs handed out to workers, to the end or until told to stop. What is kept, and where, is each run's own business (execute)."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed import Future, KilledWorker, as_completed

from lowres import locks
from lowres.files import located, read_json, shown
from lowres.runs import records
from lowres.runs.cluster import PATIENCE, Cluster, default_workers, described_cluster, forking, given_cluster, own_cluster
from lowres.runs.execute import Options, Result, execute, keep_failure
from lowres.runs.process import NotebookResult, kill_kernels
from lowres.runs.progress import Expected, Progress
from lowres.runs.status import Status, failure_folder
from lowres.runs.study import Run, Study
from lowres.runs.workers import LOST

ASK_AGAIN = 2.0  # seconds until a run that another process is at work on is asked for again
LOOK_EVERY, HEAL_EVERY = 1.0, 5.0  # after the workers that there are, and those that are missing
MOST_UNBEGUN = 20
ALONE = 10.0  # seconds without a worker until that is told


@dataclass
class Outcome:
    """Of a study's runs that were to be executed."""

    results: list[Result]
    interrupted: bool = False


def run_study(
    study: Study, statuses: list[Status], todo: list[Run], options: Options, tell: Callable[[str], None] = print, expected: Expected | None = None,
) -> Outcome:
    """Executes `todo`. One failure never stops the others, unless that is asked for."""
    locks.tidy(study.folder, (run.folder for run in study.runs))
    stop = study.folder / f".stop-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        with locks.scratch_folder() as folder, Interrupts() as interrupts:
            workers = options.workers or default_workers()
            forked_by = forking(workers, start=len(todo) > workers) if options.here else ""
            with _cluster(study, todo, options, workers, folder) as cluster:
                # By no clock, which may be set back; and of runs, too, that are at work elsewhere and would be tried again if they broke off.
                failures = (read_json(failure_folder(run) / "failure.json") for run in todo)
                failed = frozenset(failure["when"] for failure in failures if failure)
                options = replace(options, gpus=cluster.gpus, stop=shown(stop), failed_before=failed, forked_by=forked_by)
                with Progress(study, statuses, todo, cluster.workers, tell, expected) as progress:
                    if find_spec("bokeh"):  # Dask has no dashboard without it
                        progress.line(f"the cluster's dashboard: {cluster.client.dashboard_link}")
                    return Loop(cluster, todo, options, progress, interrupts).run()
    finally:
        stop.unlink(missing_ok=True)
        locks.tidy(study.folder, (run.folder for run in todo))
        locks.remove_empty(study.folder)


def _cluster(study: Study, todo: list[Run], options: Options, workers: int, folder: Path) -> AbstractContextManager[Cluster]:
    if options.here:
        return own_cluster(workers, folder)
    asked = tuple((run.method, run.parameters) for run in todo)
    if options.cluster:
        return described_cluster(options.cluster, options.workers, study.folder, asked)
    return given_cluster(options.scheduler, study.folder, asked)


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


@dataclass
class Given:
    """A run in a worker's hands."""

    run: Run
    worker: str
    trials: int  # that it had
    since: float


class Loop:
    """Hands runs to the cluster and takes their results, until none is left."""

    def __init__(self, cluster: Cluster, todo: list[Run], options: Options, progress: Progress, interrupts: Interrupts):
        self.cluster, self.options, self.progress, self.interrupts = cluster, options, progress, interrupts
        self.waiting = deque(todo)
        self.runs: dict[Future, Given] = {}  # in workers' hands
        self.later: list[tuple[float, Run]] = []  # another process is at work on them
        self.deaths: Counter[Run] = Counter()  # of workers under a run, since its last trial
        self.unbegun: Counter[Run] = Counter()  # workers that ended before they began it
        self.results: list[Result] = []
        self.completed = as_completed(loop=cluster.client.loop)
        self.asked_to_stop, self.looked = 0, 0.0
        self.healed = self.in_company = time.monotonic()

    def run(self) -> Outcome:
        while self.runs or self.waiting or self.later:
            finished = self._finished()
            for future in finished:
                self._take(future)
            again = [one for one in self.later if one[0] < time.monotonic()]
            for one in again:
                self.later.remove(one)
                self.waiting.append(one[1])
            if finished or again or time.monotonic() > self.looked + LOOK_EVERY:
                self._look()
            self._heed()
            if self.asked_to_stop == 2 and time.monotonic() > self.give_up:
                break
            self.progress.poll()
            time.sleep(0.2)
        return Outcome(self.results, self.interrupts.count > 0)

    def _look(self) -> None:
        """After the workers: those that are missing are started, runs of those that are gone go elsewhere, and who is free is given one."""
        self.looked = time.monotonic()
        if self.looked > self.healed + HEAL_EVERY:
            self.healed = self.looked
            self.cluster.heal()
        slots = self.cluster.slots(self.progress.line)
        for future, given in list(self.runs.items()):
            if given.worker not in slots:
                future.cancel()
                self._bereft(self.runs.pop(future))
        self._tell_if_alone(slots)
        self._hand_out(slots)

    def _hand_out(self, slots: dict[str, int]) -> None:
        """As many runs as the workers have room for, each to one worker. Dask would queue more of them at workers, and move them by how long it
        guesses that each takes: it knows nothing of runs, and leaves a worker idle beside another's queue."""
        free = Counter(slots)
        free.subtract(given.worker for given in self.runs.values())
        while self.waiting and free and (freest := free.most_common(1)[0])[1] > 0:
            free[freest[0]] -= 1
            self._submit(self.waiting.popleft(), freest[0])

    def _submit(self, run: Run, worker: str) -> None:
        options = replace(self.options, threads=self.cluster.threads)
        key = f"{run.name}-{secrets.token_hex(4)}"
        future = self.cluster.client.submit(
            execute, run, options, key=key, pure=False, workers=[worker], resources=self.cluster.resources(worker),
        )
        self.runs[future] = Given(run, worker, len(records.journalled(run.folder)), time.monotonic())
        self.completed.add(future)

    def _tell_if_alone(self, slots: dict[str, int]) -> None:
        """Once, whenever there has been no worker for a while: a cluster's jobs may wait for hours."""
        if any(slots.values()):
            self.in_company = time.monotonic()
        elif self.in_company and time.monotonic() > self.in_company + ALONE:
            self.in_company = 0.0
            self.progress.line("waiting for workers: none is there yet" if not self.results else "waiting for workers: none is left")

    def _finished(self) -> list[Future]:
        if self.cluster.client.status != "running":
            raise ConnectionError(LOST)
        return list(self.completed.next_batch(block=False)) if not self.completed.is_empty() else []

    def _take(self, future: Future) -> None:
        given = self.runs.get(future)
        if not given:  # its worker was gone
            return
        if future.status in ("cancelled", "lost"):
            raise ConnectionError(LOST)
        del self.runs[future]
        try:
            result = future.result(timeout=PATIENCE)
        except (KilledWorker, TimeoutError):  # or it ended before it could hand over a result
            return self._bereft(given)
        except Exception as error:  # it cannot load the project, for one
            return self._failed(given.run, f"the worker failed: {error!r}")
        if result.state != "busy":
            self._ended(result)
        elif self.asked_to_stop:
            self._ended(Result(result.name, "stopped"))
        else:
            self.later.append((time.monotonic() + ASK_AGAIN, given.run))

    def _bereft(self, given: Given) -> None:
        """A run whose worker ended goes on elsewhere, unless that happens again and again without a new trial."""
        run = given.run
        lock = run.folder / locks.LOCK
        if lock.exists() and not locks.held(lock):  # a dead owner's: it had begun, and nobody is at work there still
            self.deaths[run] = 1 if len(records.journalled(run.folder)) > given.trials else self.deaths[run] + 1
            locks.remove_dead_lock(run.folder)  # so that the next one's is known
        else:
            self.unbegun[run] += 1
        if self.deaths[run] > self.options.retries or self.unbegun[run] > MOST_UNBEGUN:
            self._failed(run, self.cluster.died.format(times=self.deaths[run] or self.unbegun[run], seconds=time.monotonic() - given.since))
        elif self.asked_to_stop:
            self._ended(Result(run.name, "stopped"))
        else:
            self.waiting.append(run)

    def _failed(self, run: Run, message: str) -> None:
        with suppress(OSError, locks.Busy), locks.locked(run.folder):
            keep_failure(run, NotebookResult("died", message, again=True), None, self.options)
        self._ended(Result(run.name, "failed", 0.0, message))

    def _ended(self, result: Result) -> None:
        self.results.append(result)
        self.progress.ended(result)
        if result.state == "failed" and self.options.fail_fast and not self.asked_to_stop:
            self.progress.line("stopping at the first failure (--fail-fast), once the trials at work are finished")
            self._ask_to_stop()

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
