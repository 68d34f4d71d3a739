"""A task file -> labelled examples: a training pool and evaluation sets, from the hub, a folder, or `lowres prepare`.

A task is one file in `parameters/tasks/`. A file that says `extends: other` is the other with the keys it names put in
place, so a variation (three labels instead of two) is a few lines.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING

from lowres.files import BadInput, located, near, shown
from lowres.tasks import sentiment
from lowres.tasks.hub import from_hub
from lowres.tasks.table import FORMATS, Table, read_table
from lowres.tasks.task_file import Source, TaskFile, extended_task, read_task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lowres.tasks.classification import Classification
    from lowres.tasks.spans import Extraction

UNSEEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))  # characters of no width
SKEWED = 10  # times as many rows as the rarest label has: from there the commonest one is spoken of


def find(spec: TaskFile, file: str, data_dir: str) -> Path:
    """`<data_dir>/<file>`, with one of the endings that are read if it has none itself. Raises BadInput if there is none, or several."""
    base = located(data_dir) / file
    if base.is_file():
        return base
    beside = sorted(base.parent.iterdir()) if base.parent.is_dir() else []
    found = [path for path in beside if path.is_file() and path.stem == base.name and path.suffix.lower() in FORMATS]
    if len(found) == 1:
        return found[0]
    key = "folder" if spec.folder else "data_dir"
    if found:
        names = " and ".join(path.name for path in found)
        raise BadInput(f"{key}: {shown(data_dir)!r} has {names}: the task {spec.name!r} wants one of them, by its full name")
    others = f" (there are: {', '.join(path.name for path in beside[:8])})" if beside else ""
    raise BadInput(f"{key}: {shown(data_dir)!r} has no {file}{{{','.join(FORMATS)}}}, which the task {spec.name!r} needs{others}")


def verified(spec: TaskFile, file: str, path: Path) -> str:
    """A file's SHA-256. Raises BadInput if the task file declares another."""
    found = sha256(path)
    if spec.checksums.get(file, found) != found:
        raise BadInput(f"{shown(path)}: checksums: the file's is {found}, the task {spec.name!r} declares {spec.checksums[file]}")
    return found


@cache
def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class Task:
    """A loaded task. Frames have the text columns, `label` (as the task's kind has it), the break-down columns; the index is the row number."""

    file: TaskFile
    pool: pd.DataFrame
    evaluation: dict[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)  # rows dropped and why, for the reader
    warnings: list[str] = field(default_factory=list)  # what was guessed of the files, and how their labels are spread
    checksums: dict[str, str] = field(default_factory=dict)  # what was read
    unlabelled: pd.DataFrame | None = None  # text columns alone; the index is -1 - the row number

    @property
    def texts(self) -> pd.DataFrame:
        """The text columns of the pool, then of rows without a label: what may be read where no label is."""
        import pandas as pd

        return pd.concat([part[self.file.text] for part in (self.pool, self.unlabelled) if part is not None])

    @property
    def labels(self) -> list[str]:
        return self.file.labels

    @property
    def kind(self) -> Classification | Extraction:
        from lowres.tasks.kinds import kind_of_file

        return kind_of_file(self.file)


