"""A study file -> runs, and which of them are done. Imports no torch: planning and status take no time.

    description: what the study asks
    set: {model: smollm2-135m, seeds: [0, 1, 2]}         # for every run
    vary: {task: [cola, mnli], shots: [2, 16]}           # one run for each combination
    methods:
      - method: vanilla
      - {method: lora, vary: {rank: [1, 8]}}             # its own settings and variations; they name the variant
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lowres import records
from lowres.errors import BadInput
from lowres.identity import identity
from lowres.parameters import METHODS, ROOT, Parameters, checked, defaults, located, read_yaml, shown, validated
from lowres.tasks import data_checksums, read_task

PLACE = ("model", "task", "shots")  # have a folder of their own, so they are no part of a variant's name


class Entry(BaseModel):
    """A method in a study, with its own settings."""

    model_config = ConfigDict(extra="forbid", strict=True)
    method: str
    set: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}


class StudyFile(BaseModel):
    """What a study file may say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    description: str
    set: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}
    methods: list[Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """One notebook to execute: a method, its parameters, and where the results go."""

    method: str
    variant: str
    parameters: Parameters

    @property
    def folder(self) -> Path:
        return located(self.parameters.output_dir)

    @property
    def name(self) -> str:
        return "/".join(self.folder.parts[-4:])

    def fingerprints(self) -> dict[int, str]:
        """By seed. Where the model's folder or the data are not at hand, what the record says of them is believed."""
        p = self.parameters
        task = read_task(p.task)
        recorded = (records.read_json(self.folder / "record.json") or {}).get("provenance", {})
        try:
            data = data_checksums(task, p.data_dir)
        except BadInput:
            data = recorded.get("data", {})
        backbone = identity(p.model) or recorded.get("model") or ""
        return {seed: records.fingerprint(self.method, p, seed, task, data, backbone) for seed in p.seeds}

    def state(self) -> str:
        """done, partial, stale or missing, by what is on disk alone."""
        wanted = self.fingerprints()
        record = records.read_json(self.folder / "record.json")
        found = {seed: records.read_trial(self.folder, seed, mark) for seed, mark in wanted.items()}
        if all(found.values()) and record and set(wanted.values()) <= set(record.get("fingerprints", [])):
            return "done"
        if any(found.values()):
            return "partial"
        return "stale" if record or any(self.folder.glob("trials/*.json")) else "missing"


@dataclass(frozen=True)
class Study:
    name: str
    path: Path
    description: str
    folder: Path
    runs: tuple[Run, ...]

    @property
    def trials(self) -> int:
        return sum(len(run.parameters.seeds) for run in self.runs)


def read_study(name: str, data_dir: str | None = None, outputs: str = "outputs") -> Study:
    """A study by its name in `parameters/studies/` or by its file's path, every run's parameters checked. Raises BadInput.

    `data_dir` takes the place of the study's for tasks that are not embedded; `outputs` is the folder for studies' results.
    """
    path = located(name) if name.endswith((".yaml", ".yml")) else ROOT / "parameters" / "studies" / f"{name}.yaml"
    file = checked(StudyFile, read_yaml(path), shown(path))
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem) or path.stem.startswith("."):
        raise BadInput(f"{shown(path)}: the file's name {path.stem!r} becomes a folder's: letters, digits, '_', '-' and '.' only")
    runs = [run for entry in file.methods for run in _expanded(path, file, entry, data_dir, located(outputs) / path.stem)]
    seen: dict[Path, Run] = {}
    for run in runs:
        if run.folder in seen:
            raise BadInput(f"{shown(path)}: methods: two runs would share the folder {shown(run.folder)}: let `vary` or `set` tell them apart")
        seen[run.folder] = run
    return Study(path.stem, path, file.description, located(outputs) / path.stem, tuple(runs))


def _expanded(path: Path, file: StudyFile, entry: Entry, data_dir: str | None, outputs: Path) -> list[Run]:
    where = f"{shown(path)}: {entry.method}"
    if entry.method not in METHODS:
        validated(entry.method, {}, shown(path))  # says which methods there are
    known = METHODS[entry.method].model_fields
    # A study-wide setting reaches the methods that have it; one that no method has is kept, so that it is refused by name.
    common = {key: value for key, value in file.set.items() if key in known or not _known_somewhere(key)}
    varied = {**{key: value for key, value in file.vary.items() if key in known or not _known_somewhere(key)}, **entry.vary}
    own = [key for key in (*entry.set, *varied) if key not in PLACE and key != "seeds"]
    runs = []
    for values in itertools.product(*varied.values()):
        chosen = {**entry.set, **dict(zip(varied, values))}
        asked = {**_defaults(entry.method), **common, **chosen}
        if data_dir is not None and not read_task(str(asked["task"])).embedded:
            asked["data_dir"] = data_dir
        variant = ",".join(f"{key}={_short(chosen[key])}" for key in dict.fromkeys(own))
        parameters = validated(entry.method, asked, where)
        folder = outputs / entry.method / _folder_name(parameters.model) / _folder_name(parameters.task)
        folder /= f"{parameters.shots}-shot" + (f"-{_folder_name(variant)}" if variant else "")
        runs.append(Run(entry.method, variant, parameters.model_copy(update={"output_dir": shown(folder)})))
    return runs


@lru_cache(maxsize=None)
def _defaults(method: str) -> dict[str, Any]:
    return defaults(method)


def _known_somewhere(key: str) -> bool:
    return any(key in schema.model_fields for schema in METHODS.values())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _folder_name(text: str) -> str:
    """'facebook/opt-125m@27dc' -> 'facebook_opt-125m@27dc'; no way out of the outputs folder."""
    stem = Path(text).stem if text.endswith((".yaml", ".yml")) else text
    return re.sub(r"[^A-Za-z0-9=,@._-]+", "_", stem).strip("._") or "unnamed"
