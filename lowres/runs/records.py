"""What a run leaves behind, written whole or not at all, and read back as tables.

A trial is two files: `trials/seed-3.parquet` with its predictions, then `trials/seed-3.json` with everything else and the
predictions' checksum. `record.json` comes last; without it nothing is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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
APART = ("compare", "compile")  # phases that are no part of a method's cost
TRAINING = ("adapt", "teach", "train")  # phases that make the model; the rest is evaluation
SCHEMA_VERSION = 1  # of the record's form
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
    return yaml.safe_dump(stored(parameters), sort_keys=False, allow_unicode=True)


def fingerprints(method: str, parameters: Parameters, seeds: Iterable[int], task: TaskFile, data: dict[str, str], backbone: str) -> dict[int, str]:
    """Names trials, by seed, by all that changes their results: parameters, seed, task file, data, weights, RESULTS_VERSION."""
    content = {
        "method": method, "parameters": parameters.model_dump(exclude=WHEREABOUTS | NAMES), "task": _content(task),
        "data": data, "backbone": backbone, "results_version": RESULTS_VERSION,
    }
    common = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    marks = {}
    for seed in seeds:
        digest = common.copy()
        digest.update(f"seed {seed}".encode())
        marks[seed] = digest.hexdigest()[:24]
    return marks


def fingerprint(method: str, parameters: Parameters, seed: int, task: TaskFile, data: dict[str, str], backbone: str) -> str:
    """One trial's."""
    return fingerprints(method, parameters, [seed], task, data, backbone)[seed]


def _content(task: TaskFile) -> str:
    """A task file's checksum, with those of the tasks evaluated besides. Computed once: a study has a few tasks and thousands of runs."""
    if id(task) not in _contents:  # the task is kept with it, so that its id stays its own
        content = task.model_dump(exclude={"description", "show_rows"})
        for rows in content["evaluation"].values():
            rows["task"] = rows["task"] and _content(read_task(rows["task"]))
        _contents[id(task)] = (task, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
    return _contents[id(task)][1]


_contents: dict[int, tuple[TaskFile, str]] = {}


def write_trial(folder: Path, trial: dict[str, Any], predictions: pd.DataFrame) -> None:
    import io

    buffer = io.BytesIO()
    predictions.to_parquet(buffer, index=False, compression="zstd")
    place = folder / "trials" / f"seed-{trial['seed']}"
    write_whole(place.with_suffix(".parquet"), buffer.getvalue())
    write_json(place.with_suffix(".json"), {**trial, "predictions_sha256": hashlib.sha256(buffer.getvalue()).hexdigest()})


def read_trial(folder: Path, seed: int, expected: str | None = None) -> dict[str, Any] | None:
    """A finished trial, or None if it is missing, cut short, of another fingerprint, or not that of its predictions."""
    trial = read_json(folder / "trials" / f"seed-{seed}.json")
    if not trial or trial.get("seed") != seed or (expected and trial.get("fingerprint") != expected):
        return None
    try:
        content = (folder / "trials" / f"seed-{seed}.parquet").read_bytes()
    except OSError:
        return None
    return trial if hashlib.sha256(content).hexdigest() == trial.get("predictions_sha256") else None


def put_trial_aside(folder: Path, seed: int) -> None:
    """Moves a trial that does not count (other parameters, damaged), and its adapter, to `aside/`, so that nothing is overwritten."""
    for file in [*(folder / "trials").glob(f"seed-{seed}.*"), *(folder / "adapters").glob(f"seed-{seed}")]:
        made = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S")
        (folder / "aside").mkdir(exist_ok=True)
        file.rename(folder / "aside" / f"{'adapter-' if file.is_dir() else ''}{file.stem}.{made}{file.suffix}")


def read_record(folder: Path) -> dict[str, Any] | None:
    """A run's record, or None. Raises BadInput for one of another schema."""
    record = read_json(folder / "record.json")
    if record and record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise BadInput(f"{shown(folder / 'record.json')}: schema_version: {found!r}, not {SCHEMA_VERSION}: made by another version of lowres")
    return record


def read_predictions(folder: Path) -> pd.DataFrame:
    """The predictions of all of a run's trials."""
    import pandas as pd

    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("trials/seed-*.parquet"))], ignore_index=True)


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


def as_table(record: dict[str, Any], **labels: Any) -> pd.DataFrame:
    """One line a trial and evaluation set: what was measured, and the `labels` given."""
    import pandas as pd

    lines = []
    for trial in record["trials"]:
        for name, found in trial["sets"].items():
            lines.append({
                **labels, "seed": trial["seed"], "set": name, **{key: value for key, value in found.items() if key != "by"},
                "seconds": seconds_of(trial), "memory": peak_memory(trial),
                "trainable": trial["trainable"], "outcome": trial["outcome_sha256"], "final_loss": (trial["losses"] or [float("nan")])[-1],
            })
    return pd.DataFrame(lines)
