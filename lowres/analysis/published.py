"""The authors' own numbers, as description: laid over figures and beside claims, never part of a verdict.

`published_results.csv` is made from the result files of the authors' repository (github.com/iamvarada/llm_finetuning, commit
4e8e767): one line a distinct result, `copies` saying how many of the logged runs it stands for. Each setting has one or two
distinct results; see `note`. Their in-domain CoLA set contains the out-of-domain one, and all accuracies are the last epoch's.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import pandas as pd

from lowres.analysis.claims import Contrast, Side, paper_task

OUT = {"cola": "cola_out_of_domain_dev", "mnli": "hans"}  # the out-of-domain set that is compared
LAYERS = "layers"  # the authors' "adaptive"


@lru_cache(maxsize=1)
def published() -> pd.DataFrame:
    """A line a distinct result; accuracies are shares, `shots` a number or 'all', `rank` empty but for LoRA."""
    table = pd.read_csv(files("lowres.analysis") / "published_results.csv", dtype={"shots": str, "rank": "Int64"}, keep_default_na=False,
                        na_values={"rank": [""]})
    table["shots"] = [int(shots) if shots.isdigit() else shots for shots in table["shots"]]
    return table


def series(method: str, task: str, domain: str) -> pd.DataFrame:
    """A method's published accuracies in percent: model, shots, rank, accuracy, copies; one line a distinct result."""
    task = paper_task(task)
    table = published()
    table = table[(table["method"] == method) & (table["task"] == task) & (table["out_of_domain_set"] == OUT.get(task))]
    column = "in_domain_accuracy" if domain == "in" else "out_of_domain_accuracy"
    return table.assign(accuracy=100 * table[column])[["model", "shots", "rank", "accuracy", "copies"]]


def difference(contrast: Contrast) -> tuple[float, int] | None:
    """A contrast in the published numbers: mean over the settings that both sides have, points; and how many distinct results that rests on."""
    if contrast.measure not in ("in", "out"):
        return None
    found, count = [], 0
    for task in OUT:
        if contrast.tasks and task not in contrast.tasks:
            continue
        sides = [_of_side(side, task, contrast.measure) for side in (contrast.left, contrast.right)]
        if any(side is None for side in sides):
            continue
        means = [side.groupby(["model", "shots"])["accuracy"].mean() for side in sides]
        gaps = (means[0] - means[1]).dropna()
        found += list(gaps)
        count += sum(side.set_index(["model", "shots"]).index.isin(gaps.index).sum() for side in sides)
    return (sum(found) / len(found), int(count)) if found else None


def _of_side(side: Side, task: str, domain: str) -> pd.DataFrame | None:
    where = dict(side.where)
    if where.get("adapt", LAYERS) != LAYERS or where.get("inputs") == "pool":
        return None  # nothing was published for these readings
    parts = [part for method in side.methods if len(part := series(method, task, domain))]
    return pd.concat(parts) if parts else None
