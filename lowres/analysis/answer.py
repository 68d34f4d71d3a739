"""The answer: which method to use, as a table of ten lines, as a terminal has room for, and as advice within a budget.

Advice is the pick, the runner-up, and the probability that the pick is the best: the paired bootstrap's, in which seeds are drawn anew, all
candidates together, and the share of draws is counted in which a candidate's mean is the highest. Candidates compete with one another, so the
luck of the best of many is counted in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lowres.analysis.collect import collect_study, main_runs, rows_right
from lowres.analysis.statistics import SEEDS_FOR_A_VERDICT, crossed_interval
from lowres.analysis.tables import NOTHING, at_most_shots, most_shots, of_machines
from lowres.files import BadInput, safe
from lowres.runs.study import Run, Study
from lowres.runs.summary import accuracy_interval, ends, interval, score_name

MOST_LINES = 10  # of a table that a person reads
TFIDF = ("baselines", "classifier=tfidf")
CLEAR = 0.95  # below this probability there is no clear winner: of two equal methods, one would pass 0.8 in 4 of 10 studies
RUN = ["method", "variant", "model", "shots"]


def main_lines(trials: pd.DataFrame) -> pd.DataFrame:
    """What the answer is about: the study's main runs, of one model, the one with the most results; with `measure`, what a set's score is if not
    accuracy, as its name says it.

    Of a set whose labels are uneven, macro-F1 stands where accuracy stands for others, and its name says so: there accuracy tells of the
    commonest label alone. So do the names of sets whose kind has another score.
    """
    part = main_runs(trials)
    if not len(part):
        return part
    part = part[part["model"] == part["model"].mode().iloc[0]]
    part = part.assign(measure=part["metric"].where(part["metric"] != "accuracy", "") if "metric" in part else "")
    if "uneven" in part and part["uneven"].eq(True).any():
        sets = [part["task"], part["set"]]
        uneven = part["uneven"].eq(True).groupby(sets).transform("any")  # older trials do not say so
        constant = part["constant_macro_f1"].groupby(sets).transform("max")
        part = part.assign(accuracy=part["accuracy"].mask(uneven, part["macro_f1"]), constant=part["constant"].mask(uneven, constant),
                           untrained=part["untrained"].mask(uneven), measure=part["measure"].mask(uneven, "macro-F1"))
    return part.assign(set=part["set"] + part["measure"].map(_in_brackets))


def _in_brackets(measure: str) -> str:
    return f" ({measure})" if measure else ""


def answer_table(trials: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """At most ten lines: the yardsticks, then methods at the most shots, the best first; and a sentence on how to read it.

    A cell: mean accuracy over seeds with its 95 % interval over seeds and rows, percent; an arrow where, on these rows, the interval over seeds is
    above both yardsticks.
    """
    part = main_lines(trials)
    if not len(part):
        return pd.DataFrame(), NOTHING
    shots, model = most_shots(part), part["model"].iloc[0]
    part, absent = at_most_shots(part)
    sets = {key: f"{Path(key[0]).stem}: {key[1]}" for key in part[["task", "set"]].drop_duplicates().itertuples(index=False, name=None)}
    lines = {(method, variant): [_cell(run, key) for key in sets] for (method, variant), run in part.groupby(["method", "variant"], sort=False)}
    order = part.groupby(["method", "variant"])["accuracy"].mean().sort_values(ascending=False, kind="stable").index
    rows = [["constant answer", *_bar(part, sets, "constant"), ""]]
    if part["untrained"].notna().any():
        rows.append(["untrained model", *_bar(part, sets, "untrained"), ""])
    best = list(order)[:MOST_LINES - len(rows)]
    seconds = _seconds(part)
    rows += [[_line_name(key), *lines[key], seconds[key]] for key in best]
    said = [f"{safe(model)}, {shots} examples per class. In brackets: 95 % intervals for new draws of the examples and new rows.",
            "Of F1: for new draws alone. ↑: above the constant answer and the untrained model.", absent, of_machines(part)]
    if len(order) > len(best):
        said.append(f"Not among the best {len(best)}, and in the results below: {len(order) - len(best)}.")
    return pd.DataFrame(rows, columns=["", *sets.values(), "s a trial"]), " ".join(filter(None, said))


def at_a_glance(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """For each task what a terminal has room for: its name and shots, a table (method, in domain, out of domain, seconds; the yardsticks first,
    the best method next), and a sentence on who is above constant answer, untrained model and TF-IDF.

    Out of domain is the mean over the sets. Accuracy in percent with its 95 % interval over seeds and rows.
    """
    if not len(lines := main_lines(trials)):
        return []
    found = []
    for task, whole in lines.groupby("task", sort=False):
        part, absent = at_most_shots(whole)
        table, said = _glance(part)
        title = f"{task}{_in_brackets(part['measure'].max())}, {most_shots(part)} examples per class, {part['model'].iloc[0]}"
        found.append((title, table, f"{said} {absent}".strip()))
    return found


def _glance(part: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    domains = {key: title for key, title in (("in", "in domain"), ("out", "out of domain")) if (part["domain"] == key).any()}
    bars = part.groupby("domain")[["constant", "untrained"]].mean().T.to_dict()
    rows, above = [], {domain: [] for domain in domains}
    runs = {key: run for key, run in part.groupby(["method", "variant"], sort=False)}
    each = {key: {domain: lines.groupby("seed")["accuracy"].mean() for domain, lines in run.groupby("domain")} for key, run in runs.items()}
    counted = {domain: each[TFIDF][domain].mean() for domain in each[TFIDF]} if TFIDF in each else {}
    seconds = _seconds(part)
    for key in sorted(each, key=lambda key: -np.mean([scores.mean() for scores in each[key].values()])):
        name, cells, lines = _line_name(key), [], runs[key]
        for domain in domains:
            scores = each[key].get(domain, pd.Series(dtype=float))
            cells.append(f"{100 * scores.mean():.1f}{ends(*over_seeds_and_rows(lines[lines['domain'] == domain]))}" if len(scores) else "")
            if key != TFIDF and len(scores) and accuracy_interval(scores)[0] > np.nanmax([*bars[domain].values(), counted.get(domain, 0)]):
                above[domain].append(name)
        rows.append([name, *cells, seconds[key]])
    for name, title in (("untrained", "untrained model"), ("constant", "constant answer")):
        cells = [bars.get(domain, {}).get(name, np.nan) for domain in domains]
        if not np.isnan(cells).all():
            rows.insert(0, [title, *("" if np.isnan(cell) else f"{100 * cell:.1f}" for cell in cells), ""])
    said = [f"{title}: {', '.join(above[domain]) or 'none'}" for domain, title in domains.items()]
    yardsticks = "the constant answer, the untrained model" + (" and TF-IDF" if counted else "")
    return (pd.DataFrame(rows[:MOST_LINES], columns=["", *domains.values(), "s a trial"]),
            f"Shown to be above {yardsticks}, {'; '.join(said)}.")


def _line_name(key: tuple[str, str]) -> str:
    """A method and its variant, with places where a long one may break."""
    return f"{key[0]} {key[1].replace(',', ', ')}".strip()


def _seconds(part: pd.DataFrame) -> pd.Series:
    """By method and variant what a trial takes on average, as text."""
    once = part.drop_duplicates(["method", "variant", "task", "seed"])
    return once.groupby(["method", "variant"])["seconds"].mean().map("{:.0f}".format)


def _cell(run: pd.DataFrame, key: tuple[str, str]) -> str:
    here = run[(run["task"] == key[0]) & (run["set"] == key[1])]
    if not len(here):
        return ""
    above = accuracy_interval(here["accuracy"])[0] > np.nanmax([here["constant"].iloc[0], here["untrained"].iloc[0]])  # on these rows
    return f"{100 * here['accuracy'].mean():.1f}{ends(*over_seeds_and_rows(here))}" + (" ↑" if above else "")


def over_seeds_and_rows(run: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of a run's mean accuracy over its sets, for new seeds and new rows (`statistics.crossed_interval`); over seeds alone where the
    predictions are not at hand, or macro-F1 stands."""
    seeds, sets = sorted(run["seed"].unique()), run["set"].unique()
    found = [rows_right(run["folder"].unique(), name, seeds) for name in sets]
    if None in found:
        return accuracy_interval(run.groupby("seed")["accuracy"].mean())
    return tuple(np.clip(crossed_interval([(1 / len(sets), right) for _, right in found]), 0, 1))


