"""A study's states as a person reads them: method by shots, for each model and task."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from statistics import linear_regression, mean
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


class TimeLeft:
    """What trials took so far, and from that what the others will take: by what is most alike among those measured.

    A number of shots that was not measured is taken from a line through the same runs at other numbers of shots: 64 take longer than 2.
    """

    def __init__(self, statuses: list[Status]):
        self.measured: dict[tuple, list[float]] = {}
        self.shots: dict[tuple, list[tuple[int, float]]] = {}  # the same but for the shots: (shots, seconds) of every trial
        for status in statuses:
            for seconds in status.seconds:
                self.add(status.run, seconds)

    def add(self, run: Run, seconds: float) -> None:
        for key in self._keys(run):
            self.measured.setdefault(key, []).append(seconds)
        if isinstance(run.parameters.shots, int):  # 'all' has no place on a line
            self.shots.setdefault(self._but_for_shots(run), []).append((run.parameters.shots, seconds))

    def of(self, remaining: dict[Run, int], workers: int) -> float | None:
        """Seconds for so many trials of each run; None before anything was measured."""
        total = 0.0
        for run, trials in remaining.items():
            each = self._each(run) if trials else 0.0
            if each is None:
                return None
            total += trials * each
        return total / max(1, min(workers, sum(1 for trials in remaining.values() if trials)))

    def _each(self, run: Run) -> float | None:
        shots, measured = run.parameters.shots, self.shots.get(self._but_for_shots(run), [])
        numbers = {number for number, _ in measured}
        if isinstance(shots, int) and shots not in numbers and len(numbers) > 1:
            slope, at_none = linear_regression(*zip(*measured, strict=True))
            return max(at_none + slope * shots, min(seconds for _, seconds in measured))
        return next((mean(self.measured[key]) for key in self._keys(run) if key in self.measured), None)

    @staticmethod
    def _but_for_shots(run: Run) -> tuple:
        return (run.method, run.variant, run.parameters.model, run.parameters.task)

    @staticmethod
    def _keys(run: Run) -> list[tuple]:
        p = run.parameters
        return [(run.method, run.variant, p.model, p.task, p.shots), (run.method, p.model, p.task, p.shots), (p.model, p.task, p.shots),
                (p.model, p.task), (p.model,), ()]


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown until a trial is measured"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min" if hours else f"about {minutes} min" if minutes else "under a minute"


def as_json(study: Study, statuses: list[Status], workers: int) -> str:
    runs = [
        {"name": s.run.name, "method": s.run.method, "variant": s.run.variant, "model": s.run.parameters.model, "task": s.run.parameters.task,
         "shots": s.run.parameters.shots, "state": s.state, "finished": s.finished, "trials": s.wanted, "faults": s.faults,
         "by_another_notebook": s.by_another_notebook,
         "owner": s.owner or None, "failure": s.failure and s.failure["message"]}
        for s in statuses
    ]
    left = TimeLeft(statuses).of(remaining(statuses), workers)
    summary = {"study": study.name, "counts": counts(statuses), "trials": study.trials, "finished": sum(s.finished for s in statuses),
               "seconds_left": None if left is None else round(left), "workers": workers}
    return json.dumps({**summary, "runs": runs}, indent=1, ensure_ascii=False)


class Progress:
    """Follows a study on disk, where every worker writes, so that it sees the trials of any cluster."""

    def __init__(self, study: Study, statuses: list[Status], todo: list[Run], workers: int, tell: Callable[[str], None] = print):
        self.study, self.todo, self.workers, self.tell = study, todo, workers, tell
        self.time_left = TimeLeft(statuses)
        self.open = {status.run.name: status.run for status in statuses if status.run in set(todo)}
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
            scores = ", ".join(f"{key} {found['accuracy']:.3f}" for key, found in trial.get("sets", {}).items())
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


def print_status(study: Study, statuses: list[Status], workers: int) -> None:
    """The grid, what is wrong, and the time left. A cell: finished trials of those wanted, and the state unless it is done."""
    console = Console(highlight=False, soft_wrap=True)
    places: dict[tuple[str, str], list[Status]] = {}
    for status in statuses:
        places.setdefault((status.run.parameters.model, status.run.parameters.task), []).append(status)
    for (model, task), here in places.items():
        console.print(_table(f"{task}, {model}", here))
    for line in problems(statuses):
        console.print(line, markup=False)
    console.print(summary(study, statuses, workers), markup=False)


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


def summary(study: Study, statuses: list[Status], workers: int | None = None) -> str:
    """States and trials in a line; with `workers`, how long so many will take for the rest."""
    found = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    finished = sum(status.finished for status in statuses)
    wanted = sum(status.wanted for status in statuses)
    text = f"{study.name}: {len(statuses)} runs: {found}; {finished} of {wanted} trials"
    if workers and (left := remaining(statuses)):
        text += f"; time left with {workers} workers: {time_text(TimeLeft(statuses).of(left, workers))}"
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
