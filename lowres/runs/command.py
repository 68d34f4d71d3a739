"""What `lowres run` does, from a study's name to its last line: what there is to execute, in which order, and what came of it."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from lowres import locks
from lowres.files import BadInput, shown
from lowres.models.identity import identity
from lowres.runs.progress import Expected, problems, summary
from lowres.runs.status import Status, all_statuses, counts, remaining
from lowres.runs.study import Run, Study, read_study, select

if TYPE_CHECKING:
    from lowres.runs.execute import Options  # with papermill and Jupyter behind it, for which `lowres status` need not wait

ALL_DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130


def run_command(name: str, options: Options, data_dir: str | None = None, outputs: str = "outputs", only: str = "", dry_run: bool = False) -> int:
    """Executes what is left of a study, or of a part of it, then the analysis. Returns the exit code. Raises BadInput before anything is written."""
    whole = read_study(name, data_dir, outputs)
    study = select(whole, only)
    statuses = all_statuses(study)
    todo = chosen(statuses, options.rerun)
    said, expected = [], {}
    if todo and not dry_run:  # before anything is written: bad input is one sentence
        from lowres.runs.cluster import default_workers, forking
        from lowres.runs.process import elsewhere

        if options.here:
            forking(options.workers or default_workers(), start=True)
            hub = sorted(name for name in {run.parameters.model for run in todo} if (identity(name) or "").startswith("hub:"))
            if hub and sys.stdout.isatty():
                print(f"weights of {', '.join(hub)}: what is not here yet is fetched first", flush=True)
        left = remaining(statuses)
        wanted = {run: left[run] for run in todo}
        said, expected = elsewhere("lowres.runs.estimate:before_start", replace(study, runs=tuple(todo)), wanted, options.workers, options.here)
        todo = in_good_order(todo, {run: trials * expected.get(run.name, (0.0, 0.0))[0] for run, trials in wanted.items()})
    states = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    for line in [*said, *problems(statuses), f"{study.name}: {len(study.runs)} runs ({study.trials} trials): {states}; {len(todo)} to execute"]:
        print(line)
    if dry_run:
        asked = set(todo)
        for status in statuses:
            if status.run in asked:
                print(f"would execute {status.run.name} ({status.state}, {status.finished} of {status.wanted} trials)")
        return ALL_DONE
    if not todo:
        locks.tidy(study.folder, (run.folder for run in study.runs))
    interrupted = _executed(study, statuses, todo, options, expected) if todo else False
    message = None if interrupted else _analysed(whole)
    code = _summed_up(study, all_statuses(study) if todo else statuses, message)
    if interrupted:
        again = command_again(name, options, data_dir=data_dir, outputs=outputs, only=only)
        print(f"Interrupted; nothing that was finished is lost. To continue: {again}")
    return INTERRUPTED if interrupted else code


def chosen(statuses: list[Status], rerun: frozenset[str]) -> list[Run]:
    """What is executed: all that is not done, but failed and stale runs only if asked (failures of the machine's making anyway)."""
    def wanted(status: Status) -> bool:
        if status.failure:
            return "failed" in rerun or bool(status.failure["again"])
        return status.state != "done" and (status.state != "stale" or "stale" in rerun)

    return [status.run for status in statuses if wanted(status)]


def in_good_order(todo: list[Run], seconds: dict[Run, float]) -> list[Run]:
    """The shortest run first, so that there is something to read soon; then the longest, so that no worker is left alone with one at the end."""
    first, *others = sorted(todo, key=lambda run: seconds[run])
    return [first, *sorted(others, key=lambda run: -seconds[run])]


def expected_of_the_unknown(statuses: list[Status], workers: int | None) -> Expected:
    """Of runs of which nothing is measured; of none, where their data or models are not at hand."""
    unknown = {run: trials for run, trials in remaining([status for status in statuses if not status.seconds]).items() if trials}
    if not unknown:
        return {}
    from lowres.runs.process import elsewhere  # with Jupyter behind it

    try:
        return elsewhere("lowres.runs.estimate:foretold", unknown, workers)[0]
    except BadInput:
        return {}


def _executed(study: Study, statuses: list[Status], todo: list[Run], options: Options, expected: Expected) -> bool:
    from lowres.runs.scheduling import run_study

    try:
        return run_study(study, statuses, todo, options, expected=expected).interrupted
    except ConnectionError as error:
        print(f"lowres: {error}", file=sys.stderr)
        return False


def _analysed(study: Study) -> str | None:
    from lowres.runs.execute import analyse

    return analyse(study, force=False) if any(run.folder.is_dir() for run in study.runs) else None


def command_again(name: str, options: Options, **where: str | None) -> str:
    """What is typed to go on with a study: with the data, the outputs and the part of it that were asked for."""
    default = {"outputs": "outputs"} | {field.name: field.default for field in fields(options)}
    asked = where | {key: getattr(options, key) for key in ("workers", "scheduler", "cluster")}
    words = [word for key, value in asked.items() if value and value != default.get(key) for word in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["lowres", "run", name, *words])


def _summed_up(study: Study, statuses: list[Status], message: str | None) -> int:
    states = Counter(status.state for status in statuses)
    for line in problems(statuses):
        print(line, file=sys.stderr)
    print(summary(study, statuses))
    if again := sum(1 for status in statuses if status.failure and status.failure["again"]):
        print(f"{again} runs failed by the machine's fault, not their own: the next lowres run tries them again", file=sys.stderr)
    if waiting := sum(1 for status in statuses if status.failure and not status.failure["again"]):
        print(f"{waiting} failed runs wait for --retry-failed; see {shown(study.folder)}/failed/", file=sys.stderr)
    if states["stale"]:
        print(f"{states['stale']} stale runs (other parameters, data, weights or code) wait for --rerun-stale; none is lost", file=sys.stderr)
    if message:
        print(f"analysis: failed: {message}", file=sys.stderr)
    return ALL_DONE if states["done"] == len(statuses) and not message else SOME_FAILED
