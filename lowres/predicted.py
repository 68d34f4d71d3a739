"""What the stored predictions say beyond a mean: each row right or wrong, and how sure the model was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from lowres.claims import ACCURACY, Line, Paired
from lowres.contrasts import crossed_interval

BINS = 10


@dataclass(frozen=True)
class Predicted:
    """One trial on one evaluation set."""

    rows: str  # marks which rows these are, in which order
    correct: np.ndarray  # (rows,) bool
    bins: np.ndarray  # (BINS, 3): of the rows in a tenth of confidence, how many, their confidences' sum, how many were right


@cache
def read_predicted(folder: str, seed: int) -> dict[str, Predicted]:
    """By evaluation set; empty if the file is not at hand."""
    path = Path(folder) / "trials" / f"seed-{seed}.parquet"
    if not path.is_file():
        return {}
    table = pd.read_parquet(path)
    found = {}
    for name, part in table.groupby("set", sort=False):
        part = part.sort_values("row")
        logits = part[[column for column in part if column.startswith("logit_")]].to_numpy(np.float64)
        confidence = softmax(logits, axis=1).max(axis=1)
        correct = (part["label"] == part["prediction"]).to_numpy()
        tenth = np.minimum((confidence * BINS).astype(int), BINS - 1)
        bins = np.stack([np.bincount(tenth, weight, BINS) for weight in (np.ones(len(tenth)), confidence, correct)], axis=1)
        found[name] = Predicted(hashlib.sha256(part["row"].to_numpy().tobytes()).hexdigest(), correct, bins)
    return found


def calibration(trials: pd.DataFrame) -> pd.DataFrame:
    """A line a method, variant, model, task, shots, set and tenth: mean confidence, share right, rows; and the line's ECE.

    The expected calibration error (Guo et al. 2017): the gaps of the tenths, weighted by their rows; of a trial, then its mean over seeds.
    """
    keys = ["method", "variant", "model", "task", "shots", "domain", "set"]
    lines = []
    for key, run in trials.groupby(keys, sort=False) if len(trials) else ():
        found = [read_predicted(folder, seed).get(key[-1]) for folder, seed in zip(run["folder"], run["seed"])]
        bins = np.array([one.bins for one in found if one])
        if not len(bins):
            continue
        error = np.mean(np.abs(bins[:, :, 1] - bins[:, :, 2]).sum(axis=1) / bins[:, :, 0].sum(axis=1))
        for rows, confidence, right in bins.sum(axis=0):
            if rows:
                lines.append({**dict(zip(keys, key)), "confidence": confidence / rows, "right": right / rows, "rows": int(rows), "ece": error,
                              "trials": len(bins)})
    return pd.DataFrame(lines)


def crossed(pair: Paired) -> tuple[float, float] | None:
    """95 % interval of a contrast of accuracies, over seeds and evaluation rows; None where predictions are not at hand or not alike."""
    if pair.contrast.measure not in ACCURACY or len(pair.seeds) < 2:
        return None
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    weights: dict[tuple[str, str], float] = {}
    for cell, both in pair.cells.items():
        sets = list(dict.fromkeys(line["set"] for line in both[0]))
        for name in sets:
            sides = [_correct([line for line in side if line["set"] == name], pair.seeds) for side in both]
            if any(side is None for side in sides) or sides[0][0] != sides[1][0]:
                return None
            key = (cell[0], f"{name} {sides[0][0]}")
            sums.setdefault(key, []).append(100 * (sides[0][1] - sides[1][1]))
            weights[key] = weights.get(key, 0.0) + 1 / len(sets) / len(pair.cells)
    return crossed_interval([(weights[key], np.mean(parts, axis=0)) for key, parts in sums.items()])


def _correct(side: list[Line], seeds: list[int]) -> tuple[str, np.ndarray] | None:
    """Which rows, and the share of a side's runs that got each right: (seeds, rows)."""
    table = [[read_predicted(line["folder"], seed).get(line["set"]) for seed in seeds] for line in side]
    if not table or any(one is None for run in table for one in run):
        return None
    marks = {one.rows for run in table for one in run}
    if len(marks) > 1:
        return None
    return marks.pop(), np.mean([[one.correct for one in run] for run in table], axis=0, dtype=np.float32)
