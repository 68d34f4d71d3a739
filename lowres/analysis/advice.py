"""Which method to use within a budget: the pick, the runner-up, and the probability that the pick is the best.

The probability is the paired bootstrap's: seeds are drawn anew, all candidates together, and the share of draws is counted in which a
candidate's mean is the highest. Candidates compete with one another, so the luck of the best of many is counted in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowres.analysis.statistics import SEEDS_FOR_A_VERDICT
from lowres.files import safe
from lowres.runs.summary import interval

CLEAR = 0.95  # below this probability there is no clear winner: of two equal methods, one would pass 0.8 in 4 of 10 studies
RUN = ["method", "variant", "model", "shots"]


@dataclass(frozen=True)
class Budget:
    """What may be spent. 0: no limit."""

    labels_per_class: int = 0
    memory_gb: float = 0.0
    seconds: float = 0.0
    out_of_domain_matters: bool = True


def candidates(trials: pd.DataFrame, budget: Budget) -> tuple[pd.DataFrame, list[str]]:
    """(seeds, candidates): scores in percent of one task's runs that the budget allows, and why others are out.

    A score is in-domain accuracy; if out of domain matters, the mean of in-domain and out-of-domain accuracy. All compete at one count
    of shots, the largest of those allowed that the most runs have, over the seeds that all have. Ablations do not enter, nor does a run
    whose trials are another's to the last digit (a pattern that was chosen anew and stayed).
    """
    out = []
    lines = trials.assign(count=pd.to_numeric(trials["shots"], errors="coerce").fillna(np.inf))
    if budget.labels_per_class:
        lines = lines[lines["count"] <= budget.labels_per_class]
        if not len(lines):
            return pd.DataFrame(), [f"the fewest shots in this study are more than {budget.labels_per_class} a class"]
    scores, first = {}, {}
    for key, run in _comparable(lines, out).groupby(RUN, sort=False):
        name, once = label(key), run.drop_duplicates("seed")
        for limit, measure, unit in ((budget.memory_gb, "memory", "GB"), (budget.seconds, "seconds", "s")):
            if limit and once[measure].mean() > limit:
                out.append(f"{name}: {once[measure].mean():.1f} {unit}, more than {limit:g}")
                break
        else:
            same = first.setdefault(tuple(once.sort_values("seed")["outcome"]), name)
            if same != name:
                out.append(f"{name}: its trials are those of {same}, to the last digit")
                continue
            wanted = run if budget.out_of_domain_matters else run[run["domain"] == "in"]
            scores[name] = 100 * wanted.groupby(["seed", "domain"])["accuracy"].mean().groupby("seed").mean()
    table = pd.DataFrame(scores)
    if len(common := table.dropna()) < len(table):
        out.append(f"{len(table) - len(common)} of {len(table)} seeds, which not all of them have yet")
    return common, out


def _comparable(lines: pd.DataFrame, out: list[str]) -> pd.DataFrame:
    """The lines at the largest `count` of shots that the most runs have, without ablations. Whom that leaves out is added to `out`."""
    ablations = [f"{method} ({variant}) with {run['seed'].nunique()} seeds"
                 for (method, variant), run in lines[lines["ablation"]].groupby(["method", "variant"], sort=False)]
    lines = lines[~lines["ablation"]]
    who = RUN[:-1]  # all but the shots
    have = lines.drop_duplicates([*who, "count"])["count"].value_counts()
    count = max(have[have == have.max()].index, default=0)  # none, where only ablations have results
    for key, run in lines.groupby(who, sort=False):
        if not (run["count"] == count).any():
            out.append(f"{label((*key, run['shots'].iloc[-1]))}: no results at the {_number(count)} shots of the others")
    if ablations:
        out.append(f"ablations: {', '.join(ablations)}")
    return lines[lines["count"] == count]


def _number(count: float) -> str:
    return f"{count:g}" if np.isfinite(count) else "all"


def label(key: tuple) -> str:
    method, variant, model, shots = key
    return f"{method}{f' ({variant})' if variant else ''}, {model}, {shots}-shot"


def probability_best(scores: np.ndarray, times: int = 10_000) -> np.ndarray:
    """(candidates,): the share of paired bootstrap draws of the seeds in which each candidate of `scores` (seeds, candidates) is the best."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), times) @ scores
    best = np.isclose(drawn, drawn.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0)  # equals share the draw


