"""What a run leaves behind, written whole or not at all, and read back as tables.

A finished run is four files: `run.ipynb`, `parameters.yaml`, `predictions.parquet` and `record.json`, which holds every trial once. While it
runs, a finished trial is kept at once in the journal: `trials/seed-3.parquet` with its predictions, then `trials/seed-3.json` with all else.
`merge` makes the record of the journal, the record last; without it nothing is done.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lowres.files import BadInput, located, read_json, shown, write_json, write_whole
from lowres.parameters import WHEREABOUTS, Parameters
from lowres.tasks.task_file import TaskFile, read_task

if TYPE_CHECKING:
    import pandas as pd


NAMES = {"model", "task", "teacher", "also_evaluate"}  # stand in a fingerprint by what they name: weights and task files
LATER = {"word_score", "uneven", "class_weights", "choose"}  # parameters that trials of before do not have
APART = ("compare", "compile")  # phases that are no part of a method's cost
TRAINING = ("choose", "adapt", "teach", "train")  # phases that make the model; the rest is evaluation
METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "f1": "F1", "entity_f1": "entity F1"}  # what scores are called
SCHEMA_VERSION = 2  # of the record's form
JOURNAL, PREDICTIONS = "trials", "predictions.parquet"
RUN_FILES = ("run.ipynb", "parameters.yaml", "record.json")
FILE = "file_sha256"  # in the journal: of a trial's predictions as they lie there
RESULTS_VERSION = 2  # raise by hand whenever numbers change: a golden test fails when they did and this was not


def stored(parameters: Parameters) -> dict[str, Any]:
    """Parameters as they are kept: paths relative to the project, no home folder."""
    values = parameters.model_dump()
    for key in ("data_dir", "output_dir"):
        values[key] = values[key] and shown(located(values[key]))
    for key in ("model", "task", "teacher"):
        if values.get(key) and located(values[key]).exists():
            values[key] = shown(located(values[key]))
    return values


def as_yaml(parameters: Parameters) -> str:
    """What plain papermill needs to repeat a run. Not where it went: there, finished trials would be read back."""
    kept = {key: value for key, value in stored(parameters).items() if key != "output_dir"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def fingerprints(method: str, parameters: Parameters, seeds: Iterable[int], task: TaskFile, data: dict[str, str], backbone: str) -> dict[int, str]:
    """Names trials, by seed, by all that changes their results: parameters, seed, task file, data, weights, RESULTS_VERSION."""
    content = {
        "method": method, "parameters": _asked(parameters), "task": _content(task),
        "data": data, "backbone": backbone, "results_version": RESULTS_VERSION,
    }
    common = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    marks = {}
    for seed in seeds:
        digest = common.copy()
        digest.update(f"seed {seed}".encode())
        marks[seed] = digest.hexdigest()[:24]
    return marks


def _asked(parameters: Parameters) -> dict[str, Any]:
    """All that changes results. What came later is told only where it is not as it always was, so that older trials stay what they are."""
    usual = {key for key in LATER & set(type(parameters).model_fields) if getattr(parameters, key) == type(parameters).model_fields[key].default}
    return parameters.model_dump(exclude=WHEREABOUTS | NAMES | usual)


def fingerprint(method: str, parameters: Parameters, seed: int, task: TaskFile, data: dict[str, str], backbone: str) -> str:
    """One trial's."""
    return fingerprints(method, parameters, [seed], task, data, backbone)[seed]


