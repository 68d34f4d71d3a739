"""How far a study is, told by what is on disk alone, never by file times. Imports no torch and no pandas: it takes a moment.

    done      every trial is there, and the record and the notebook that show them
    running   a living process holds its lock
    failed    it was tried as it stands, and failed: what is left of it is under failed/
    stale     its results are of other parameters, data, weights or code
    partial   some trials are there, or something is damaged and will be redone
    missing   nothing is there
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowres import files, locks
from lowres.files import BadInput, located
from lowres.models.identity import weights
from lowres.parameters import Parameters
from lowres.runs import records
from lowres.runs.study import Run, Study
from lowres.tasks.load import data_checksums
from lowres.tasks.task_file import extended_task

NOTEBOOKS = "notebooks"  # relative to the project
STATES = ("done", "running", "failed", "stale", "partial", "missing")


@dataclass
class Status:
    """One run's state, how many of its trials count, what was found wrong, and what its trials took."""

    run: Run
    state: str
    finished: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    counting: list[int] = field(default_factory=list)  # seeds of trials that count: the others are put aside when the run is redone
    failure: dict[str, Any] | None = None
    owner: str = ""
    by_another_notebook: bool = False  # its record was made by other code than the method's notebook has now

    @property
    def wanted(self) -> int:
        return len(self.run.parameters.seeds)


class FingerprintInputs:
    """What the fingerprints of a study's runs are made of, looked up once: data checksums and the models' identities."""

    def __init__(self) -> None:
        self._data: dict[tuple[str, tuple[str, ...], str], dict[str, str] | None] = {}
        self._weights: dict[tuple[str, ...], str | None] = {}
        self._any_failed: bool | None = None
        self._code: dict[str, str] = {}

    def any_failed(self, run: Run) -> bool:
        """Whether the run's study has a folder of failures at all: most have none, and 10,000 runs would each look."""
        if self._any_failed is None:
            self._any_failed = failure_folder(run).parents[3].is_dir()
        return self._any_failed

    def data(self, task: str, also: tuple[str, ...], data_dir: str) -> dict[str, str] | None:
        """None where the files are not at hand."""
        key = (task, also, data_dir)
        if key not in self._data:
            try:
                self._data[key] = data_checksums(extended_task(task, also), data_dir)
            except BadInput:
                self._data[key] = None
        return self._data[key]

    def weights(self, parameters: Parameters) -> str | None:
        """None where a model's folder is not at hand."""
        key = (parameters.model, getattr(parameters, "teacher", ""), getattr(parameters, "predictions", ""))
        if key not in self._weights:
            self._weights[key] = weights(parameters)
        return self._weights[key]

    def code(self, notebook: str) -> str:
        if notebook not in self._code:
            self._code[notebook] = records.code_checksum(located(notebook))
        return self._code[notebook]

    def fingerprints(self, run: Run, seeds: list[int], record: dict[str, Any] | None) -> dict[int, str]:
        """By seed. Where the data or the model's folder are not at hand, what the record says of them is believed."""
        return self._with_data(run, seeds, record, self._data_or_recorded(run, run.parameters.data_dir, record))

    def _with_data(self, run: Run, seeds: list[int], record: dict[str, Any] | None, data: dict[str, str]) -> dict[int, str]:
        p = run.parameters
        model = self.weights(p) or (record or {}).get("provenance", {}).get("model") or ""
        return records.fingerprints(run.method, p, seeds, extended_task(p.task, tuple(p.also_evaluate)), data, model)

    def _data_or_recorded(self, run: Run, data_dir: str, record: dict[str, Any] | None) -> dict[str, str]:
        found = self.data(run.parameters.task, tuple(run.parameters.also_evaluate), data_dir)
        return (record or {}).get("provenance", {}).get("data", {}) if found is None else found

    def accepted(self, run: Run, seeds: list[int], record: dict[str, Any] | None) -> dict[int, set[str]]:
        """By seed, the fingerprints that count: the study's; and, where it names no data folder, those of a run that had one.

        So a study whose data came from a folder is known on another machine. Of a folder that is not at hand, the checksums that the
        task file declares are believed, or those of the record.
        """
        places = [run.parameters.data_dir] if run.parameters.data_dir else ["", "a folder that is not at hand"]
        every = [self._data_or_recorded(run, place, record) for place in places]
        known = [self._with_data(run, seeds, record, data) for i, data in enumerate(every) if data not in every[:i]]
        return {seed: {marks[seed] for marks in known} for seed in seeds}


