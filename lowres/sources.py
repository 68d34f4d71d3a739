"""Where a task's rows are read: files in a folder, the hub, or what lowres generates. Nothing is cleaned here."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lowres.errors import BadInput
from lowres.files import located, shown

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks import Hub, TaskFile

FORMATS = ("tsv", "csv", "jsonl", "parquet")


@cache
def generated(module: str) -> dict[str, pd.DataFrame]:
    """The sets of an embedded task."""
    return import_module(f"lowres.{module}").generate()


def find(spec: TaskFile, file: str, data_dir: str) -> Path:
    """`<data_dir>/<file>` with one of the endings that are read. Raises BadInput if there is none."""
    base = located(data_dir) / file
    found = [path for ending in FORMATS if (path := base.with_name(f"{base.name}.{ending}")).is_file()]
    if not found:
        raise BadInput(f"data_dir: {shown(data_dir)!r} has no {file}.{{{','.join(FORMATS)}}}, which the task {spec.name!r} needs")
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