def load_task(name: str, data_dir: str = "", evaluation_rows: int = 0, also_evaluate: Sequence[str] = ()) -> Task:
    """Reads a task's rows. Raises BadInput for a missing file or column, an unknown label, a label without rows, a wrong checksum.

    With `also_evaluate`, the evaluation sets of other tasks join, their labels and text columns matched by position; rows of
    theirs that stand in the pool are dropped, so that the pool, and with it the draw, stays the task's own.

    Rows of the pool that also stand in an evaluation set are dropped, and so are its repeats (all of them where their
    labels disagree); `notes` says how many. An evaluation set is cut to `evaluation_rows` by one fixed choice, stratified by label
    and break-down columns.
    """
    spec = extended_task(name, tuple(also_evaluate))
    task, read = Task(spec, pool=None, evaluation={}), cache(read_table)  # a file of several parts is read once
    for set_name, source in spec.evaluation.items():
        task.evaluation[set_name] = _rows(spec, set_name, source, data_dir, task, read)
        if not len(task.evaluation[set_name]):
            raise BadInput(f"{spec.name}: {set_name}: has no row")
    pool = _rows(spec, "pool", spec.pool, data_dir, task, read)
    task.pool = _cleaned(pool, task)
    for label, count in zip(spec.labels, task.kind.counts(task.pool, len(spec.labels))):
        if not count:
            raise BadInput(f"{spec.name}: pool: no row of the label {label!r} is there ({task.notes[-1].removeprefix('pool: ')})")
    if spec.unlabelled:
        task.unlabelled = _without_labels(spec, data_dir, task, read)
    for set_name in set(task.evaluation) - set(read_task(name).evaluation):
        others = task.evaluation[set_name]
        task.evaluation[set_name] = others.loc[~text_key(others, spec.text).isin(set(text_key(task.pool, spec.text)))]
        if not len(task.evaluation[set_name]):
            raise BadInput(f"{spec.name}: {set_name}: every row also stands in the pool")
    task.warnings += _skewed(task)
    for set_name, rows in task.evaluation.items():
        task.evaluation[set_name] = capped(rows, evaluation_rows, [by for by in spec.evaluation[set_name].break_down_by if by != "label"])
    return task


def data_checksums(spec: TaskFile, data_dir: str) -> dict[str, str]:
    """What identifies a folder's data: the checksums that the task file declares, else those of the files at hand."""
    found = {}
    for source in filter(None, (spec.pool, spec.unlabelled, *spec.evaluation.values())):
        owner = read_task(source.task) if getattr(source, "task", "") else spec
        place = owner.folder or data_dir
        for file in source.files if place and not owner.embedded else ():
            found[file] = owner.checksums.get(file) or sha256(find(owner, file, place))
        if owner.split:
            found["split"] = sha256(Path(owner.split))
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


def text_key(rows: pd.DataFrame, text: list[str], alike: bool = False) -> pd.Series:
    """What makes two rows the same text; with `alike`, whatever their case, white space and Unicode form."""
    if not alike:
        return reduce(lambda left, right: left + "\x1f" + right, [rows[column].str.strip() for column in text])
    columns = [[_alike(value) for value in rows[column]] for column in text]
    return rows[text[0]].__class__(map("\x1f".join, zip(*columns)), index=rows.index, dtype=object)


def _alike(value: str) -> str:
    if not value.isascii():
        value = unicodedata.normalize("NFKC", value).translate(UNSEEN)
    return " ".join(value.casefold().split())


def _rows(spec: TaskFile, set_name: str, source: Source, data_dir: str, task: Task, read: Callable[..., Table]) -> pd.DataFrame:
    """A set's rows, numbered from 0 through all of its files."""
    if getattr(source, "task", ""):
        other = read_task(source.task)
        asked = dict(zip(other.labels, spec.asked)) if spec.questions else {}
        other = other.model_copy(update={"longest": spec.longest, "unanswerable": spec.unanswerable, "questions": asked})  # as one's own are asked
        rows = _rows(other, set_name.removeprefix(f"{other.name}."), source.model_copy(update={"task": ""}), data_dir, task, read)
        return rows.rename(columns=dict(zip(other.text, spec.text)))
    return _of_files(spec, set_name, source, data_dir, task, read, lambda table: _labelled(spec, source, table, task, set_name))


def _of_files(spec: TaskFile, set_name: str, source: Source, data_dir: str, task: Task, read: Callable[..., Table],
              rows_of: Callable[[Table], pd.DataFrame]) -> pd.DataFrame:
    """What `rows_of` makes of each of a source's files, one behind the other, but for rows that the split gives to another part."""
    import pandas as pd

    parts, start = [], 0
    for table in _tables(spec, set_name, source, data_dir, task, read):
        part = rows_of(table)
        if source.part:
            part = part.loc[part.index.isin(_of_part(spec, source.part, table, read))]
        for column, wanted in source.where.items():
            part = part.loc[part.index.isin(_having(spec, set_name, table, column, wanted))]
        parts.append(part.set_axis(part.index + start))
        start += len(table.frame)
        task.warnings += [note for note in table.notes if note not in task.warnings]
    return pd.concat(parts)