def _content(task: TaskFile) -> str:
    """A task file's checksum, with those of the tasks evaluated besides. Computed once: a study has a few tasks and thousands of runs."""
    if id(task) not in _contents:  # the task is kept with it, so that its id stays its own
        content = task.model_dump(exclude={"description", "show_rows", "folder", "split"})  # the split's content is among the data
        for rows in content["evaluation"].values():
            rows["task"] = rows["task"] and _content(read_task(rows["task"]))
        for rows in (content["pool"], *content["evaluation"].values()):
            _without(rows, {"part": "", "where": {}})
        if content["unlabelled"]:
            _without(content["unlabelled"], {"where": {}})
        _without(content, {"unlabelled": None, "kind": "classification", "separator": "|", "questions": {}, "choices": [], "right": "", "passage": "",
                           "start": "", "longest": 10, "unanswerable": "", "scale": False})
        _contents[id(task)] = (task, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
    return _contents[id(task)][1]


_contents: dict[int, tuple[TaskFile, str]] = {}


def _without(content: dict[str, Any], usual: dict[str, Any]) -> None:
    """Takes out what older task files do not have, where it is as it always was."""
    for key, value in usual.items():
        if content[key] == value:
            del content[key]


def write_trial(folder: Path, trial: dict[str, Any], predictions: pd.DataFrame) -> dict[str, Any]:
    """Keeps a finished trial in the journal. Returns it as it will stand in the record."""
    content, place = _parquet(predictions), folder / JOURNAL / f"seed-{trial['seed']}"
    trial = {**trial, "predictions_sha256": content_checksum(predictions)}
    write_whole(place.with_suffix(".parquet"), content)
    write_json(place.with_suffix(".json"), {**trial, FILE: hashlib.sha256(content).hexdigest()})
    return trial


def _parquet(predictions: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    predictions.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def content_checksum(predictions: pd.DataFrame) -> str:
    """SHA-256 over what one trial predicted, row by row, whichever file it lies in."""
    digest = hashlib.sha256()
    for name in predictions:
        column = predictions[name]
        if column.dtype.kind in "iu":  # whole numbers are the same however many bytes they were kept in
            column = column.astype("int64")
        numbers = column.dtype.kind in "if"
        digest.update(name.encode() + (column.to_numpy().tobytes() if numbers else "\0".join(column).encode()))
    return digest.hexdigest()


def read_trials(folder: Path | str) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """A run's finished trials by seed, from its record and the journal, in which newer ones stand; and by seed what is wrong with others.

    A trial counts if its predictions are whole. Loads no parquet, but where a record and its predictions do not belong together.
    """
    return read_run(folder)[1:]


def read_run(folder: Path | str) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]], dict[int, str]]:
    """A run's record (None without one that can be read), and what `read_trials` gives; a study of 10,000 runs reads each record once."""
    newer, damaged = _journal(folder)  # first: a merge that happens meanwhile has them in the record before they leave the journal
    record, trials, faults = _recorded(folder)
    trials |= newer
    return record, trials, {seed: fault for seed, fault in {**faults, **damaged}.items() if seed not in trials}


def _journal(folder: Path | str) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    trials, faults = {}, {}
    for seed in journalled(folder):
        place = f"{folder}/{JOURNAL}/seed-{seed}"
        trial = read_json(f"{place}.json")
        if trial is None or trial.get("seed") != seed:
            faults[seed] = "the trial's file is empty, cut short or another's"
        elif (found := file_checksum(f"{place}.parquet")) != trial.pop(FILE, None):
            faults[seed] = "the predictions are not this trial's" if found else "the predictions are missing"
        else:
            trials[seed] = trial
    return trials, faults


def _recorded(folder: Path | str) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]], dict[int, str]]:
    record = read_json(f"{folder}/record.json")
    if not record or record.get("schema_version") != SCHEMA_VERSION or not record.get("trials"):
        return record, {}, {}
    listed = {trial["seed"]: trial for trial in record["trials"]}
    found = file_checksum(f"{folder}/{PREDICTIONS}")
    if found == record.get("predictions_sha256"):
        return record, listed, {}
    if not found:
        return record, {}, dict.fromkeys(listed, "the predictions are missing")
    # A merge was killed between the two files, or one is damaged: each trial is held against its own predictions.
    try:
        parts = {seed: content_checksum(part) for seed, part in _by_trial(f"{folder}/{PREDICTIONS}").items()}
    except (OSError, ValueError):
        parts = {}
    whole = {seed: trial for seed, trial in listed.items() if parts.get(seed) == trial.get("predictions_sha256")}
    return record, whole, dict.fromkeys(set(listed) - set(whole), "the predictions are not this trial's")


def _by_trial(file: Path | str) -> dict[int, pd.DataFrame]:
    import pandas as pd

    return {int(seed): part.reset_index(drop=True) for seed, part in pd.read_parquet(file).groupby("trial", sort=False)}


def journalled(folder: Path | str) -> list[int]:
    """The seeds that have a file in the journal."""
    try:
        names = [entry.name for entry in os.scandir(f"{folder}/{JOURNAL}")]
    except OSError:
        return []
    return sorted(int(name[5:-5]) for name in names if name.startswith("seed-") and name.endswith(".json") and name[5:-5].isdigit())


def read_trial(folder: Path, seed: int, expected: str | None = None) -> dict[str, Any] | None:
    """A finished trial, or None if it is missing, damaged or of another fingerprint."""
    trial = read_trials(folder)[0].get(seed)
    return trial if trial and expected in (None, trial.get("fingerprint")) else None


def read_predictions(folder: Path) -> pd.DataFrame:
    """The predictions of all of a run's trials that count, by trial."""
    import pandas as pd

    newer = {}
    for seed in _journal(folder)[0]:  # first, as for trials: what a merge takes away meanwhile stands beside the record by then
        with suppress(FileNotFoundError):
            newer[seed] = pd.read_parquet(folder / JOURNAL / f"seed-{seed}.parquet")
    recorded = _recorded(folder)[1]
    parts = {seed: part for seed, part in _by_trial(folder / PREDICTIONS).items() if seed in recorded} if recorded else {}
    parts |= newer
    return pd.concat([parts[seed] for seed in sorted(parts)], ignore_index=True) if parts else pd.DataFrame()


