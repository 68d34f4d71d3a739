"""Which learning rate a method is judged at: five rules side by side, and what each loses to the best rate in hindsight.

A verdict on methods is a verdict on rates as long as each has one that suits it better or worse. The rules, written down before the trials that
they judge:

- *first*: the rate that the study file lists first (studies of the paper: the paper's);
- *other tasks*: of the listed rates, the one with the best score on the study's other tasks, at the same model and number of shots; of equals the
  smaller. What a practitioner can have: no trial on the task itself is looked at;
- *shots*: what the labelled shots chose (runs with `choose`, which the study file marks as ablations), its cost counted;
- *mean*: the mean of the label probabilities of all listed rates' trials of a seed: nothing is chosen, and every rate is trained (left out
  where the predictions of more than MOST_RUNS runs would have to be read);
- *hindsight*: the rate with the best score on the very task and rows: nobody can have it, and the others are held against it.

A score is accuracy, the mean over evaluation sets within a domain, then over domains, then over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from lowres.analysis.collect import MOST_RUNS, main_runs
from lowres.analysis.verdicts import ClaimResult, judge
from lowres.runs import records
from lowres.runs.study import variant
from lowres.runs.summary import ends, interval

FIRST, ELSEWHERE, SHOTS, MEAN, HINDSIGHT = RULES = ("first", "other tasks", "shots", "mean", "hindsight")
LINE = ["method", "setting", "model", "shots"]  # what has a rate of its own on each task
FEWEST_TASKS = 3  # of which something over tasks is said
BELOW = 1e-9  # of two scores that lie no farther apart, neither is better


def rated(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that say something of rates: those of lines with several, and those that chose; with `setting`, the variant but for the rate."""
    if not len(trials):
        return trials
    part = trials[(trials["learning_rate"] != "") & (~trials["ablation"] | (trials["chosen_from"] != ""))]
    if not len(part):
        return part
    setting = [variant({key: settings[key] for key in settings if key not in ("learning_rate", "choose")}) for settings in part["settings"]]
    part = part.assign(setting=setting, chose=part["chosen_from"] != "")
    part = part[~part["chose"] | part["chosen_from"].str.contains("'learning_rate'")]
    several = part[~part["chose"]].groupby([*LINE, "task"])["learning_rate"].transform("nunique").reindex(part.index, fill_value=0) > 1
    return part[several | part["chose"]]


def score_by_rate(part: pd.DataFrame) -> pd.Series:
    """By line, task and rate, percent."""
    each = part[~part["chose"]].groupby([*LINE, "task", "learning_rate", "seed", "domain"], sort=False)["accuracy"].mean()
    return 100 * each.groupby([*LINE, "task", "learning_rate", "seed"], sort=False).mean().groupby([*LINE, "task", "learning_rate"]).mean()


def best(scores: pd.Series) -> float:
    """Of scores by rate, the best one's rate; of equals the smallest."""
    return float(scores.index[scores >= scores.max() - BELOW].min())


def from_other_tasks(part: pd.DataFrame) -> pd.DataFrame:
    """A line a method, setting, model, number of shots and task: the rate that does best on the others; and, task "", on all."""
    lines, scores = [], score_by_rate(part)
    for key, found in scores.groupby(LINE, sort=False):
        table = found.droplevel(LINE).unstack("task")
        for task in [*table.columns, ""]:
            others = table.drop(columns=task, errors="ignore").dropna()
            if others.shape[1] and len(others):
                lines.append({**dict(zip(LINE, key)), "task": task, "learning_rate": best(others.mean(axis=1)), "tasks": others.shape[1],
                              "rates": ", ".join(f"{rate:g}: {value:.1f}" for rate, value in others.mean(axis=1).items())})
    return pd.DataFrame(lines)


def by_rule(trials: pd.DataFrame) -> pd.DataFrame:
    """A line a rule, line, task, seed, domain and set: accuracy, and the rate. A rule that cannot be had is left out."""
    part = rated(trials)
    if not len(part):
        return pd.DataFrame()
    scores = score_by_rate(part)
    elsewhere = from_other_tasks(part)
    known = {} if not len(elsewhere) else elsewhere.set_index([*LINE, "task"])["learning_rate"].to_dict()
    found = []
    for key, lines in part.groupby([*LINE, "task"], sort=False):
        listed, chosen = lines[~lines["chose"]], lines[lines["chose"]]
        if len(listed):
            first = listed[listed["main"]]["learning_rate"]
            rates = {FIRST: float(first.iloc[0]) if len(first) else None, ELSEWHERE: known.get(key),
                     HINDSIGHT: best(scores.xs(key, level=[*LINE, "task"]))}
            found += [listed[listed["learning_rate"] == rate].assign(rule=rule) for rule, rate in rates.items() if rate is not None]
            if part["folder"].nunique() <= MOST_RUNS:
                found.append(_averaged(listed))
        found.append(chosen.assign(rule=SHOTS))
    return pd.concat(found, ignore_index=True)


def _averaged(listed: pd.DataFrame) -> pd.DataFrame:
    """What the mean of the rates' label probabilities answers, for the seeds that all rates have."""
    tables = [records.read_predictions(Path(folder)) for folder in listed["folder"].unique()]
    if not all(len(table) and table["label"].dtype.kind == "i" for table in tables):  # of several labels a row each is answered by itself
        return listed.head(0)
    columns = [column for column in tables[0] if column.startswith("logit_")]
    keys = ["trial", "set", "row", "label"]
    whole = pd.concat([table[keys].join(pd.DataFrame(softmax(table[columns].to_numpy(float), axis=1), index=table.index)) for table in tables])
    rows = whole.groupby(keys)
    mean = rows.mean()[rows.size() == len(tables)].reset_index()
    right = mean[list(range(len(columns)))].to_numpy().argmax(axis=1) == mean["label"]
    accuracy = right.groupby([mean["trial"], mean["set"]]).mean()
    one = listed[listed["main"]].assign(rule=MEAN, learning_rate=np.nan)
    one["accuracy"] = [accuracy.get((seed, name), np.nan) for seed, name in zip(one["seed"], one["set"])]
    return one.dropna(subset="accuracy")


