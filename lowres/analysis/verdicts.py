"""From paired differences to the table of verdicts, and the memory of what had been seen when.

The paired t test speaks; the exact sign-flip test stands beside it. Both go through Holm over the seven claims, so that the chance
of any false "supported" or "contradicted" in the table is at most 5 %; a claim without data counts among the seven all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from lowres import files
from lowres.analysis import statistics
from lowres.analysis.claims import ACCURACY, CLAIMS, FAMILY, FIVE, Claim, Contrast, Line, Paired, paired, relevant
from lowres.analysis.collect import rows_right
from lowres.analysis.statistics import ALPHA, SEEDS_FOR_A_VERDICT, Above, crossed_interval, t_above

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
EQUIVALENT, WITHIN = "equivalent", "different but within the margin"
DIRECTIONAL = np.array([claim.number in (1, 2, 4, 5) for claim in CLAIMS])  # say "more" or "less", so "equivalent" may answer them
COMPARABLE = (3, 6)


@dataclass
class ClaimResult:
    """One claim: its differences, p values (as they are, before Holm), and what became of it."""

    claim: Claim
    pairs: list[Paired]
    p: float = 1.0
    towards: bool = False  # whether the data lean towards the claim
    p_flip: float = 1.0
    p_equivalent: float = 1.0
    seeds: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    verdict: str = UNDECIDED
    holm: float = 1.0
    holm_flip: float = 1.0
    marks: list[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """How many tasks, models and counts of shots its differences are of, over all of its contrasts."""
        return sum(len(pair.cells) for pair in self.pairs)


def judge(trials: pd.DataFrame, margin: float, flips: bool = True) -> list[ClaimResult]:
    """The seven claims over a study's trials (`collect.collect`); margin in percentage points. They are of accuracy."""
    lines = relevant(trials[trials["metric"] == "accuracy"] if "metric" in trials else trials)
    found = [_weighed(claim, lines, margin, flips) for claim in CLAIMS]
    p, towards = np.array([one.p for one in found]), np.array([one.towards for one in found])
    same = np.array([one.p_equivalent for one in found])
    flip = statistics.holm(np.array([one.p_flip for one in found]))
    for one, word, adjusted, adjusted_flip in zip(found, words(p, towards, same), statistics.holm(p), flip):
        one.verdict, one.holm, one.holm_flip = str(word), float(adjusted), float(adjusted_flip)
    return found


