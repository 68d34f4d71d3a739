"""What trials come to: means, intervals and yardsticks by run, a notebook's tables and the answer on its top."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lowres.files import safe
from lowres.parameters import Parameters
from lowres.runs import records

RUN = ["method", "variant", "model", "task", "shots"]  # what tells a run from another
STEPS = ["mean_error", "constant_mean_error"]  # of labels that are a scale's steps
UNTRAINED = ["untrained", "untrained_mcc"]  # accuracy and MCC of the backbone as it comes: label words, pattern, no example


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean over seeds; (nan, nan) where the values say nothing about spread: one alone, or all equal."""
    from scipy import stats  # takes 0.4 s, which no trial has to wait for

    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return (np.nan, np.nan)
    low, high = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    return (float(low), float(high))


def accuracy_interval(values) -> tuple[float, float]:
    """The same for accuracies, 0 to 1: two trials' interval may reach beyond what an accuracy can be."""
    low, high = np.clip(interval(values), 0, 1)
    return (float(low), float(high))


def summary(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A line a group: mean accuracy, macro-F1 and MCC over seeds, each with its 95 % interval, the yardsticks, cost. Where another score stands in
    accuracy's place, `metric` has its name.

    The yardsticks are the constant prediction's accuracy and, where the trials have it, what the untrained model gives.
    """
    groups, given = trials.groupby(by, sort=False), set(trials)
    first, numbers = groups.first(), groups.ngroup().to_numpy()
    order = np.argsort(numbers, kind="stable")[(numbers < 0).sum():]
    ends_at = np.flatnonzero(np.diff(numbers[order])) + 1

    def each(name: str) -> list[np.ndarray]:
        """A column's values, group by group."""
        values = trials[name].to_numpy(float) if name in given else np.full(len(trials), np.nan)
        return np.split(values[order], ends_at)

    found = {"metric": first["metric"] if "metric" in given else "accuracy", "accuracy": _means(each("accuracy"))}
    found["low"], found["high"] = _intervals(each("accuracy"), 0)
    found |= {name: _means(each(name)) for name in ("constant", "from_shots", *UNTRAINED, "exact_match", *STEPS) if name in given}
    found["uneven"] = groups["uneven"].agg(lambda values: values.eq(True).any()).astype(bool) if "uneven" in given else False
    found["macro-F1"] = _means(each("macro_f1"))
    found["f1 low"], found["f1 high"] = _intervals(each("macro_f1"), 0)
    found |= {"constant f1": _means(each("constant_macro_f1")), "mcc": _means(each("mcc"))}
    found["mcc low"], found["mcc high"] = _intervals(each("mcc"), -1)
    found |= {"trials": groups.size(), "distinct": groups["outcome"].nunique(), "one label": _means(each("commonest_prediction")),
              "seconds": _means(each("seconds")), "rows": first["n"]}
    return pd.DataFrame(found, first.index).reset_index()


def _means(groups: list[np.ndarray]) -> np.ndarray:
    known = [values[~np.isnan(values)] for values in groups]
    return np.array([values.mean() if len(values) else np.nan for values in known])


def _intervals(groups: list[np.ndarray], least: float) -> tuple[np.ndarray, np.ndarray]:
    """Each group's `interval`, with what takes scipy long done once for all: they may be 20,000. Clipped to what such a score can be."""
    from scipy import stats

    counts = np.array([len(values) for values in groups])
    middles, errors = np.full((2, len(groups)), np.nan)
    for i, values in enumerate(groups):
        if len(values) > 1 and np.ptp(values) > 0:
            middles[i], errors[i] = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    low, high = (stats.t.ppf(end, np.maximum(counts - 1, 1)) * errors + middles for end in ((1 - 0.95) / 2, (1 + 0.95) / 2))
    return np.clip(low, least, 1), np.clip(high, least, 1)


def score_name(table: pd.DataFrame) -> str:
    """What the scores of these lines are called: "score" where they are several."""
    names = table["metric"].unique() if "metric" in table else ["accuracy"]
    return names[0] if len(names) == 1 else "score"


def against_constant(row: pd.Series) -> str:
    """How accuracy's interval stands to the constant prediction: above, below, or not told from it."""
    return "above" if row["low"] > row["constant"] else "below" if row["high"] < row["constant"] else "not told from"


def ends(low: float, high: float) -> str:
    """An interval of shares in percent, ' [43.4, 49.1]'; '' where there is none."""
    return "" if np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"


def verdict(row: pd.Series) -> str:
    """Whether anything was learnt: accuracy's interval against the constant prediction, and MCC's against 0.

    Shots are balanced and sets may not be: there answers can tell the labels apart (MCC above 0) and be right less often than a constant.
    What neither accuracy nor MCC shows to be above both yardsticks, where the untrained model was measured, is to be had without training; so is
    accuracy that is not above what a rule made of the shots gets, where the kind has one.
    """
    if np.isnan(row["low"]):
        return "one trial: no interval" if row["trials"] == 1 else "trials agree: no interval"
    above, tells = row["low"] > row["constant"], row["mcc low"] > 0
    reading = f"{against_constant(row)} constant"
    reading += ", MCC above 0" if tells and not above else ""
    before, before_mcc = (row.get(name, np.nan) for name in UNTRAINED)
    learnt = row["low"] > np.fmax(row["constant"], before) or row["mcc low"] > np.fmax(0, before_mcc)
    reading += ", not above untrained" if (above or tells) and not learnt else ""
    return reading + (", not above the rule from the shots" if above and row["low"] <= row.get("from_shots", np.nan) else "")


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as it is read: percentages and one text for mean and interval; every viewer shows it."""
    numbers = ["metric", "accuracy", "low", "high", "constant", "uneven", "macro-F1", "f1 low", "f1 high", "constant f1", "exact_match", "mcc",
               "mcc low", "mcc high", "one label", "seconds", "trials", "distinct", "rows"]
    shown = table.drop(columns=[*numbers, "from_shots", *UNTRAINED, *STEPS], errors="ignore")
    percent = lambda value: "" if np.isnan(value) else f"{100 * value:.1f}"  # noqa: E731
    third = lambda value: "" if np.isnan(value) else f"{value:.3f}"  # noqa: E731
    if table["uneven"].any():
        shown["macro-F1, % [95 % interval]"] = [percent(a) + ends(*few) for a, *few in table[["macro-F1", "f1 low", "f1 high"]].to_numpy(float)]
        shown["constant's, %"] = table["constant f1"].map(percent)
    shown[f"{score_name(table)}, % [95 % interval]"] = [
        percent(a) + (ends(low, high) or " [no interval]")
        for a, low, high in zip(table["accuracy"], table["low"], table["high"])
    ]
    shown["constant, %"] = table["constant"].map(percent)
    if "from_shots" in table and table["from_shots"].notna().any():
        shown["rule from the shots, %"] = table["from_shots"].map(percent)
    if "untrained" in table and table["untrained"].notna().any():
        shown["untrained, % (MCC)"] = [percent(a) + (f" ({third(mcc)})" if third(mcc) else "") for a, mcc in table[UNTRAINED].to_numpy()]
    shown["reading"] = table.apply(verdict, axis=1)
    if "mean_error" in table:
        shown["off by, steps (constant)"] = ["" if np.isnan(own) else f"{own:.2f} ({constant:.2f})" for own, constant in table[STEPS].to_numpy()]
    if "exact_match" in table:  # several labels a row, or spans, of which there is no macro-F1
        if table["macro-F1"].notna().any():
            shown["macro-F1, %"] = table["macro-F1"].map(percent)
        shown["exact match, %"] = table["exact_match"].map(percent)
    if table["mcc"].notna().any():
        shown["MCC [95 %]"] = [third(mean) + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")
                               for mean, low, high in zip(table["mcc"], table["mcc low"], table["mcc high"])]
    several = "exact_match" in table and table["exact_match"].notna().all()
    shown["one answer, %" if several else "one label, %"] = table["one label"].map(percent)
    shown["rows"] = table["rows"].astype(int)
    shown["trials (distinct)"] = [f"{int(n)} ({int(d)})" for n, d in zip(table["trials"], table["distinct"])]
    shown["s a trial"] = table["seconds"].map("{:.1f}".format)
    return shown


def results(trials: list[dict]) -> pd.DataFrame:
    """The result table of one run, a line an evaluation set."""
    return printable(summary(records.as_table({"trials": trials}), ["set", "domain"]))


def headline(trials: list[dict]) -> list[str]:
    """The answer of a run, a line an evaluation set: the score with its interval, how it stands to the constant answer, trials, time."""
    lines = []
    for _, row in summary(records.as_table({"trials": trials}), ["set", "domain"]).iterrows() if trials else ():
        measured, constant = ends(row["low"], row["high"]), f"{100 * row['constant']:.1f}"
        few = "one trial" if row["trials"] == 1 else "equal trials"
        compared = f"{against_constant(row)} the constant answer ({constant})" if measured else \
            f"no interval from {few}; the constant answer has {constant}"
        count = f"{int(row['trials'])} trial{'s' * (row['trials'] > 1)}, {row['seconds']:.0f} s each"
        where = "in domain" if row["domain"] == "in" else "out of domain"
        if row["uneven"]:
            first = f"**macro-F1 {100 * row['macro-F1']:.1f} %**{ends(row['f1 low'], row['f1 high'])} on {safe(row['set'])} ({where})"
            lines.append(f"{first}, whose labels are uneven: the constant answer has {100 * row['constant f1']:.1f}; "
                         f"accuracy {100 * row['accuracy']:.1f} %{measured}, the constant answer's {constant}, {count}")
            continue
        named = "" if row["metric"] == "accuracy" else f"{row['metric']} "
        lines.append(f"**{named}{100 * row['accuracy']:.1f} %**{measured} on {safe(row['set'])} ({where}), {compared}, {count}")
    return lines


def breakdown(trials: list[dict]) -> pd.DataFrame:
    """The score in each part that the task file names (HANS: heuristic and label), mean over seeds; a line a part."""
    lines = [
        {"set": name, "part": part, "rows": found["n"], f"{records.metric(found)}, %": 100 * records.score(found)}
        for trial in trials for name, scores in trial["sets"].items() for part, found in scores["by"].items()
    ]
    if not lines:
        return pd.DataFrame({"part": ["the task file breaks nothing down"]})
    return pd.DataFrame(lines).groupby(["set", "part", "rows"], sort=False).mean().round(1).reset_index()


def cost(trials: list[dict], here: dict[str, Any], rate: float) -> pd.DataFrame:
    """What each trial cost, a line a seed. `rate`: operations a second of this kernel's matrix products, `here`, its environment."""
    return pd.DataFrame([
        {"seed": trial["seed"], **{f"{phase}, s": f"{value:.1f}" for phase, value in trial["seconds"].items()}, **_speed(trial, here, rate),
         **({"of these spent by others, s": f"{trial['stored']:.1f}"} if "stored" in trial else {}),
         "peak memory, GB": f"{records.peak_memory(trial):.2f}", "trained parameters": f"{trial['trainable']:,}",
         "of all, %": f"{100 * trial['trainable'] / trial['parameters']:.2f}", "TFLOP (estimate)": f"{trial['flops'] / 1e12:.1f}"}
        for trial in trials
    ]).set_index("seed")


def _speed(trial: dict, here: dict[str, Any], rate: float) -> dict[str, str]:
    """Tokens a second, and which part of the rate of matrix products the estimated operations are; '' for a trial of another machine."""
    took, tokens = records.seconds_of(trial), sum(trial["tokens"].values())
    same = all(trial.get("environment", {}).get(key) == here[key] for key in ("device", "threads", "precision"))
    return {"tokens a second": f"{tokens / took:,.0f}" if took and tokens else "",
            "of the matrix rate, %": f"{100 * trial['flops'] / took / rate:.0f}" if took and same and trial["flops"] else ""}


def side_by_side(trials: list[dict[str, Any]], own: str) -> pd.DataFrame:
    """The result table with a line for each of the results under `also`, then the trials' `own`, set by set.

    A result that no seed changes (the untrained backbone's) is one trial, without an interval.
    """
    import pandas as pd

    parts = []
    for who in [*trials[0].get("also", {}), own]:
        found = [{**trial, **trial.get("also", {}).get(who, {})} for trial in trials]
        copies = who != own and records.distinct(found) == 1
        parts.append(records.as_table({"trials": found[:1] if copies else found}, who=who))
    table = pd.concat(parts, ignore_index=True)
    table["order"] = table["set"].map({name: i for i, name in enumerate(trials[0]["sets"])})
    table = table.sort_values("order", kind="stable")
    return printable(summary(table, ["set", "domain", "who"])).drop(columns="s a trial")


def compared(trials: list[dict[str, Any]], one: str, other: str) -> list[str]:
    """A sentence an evaluation set: is `one` more accurate than `other`, paired by seed, as far as the seeds tell? And by how much its MCC differs.

    Both are names under `also`; any other name is the trials' own result. Seeds that all say the same leave no interval.
    """
    sentences = []
    for name in trials[0]["sets"]:
        gain, mcc = (np.array([_gain(trial, name, one, other, score) for trial in trials]) for score in ("accuracy", "mcc"))
        sentences.append(f"{name}: the {one} {_verdict(100 * gain)} the {other}: {100 * gain.mean():+.1f} points ({_spread(100 * gain, '.1f')}); "
                         f"MCC {mcc.mean():+.3f} ({_spread(mcc, '.3f')})")
    return sentences


def _gain(trial: dict[str, Any], name: str, one: str, other: str, score: str) -> float:
    own, others = (trial.get("also", {}).get(who, trial)["sets"][name][score] for who in (one, other))
    return round(own - others, 11)  # equal gains are equal, whatever their last bit


def _spread(gain: np.ndarray, form: str) -> str:
    if np.ptp(gain) == 0:
        return "one seed: no interval" if len(gain) == 1 else f"the same for all {len(gain)} seeds: no interval"
    low, high = interval(gain)
    return f"95 % interval {low:+{form}} to {high:+{form}} over {len(gain)} seeds"


def _verdict(gain: np.ndarray) -> str:
    if np.ptp(gain) == 0:
        return "is ahead of" if gain[0] > 0 else "is behind" if gain[0] < 0 else "is no better than"
    low, high = interval(gain)
    return "is better than" if low > 0 else "is worse than" if high < 0 else "is NOT shown to be better than"


class Answer:
    """The display on a notebook's top: what the run is, and what it found as soon as there is anything."""

    def __init__(self, method: str, parameters: Parameters):
        from IPython.display import Markdown, display

        p = parameters
        own = {key: value for key, value in p.model_dump().items()
               if value != type(p).model_fields[key].default and key not in ("model", "task", "shots", "seeds", "data_dir", "output_dir")}
        besides = "".join(f", {key} {value}" for key, value in own.items())
        self.asked = f"**{method}** with {safe(p.model)} on {safe(p.task)}, {p.shots} examples per class{safe(besides)}"
        self.seeds = len(p.seeds)
        self.handle = display(Markdown(f"{self.asked}\n\n*The answer will stand here.*"), display_id=True)

    def show(self, trials: list[dict[str, Any]], final: bool = False) -> None:
        from IPython.display import Markdown

        so_far = "" if final else f"\n\n*So far: {len(trials)} of {self.seeds} trials.*"
        if self.handle:  # there is none outside a kernel
            self.handle.update(Markdown("\n".join([self.asked, "", *(f"- {line}" for line in headline(trials))]) + so_far))
