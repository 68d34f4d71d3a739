"""The statistics of paired differences, all scipy's and statsmodels': tests, intervals, Holm, and how many seeds it takes.

A part of a claim says that a mean difference lies between `low` and `high` (either may be infinite). `d` has the differences,
one a seed along the last axis; any axes before it are studies side by side (the simulation has 2,000).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

SEEDS_FOR_A_VERDICT = 6  # below, a t test of differences leans on normality more than anybody should
SEEDS_FOR_A_BOOTSTRAP = 20  # below, bootstrap intervals are too short (Hesterberg 2015, arXiv 1411.5279)
ALPHA = 0.05
POWER = 0.8


@dataclass
class Part:
    """Differences `d` (..., seeds) and the open interval in which the claim says their mean lies."""

    d: np.ndarray
    low: float
    high: float
    side: bool = False  # a side clause: without it a claim is not supported; alone it neither contradicts one nor makes methods differ


Above = Callable[[np.ndarray, float], np.ndarray]  # one-sided p value of "the mean is above the bound"


def t_above(d: np.ndarray, bound: float) -> np.ndarray:
    """One-sided paired t test: how probable so large a mean is if the true one is `bound`."""
    # Sums of accuracies leave 1e-14 where a difference is exactly 0, and that must not become a spread.
    rest = np.round(np.asarray(d, float) - bound, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of identical differences; what they mean is decided here
        p = np.asarray(stats.ttest_1samp(rest, 0, axis=-1, alternative="greater").pvalue)
    same = np.ptp(rest, axis=-1) == 0
    return np.where(same, np.where(rest[..., 0] > 0, 0.0, 1.0), p)


def flip_above(d: np.ndarray, bound: float) -> np.ndarray:
    """The sign-flip test's one-sided p value: exact up to 14 seeds, beyond that from 9,999 random flips."""
    rest = np.round(np.asarray(d, float) - bound, 9)
    most = 2 ** rest.shape[-1] if rest.shape[-1] <= 14 else 9999
    test = stats.permutation_test((rest,), np.mean, permutation_type="samples", alternative="greater", n_resamples=most,
                                  axis=-1, vectorized=True, rng=np.random.default_rng(0))
    return np.asarray(test.pvalue)


def two_sided(d: np.ndarray, above: Above = t_above) -> float:
    """p value of "no difference" for one contrast (seeds,), before any correction."""
    return float(np.minimum(1, 2 * np.minimum(above(d, 0), above(-d, 0))))


def t_interval(d: np.ndarray) -> tuple[float, float]:
    """Student's t interval of the mean difference, 95 %, over seeds."""
    from lowres.runs.summary import interval

    return interval(d, 1 - ALPHA)


def supports(parts: list[Part], above: Above = t_above) -> np.ndarray:
    """p value of "every part is true": the largest over all bounds (intersection-union test, Berger 1982; needs no correction)."""
    return np.max([p for part in parts for p in _inside(part, above)], axis=0)


def contradicts(parts: list[Part], above: Above = t_above) -> np.ndarray:
    """p value of "some part is false", side clauses apart: the smallest over all bounds, times their number (Bonferroni)."""
    found = [p for part in parts if not part.side for p in _outside(part, above)]
    return np.minimum(1, len(found) * np.min(found, axis=0))


def decided(parts: list[Part], above: Above = t_above) -> tuple[np.ndarray, np.ndarray]:
    """The two-sided p value of a claim, and whether the data lean towards it. For one part "above 0": the paired t test's own."""
    for_it, against = supports(parts, above), contradicts(parts, above)
    return np.minimum(1, 2 * np.minimum(for_it, against)), for_it <= against


def equivalent(parts: list[Part], margin: float, above: Above = t_above) -> np.ndarray:
    """p value of "every difference is within the margin": two one-sided tests (Schuirmann 1987), the largest over the parts."""
    return supports([Part(part.d, -margin, margin) for part in parts if not part.side], above)


def _inside(part: Part, above: Above) -> list[np.ndarray]:
    return [above(sign * part.d, sign * bound) for sign, bound in ((1, part.low), (-1, part.high)) if np.isfinite(bound)]


def _outside(part: Part, above: Above) -> list[np.ndarray]:
    return [above(-sign * part.d, -sign * bound) for sign, bound in ((1, part.low), (-1, part.high)) if np.isfinite(bound)]


def holm(p: np.ndarray) -> np.ndarray:
    """p values (studies, claims) or (claims,) adjusted by Holm (1979) along the last axis."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p, float)
    lines = np.atleast_2d(p)
    return np.array([multipletests(line, method="holm")[1] for line in lines]).reshape(p.shape)


def bootstrap_interval(d: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987); (nan, nan) below 20 seeds."""
    if len(d) < SEEDS_FOR_A_BOOTSTRAP or np.ptp(d) == 0:
        return (np.nan, np.nan)
    found = stats.bootstrap((d,), np.mean, confidence_level=1 - ALPHA, method="BCa", rng=np.random.default_rng(0))
    return tuple(map(float, found.confidence_interval))


def crossed_interval(matrices: list[tuple[float, np.ndarray]]) -> tuple[float, float]:
    """95 % interval of a weighted sum of mean differences, for new seeds and new evaluation rows; (nan, nan) of one seed.

    `matrices`: for each evaluation set its weight and its differences (seeds, rows), the seeds in the same order. The squares of two half-widths are
    added: Student's t of the seeds' sums, and the normal one of the rows' means, of each set. What a seed does to a row is in both, so it errs on the
    wide side. A bootstrap of both (Owen 2007) is too narrow at few seeds: of six, 86 % of its intervals held the truth.
    """
    seeds = np.sum([weight * matrix.mean(axis=1, dtype=float) for weight, matrix in matrices], axis=0)
    low, high = t_interval(seeds)
    rows = sum(weight**2 * matrix.mean(axis=0, dtype=float).var(ddof=1) / matrix.shape[1] for weight, matrix in matrices)
    same = len(seeds) > 1 and np.ptp(seeds) == 0  # of which Student's t has no interval
    half = np.hypot(0 if same else (high - low) / 2, stats.norm.ppf(1 - ALPHA / 2) * np.sqrt(rows))
    return float(seeds.mean() - half), float(seeds.mean() + half)


def seeds_needed(spread: float, margin: float, claims: int, comparable: bool) -> float:
    """Seeds at which the test decides, with 80 % power and at Holm's strictest step, from the spread of the differences (points).

    It decides about a true difference as large as the margin; for a claim of comparability, about a true difference of none (both
    one-sided tests must reject, so each has 90 %). The observed difference is not used: power computed from it says nothing new.
    """
    from statsmodels.stats.power import TTestPower

    if not spread > 0:
        return float(SEEDS_FOR_A_VERDICT)
    wanted = {"power": (1 + POWER) / 2, "alpha": ALPHA / 2 / claims, "alternative": "larger"} if comparable else \
        {"power": POWER, "alpha": ALPHA / claims, "alternative": "two-sided"}
    effect = min(margin / spread, 5)  # beyond, the solver has nothing to solve: fewer seeds than are asked for anyway
    return max(float(np.ceil(TTestPower().solve_power(effect_size=effect, **wanted))), float(SEEDS_FOR_A_VERDICT))
