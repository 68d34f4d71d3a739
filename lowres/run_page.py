"""The record behind a notebook as tables: its trials, parameters, environment and provenance. All of it is untrusted text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lowres.front_page import Cell, Page, Table
from lowres.records import TRAINING, peak_memory, seconds_of

PARTS = ("parameters", "environment", "provenance")


def record_tables(page: Page, record: dict[str, Any]) -> list[Table]:
    """What there is of a record; a part that is missing is left out."""
    found = [_trials(page)] if page.trials else []
    rest = {key: record[key] for key in ("labels", "notes", "start", "end", "load_seconds", "distinct_trials") if key in record}
    for name, part in (*((name, record.get(name)) for name in PARTS), ("other", rest)):
        lines = [[Cell(key), Cell(value)] for key, value in _pairs(part)]
        if lines:
            found.append(Table(name.capitalize(), ["name", "value"], lines))
    return found


def _pairs(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping, line by line: 'data.cola/train', 'sha256…'."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _pairs(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def _trials(page: Page) -> Table:
    sets = list(dict.fromkeys(name for trial in page.trials for name in trial["sets"]))
    columns = ["seed", *(f"{name}, %" for name in sets), "training, s", "whole trial, s", "peak memory, GB", "shots drawn", "fingerprint"]
    table = Table("Trials: accuracy in each set, and what it cost", columns)
    for trial in page.trials:
        accuracies = [f"{100 * trial['sets'][name]['accuracy']:.1f}" if name in trial["sets"] else "" for name in sets]
        cost = [f"{seconds_of(trial, TRAINING):.1f}", f"{seconds_of(trial):.1f}", f"{peak_memory(trial):.2f}"]
        texts = [str(trial["seed"]), *accuracies, *cost, trial["shots_sha256"], trial["fingerprint"]]
        table.rows.append(list(map(Cell, texts)))
    return table
