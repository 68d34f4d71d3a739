"""What chaos does to a study, what is looked at afterwards, and the table at the end: a line a fault."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import pandas as pd
import psutil
from stand_ins import eventually, family, kernels, left_over, lives, nothing_is_left, workers

from lowres import files, locks
from lowres.runs import records
from lowres.runs.status import all_statuses
from lowres.runs.study import Study

SHORTLY = 1.5  # seconds: a fault comes within these, once a runner has come as far as was drawn
VICTIMS = {"kernel": kernels, "worker": workers}
# Of records: times and memory; the environment holds the host; and somebody may commit while the test runs.
VARYING = {"seconds", "load_seconds", "memory", "start", "end", "commit", "dirty", "environment", "output_dir"}


@dataclass
class Toll:
    """What a fault, so many times, cost the studies that it befell."""

    fault: str
    times: int = 0
    finished: int = 0  # trials, in the end
    lost: int = 0  # of those that were finished when a fault came
    twice: int = 0  # of the same: run again
    left: int = 0  # files, in temporary folders and hidden in outputs
    equal: str = "-"  # the results to those of a study that was left in peace
    before: dict[str, dict] = field(default_factory=dict, repr=False)

    def look(self, study: Study) -> None:
        """What was finished when this was asked last must be there still, and the same."""
        now = kept(study)
        missing = [name for name in self.before if name not in now]
        again = [name for name, trial in self.before.items() if name in now and now[name] != trial]
        self.lost, self.twice, self.before = self.lost + len(missing), self.twice + len(again), now
        assert not missing, f"these were finished, and are gone: {missing}"
        assert not again, f"these were finished, and are others now: {again}"

    def end(self, study: Study, temporary: Path, processes: Iterable[psutil.Process] = ()) -> None:
        """Of a study that must be done now, with nothing left over."""
        self.look(study)
        assert {status.state for status in all_statuses(study)} == {"done"}
        eventually(lambda: not any(map(lives, processes)), "the processes to end")
        self.left += len(left_over(study, temporary))
        nothing_is_left(study, temporary, processes)
        self.finished, self.before = self.finished + len(self.before), {}

    def compare(self, study: Study, calm: Study, whole: bool = True) -> None:
        self.equal = "no"
        same_results(study, calm, whole)
        self.equal = "yes"


def table(tolls: list[Toll]) -> list[str]:
    """Of the tests that ran: a line a fault."""
    names = [one.name for one in fields(Toll)[:-1]]
    rows = [names, *([str(getattr(toll, name)) for name in names] for toll in tolls)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]) for row in rows]


def same_results(study: Study, calm: Study, whole: bool = True) -> None:
    """The same predictions, and with `whole` the same records too, but for what varies."""
    for run, other in zip(study.runs, calm.runs, strict=True):
        pd.testing.assert_frame_equal(records.read_predictions(run.folder), records.read_predictions(other.folder))
        ours, theirs = (files.read_json(one.folder / "record.json") for one in (run, other))
        assert not whole or without_what_varies(ours) == without_what_varies(theirs)
        for part in ("threads", "precision") if whole else ():
            assert ours["environment"][part] == theirs["environment"][part]


def kept(study: Study) -> dict[str, dict]:
    """Every finished trial, by its run and seed."""
    return {f"{run.name} {seed}": trial for run in study.runs for seed, trial in records.read_trials(run.folder)[0].items()}


def without_what_varies(content):
    if isinstance(content, dict):
        return {key: without_what_varies(value) for key, value in content.items() if key not in VARYING}
    return [without_what_varies(value) for value in content] if isinstance(content, list) else content


def stages(study: Study, runner: subprocess.Popen) -> dict[str, Callable[[], object]]:
    """How to tell how far a runner has come that was just started."""
    def journal() -> set:
        return {(run, seed) for run in study.runs for seed in records.journalled(run.folder)}

    there = journal()
    return {
        "it was started": lambda: True,
        "it has workers": lambda: workers(runner),
        "a run is at work": lambda: any(locks.held(run.folder / locks.LOCK) for run in study.runs),
        "it has kept a trial": lambda: journal() - there,
    }


def wait_for(runner: subprocess.Popen, reached: Callable[[], object]) -> None:
    """Until it has come so far, or has ended."""
    eventually(lambda: runner.poll() is not None or reached(), "the runner to come so far")


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def kill_runners(start: Callable[[], subprocess.Popen], study: Study, toll: Toll, chance: random.Random, times: int) -> set[psutil.Process]:
    """Starts a runner again and again and kills it, so many times or until the study is done. Returns who must die with them."""
    relatives = set()
    for _ in range(times):
        runner = start()
        wait_for(runner, chance.choice(list(stages(study, runner).values())))
        time.sleep(chance.uniform(0, SHORTLY))
        if runner.poll() is not None:
            break
        relatives |= set(family(runner))
        runner.kill()
        toll.times += 1
        runner.wait()
        runner.stdout.close()  # its workers may hold the other end for a while
        toll.look(study)
    return relatives


def kill_relatives(runner: subprocess.Popen, victim: str, study: Study, toll: Toll, chance: random.Random, times: int) -> set[psutil.Process]:
    """A runner's kernels or workers, so many times or until it is done. It must end well."""
    relatives, killed = set(), 0
    while killed < times:
        wait_for(runner, lambda: VICTIMS[victim](runner))
        time.sleep(chance.uniform(0, SHORTLY))
        if runner.poll() is not None:
            break
        relatives |= set(family(runner))
        if found := sorted(VICTIMS[victim](runner), key=lambda process: process.pid):
            kill(chance.choice(found))
            killed += 1
            toll.look(study)
    toll.times += killed
    said, _ = runner.communicate(timeout=900)
    assert runner.returncode == 0, said
    return relatives


def interrupt(runner: subprocess.Popen, reached: Callable[[], object], study: Study, temporary: Path, toll: Toll) -> str:
    """Ctrl-C, which reaches every process of a terminal, once a runner has come so far; returns what it said."""
    wait_for(runner, reached)
    relatives = family(runner)
    os.killpg(runner.pid, signal.SIGINT)
    toll.times += 1
    said, _ = runner.communicate(timeout=300)
    assert runner.returncode == 130 and "Traceback" not in said, said
    nothing_is_left(study, temporary, relatives)
    toll.look(study)
    return said