def _percent(chance: float) -> str:
    """Never 100 or 0 %: a few seeds drawn anew say little of what is rarer than one in a hundred."""
    return "more than 99 %" if chance > 0.99 else "less than 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def advise(trials: pd.DataFrame, budget: Budget) -> str:
    """The advice for each task of a study, as Markdown."""
    if not len(trials):
        return "There are no results to give advice from yet."
    lines = []
    both = budget.out_of_domain_matters and trials["domain"].nunique() > 1
    score = "mean of in-domain and out-of-domain accuracy" if both else "in-domain accuracy"
    limits = ((budget.labels_per_class, "labels a class"), (budget.memory_gb, "GB"), (budget.seconds, "s a trial"))
    said = [f"{value:g} {unit}" for value, unit in limits if value]
    lines.append(f"Budget: {', '.join(said) if said else 'no limit'}. Best means the highest {score}.")
    lines += [f"- **{safe(task)}**: {_for_task(part, budget)}" for task, part in trials.groupby("task", sort=False)]
    return "\n\n".join(line for line in lines)


def _for_task(trials: pd.DataFrame, budget: Budget) -> str:
    table, out = candidates(trials, budget)
    outside = f" Left out: {safe('; '.join(out[:6]))}{' …' if len(out) > 6 else ''}." if out else ""
    if not table.shape[1]:
        return f"nothing in this study fits the budget.{outside}"
    if not len(table):
        return f"**no clear winner**: the methods have no seed in common yet, so nothing was compared.{outside}"
    order = table.mean().sort_values(ascending=False, kind="stable").index
    pick = order[0]
    own = trials[[label(key) == pick for key in trials[RUN].itertuples(index=False, name=None)]]  # a yardstick may be its model's
    constant, untrained = (_yardstick(own, budget, name) for name in ("constant", "untrained"))
    low, high = interval(table[pick])
    ends = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
    how = f"{table[pick].mean():.1f} %{ends} over {len(table)} seeds; constant prediction {constant:.1f} %"
    if len(table) < SEEDS_FOR_A_VERDICT:
        few = f"{len(table)} seed(s) are too few to say (at least {SEEDS_FOR_A_VERDICT})"
        return f"**no clear winner**: {few}. Ahead so far: {safe(pick)} ({how}).{outside}"
    if not low > constant:  # an interval that is not there shows nothing either
        return f"**none**: the best, {safe(pick)} ({how}), is not shown to be better than always giving the commonest label.{outside}"
    if low <= untrained:
        return (f"**none**: the best, {safe(pick)} ({how}), is not shown to be better than the untrained model, which is right on {untrained:.1f} % "
                f"with the label words and no example.{outside}")
    if len(order) == 1:
        return f"**{safe(pick)}** ({how}): the only one within the budget, so nothing was compared.{outside}"
    chance = dict(zip(table, probability_best(table.to_numpy())))
    runner = order[1]
    gap = table[pick] - table[runner]
    ends = "".join(f" [{a:+.1f}, {b:+.1f}]" for a, b in [interval(gap)] if not np.isnan(a))
    second = f"runner-up {safe(runner)} ({_percent(chance[runner])}), behind by {gap.mean():.1f} points{ends}"
    if chance[pick] >= CLEAR:
        return f"**{safe(pick)}** ({how}), the best with probability {_percent(chance[pick])}; {second}.{outside}"
    return f"**no clear winner**: {safe(pick)} is ahead ({how}) and the best with a probability of only {_percent(chance[pick])}; {second}.{outside}"


def _yardstick(trials: pd.DataFrame, budget: Budget, name: str) -> float:
    """Percent; NaN for an untrained model that the study did not measure."""
    lines = trials if budget.out_of_domain_matters else trials[trials["domain"] == "in"]
    return 100 * float(lines.groupby("domain")[name].mean().mean())
