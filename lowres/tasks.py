"""A task file -> labelled examples: a training pool and evaluation sets, from the hub, a folder, or made here.

A task is one file in `parameters/tasks/`. A file that says `extends: other` is the other with the keys it names put in
place, so a variation (three labels instead of two) is a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lowres.errors import BadInput, near
from lowres.files import ROOT, checked, located, read_yaml, shown
from lowres.patterns import places
from lowres.sources import find, from_hub, generated, read_table, sha256, verified

if TYPE_CHECKING:
    import pandas as pd

def _inside_the_folder(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError("a path inside the data folder is wanted, without '..' and without the file's ending")
    return path


class Hub(BaseModel):
    """A data set on the Hugging Face hub, as `datasets.load_dataset` takes it. Loading scripts are never run."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str
    config: str | None = None
    split: str
    revision: str


class Source(BaseModel):
    """Where the rows of one set come from. `file` may list several, which are read as one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: Annotated[str, AfterValidator(_inside_the_folder)] | list[Annotated[str, AfterValidator(_inside_the_folder)]] = []
    hub: Hub | None = None
    relabel: dict[str, str | None] = {}  # on top of the task's

    @property
    def files(self) -> list[str]:
        return [self.file] if isinstance(self.file, str) else self.file


class EvaluationSet(Source):
    """Rows that are only ever predicted."""

    domain: Literal["in", "out"]
    break_down_by: list[str] = []
    task: str = ""  # another task as it was asked for, whose columns and labels these rows have; filled in by `also_evaluate`


class TaskFile(BaseModel):
    """What a task file may say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    version: int
    description: str
    show_rows: bool = False  # whether notebooks may print the texts
    embedded: str = ""  # the module of lowres that generates the rows
    text: list[str] = Field(min_length=1)
    label: str = "label"
    labels: list[str] = Field(min_length=2)  # in the order of their indices
    relabel: dict[str, str | None] = {}  # a value of the label column -> a label, or nothing to drop the row
    pool: Source
    evaluation: dict[str, EvaluationSet] = Field(min_length=1)
    checksums: dict[str, str] = {}  # file -> SHA-256
    patterns: dict[str, str] = Field(min_length=1)
    label_words: dict[str, dict[str, str]] = Field(min_length=1)
    instruction: str = ""  # what a teacher may be told; {a label} stands for its word

    @model_validator(mode="after")
    def _holds_together(self) -> TaskFile:
        for name, pattern in self.patterns.items():
            columns = places(pattern)
            for column in columns:
                if column not in self.text:
                    raise ValueError(f"patterns.{name}: {pattern!r} asks for {column!r}, which is no text column{near(column, self.text)}")
            for column in set(self.text) - set(columns):
                raise ValueError(f"patterns.{name}: {pattern!r} has no place for the text column {column!r}")
        if "plain" not in self.patterns:
            raise ValueError("patterns: one must be called plain, the text with nothing added")
        for name, words in self.label_words.items():
            if set(words) != set(self.labels):
                raise ValueError(f"label_words.{name}: a word for each of {self.labels} is wanted, not {words}")
        for label in places(self.instruction):
            if label not in self.labels:
                raise ValueError(f"instruction: asks for the word of {label!r}, which is no label{near(label, self.labels)}")
        sets = {"": self, "pool.": self.pool, **{f"evaluation.{name}.": rows for name, rows in self.evaluation.items()}}
        for where, source in sets.items():
            for value, label in source.relabel.items():
                if label is not None and label not in self.labels:
                    raise ValueError(f"{where}relabel: {value!r} becomes {label!r}, which is no label{near(label, self.labels)}")
        return self

    def pattern(self, name: str) -> str:
        """The pattern of that name; the first if the name is empty."""
        return self._named("patterns", name)

    def words(self, name: str) -> list[str]:
        """A word for each of `labels`, in their order: the label words of that name; the first if it is empty."""
        words = self._named("label_words", name)
        return [words[label] for label in self.labels]

    def _named(self, key: Literal["patterns", "label_words"], name: str) -> Any:
        choices = getattr(self, key)
        if name and name not in choices:
            raise BadInput(f"{self.name}: {key}: there is no {name!r}{near(name, choices)}")
        return choices[name] if name else next(iter(choices.values()))


@dataclass
class Task:
    """A loaded task. Frames have the text columns, `label` (its index), the break-down columns; the index is the row number."""

    file: TaskFile
    pool: pd.DataFrame
    evaluation: dict[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)  # rows dropped and why, for the reader
    checksums: dict[str, str] = field(default_factory=dict)  # what was read

    @property
    def labels(self) -> list[str]:
        return self.file.labels


