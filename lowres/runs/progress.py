"""A study's states as a person reads them: method by shots, for each model and task."""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowres import locks
from lowres.files import without_secrets
from lowres.runs import records
from lowres.runs.status import STATES, Status, counts, remaining
from lowres.runs.study import Run, Study

if TYPE_CHECKING:
    from lowres.runs.execute import Result  # with papermill and Jupyter behind it, for which `lowres status` need not wait


Expected = dict[str, tuple[float, float]]  # by run's name: seconds a trial, and how many of these its trials share
START = 8.0  # seconds until a run's first trial begins: a kernel, libraries, model and data


class TimeLeft:
    """What trials took so far, and from that what the others will take.

    `expected` was told beforehand (`estimate.expected`). A run that has trials is known by them; another by
    what was expected of it, times what trials of its method, or all, took of what was expected of them.
    """

    def __init__(self, statuses: list[Status], expected: Expected | None = None):
        self.expected = expected or {}
        self.took: dict[tuple, list[float]] = {}  # by what trials have in common: their seconds, how many, how many seconds were expected
        for status in statuses:
            for seconds in status.seconds:
                self.add(status.run, seconds)

    def add(self, run: Run, seconds: float) -> None:
        for key in self._alike(run):
            found = self.took.setdefault(key, [0.0, 0, 0.0])
            for i, more in enumerate((seconds, 1, self.expected.get(run.name, (0.0, 0.0))[0])):
                found[i] += more

    def of(self, remaining: dict[Run, int], workers: int) -> float | None:
        """Seconds for so many trials of each run, handed out in their order; None before anything was measured or expected."""
        ends = [0.0] * max(1, workers)
        for run, trials in remaining.items():
            if trials and (each := self._each(run)) is None:
                return None
            if trials:
                shared = each * _share(self.expected.get(run.name))
                heapq.heapreplace(ends, ends[0] + trials * each - (trials - 1) * shared + START)
        return max(ends)

    def _each(self, run: Run) -> float | None:
        own, *others = (self.took.get(key, [0.0, 0, 0.0]) for key in self._alike(run))
        if own[1] or run.name not in self.expected:
            return next((seconds / trials for seconds, trials, _ in (own, *others) if trials), None)
        return self.expected[run.name][0] * next((seconds / expected for seconds, _, expected in others if expected), 1.0)

    @staticmethod
    def _alike(run: Run) -> list[tuple]:
        return [(run.name,), (run.method, run.parameters.task), (run.method, ""), ()]


def _share(expected: tuple[float, float] | None) -> float:
    """Which part of a trial's seconds is spent once for all of a run's trials, though each record has it."""
    return expected[1] / expected[0] if expected and expected[0] else 0.0


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown until a trial is measured"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min" if hours else f"about {minutes} min" if minutes else "under a minute"


def as_json(study: Study, statuses: list[Status], workers: int, expected: Expected | None = None) -> str:
    runs = [
        {"name": s.run.name, "method": s.run.method, "variant": s.run.variant, "model": s.run.parameters.model, "task": s.run.parameters.task,
         "shots": s.run.parameters.shots, "state": s.state, "finished": s.finished, "trials": s.wanted, "faults": s.faults,
         "by_another_notebook": s.by_another_notebook,
         "owner": s.owner or None, "failure": s.failure and s.failure["message"]}
        for s in statuses
    ]
    left = TimeLeft(statuses, expected).of(remaining(statuses), workers)
    summary = {"study": study.name, "counts": counts(statuses), "trials": study.trials, "finished": sum(s.finished for s in statuses),
               "seconds_left": None if left is None else round(left), "workers": workers}
    return json.dumps({**summary, "runs": runs}, indent=1, ensure_ascii=False)