def words(p: np.ndarray, towards: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The verdicts, all arguments (..., 7): p values of claims, whether the data lean towards them, p values of equivalence."""
    differ = statistics.holm(p) < ALPHA
    alike = np.zeros(p.shape, bool)
    alike[..., DIRECTIONAL] = statistics.holm(same[..., DIRECTIONAL]) < ALPHA
    verdict = np.full(p.shape, UNDECIDED, dtype=object)
    verdict[alike] = EQUIVALENT
    verdict[differ & towards] = SUPPORTED
    verdict[differ & ~towards] = CONTRADICTED
    verdict[differ & alike] = WITHIN
    return verdict


def _weighed(claim: Claim, lines: list[Line], margin: float, flips: bool) -> ClaimResult:
    contrasts_of = claim.contrasts or duels(lines)
    result = ClaimResult(claim, [paired(lines, contrast) for contrast in contrasts_of])
    result.missing = list(dict.fromkeys(pair.missing for pair in result.pairs if pair.missing))
    if not claim.contrasts:
        absent = [side.name for side in FIVE if not any(line["method"] in side.methods for line in lines)]
        result.missing += [f"no {name}" for name in absent]
        result.pairs = [pair for pair in result.pairs if not pair.missing]
    seeds = [set(pair.seeds) for pair in result.pairs]
    result.seeds = sorted(set.intersection(*seeds)) if seeds else []
    # A part that is missing leaves a claim open, and few seeds leave it open whatever the differences.
    if result.missing or not seeds or min(map(len, seeds)) < SEEDS_FOR_A_VERDICT:
        return result
    result.p, result.towards = _decided(claim, result.pairs, margin, t_above)
    if flips:
        result.p_flip = _decided(claim, result.pairs, margin, statistics.flip_above)[0]
    if DIRECTIONAL[claim.number - 1]:
        result.p_equivalent = float(statistics.equivalent([pair.part(margin) for pair in result.pairs], margin))
    return result


def _decided(claim: Claim, pairs: list[Paired], margin: float, above: Above) -> tuple[float, bool]:
    if claim.contrasts:
        p, towards = statistics.decided([pair.part(margin) for pair in pairs], above)
    else:
        sign = {"in": 1, "out": 1, "train_seconds": -1, "memory": -1}  # which way is better
        p, towards = no_winner([(pair.contrast.left.name, pair.contrast.right.name, sign[pair.contrast.measure] * pair.d) for pair in pairs], above)
    return float(p), bool(towards)


def duels(lines: list[Line]) -> list[Contrast]:
    """Claim 7: every two of the five methods in every arena."""
    arenas = list(dict.fromkeys((line["domain"], (line["task"],)) for line in lines))
    arenas += [("train_seconds", ()), ("memory", ())]
    return [Contrast(one, other, measure, tasks=tasks) for measure, tasks in arenas
            for i, one in enumerate(FIVE) for other in FIVE[i + 1:]]


def no_winner(duels: list[tuple[str, str, np.ndarray]], above: Above = t_above) -> tuple[np.ndarray, np.ndarray]:
    """Claim 7's p value and lean. A duel: two methods and the differences (..., seeds), above 0 where the first is better.

    For it: every method (largest p) is beaten somewhere (its smallest p, Bonferroni over its duels). Against it: some method (smallest
    p, Bonferroni over methods) beats every other everywhere (its largest p).
    """
    wins: dict[str, list[np.ndarray]] = {}
    losses: dict[str, list[np.ndarray]] = {}
    for one, other, d in duels:
        up, down = above(d, 0), above(-d, 0)
        for name, won, lost in ((one, up, down), (other, down, up)):
            wins.setdefault(name, []).append(won)
            losses.setdefault(name, []).append(lost)
    for_it = np.max([np.minimum(1, len(found) * np.min(found, axis=0)) for found in losses.values()], axis=0)
    against = np.minimum(1, len(wins) * np.min([np.max(found, axis=0) for found in wins.values()], axis=0))
    return np.minimum(1, 2 * np.minimum(for_it, against)), for_it <= against


def seeds_to_decide(one: ClaimResult, margin: float) -> float:
    """The most that any of the claim's parts needs (claim 7: the median of its duels); nan without a spread to go by."""
    needed = [statistics.seeds_needed(float(np.std(pair.d, ddof=1)), margin, FAMILY, one.claim.number in COMPARABLE)
              for pair in one.pairs if len(pair.d) > 1]
    if not needed:
        return np.nan
    return max(needed) if one.claim.contrasts else float(np.median(needed))


def by_learning_rate(trials: pd.DataFrame, margin: float) -> dict[float, list[ClaimResult]]:
    """The claims anew for each learning rate, if a method has several: a method without that rate keeps its main one."""
    if not len(trials):
        return {}
    trained = trials[(trials["learning_rate"] != "") & ~trials["ablation"]]
    if not len(trained) or not (trained.groupby("group")["learning_rate"].nunique() > 1).any():
        return {}
    result = {}
    for rate in sorted(trained["learning_rate"].unique()):
        first = trained[trained["learning_rate"] == rate].groupby("group")["variant"].first()
        chosen = np.where(trials["group"].isin(first.index), trials["variant"] == trials["group"].map(first), trials["main"])
        result[float(rate)] = judge(trials.assign(main=chosen.astype(bool)), margin, flips=False)
    return result


def marked(folder: Path, found: list[ClaimResult], margin: float) -> list[ClaimResult]:
    """`found`, with marks on claims of which seeds, cells or margin changed after they were first seen. Writes nothing."""
    looks = _looks(folder)
    for one in found:
        key = str(one.claim.number)
        first = next((look for look in looks if key in look.get("claims", {})), None)
        if first is None or not _decidable(one):
            continue
        seen = first["claims"][key]
        if set(seen["seeds"]) != set(one.seeds) or seen.get("cells", one.cells) != one.cells:
            one.marks.append(f"extended after it was seen ({seen['verdict']} with {len(seen['seeds'])} seeds on {first['when'][:10]}): "
                             "its p value is optimistic")
        if first["margin"] != margin:
            one.marks.append(f"the margin was {first['margin']:g} when it was first seen")
    return found


def _looks(folder: Path) -> list[dict]:
    return (files.read_json(folder / "verdicts.json") or {}).get("looks", [])


def _decidable(one: ClaimResult) -> bool:
    return len(one.seeds) >= SEEDS_FOR_A_VERDICT and not one.missing


def log_look(folder: Path, found: list[ClaimResult], margin: float) -> None:
    """Marks what changed since it was first seen, and keeps in the study's `verdicts.json` what is seen now."""
    marked(folder, found, margin)
    path, looks = folder / "verdicts.json", _looks(folder)
    look = {"margin": margin, "claims": {str(one.claim.number): {"verdict": one.verdict, "seeds": one.seeds, "cells": one.cells}
                                         for one in found if _decidable(one)}}
    if look["claims"] and folder.is_dir() and (not looks or {**looks[-1], "when": None} != {**look, "when": None}):
        when = datetime.now(UTC).isoformat(timespec="seconds")
        files.write_json(path, {"looks": [*looks, {"when": when, **look}]})


def crossed(pair: Paired) -> tuple[float, float] | None:
    """95 % interval of a contrast of accuracies, over seeds and evaluation rows; None where predictions are not at hand or not alike."""
    if pair.contrast.measure not in ACCURACY or len(pair.seeds) < 2:
        return None
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    weights: dict[tuple[str, str], float] = {}
    for cell, both in pair.cells.items():
        sets = list(dict.fromkeys(line["set"] for line in both[0]))
        for name in sets:
            sides = [rows_right([line["folder"] for line in side if line["set"] == name], name, pair.seeds) for side in both]
            if any(side is None for side in sides) or sides[0][0] != sides[1][0]:
                return None
            key = (cell[0], f"{name} {sides[0][0]}")
            sums.setdefault(key, []).append(100 * (sides[0][1] - sides[1][1]))
            weights[key] = weights.get(key, 0.0) + 1 / len(sets) / len(pair.cells)
    return crossed_interval([(weights[key], np.mean(parts, axis=0)) for key, parts in sums.items()])
