"""Simulated studies: how often the table of claims errs, and how often it sees what is there.

2,000 studies of 10 seeds a world (the slow form, with more worlds and spreads; the fast form has 1,000). A world sets every method's
true mean; the truth lies on the very edge of each claim, where errors are likeliest.
"""

import gc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lowres.analysis import statistics
from lowres.analysis.claims import CLAIMS, FAMILY, FIVE
from lowres.analysis.statistics import ALPHA, Part
from lowres.analysis.verdicts import CONTRADICTED, DIRECTIONAL, EQUIVALENT, SUPPORTED, WITHIN, no_winner, words

MARGIN, SEEDS, FAST, FULL = 2.0, 10, 1000, 2000
MEASURES = ("in", "out", "train_seconds", "memory")
BASES = ("vanilla", "PBFT", "LoRA", "adaptive (pattern)", "adaptive (layers)", "distillation (few-shot)", "distillation (pool)")
World = Callable[[str, str], float]  # a method's true mean on a measure


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch):
    """statsmodels collects garbage in each correction for multiplicity, which takes 30 ms where much is loaded."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def simulated(world: World, spread: float, studies: int) -> np.ndarray:
    """(studies, 7) verdicts. `spread`: standard deviation over seeds of a difference of two methods."""
    rng = np.random.default_rng(20240520)
    drawn = {(name, measure): world(name, measure) + rng.normal(0, spread / np.sqrt(2), (studies, SEEDS)) for name in BASES for measure in MEASURES}
    for measure in MEASURES:  # sides that are means of others; the heads are the new classifier's, so full fine-tuning is vanilla
        drawn["adaptive", measure] = (drawn["adaptive (pattern)", measure] + drawn["adaptive (layers)", measure]) / 2
        drawn["distillation", measure] = (drawn["distillation (few-shot)", measure] + drawn["distillation (pool)", measure]) / 2
        drawn["full fine-tuning", measure] = drawn["vanilla", measure]
    found = [_claim(claim, drawn) for claim in CLAIMS]
    p, towards, same = (np.stack(column, axis=-1) for column in zip(*found))
    return words(p, towards, same)


def _claim(claim, drawn):
    if not claim.contrasts:
        better = {"in": 1, "out": 1, "train_seconds": -1, "memory": -1}
        duels = [(a.name, b.name, better[m] * (drawn[a.name, m] - drawn[b.name, m])) for m in MEASURES
                 for i, a in enumerate(FIVE) for b in FIVE[i + 1:]]
        p, towards = no_winner(duels)
        return p, towards, np.ones_like(p)
    bound = lambda times: times * MARGIN if np.isfinite(times) else times  # noqa: E731
    parts = [Part(drawn[c.left.name, c.measure] - drawn[c.right.name, c.measure], bound(c.low), bound(c.high), c.side) for c in claim.contrasts]
    return *statistics.decided(parts), statistics.equivalent(parts, MARGIN)


def nothing(name: str, measure: str) -> float:
    return 0.0


def edges(name: str, measure: str) -> float:
    """Claims 3 and 6 on the edges of their intervals, the others at no difference: every decision is false."""
    if measure == "in":
        return {"LoRA": -2 * MARGIN, "adaptive (layers)": MARGIN}.get(name, 0.0)
    return MARGIN if measure == "out" and name not in ("vanilla", "PBFT") else 0.0


def one_margin(name: str, measure: str) -> float:
    """Every directional claim has one part at the margin's edge, the others at no difference: every "equivalent" is false."""
    if measure == "in":
        return {"vanilla": MARGIN, "adaptive (pattern)": MARGIN, "distillation (few-shot)": MARGIN, "distillation (pool)": MARGIN}.get(name, 0.0)
    if measure == "out":
        return {"distillation (few-shot)": MARGIN, "distillation (pool)": MARGIN}.get(name, 0.0)
    return -MARGIN if (name, measure) == ("LoRA", "memory") else 0.0