def task_path(name: str) -> Path:
    """The file of a task given by name or by path."""
    folder = ROOT / "parameters" / "tasks"
    path = located(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"task: there is no task {name!r}{near(name, [p.stem for p in folder.glob('*.yaml')])}")
    return path


@cache
def read_task(name: str) -> TaskFile:
    """The checked task file, with what it extends filled in. Reads no data."""
    path = task_path(name)
    content = read_yaml(path)
    seen = {path}
    while "extends" in content:
        base = path.parent / f"{content.pop('extends')}.yaml"
        if base in seen:
            raise BadInput(f"{shown(path)}: extends: {base.stem!r} extends itself")
        seen.add(base)
        content = {**read_yaml(base), **content}
    return checked(TaskFile, content, shown(path))


@cache
def extended_task(name: str, also_evaluate: tuple[str, ...]) -> TaskFile:
    """A task with the evaluation sets of others beside its own, out of domain. Raises BadInput if their forms differ, or two are one."""
    spec = read_task(name)
    sets = dict(spec.evaluation)
    for asked in also_evaluate:
        other = read_task(asked)
        if task_path(asked) == task_path(name):
            raise BadInput(f"{spec.name}: also_evaluate: {asked!r} is the task itself")
        if [read_task(one).name for one in also_evaluate].count(other.name) > 1:
            raise BadInput(f"{spec.name}: also_evaluate: two tasks are called {other.name!r}")
        if (len(other.labels), len(other.text)) != (len(spec.labels), len(spec.text)):
            raise BadInput(
                f"{spec.name}: also_evaluate: {other.name!r} has {len(other.labels)} labels and {len(other.text)} text columns, "
                f"not {len(spec.labels)} and {len(spec.text)}"
            )
        for set_name, rows in other.evaluation.items():
            sets[f"{other.name}.{set_name}"] = rows.model_copy(update={"task": asked, "domain": "out"})
    return spec.model_copy(update={"evaluation": sets}) if also_evaluate else spec


def load_task(name: str, data_dir: str = "", evaluation_rows: int = 0, also_evaluate: Sequence[str] = ()) -> Task:
    """Reads a task's rows. Raises BadInput for a missing file or column, an unknown label, a label without rows, a wrong checksum.

    With `also_evaluate`, the evaluation sets of other tasks join, their labels and text columns matched by position; rows of
    theirs that stand in the pool are dropped, so that the pool, and with it the draw, stays the task's own.

    Rows of the pool that also stand in an evaluation set are dropped, and so are its repeats (all of them where their
    labels disagree); `notes` says how many. An evaluation set is cut to `evaluation_rows` by one fixed choice, stratified by label
    and break-down columns.
    """
    spec = extended_task(name, tuple(also_evaluate))
    task = Task(spec, pool=None, evaluation={})
    for set_name, source in spec.evaluation.items():
        task.evaluation[set_name] = _rows(spec, set_name, source, data_dir, task)
        if not len(task.evaluation[set_name]):
            raise BadInput(f"{spec.name}: {set_name}: has no row")
    pool = _rows(spec, "pool", spec.pool, data_dir, task)
    task.pool = _cleaned(pool, task)
    for index, label in enumerate(spec.labels):
        if not (task.pool["label"] == index).any():
            raise BadInput(f"{spec.name}: pool: no row of the label {label!r} is there ({task.notes[-1].removeprefix('pool: ')})")
    for set_name in set(task.evaluation) - set(read_task(name).evaluation):
        others = task.evaluation[set_name]
        task.evaluation[set_name] = others.loc[~_key(others, spec.text).isin(set(_key(task.pool, spec.text)))]
        if not len(task.evaluation[set_name]):
            raise BadInput(f"{spec.name}: {set_name}: every row also stands in the pool")
    for set_name, rows in task.evaluation.items():
        task.evaluation[set_name] = capped(rows, evaluation_rows, [by for by in spec.evaluation[set_name].break_down_by if by != "label"])
    return task


def data_checksums(spec: TaskFile, data_dir: str) -> dict[str, str]:
    """What identifies a folder's data: the checksums that the task file declares, else those of the files at hand."""
    if not data_dir:
        return {}
    found = {}
    for source in (spec.pool, *spec.evaluation.values()):
        owner = read_task(source.task) if getattr(source, "task", "") else spec
        for file in () if owner.embedded else source.files:
            found[file] = owner.checksums.get(file) or sha256(find(owner, file, data_dir))
    return found