def _bar(part: pd.DataFrame, sets: dict, name: str) -> list[str]:
    means = part.groupby(["task", "set"])[name].mean()
    return ["" if np.isnan(means[key]) else f"{100 * means[key]:.1f}" for key in sets]


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
    score = f"mean of in-domain and out-of-domain {score_name(trials)}" if both else f"in-domain {score_name(trials)}"
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


def best_to_keep(study: Study) -> tuple[Run, str]:
    """Of the runs that leave a model, the most accurate one on average over domains, at the most shots; and a sentence on that. Raises BadInput."""
    from lowres.methods.kept import check_can_be_kept

    def can_be_kept(run: Run) -> bool:
        try:
            check_can_be_kept(run.method, run.parameters)
        except BadInput:
            return False
        return True

    lines = main_lines(collect_study(study).trials)
    if not len(lines):
        raise BadInput(f"{study.name}: there are no results to choose by: `lowres run {study.name}` makes them")
    if lines["task"].nunique() > 1:
        raise BadInput(f"--only: {study.name} has several tasks ({', '.join(lines['task'].unique())}): say which, by --only task=…")
    lines = at_most_shots(lines[lines["folder"].isin([str(run.folder) for run in study.runs if can_be_kept(run)])])[0]
    if not len(lines):
        raise BadInput(f"{study.name}: no run leaves a model that can be kept: --only names one, and says why not")
    means = lines.groupby(["folder", "domain"])["accuracy"].mean().groupby("folder").mean()
    best = next(run for run in study.runs if str(run.folder) == means.idxmax())
    unsure = ", though not shown to be the best (no clear winner)" if "no clear winner" in advise(lines, Budget()) else ""
    return best, f"{best.name}: the most accurate that can be kept, on average{unsure}"