def all_statuses(study: Study) -> list[Status]:
    facts = FingerprintInputs()
    return [status_of(run, facts) for run in study.runs]


def status_of(run: Run, facts: FingerprintInputs | None = None, mine: bool = False, notebooks: str = NOTEBOOKS) -> Status:
    """One run's state; `facts` are one study's; `mine`: its lock is held by this process, which asks what there is to do."""
    facts, found = facts or FingerprintInputs(), Status(run, "missing")
    failure = files.read_json(failure_folder(run) / "failure.json") if facts.any_failed(run) else None
    if not run.folder.is_dir():
        return _failed(found, failure, facts.fingerprints(run, run.parameters.seeds, None)) if failure else found
    record, trials, damaged = records.read_run(run.folder)
    if record is None and (run.folder / "record.json").exists():
        found.faults.append("record.json is empty or cut short")
    marks = facts.accepted(run, sorted({*run.parameters.seeds, *trials}), record)
    for seed, trial in sorted(trials.items()):
        if trial.get("fingerprint") not in marks[seed]:
            found.faults.append(f"seed {seed}: stale")
            continue
        found.counting.append(seed)
        if seed in run.parameters.seeds:
            found.finished += 1
            found.seconds.append(sum(trial.get("seconds", {}).values()))
    found.faults += [f"seed {seed}: {fault}" for seed, fault in sorted(damaged.items())]
    found.state = _state(found, [marks[seed] for seed in run.parameters.seeds], record, bool(trials or damaged))
    made_by = (record or {}).get("provenance", {}).get("code")
    found.by_another_notebook = bool(made_by) and made_by != facts.code(f"{notebooks}/{run.method}.ipynb")
    if not mine and (at_work := locks.owner(run.folder)):
        found.state, found.owner = "running", at_work
    return _failed(found, failure, facts.fingerprints(run, run.parameters.seeds, record)) if failure else found


def failure_folder(run: Run) -> Path:
    return run.folder.parents[3] / "failed" / run.name


def _failed(found: Status, failure: dict[str, Any], marks: dict[int, str]) -> Status:
    """A failure counts as long as what was tried then is what would be tried now: same fingerprints, same notebook."""
    if found.state in ("done", "running") or failure.get("fingerprints") != sorted(marks.values()):
        return found
    if failure.get("notebook_sha256") == records.file_checksum(located(failure.get("notebook", "")) / f"{found.run.method}.ipynb"):
        found.state, found.failure = "failed", failure
    return found


def _state(found: Status, wanted: list[set[str]], record: dict[str, Any] | None, trials_on_disk: bool) -> str:
    listed = set(record.get("fingerprints", [])) if record else set()
    if found.finished == found.wanted and all(marks & listed for marks in wanted) and os.path.isfile(f"{found.run.folder}/run.ipynb"):
        return "done"
    if any(fault.endswith(": stale") for fault in found.faults) or (record and not trials_on_disk and not set.union(*wanted) & listed):
        return "stale"
    return "partial" if found.finished or found.faults else "missing"


def counts(statuses: list[Status]) -> dict[str, int]:
    found = Counter(status.state for status in statuses)
    return {state: found[state] for state in STATES if found[state]}


def remaining(statuses: list[Status]) -> dict[Run, int]:
    return {status.run: status.wanted - status.finished for status in statuses if status.state != "done"}