def capped(rows: pd.DataFrame, most: int, strata: list[str]) -> pd.DataFrame:
    """At most `most` rows (0: all), each stratum (label and `strata`) in proportion: the same choice every time."""
    import numpy as np

    if not most or len(rows) <= most:
        return rows
    shuffled = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
    # Systematic sampling: in the order of labels, then strata, every so-manieth row, which is in proportion at both levels.
    in_order = shuffled.sort_values(["label", *strata], kind="stable").index
    return rows.loc[sorted(in_order[((np.arange(most) + 0.5) * len(rows) / most).astype(int)])]


def _key(rows: pd.DataFrame, text: list[str]) -> pd.Series:
    """What makes two rows the same text."""
    return rows[text].agg(lambda row: "\x1f".join(part.strip() for part in row), axis=1)


def _rows(spec: TaskFile, set_name: str, source: Source, data_dir: str, task: Task) -> pd.DataFrame:
    import pandas as pd

    if getattr(source, "task", ""):
        other = read_task(source.task)
        rows = _rows(other, set_name.removeprefix(f"{other.name}."), source.model_copy(update={"task": ""}), data_dir, task)
        return rows.rename(columns=dict(zip(other.text, spec.text)))
    if spec.embedded:
        frame, where = generated(spec.embedded)[set_name], f"{spec.name} ({set_name})"
    elif data_dir:
        paths = [find(spec, file, data_dir) for file in source.files]
        if not paths:
            raise BadInput(f"{spec.name}: {set_name}: the task file names no file, so data_dir cannot be used")
        for file, path in zip(source.files, paths):
            task.checksums[file] = verified(spec, file, path)
        frame, where = pd.concat([read_table(path) for path in paths], ignore_index=True), shown(paths[0])
    elif source.hub:
        frame, where = from_hub(source.hub), f"{source.hub.id} ({source.hub.split})"
        for column in set(getattr(source, "break_down_by", [])) - set(frame):  # GLUE's CoLA has no `source`
            frame[column] = "not on the hub"
        task.checksums[f"{source.hub.id}@{source.hub.revision}:{source.hub.split}"] = "hub"
    else:
        raise BadInput(f"{spec.name}: {set_name}: the task file names no hub source: give data_dir")
    return _labelled(spec, source, frame, where, task, set_name)


def _labelled(spec: TaskFile, source: Source, frame: pd.DataFrame, where: str, task: Task, set_name: str) -> pd.DataFrame:
    extra = getattr(source, "break_down_by", [])
    for column in [*spec.text, spec.label, *extra]:
        if column not in frame:
            raise BadInput(f"{where}: column {column!r} is missing{near(column, frame.columns)}")
    names = {**{label: label for label in spec.labels}, **spec.relabel, **source.relabel}
    if (empty := frame[spec.label].isna()).any():
        raise BadInput(f"{where}: {spec.label}: is empty in row {empty.idxmax()}")
    values = frame[spec.label].astype(str)
    unknown = sorted(set(values) - set(names))
    if unknown:
        row = int((values == unknown[0]).idxmax())
        raise BadInput(f"{where}: {spec.label}: {unknown[0]!r} in row {row} is no label{near(unknown[0], names)}")
    labels = values.map(names)
    kept = frame.loc[labels.notna()]
    if len(kept) < len(frame):
        task.notes.append(f"{set_name}: {len(frame) - len(kept):,} of {len(frame):,} rows dropped, their label is not asked for")
    for column in spec.text:
        if (empty := kept[column].isna() | (kept[column].astype(str).str.strip() == "")).any():
            raise BadInput(f"{where}: {column}: is empty in row {empty.idxmax()}")
    result = kept[spec.text].astype(str).copy()
    result["label"] = labels.dropna().map(spec.labels.index).astype(int)
    for column in extra:
        # A break-down by the label shows the names; `label` itself stays the index.
        result[column if column != "label" else "gold"] = (labels.dropna() if column == "label" else kept[column]).astype(str)
    return result


def _cleaned(pool: pd.DataFrame, task: Task) -> pd.DataFrame:
    key = _key(pool, task.file.text)
    own = [name for name, rows in task.file.evaluation.items() if not rows.task]
    evaluated = {text for name in own for text in _key(task.evaluation[name], task.file.text)}
    leaked = key.isin(evaluated)
    conflicting = pool["label"].groupby(key).transform("nunique") > 1
    repeated = key.duplicated() & ~conflicting
    task.notes.append(
        f"pool: {len(pool):,} rows; dropped {leaked.sum()} that also stand in an evaluation set, "
        f"{(conflicting & ~leaked).sum()} repeats whose labels disagree, {(repeated & ~leaked).sum()} other repeats"
    )
    return pool.loc[~(leaked | conflicting | repeated)]