def false_decisions(world: World, spread: float, studies: int) -> int:
    """Studies with any false "supported" or "contradicted" (or "different") among the seven."""
    verdicts = simulated(world, spread, studies)
    wrong = np.isin(verdicts, (SUPPORTED, CONTRADICTED, WITHIN))
    if world is nothing:  # there, claims 3 and 6 are true
        wrong[:, [2, 5]] = verdicts[:, [2, 5]] == CONTRADICTED
    return int(wrong.any(axis=1).sum())


def not_above(count: int, studies: int, rate: float = ALPHA) -> bool:
    """Not significantly above the rate: one-sided exact binomial test at 1 %."""
    return stats.binomtest(count, studies, rate, alternative="greater").pvalue > 0.01


def powers(spread: float, studies: int) -> dict[str, float]:
    """Shares for a true 5 points in claim 2, and what the t test has by theory."""
    truth = lambda name, measure: 5.0 if (name, measure) == ("adaptive (pattern)", "in") else 0.0  # noqa: E731
    verdicts = simulated(truth, spread, studies)[:, 1]
    d = np.random.default_rng(7).normal(5, spread, (studies, SEEDS))
    p, towards = statistics.decided([Part(d, 0, np.inf)])
    theory = lambda alpha: float(stats.nct.sf(stats.t.isf(alpha / 2, SEEDS - 1), SEEDS - 1, 5 / spread * np.sqrt(SEEDS)))  # noqa: E731
    return {"test": float(np.mean((p < ALPHA) & towards)), "theory": theory(ALPHA),
            "claim": float(np.isin(verdicts, (SUPPORTED, WITHIN)).mean()), "theory, Holm": theory(ALPHA / FAMILY)}


def not_below(share: float, theory: float, studies: int) -> bool:
    return stats.binomtest(round(share * studies), studies, min(theory, 1 - 1e-9), alternative="less").pvalue > 0.01


@pytest.mark.parametrize("world", [nothing, edges])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_few_studies_decide_anything_falsely(world, spread):
    assert not_above(false_decisions(world, spread, FAST), FAST)


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_few_studies_call_a_difference_of_the_margin_equivalent(spread):
    assert not_above(int(np.isin(simulated(one_margin, spread, FAST)[:, DIRECTIONAL], (EQUIVALENT, WITHIN)).any(axis=1).sum()), FAST)


def test_the_edge_of_one_contrast_is_reached_by_two_one_sided_tests_as_often_as_they_promise():
    d = np.random.default_rng(3).normal(MARGIN, 1.0, (FULL, SEEDS))
    count = int((statistics.equivalent([Part(d, 0, np.inf)], MARGIN) < ALPHA).sum())
    assert not_above(count, FULL) and count > 0.03 * FULL


@pytest.mark.parametrize("spread", [2.0, 4.0, 8.0])
def test_power_is_not_below_the_t_tests_own(spread):
    found = powers(spread, FULL)
    assert not_below(found["test"], found["theory"], FULL) and not_below(found["claim"], found["theory, Holm"], FULL)


@pytest.mark.slow
def test_two_thousand_studies(capsys):
    lines = []
    for spread in (0.5, 1.0, 2.0, 4.0, 8.0):
        for world in (nothing, edges):
            count = false_decisions(world, spread, FULL)
            lines.append(f"spread {spread:g}, {world.__name__}: any false decision {count / FULL:.2%}")
            assert not_above(count, FULL), lines[-1]
        verdicts = simulated(one_margin, spread, FULL)[:, DIRECTIONAL]
        count = int(np.isin(verdicts, (EQUIVALENT, WITHIN)).any(axis=1).sum())
        lines.append(f"spread {spread:g}, at the margin's edge: any false equivalent {count / FULL:.2%}")
        assert not_above(count, FULL), lines[-1]
    for spread in (2.0, 4.0, 8.0):
        lines.append(f"spread {spread:g}, a true 5 points: " + ", ".join(f"{name} {share:.1%}" for name, share in powers(spread, FULL).items()))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