def _without_labels(spec: TaskFile, data_dir: str, task: Task, read: Callable[..., Table]) -> pd.DataFrame:
    """The texts of the rows that are read without a label, but for those that are empty or stand in the pool or an evaluation set."""
    import pandas as pd

    texts_of = lambda table: pd.DataFrame({name: table.text(column).fillna("") for name, column in spec.columns.items()})
    rows = _of_files(spec, "unlabelled", spec.unlabelled, data_dir, task, read, texts_of)
    rows = rows.set_axis(-1 - rows.index)
    key = text_key(rows, spec.text, alike=True)
    known = {found for part in (task.pool, *task.evaluation.values()) for found in text_key(part, spec.text, alike=True)}
    kept = ~(rows.apply(lambda column: column.str.strip() == "").any(axis=1) | key.isin(known) | key.duplicated())
    task.notes.append(f"unlabelled: {kept.sum():,} of {len(rows):,} texts; the others are empty, repeats, or in the pool or an evaluation set")
    return rows[kept]


def _having(spec: TaskFile, set_name: str, table: Table, column: str, wanted: list[str]) -> pd.Index:
    """The numbers of the rows with one of these values in that column. Raises BadInput for a value that no row has."""
    values = table.text(column)
    if unknown := sorted(set(wanted) - (found := set(values.dropna()))):
        raise BadInput(f"{spec.name}: {set_name}: where: no row of {table.where} has {unknown[0]!r} in {column!r}{near(unknown[0], found)}")
    return values.index[values.isin(wanted)]


def _of_part(spec: TaskFile, name: str, table: Table, read: Callable[..., Table]) -> np.ndarray:
    """The numbers of the rows that the split gives to a part. Raises BadInput for a part that has none, or a split of another file."""
    import numpy as np

    split = read(Path(spec.split), ("row", "part"))
    rows, parts = split.text("row"), split.text("part")
    if len(rows) != len(table.frame) or not all(map(str.__eq__, rows, map(str, range(len(rows))))):
        raise BadInput(f"{split.where}: has {len(rows):,} rows, {table.where} has {len(table.frame):,}: the file has changed since it was parted "
                       "(remove the task's files and make them anew by `lowres new`)")
    found = np.flatnonzero(parts.to_numpy() == name)
    if not len(found):
        raise BadInput(f"{spec.name}: split: no row is of the part {name!r}{near(name, set(parts.dropna()))}")
    return found


def _tables(spec: TaskFile, set_name: str, source: Source, data_dir: str, task: Task, read: Callable[..., Table]) -> list[Table]:
    if spec.embedded:
        return [Table(f"{spec.name} ({set_name})", sentiment.sets()[set_name])]
    if place := spec.folder or data_dir:
        paths = [find(spec, file, place) for file in source.files]
        if not paths:
            raise BadInput(f"{spec.name}: {set_name}: the task file names no file, so data_dir cannot be used")
        for file, path in zip(source.files, paths):
            task.checksums[file] = verified(spec, file, path)
        return [read(path, (*spec.columns.values(), spec.label)) for path in paths]
    if source.hub:
        frame = from_hub(source.hub)
        for column in set(getattr(source, "break_down_by", [])) - set(frame):  # GLUE's CoLA has no `source`
            frame[column] = "not on the hub"
        task.checksums[f"{source.hub.id}@{source.hub.revision}:{source.hub.split}"] = "hub"
        return [Table(f"{source.hub.id} ({source.hub.split})", frame)]
    raise BadInput(f"{spec.name}: {set_name}: the task file names no hub source: give data_dir")


