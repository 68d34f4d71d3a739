"""A task file -> labelled examples: a training pool and evaluation sets, from the hub, a folder, or `lowres prepare`.

A task is one file in `parameters/tasks/`. A file that says `extends: other` is the other with the keys it names put in
place, so a variation (three labels instead of two) is a few lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowres.files import BadInput, located, near, shown
from lowres.tasks import sentiment
from lowres.tasks.task_file import Source, TaskFile, extended_task, read_task

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.task_file import Hub


FORMATS = ("tsv", "csv", "jsonl", "parquet")


def find(spec: TaskFile, file: str, data_dir: str) -> Path:
    """`<data_dir>/<file>` with one of the endings that are read. Raises BadInput if there is none."""
    base = located(data_dir) / file
    found = [path for ending in FORMATS if (path := base.with_name(f"{base.name}.{ending}")).is_file()]
    if not found:
        key = "folder" if spec.folder else "data_dir"
        raise BadInput(f"{key}: {shown(data_dir)!r} has no {file}.{{{','.join(FORMATS)}}}, which the task {spec.name!r} needs")
    return found[0]


def verified(spec: TaskFile, file: str, path: Path) -> str:
    """A file's SHA-256. Raises BadInput if the task file declares another."""
    found = sha256(path)
    if spec.checksums.get(file, found) != found:
        raise BadInput(f"{shown(path)}: checksums: the file's is {found}, the task {spec.name!r} declares {spec.checksums[file]}")
    return found


@cache
def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """A file as a frame, everything in a tab- or comma-separated one as text. Raises BadInput for one that is damaged."""
    try:
        return _read_table(path)
    except (ValueError, OSError) as error:  # whatever pandas' readers raise
        raise BadInput(f"{shown(path)}: not readable as {path.suffix[1:]}: {' '.join(str(error).split())}") from None


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype=False)
    # A tab-separated file quotes nothing (quoting=3), and 'NA' is a word; a comma-separated one quotes as usual.
    options = {"sep": "\t", "quoting": 3} if path.suffix == ".tsv" else {}
    return pd.read_csv(path, dtype=str, keep_default_na=False, **options)


def from_hub(hub: Hub) -> pd.DataFrame:
    """A split of a data set on the hub, its labels by their names."""
    from datasets import ClassLabel, load_dataset

    data = load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    frame = data.to_pandas()
    for column, feature in data.features.items():
        if isinstance(feature, ClassLabel):  # numbers on the hub: their names are what a task file speaks of
            frame[column] = frame[column].map(lambda i, feature=feature: feature.names[i] if i >= 0 else "unlabelled")
    return frame


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
    found = {}
    for source in (spec.pool, *spec.evaluation.values()):
        owner = read_task(source.task) if getattr(source, "task", "") else spec
        place = owner.folder or data_dir
        for file in source.files if place and not owner.embedded else ():
            found[file] = owner.checksums.get(file) or sha256(find(owner, file, place))
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
        frame, where = sentiment.sets()[set_name], f"{spec.name} ({set_name})"
    elif place := spec.folder or data_dir:
        paths = [find(spec, file, place) for file in source.files]
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
