"""`lowres run`, from the order to the exit code: plan, classify, check, execute, analyse, sum up."""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from lowres.files import shown
from lowres.grid import problems, summary
from lowres.status import Status, classified, counts
from lowres.study import Run, Study, narrowed, read_study

ALL_DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line."""

    study: str
    data_dir: str | None = None
    outputs: str = "outputs"
    only: str = ""
    rerun: frozenset[str] = frozenset()
    workers: int | None = None
    scheduler: str | None = None
    dry_run: bool = False
    fail_fast: bool = False
    timeout: int | None = None
    retries: int = 2
    notebooks: str = "notebooks"


def carry_out(order: Order) -> int:
    """Returns the exit code. Raises BadInput before anything is written."""
    whole = read_study(order.study, order.data_dir, order.outputs)
    study = narrowed(whole, order.only)
    statuses = classified(study)
    todo = chosen(statuses, order.rerun)
    if todo and not order.dry_run:
        for warning in _check(replace(study, runs=tuple(todo))):  # before anything is written: bad input is one sentence
            print(warning)
    for line in problems(statuses):
        print(line)
    print(f"{study.name}: {len(study.runs)} runs ({study.trials} trials): {_listed(counts(statuses))}; {len(todo)} to execute")
    if order.dry_run:
        for status in statuses:
            if status.run in set(todo):
                print(f"would execute {status.run.name} ({status.state}, {status.finished} of {status.wanted} trials)")
        return ALL_DONE
    interrupted = _executed(order, study, statuses, todo) if todo else False
    message = None if interrupted else _analysed(whole, order)
    return _summed_up(study, classified(study), interrupted, message)


def chosen(statuses: list[Status], rerun: frozenset[str]) -> list[Run]:
    """What is executed: all that is not done, but failed and stale runs only if asked (failures of the machine's making anyway)."""
    def wanted(status: Status) -> bool:
        if status.failure:
            return "failed" in rerun or bool(status.failure["again"])
        return status.state != "done" and (status.state != "stale" or "stale" in rerun)

    return [status.run for status in statuses if wanted(status)]


def _executed(order: Order, study: Study, statuses: list[Status], todo: list[Run]) -> bool:
    from lowres.execution import Options
    from lowres.scheduling import run_study

    options = Options(timeout=order.timeout, retries=order.retries, rerun=order.rerun, notebooks=order.notebooks)
    try:
        return run_study(study, statuses, todo, options, order.workers, order.scheduler, order.fail_fast).interrupted
    except ConnectionError as error:
        print(f"lowres: {error}", file=sys.stderr)
        return False


def _check(study: Study) -> list[str]:
    """Data and tokenizers are read in a process of their own: the runner stays small while the study runs for days."""
    from lowres.checks import check_study

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(check_study, study).result()


def _analysed(study: Study, order: Order) -> str | None:
    from lowres.execution import analyse

    if not any(run.folder.is_dir() for run in study.runs):
        return None
    return analyse(study, force=False)


def _summed_up(study: Study, statuses: list[Status], interrupted: bool, message: str | None) -> int:
    states = Counter(status.state for status in statuses)
    for line in problems(statuses):
        print(line, file=sys.stderr)
    print(summary(study, statuses, 1).split("; time left")[0])
    if again := sum(1 for status in statuses if status.failure and status.failure["again"]):
        print(f"{again} runs failed by the machine's fault, not their own: the next lowres run tries them again", file=sys.stderr)
    if waiting := sum(1 for status in statuses if status.failure and not status.failure["again"]):
        print(f"{waiting} failed runs wait for --retry-failed; see {shown(study.folder)}/failed/", file=sys.stderr)
    if states["stale"]:
        print(f"{states['stale']} stale runs (other parameters, data, weights or code) wait for --rerun-stale; none is lost", file=sys.stderr)
    if message:
        print(f"analysis: failed: {message}", file=sys.stderr)
    if interrupted:
        print(f"Interrupted; nothing that was finished is lost. To continue: lowres run {study.name}")
        return INTERRUPTED
    if (study.folder / "analysis.ipynb").is_file():
        folder = shown(study.folder)
        print(f"Read {folder}/analysis.ipynb first, then any run.ipynb in {folder}/<method>/ (in JupyterLab: make lab)")
    return ALL_DONE if states["done"] == len(statuses) and not message else SOME_FAILED


def _listed(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in found.items())