class Progress:
    """Follows a study on disk, where every worker writes, so that it sees the trials of any cluster."""

    def __init__(self, study: Study, statuses: list[Status], todo: list[Run], workers: int, tell: Callable[[str], None] = print,
                 expected: Expected | None = None):
        self.study, self.todo, self.workers, self.tell = study, todo, workers, tell
        self.time_left = TimeLeft(statuses, expected)
        asked = set(todo)
        self.open = {status.run.name: status.run for status in statuses if status.run in asked}
        self.remaining = {status.run: status.wanted - status.finished for status in statuses if status.run.name in self.open}
        self.total = len(todo)
        self.trials, self.trials_done = sum(self.remaining.values()), 0
        self.told = {status.run.name: set(status.counting) for status in statuses}
        self.at_work: dict[str, float] = {}
        self.failed: list[Result] = []
        self.done, self.looked = 0, 0.0
        self.begun = time.monotonic()
        self.live = Live(self._table(), console=Console(), refresh_per_second=2) if sys.stdout.isatty() else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()

    def line(self, text: str) -> None:
        """Into the log, and onto the screen where there is no table. A full disk does not stop the study for its log."""
        with suppress(OSError):
            self.study.folder.mkdir(parents=True, exist_ok=True)
            with (self.study.folder / "run.log").open("a", encoding="utf-8") as log:
                log.write(without_secrets(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {text}\n"))
        if not self.live:
            self.tell(text)

    def poll(self) -> None:
        """Looks for trials that have been finished since the last time, once a second."""
        if time.monotonic() < self.looked + 1:
            return
        self.looked = time.monotonic()
        for name, run in self.open.items():
            if (run.folder / locks.LOCK).exists():
                self.at_work.setdefault(name, time.monotonic())
                self._new_trials(run, records.journalled(run.folder))
            else:
                self.at_work.pop(name, None)
        if self.live:
            self.live.update(self._table())

    def ended(self, result: Result) -> None:
        """A run ended: its last trials, then itself if there is something to say."""
        run = self.open.pop(result.name)
        self.at_work.pop(result.name, None)
        self._new_trials(run, records.read_trials(run.folder)[0])
        if result.state in ("done", "failed"):
            self.remaining.pop(run)
        if result.state == "failed":
            self.failed.append(result)
            self.line(f"{result.name}: failed after {result.seconds:.0f} s: {result.message.splitlines()[0] if result.message else ''}")
        self.done += result.state == "done"

    def left(self) -> str:
        """The time left."""
        return time_text(self.time_left.of(self.remaining, self.workers))

    def _new_trials(self, run: Run, there: Iterable[int]) -> None:
        """Tells of trials that were not there when the study began. (A run that is redone had its stale ones put aside.)"""
        new = sorted(set(there) - self.told[run.name])
        trials = records.read_trials(run.folder)[0] if new else {}
        for seed in new:
            trial = trials.get(seed)
            if trial is None:
                continue
            self.told[run.name].add(seed)
            seconds = sum(trial.get("seconds", {}).values())
            self.time_left.add(run, seconds)
            self.trials_done += 1
            self.remaining[run] = max(0, self.remaining[run] - 1)
            scores = ", ".join(f"{key} {records.score(found):.3f}" for key, found in trial.get("sets", {}).items())
            so_far = f"{self.trials_done} of {self.trials} trials, {self.left()} left"
            self.line(f"{run.name} seed {trial['seed']}: {scores} in {seconds:.1f} s ({so_far})")

    def _table(self) -> Table:
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        title = (f"{self.study.name}: {self.done} of {self.total} runs, {self.trials_done} of {self.trials} trials"
                 f" in {minutes}:{seconds:02d}, {self.left()} left")
        table = Table(title=title, title_justify="left", caption_justify="left")
        table.add_column("at work", no_wrap=True, overflow="ellipsis")
        table.add_column("trials", no_wrap=True, justify="right", min_width=6)
        table.add_column("time", no_wrap=True, justify="right", min_width=6)
        for name, since in list(self.at_work.items())[:20]:
            run = self.open[name]
            wanted = len(run.parameters.seeds)
            table.add_row(name, f"{wanted - self.remaining.get(run, 0)}/{wanted}", f"{time.monotonic() - since:.0f} s")
        for result in self.failed[-5:]:
            text = Text(f"{result.name}: {(result.message.splitlines() or [''])[0]}", style="red")
            table.add_row(text, "failed", f"{result.seconds:.0f} s")
        return table


COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stale": "magenta", "partial": "yellow", "missing": "dim"}
MOST_FAULTS = 20
MOST_CELLS = 2000  # of tables that are printed


def print_status(study: Study, statuses: list[Status], workers: int, expected: Expected | None = None) -> None:
    """The grid, what is wrong, and the time left. A cell: finished trials of those wanted, and the state unless it is done."""
    console = Console(highlight=False, soft_wrap=True)
    for title, here in _places(statuses).items():
        console.print(_table(title, here))
    for line in problems(statuses):
        console.print(line, markup=False)
    console.print(summary(study, statuses, workers, expected), markup=False)


def _places(statuses: list[Status]) -> dict[str, list[Status]]:
    """A table's statuses by its title: one a model and task, or one of all where nobody would read so many."""
    places: dict[str, list[Status]] = {}
    for status in statuses:
        places.setdefault(f"{status.run.parameters.task}, {status.run.parameters.model}", []).append(status)
    if len(statuses) <= MOST_CELLS or len(places) == 1:
        return places
    return {f"{len(places)} tasks and models together; --only task=…,model=… shows one": statuses}


def problems(statuses: list[Status]) -> list[str]:
    """A line for each failure, damaged file and run at work elsewhere."""
    lines = []
    for status in statuses:
        if status.failure:
            lines.append(f"failed: {status.run.name}: {(status.failure['message'].splitlines() or [''])[0]}")
        elif status.owner:
            lines.append(f"running: {status.run.name}: {status.owner}")
        elif status.by_another_notebook and status.state == "done":
            lines.append(f"done by another notebook: {status.run.name}")
        elif status.state != "stale" and status.faults:
            lines.append(f"damaged, will be redone: {status.run.name}: {'; '.join(status.faults)}")
    return lines[:MOST_FAULTS] + ([f"… and {len(lines) - MOST_FAULTS} more"] if len(lines) > MOST_FAULTS else [])


def summary(study: Study, statuses: list[Status], workers: int | None = None, expected: Expected | None = None) -> str:
    """States and trials in a line; with `workers`, how long so many will take for the rest."""
    found = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    finished = sum(status.finished for status in statuses)
    wanted = sum(status.wanted for status in statuses)
    text = f"{study.name}: {len(statuses)} runs: {found}; {finished} of {wanted} trials"
    if workers and (left := remaining(statuses)):
        text += f"; time left with {workers} workers: {time_text(TimeLeft(statuses, expected).of(left, workers))}"
    return text


def _table(title: str, statuses: list[Status]) -> Table:
    table = Table(title=title, title_justify="left")
    shots = sorted({status.run.parameters.shots for status in statuses}, key=lambda count: (isinstance(count, str), count))
    rows: dict[str, dict[object, list[Status]]] = {}
    for status in statuses:
        rows.setdefault(f"{status.run.method} {status.run.variant}".strip(), {}).setdefault(status.run.parameters.shots, []).append(status)
    table.add_column("shots", overflow="fold")
    for count in shots:
        table.add_column(str(count), justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *(_cell(cells.get(count, [])) for count in shots))
    return table


def _cell(statuses: list[Status]) -> str:
    if not statuses:
        return ""
    worst = max((status.state for status in statuses), key=STATES.index)
    text = f"{sum(s.finished for s in statuses)}/{sum(s.wanted for s in statuses)}" + ("" if worst == "done" else f" {worst}")
    return f"[{COLOURS[worst]}]{text}[/]"
