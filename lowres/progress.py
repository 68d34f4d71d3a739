"""What a person sees of a study at work: one live table in a terminal, and a log with a line a finished trial."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowres import records, scratch
from lowres.cleaning import without_secrets
from lowres.execution import Result
from lowres.status import Status, TimeLeft, time_text
from lowres.study import Run, Study


class Progress:
    """Follows a study on disk, where every worker writes, so that it sees the trials of any cluster."""

    def __init__(self, study: Study, statuses: list[Status], todo: list[Run], workers: int, tell: Callable[[str], None] = print):
        self.study, self.todo, self.workers, self.tell = study, todo, workers, tell
        self.time_left = TimeLeft(statuses)
        self.open = {status.run.name: status.run for status in statuses if status.run in set(todo)}
        self.remaining = {status.run: status.wanted - status.finished for status in statuses if status.run.name in self.open}
        self.total = len(todo)
        self.trials, self.trials_done = sum(self.remaining.values()), 0
        self.seen = {run.name: _trial_files(run) for run in todo}
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
            if (run.folder / scratch.LOCK).exists():
                self.at_work.setdefault(name, time.monotonic())
                self._new_trials(run)
            else:
                self.at_work.pop(name, None)
        if self.live:
            self.live.update(self._table())

    def ended(self, result: Result) -> None:
        """A run ended: its last trials, then itself if there is something to say."""
        run = self.open.pop(result.name)
        self.at_work.pop(result.name, None)
        self._new_trials(run)
        if result.state in ("done", "failed"):
            self.remaining.pop(run)
        if result.state == "failed":
            self.failed.append(result)
            self.line(f"{result.name}: failed after {result.seconds:.0f} s: {result.message.splitlines()[0] if result.message else ''}")
        self.done += result.state == "done"

    def left(self) -> str:
        """The time left."""
        return time_text(self.time_left.of(self.remaining, self.workers))

    def _new_trials(self, run: Run) -> None:
        for name, inode in sorted(_trial_files(run) - self.seen[run.name]):
            trial = records.read_json(run.folder / "trials" / name)
            if trial is None:
                continue
            self.seen[run.name].add((name, inode))
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


def _trial_files(run: Run) -> set[tuple[str, int]]:
    """By name and inode: a trial that is done anew is another file of the same name."""
    try:
        entries = list(os.scandir(run.folder / "trials"))
    except OSError:
        return set()
    return {(entry.name, entry.inode()) for entry in entries if entry.name.startswith("seed-") and entry.name.endswith(".json")}