def _labelled(spec: TaskFile, source: Source, table: Table, task: Task, set_name: str) -> pd.DataFrame:
    import pandas as pd

    extra = getattr(source, "break_down_by", [])
    texts, labels = {name: table.text(column) for name, column in spec.columns.items()}, task.kind.labels_in(table, spec, source)
    kept = labels.notna()
    if not kept.all():
        task.notes.append(f"{set_name}: {(~kept).sum():,} of {len(kept):,} rows dropped, their label is not asked for")
    result = {}
    for name, column in texts.items():
        result[name] = column[kept]
        if (empty := result[name].isna() | (result[name].fillna("").str.strip() == "")).any():
            raise BadInput(f"{table.where}: {spec.columns[name]}: is empty in {table.place(int(empty.idxmax()))}")
    result["label"] = labels[kept].astype(object if task.kind.several else int)
    rows, notes = task.kind.arranged(pd.DataFrame(result), spec)
    task.notes += [f"{set_name}: {note}" for note in notes]
    for column in extra:
        # A break-down by the label shows the names; `label` itself stays the index.
        told = rows["label"].map(lambda label: task.kind.written(label, spec.labels)) if column == "label" else table.text(column)[rows.index]
        rows[column if column != "label" else "gold"] = told.fillna("")
    return rows


def _cleaned(pool: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The pool without what also stands in an evaluation set, in whatever case, white space and Unicode form, and without repeats."""
    import numpy as np
    import pandas as pd

    text, own = task.file.text, [name for name, rows in task.file.evaluation.items() if not rows.task]
    key, alike = text_key(pool, text), text_key(pool, text, alike=True)
    evaluated = {found for name in own for found in text_key(task.evaluation[name], text, alike=True)}
    leaked = alike.isin(evaluated)
    same, labels = key.factorize()[0], pool["label"].factorize()[0]
    pairs = np.unique(same * len(pool) + labels)  # of a text and a label
    conflicting = pd.Series(np.bincount(pairs // len(pool))[same] > 1, index=pool.index)
    repeated = key.duplicated() & ~conflicting
    dropped = (f"dropped {leaked.sum()} that also stand in an evaluation set, {(conflicting & ~leaked).sum()} repeats whose labels disagree, "
               f"{(repeated & ~leaked).sum()} other repeats")
    task.notes.append(f"pool: {len(pool):,} rows; {dropped}")
    rest = ~(leaked | conflicting | repeated)
    ends = "[.!?\u2026\\s]+$"
    but_for_ends = alike[rest].str.replace(ends, "", regex=True).isin({text.rstrip(".!?\u2026 ") for text in evaluated})
    if but_for_ends.any():
        task.warnings.append(f"pool: {but_for_ends.sum()} rows stand in an evaluation set but for their last mark, and were kept")
    if near_repeats := int(alike[rest].duplicated().sum()):
        task.warnings.append(f"pool: {near_repeats} rows differ from another in case, white space or Unicode form alone, and were kept")
    return pool.loc[rest]


def _skewed(task: Task) -> list[str]:
    """What a reader should know of the sets' labels: one that a set lacks, one with a tenth of another's rows."""
    said = []
    for name, rows in {"pool": task.pool, **task.evaluation}.items():
        counts = task.kind.counts(rows, len(task.labels))
        said += [f"{name}: {remark}" for remark in task.kind.remarks(rows)]
        if lacking := [repr(label) for label, count in zip(task.labels, counts) if not count]:
            constant = "" if task.kind.several else f": a constant answer is right on {counts.max() / counts.sum():.0%}"
            said.append(f"{name}: no row is of the label {', '.join(lacking)}{constant}")
        elif counts.max() >= SKEWED * counts.min():
            rarest, commonest = (repr(task.labels[i]) for i in (counts.argmin(), counts.argmax()))
            said.append(f"{name}: {counts.min()} rows are of the label {rarest}, {counts.max():,} of {commonest}")
    return said