def regret_table(rules: pd.DataFrame) -> pd.DataFrame:
    """A line a method and setting, a column a rule: mean score over tasks and shots, and the points by which it lies below hindsight, with its 95 %
    interval over seeds (those that both have)."""
    if not len(rules):
        return rules
    each = rules.groupby(["method", "setting", "rule", "model", "shots", "task", "seed", "domain"])["accuracy"].mean()
    each = 100 * each.groupby(["method", "setting", "rule", "model", "shots", "task", "seed"]).mean()
    lines = []
    for key, found in each.groupby(["method", "setting"], sort=False):
        table = found.droplevel(["method", "setting"]).unstack("rule")
        line = {"method": key[0], "setting": key[1]}
        for rule in (rule for rule in RULES if rule in table):
            both = table[[name for name in dict.fromkeys([rule, HINDSIGHT]) if name in table]].dropna()
            line[rule] = f"{both[rule].mean():.1f}" if len(both) else ""
            if rule != HINDSIGHT and HINDSIGHT in both and len(both):
                lost = (both[HINDSIGHT] - both[rule]).groupby("seed").mean()
                low, high = interval(lost)
                line[rule] += f" ({lost.mean():.1f} below{ends(low / 100, high / 100)})"
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def verdicts_by_rule(trials: pd.DataFrame, rules: pd.DataFrame, margin: float) -> dict[str, list[ClaimResult]]:
    """The claims with each method at the rate that a rule gives it (`rules`: `by_rule` of these trials); a line that has one rate keeps it."""
    if not len(rules):
        return {}
    part, found = rated(trials), {}
    for rule in (FIRST, ELSEWHERE, HINDSIGHT):
        picked = rules[rules["rule"] == rule].drop_duplicates("folder")["folder"]
        if len(picked):
            main = np.where(trials["folder"].isin(part["folder"]), trials["folder"].isin(picked), trials["main"])
            found[rule] = judge(trials.assign(main=main.astype(bool)), margin, flips=False)
    return found


def by_task(trials: pd.DataFrame, rules: pd.DataFrame) -> pd.DataFrame:
    """(tasks and numbers of shots, seeds; methods): points above the constant answer, the mean over a domain's sets, then over domains.

    A method with several rates stands at the one that the other tasks give it (`rules`: `by_rule` of these trials). Of one model, the one with the
    most results, and of the methods that have results on all; empty below FEWEST_TASKS tasks.
    """
    level = main_runs(trials)
    if len(rules):
        level = pd.concat([rules[rules["rule"] == ELSEWHERE], level[~level["folder"].isin(rated(trials)["folder"])]])
    if not len(level):
        return pd.DataFrame()
    level = level[level["model"] == level["model"].mode().iloc[0]]
    setting = level["setting"].fillna(level["variant"]) if "setting" in level else level["variant"]
    lines = level.assign(line=(level["method"] + " " + setting).str.strip(), points=100 * (level["accuracy"] - level["constant"]))
    each = lines.groupby(["task", "shots", "seed", "line", "domain"], sort=False)["points"].mean().groupby(["task", "shots", "seed", "line"]).mean()
    table = _on_all(each.unstack("line"))
    return table if table.index.unique("task").size >= FEWEST_TASKS else pd.DataFrame()


def _on_all(table: pd.DataFrame) -> pd.DataFrame:
    """The methods that have every task, and the seeds that they all have."""
    return table[[name for name in table if table[name].groupby(["task", "shots"]).any().all()]].dropna()


def improvement_table(points: pd.DataFrame) -> pd.DataFrame:
    """At most ten lines: methods by their mean of `by_task` over tasks, and how probably a run of the first is better than one of theirs."""
    if not len(points):
        return points
    order = points.groupby(["task", "shots"]).mean().mean().sort_values(ascending=False, kind="stable").index[:10]
    units = [part.to_numpy() for _, part in points[order].groupby(["task", "shots"])]
    lines = []
    for i, name in enumerate(order):
        mean, low, high = improvement([unit[:, [0, i]] for unit in units])
        lines.append({"": name, "points above the constant answer": f"{np.mean([unit[:, i].mean() for unit in units]):.1f}",
                      f"a run of {order[0]} is better, %": f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}]" if i else ""})
    return pd.DataFrame(lines)


def improvement(units: list[np.ndarray], times: int = 2_000) -> tuple[float, float, float]:
    """P(a run of the first is better than one of the second), mean over tasks, a tie as half; with 95 % of the bootstrap in which each task's seeds
    are drawn anew, both methods' together. `units`: (seeds, 2) a task. Agarwal et al. 2021, arXiv 2108.13264, section 4."""
    rng, found = np.random.default_rng(0), np.zeros(times + 1)
    for unit in units:
        won = (np.sign(unit[:, :1] - unit[:, 1]) + 1) / 2
        drawn = np.vstack([np.ones(len(unit)), rng.multinomial(len(unit), np.full(len(unit), 1 / len(unit)), times)]) / len(unit)
        found += np.einsum("ti,ij,tj->t", drawn, won, drawn) / len(units)
    return float(found[0]), *np.quantile(found[1:], [0.025, 0.975]).tolist()