def merge(folder: Path, record: dict[str, Any]) -> None:
    """Makes a run's record and predictions of what it has and the journal, which goes then. To be called by the lock's owner.

    `record` lacks its trials' other seeds, which are kept, and the predictions' checksum. Killed at any point, nothing is lost: the journal
    stays until the record is there, and each trial is known by its own predictions.
    """
    trials = read_trials(folder)[0]
    first = [trial["seed"] for trial in record["trials"]]
    order = [*first, *sorted(set(trials) - set(first))]
    content = _parquet(read_predictions(folder))
    write_whole(folder / PREDICTIONS, content)
    kept = [trials[seed] for seed in order]
    write_json(folder / "record.json", {**record, "fingerprints": [trial["fingerprint"] for trial in kept], "trials": kept,
                                        "predictions_sha256": hashlib.sha256(content).hexdigest()})
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def put_aside(folder: Path, keep: Iterable[int]) -> Path | None:
    """Moves what does not count any more to `aside/<time>/`, so that nothing is overwritten; the trials to `keep` stay, in the journal.

    To be called by the lock's owner. Returns where it went; None if there was nothing to move.
    """
    keep, journal = set(keep), set(journalled(folder))
    rest = sorted(journal - keep)
    if not rest and not any((folder / name).exists() for name in (*RUN_FILES, PREDICTIONS)):
        return None
    recorded = {seed: trial for seed, trial in _recorded(folder)[1].items() if seed in keep - journal}
    parts = _by_trial(folder / PREDICTIONS) if recorded else {}
    for seed, trial in recorded.items():
        write_trial(folder, trial, parts[seed])
    aside = folder / "aside" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    adapters = [place for place in folder.glob("adapters/seed-*") if int(place.name[5:]) not in keep]
    moved = [folder / JOURNAL / f"seed-{seed}.{form}" for seed in rest for form in ("json", "parquet")]
    for path in [*moved, *adapters, folder / PREDICTIONS, *(folder / name for name in RUN_FILES)]:  # the record last
        if path.exists():
            target = aside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return aside


def code_checksum(notebook: Path | str) -> str:
    """What a notebook does, in 16 hexadecimal digits: its code but for the parameters, whatever its prose and outputs. '' if there is none."""
    content = read_json(notebook)
    if content is None:
        return ""
    cells = [cell for cell in content.get("cells", []) if cell.get("cell_type") == "code"
             and not {"parameters", "injected-parameters"} & set(cell.get("metadata", {}).get("tags", []))]
    sources = [source if isinstance(source := cell.get("source", ""), str) else "".join(source) for cell in cells]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def file_checksum(path: Path | str) -> str:
    """SHA-256 of a file; '' if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return ""


def read_record(folder: Path) -> dict[str, Any] | None:
    """A run's record, or None. Raises BadInput for one of another schema."""
    record = read_json(folder / "record.json")
    refuse_other_schema(record, folder)
    return record


def refuse_other_schema(record: dict[str, Any] | None, folder: Path) -> None:
    if record and record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise BadInput(f"{shown(folder / 'record.json')}: schema_version: {found!r}, not {SCHEMA_VERSION}: made by another version of lowres")


def distinct(trials: list[dict[str, Any]]) -> int:
    """How many of the trials differ in their label logits: fewer than there are means copies, not trials."""
    return len({trial["outcome_sha256"] for trial in trials})


def peak_memory(trial: dict[str, Any]) -> float:
    """GB: with a GPU its own memory, which runs out first; otherwise the process's resident set."""
    return trial["memory"].get("gpu") or trial["memory"]["resident"]


def seconds_of(trial: dict[str, Any], phases: Iterable[str] = ()) -> float:
    """What a method's `phases` took (none named: all of them, but for what is APART)."""
    chosen = set(phases) or set(trial["seconds"]) - set(APART)
    return sum(value for phase, value in trial["seconds"].items() if phase in chosen)


def metric(found: dict[str, Any]) -> str:
    """What a set's answers are scored by first."""
    return METRICS[found.get("metric", "accuracy")]


def score(found: dict[str, Any]) -> float:
    return found[found.get("metric", "accuracy")]


def as_table(record: dict[str, Any], **labels: Any) -> pd.DataFrame:
    """One line a trial and evaluation set: what was measured, and the `labels` given."""
    import pandas as pd

    return pd.DataFrame([line for trial in record["trials"] for line in as_lines(trial, **labels)])


def as_lines(trial: dict[str, Any], **labels: Any) -> list[dict[str, Any]]:
    """The same of one trial, for those who make one table of many runs: a table a run takes ten times as long.

    `accuracy` has the score, whatever its name in `metric`; where there is no MCC, none is shown."""
    common = {"seconds": seconds_of(trial), "memory": peak_memory(trial), "trainable": trial["trainable"], "outcome": trial["outcome_sha256"],
              "final_loss": (trial["losses"] or [float("nan")])[-1]}
    return [{**labels, "seed": trial["seed"], "set": name, "mcc": float("nan"), **{key: value for key, value in found.items() if key != "by"},
             "accuracy": score(found), "metric": metric(found), **common} for name, found in trial["sets"].items()]
