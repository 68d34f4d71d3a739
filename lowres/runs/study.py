"""A study file -> runs, and which of them are done. Imports no torch: planning and status take no time.

    description: what the study asks
    defaults: {lora: {learning_rate: 2.0e-4}}            # a method's own settings that do not name a variant
    set: {model: smollm2-135m, seeds: [0, 1, 2]}         # for every run
    vary: {task: [cola, mnli], shots: [2, 16]}           # one run for each combination
    methods:
      - method: vanilla
      - {method: lora, vary: {rank: [1, 8]}}             # its own settings and variations; they name the variant
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lowres.files import ROOT, BadInput, checked, located, near, read_yaml, shown
from lowres.parameters import METHODS, Parameters, defaults, validated
from lowres.tasks.task_file import read_task

PLACE = ("model", "task", "shots")  # have a folder of their own, so they are no part of a variant's name


class Entry(BaseModel):
    """A method in a study, with its own settings. An `ablation` is shown beside the others, and has no say in answer, advice and claims."""

    model_config = ConfigDict(extra="forbid", strict=True)
    method: str
    set: dict[str, Any] = {}
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    ablation: bool = False


class StudyFile(BaseModel):
    """What a study file may say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    description: str
    defaults: dict[str, dict[str, Any]] = {}  # by method, in the place of parameters/methods/
    set: dict[str, Any] = {}
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    methods: list[Entry] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class Run:
    """One notebook to execute: a method, its parameters, of these the settings that the study tells it from the method's other runs by, and where the
    results go."""

    method: str
    settings: dict[str, Any]
    parameters: Parameters
    ablation: bool = False

    @cached_property
    def variant(self) -> str:
        return variant(self.settings)

    @cached_property
    def folder(self) -> Path:
        return located(self.parameters.output_dir)

    @cached_property
    def name(self) -> str:
        return "/".join(self.folder.parts[-4:])

    def __reduce__(self):  # to a worker goes what the run is, not where it stands on this host
        return Run, (self.method, self.settings, self.parameters, self.ablation)


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

    `data_dir` takes the place of the study's for tasks that do not bring their rows; `outputs` is the folder for studies' results.
    """
    path = located(name) if name.endswith((".yaml", ".yml")) else ROOT / "parameters" / "studies" / f"{name}.yaml"
    file = checked(StudyFile, read_yaml(path), shown(path))
    for method, given in file.defaults.items():  # what they come to with all the rest is checked with a run
        known = METHODS[method].model_fields.keys() - {"output_dir"} if method in METHODS else ()
        if wrong := next((key for key in given if key not in known), None) if known else method:
            what = f"parameter of {method}" if known else "method"
            raise BadInput(f"{shown(path)}: defaults: {wrong!r} is no {what}{near(wrong, known or METHODS)}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem) or path.stem.startswith("."):
        raise BadInput(f"{shown(path)}: the file's name {path.stem!r} becomes a folder's: letters, digits, '_', '-' and '.' only")
    if located(outputs).exists() and not located(outputs).is_dir():
        raise BadInput(f"--outputs: {shown(located(outputs))}: is a file, and a folder is wanted")
    runs = [run for entry in file.methods for run in _expanded(path, file, entry, data_dir, located(outputs) / path.stem)]
    if twice := next((name for name, count in Counter(run.name for run in runs).items() if count > 1), None):
        raise BadInput(f"{shown(path)}: methods: two runs would share the folder {twice}: let `vary` or `set` tell them apart")
    return Study(path.stem, path, file.description, located(outputs) / path.stem, tuple(runs))


def select(study: Study, only: str) -> Study:
    """The runs that `only` names: 'method=lora,task=cola'; a key that is given twice takes either. Raises BadInput."""
    wanted: dict[str, set[str]] = {}
    for part in filter(None, only.split(",")):
        key, sign, value = (text.strip() for text in part.partition("="))
        if not sign or not (key in ("method", "variant") or _known_somewhere(key)):
            raise BadInput(f"--only: {part!r}: key=value is wanted{near(key, {*PLACE, 'method', 'variant'})}")
        wanted.setdefault(key, set()).add(value)

    def fits(run: Run) -> bool:
        values = {"method": run.method, "variant": run.variant, **run.parameters.model_dump()}
        return all(key in values and any(_means(choice, values[key]) for choice in choices) for key, choices in wanted.items())

    runs = tuple(filter(fits, study.runs)) if wanted else study.runs
    if not runs:
        raise BadInput(f"--only: no run of {study.name} has {only}")
    return replace(study, runs=runs)


def _means(text: str, value: Any) -> bool:
    """Whether what was typed is this value: as a folder's name writes it, as Python does, or as a fraction may be written (1e-5, 0.00001)."""
    try:
        return text in (_short(value), str(value)) or (isinstance(value, float) and float(text) == value)
    except ValueError:
        return False


def _expanded(path: Path, file: StudyFile, entry: Entry, data_dir: str | None, outputs: Path) -> list[Run]:
    where, shown_outputs = f"{shown(path)}: {entry.method}", shown(outputs)
    if entry.method not in METHODS:
        validated(entry.method, {}, shown(path))  # says which methods there are
    known = METHODS[entry.method].model_fields
    # A study-wide setting reaches the methods that have it; one that no method has is kept, so that it is refused by name.
    if given := next((key for key in ("output_dir",) if key in {**file.set, **file.vary, **entry.set, **entry.vary}), None):
        raise BadInput(f"{where}: {given}: a study decides itself where its results go: give --outputs")
    common = {key: value for key, value in file.set.items() if key in known or not _known_somewhere(key)}
    varied = {**{key: value for key, value in file.vary.items() if key in known or not _known_somewhere(key)}, **entry.vary}
    own = [key for key in (*entry.set, *varied) if key not in PLACE and key != "seeds"]
    runs = []
    for values in itertools.product(*varied.values()):
        chosen = {**entry.set, **dict(zip(varied, values))}
        asked = {**_defaults(entry.method), **file.defaults.get(entry.method, {}), **common, **chosen}
        if data_dir is not None and not (spec := read_task(str(asked["task"]))).embedded and not spec.folder:
            asked["data_dir"] = data_dir
        settings = {key: chosen[key] for key in own}
        parameters = validated(entry.method, {**asked, "output_dir": "outputs"}, where)  # its place follows from what is validated
        place = f"{entry.method}/{_folder_name(parameters.model)}/{_folder_name(parameters.task)}/{parameters.shots}-shot"
        place += f"-{_folder_name(variant(settings))}" if settings else ""
        run = Run(entry.method, settings, parameters.model_copy(update={"output_dir": f"{shown_outputs}/{place}"}), entry.ablation)
        run.__dict__.update(folder=outputs / place, name=place)  # known already: a study may have 10,000 runs
        runs.append(run)
    return runs


@cache
def _defaults(method: str) -> dict[str, Any]:
    return defaults(method)


def _known_somewhere(key: str) -> bool:
    return any(key in schema.model_fields for schema in METHODS.values())


def variant(settings: dict[str, Any]) -> str:
    """Settings as a run's name has them."""
    return ",".join(f"{key}={_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=100_000)
def _folder_name(text: str) -> str:
    """'facebook/opt-125m@27dc' -> 'facebook_opt-125m@27dc'; no way out of the outputs folder."""
    stem = Path(text).stem if text.endswith((".yaml", ".yml")) else text
    name = re.sub(r"[^A-Za-z0-9=,@._-]+", "_", stem).strip("._") or "unnamed"
    # A file system takes 255 bytes.
    return name if len(name) <= 150 else f"{name[:130]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
