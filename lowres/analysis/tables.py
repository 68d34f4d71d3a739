"""A study's tables as they are read: static in the notebook, and as CSV and LaTeX files beside it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from pandas.io.formats.style import Styler

from lowres import files
from lowres.analysis import statistics
from lowres.analysis.claims import ACCURACY, Paired, difference, paper_task
from lowres.analysis.collect import MOST_RUNS, Collected
from lowres.analysis.statistics import SEEDS_FOR_A_BOOTSTRAP, SEEDS_FOR_A_VERDICT
from lowres.analysis.verdicts import COMPARABLE, UNDECIDED, ClaimResult, crossed, seeds_to_decide
from lowres.files import safe
from lowres.runs import records
from lowres.runs.summary import RUN, printable, summary
from lowres.tasks.task_file import read_task

SENTENCE = 30  # characters from which a cell may take more than one line
NOTHING = "No run of this study has results yet."


def folded(title: str, content: Styler | Markdown) -> HTML | Markdown:
    """A long table behind a line that opens it."""
    if isinstance(content, Markdown):
        return content
    # Names of cells and white space between them are half of a long table's bytes.
    table = re.sub(r">\s+<", "><", re.sub(r'class="data row\d+ (col\d+)" ', r'class="\1"', content.to_html()))
    return HTML(f"<details><summary>{safe(title)}</summary>\n{table}\n</details>")



def result_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Numbers, a line a run and evaluation set: accuracy, its interval, the gap to the other domain, MCC, yardstick, cost. Shares, GB, seconds."""
    if not len(trials):
        return pd.DataFrame()
    table = summary(trials, [*RUN, "set", "domain"])
    inside = table[table["domain"] == "in"].groupby(RUN, sort=False)["accuracy"].mean()
    keys = pd.MultiIndex.from_frame(table[RUN])
    table["gap"] = np.where(table["domain"] == "out", inside.reindex(keys).to_numpy() - table["accuracy"], np.nan)
    return table


def shown_results(table: pd.DataFrame) -> Styler | Markdown:
    """The result table as a notebook shows it, its first MOST_RUNS lines; one model is named above it."""
    if not len(table):
        return Markdown(NOTHING)
    return static(readable_results(table.head(MOST_RUNS)).drop(columns=["model"] if table["model"].nunique() == 1 else []))


def title_of_results(table: pd.DataFrame) -> str:
    first = "All" if len(table) <= MOST_RUNS else f"The first {MOST_RUNS:,} of"
    return f"{first} {len(table):,} results, a line a run and evaluation set"


def readable_results(table: pd.DataFrame) -> pd.DataFrame:
    """The result table as text for a reader: percentages, intervals and how each stands to its yardstick."""
    shown = printable(table.drop(columns="gap")).assign(variant=table["variant"].str.replace(",", ", "))  # so that long ones break
    shown.insert(len(RUN) + 3, "gap, points", ["" if np.isnan(gap) else f"{100 * gap:+.1f}" for gap in table["gap"]])
    return shown


def static(table: pd.DataFrame) -> Styler:
    """A table that any viewer shows; whatever a name or a label contains is text.

    Sentences wrap; numbers, intervals and names do not. Empty columns are left out.
    """
    longest = [table.iloc[:, i].dropna().astype(str).str.len().max() for i in range(table.shape[1])]  # not a number where nothing is
    kept = [i for i, length in enumerate(longest) if length > 0 or not len(table)]  # headings stay in a table without lines
    table = table.iloc[:, kept]
    headed = Styler(table.rename(columns=lambda name: safe(name)), cell_ids=False)  # a name for each cell is two thirds of a table's bytes
    styles = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}, {"selector": "td", "props": "white-space: nowrap"}]
    if sentences := [f"td.col{place}" for place, i in enumerate(kept) if longest[i] > SENTENCE]:
        styles.append({"selector": ", ".join(sentences), "props": "white-space: normal; min-width: 16em"})
    return headed.hide(axis="index").format(escape="html", na_rep="").set_table_styles(styles)


def save(table: pd.DataFrame, folder: Path, name: str, write: bool) -> str:
    """Writes NAME.csv and NAME.tex into the study's folder, whole or not at all; says where, in Markdown. Only `lowres analyse` may `write`."""
    if not write:
        return f"`lowres analyse` writes this as `{name}.csv` and `{name}.tex`."
    if not len(table) or folder == Path() or not folder.is_dir():  # no such study: then there is nowhere to write to
        return NOTHING
    text = io.StringIO()
    table.to_csv(text, index=False)
    files.write_whole(folder / f"{name}.csv", text.getvalue())
    if len(table) > MOST_RUNS:
        return f"All of them as `{name}.csv`, beside this notebook."
    files.write_whole(folder / f"{name}.tex", table.to_latex(index=False, escape=True, float_format="%.3f", na_rep=""))
    return f"Also as `{name}.csv` and `{name}.tex`, beside this notebook."


def verdict_table(found: list[ClaimResult], margin: float) -> pd.DataFrame:
    """A line a claim: the verdict, the p values after Holm, the seeds, and what an open one waits for."""
    return pd.DataFrame([{
        "claim": one.claim.number, "the paper says": one.claim.text, "verdict": one.verdict, "seeds": len(one.seeds) or "",
        "p (paired t, Holm)": _p(one, one.holm), "p (sign-flip, Holm)": _p(one, one.holm_flip), "remarks": "; ".join(_remarks(one, margin)),
    } for one in found])


def _p(one: ClaimResult, value: float) -> str:
    return "" if one.missing or len(one.seeds) < SEEDS_FOR_A_VERDICT else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _remarks(one: ClaimResult, margin: float) -> list[str]:
    remarks = [*one.marks, *(["cannot be tested: " + "; ".join(one.missing)] if one.missing else [])]
    copies = max((pair.copies for pair in one.pairs), default=0)
    if copies:
        remarks.append(f"{copies} seeds are copies of others and were not counted")
    remarks += [f"{pair.contrast.name}: {pair.identical:.0%} of the pairs are one trial, to the last digit" for pair in one.pairs if pair.identical]
    if apart := max((pair.apart for pair in one.pairs), default=0):
        remarks.append(f"seconds: cells left out, since their trials ran on different machines: {apart}")
    compared = [pair for pair in one.pairs if pair.contrast.measure in ACCURACY and len(pair.d)]
    blind = [pair for pair in compared if not pair.learnt]
    if blind:
        remarks.append(f"in {len(blind)} of {len(compared)} comparisons of accuracy neither side is shown to be above its yardsticks")
    if one.verdict == UNDECIDED and not one.missing:
        needed, had = seeds_to_decide(one, margin), len(one.seeds)
        if had < SEEDS_FOR_A_VERDICT:
            remarks.append(f"{had} seeds; below {SEEDS_FOR_A_VERDICT} there is no verdict")
        if needed > had:
            to_find = "that there is no difference" if one.claim.number in COMPARABLE else "a difference as large as the margin"
            remarks.append(f"about {needed:.0f} seeds would find {to_find} (in 80 % of studies with this spread)")
        elif needed <= had and had >= SEEDS_FOR_A_VERDICT:
            remarks.append("a part of it lies too near a bound; more seeds help only if it is not on it")
    return remarks


def about_verdicts(found: Collected, margin: float) -> str:
    """What the verdicts are about: whose tasks, which models and fidelity; and what a study like this cannot say. Markdown."""
    if not len(found.trials):
        return NOTHING + " The claims below wait for it."
    trials = found.trials
    models = ", ".join(safe(model) for model in trials["model"].unique())
    lines = [f"The margin is {margin:g} points. Models: {models} (the paper's: OPT-125M and OPT-350M)."]
    if found.missing:
        lines.append("**The study is not whole**: the verdicts are of what is there, and may change.")
    if not trials["task"].map(paper_task).any():
        lines.append("The paper spoke of CoLA and MNLI. Here its claims are asked of this study's tasks, so a verdict is about these.")
    if (trials["fidelity"] == "as_coded").any():
        described = (trials["fidelity"] == "as_described").any()
        lines.append("Runs of the authors' code (`as_coded`) are left out of the claims." if described
                     else "These runs follow the authors' code (`as_coded`), so the verdicts are about that.")
    if trials["ablation"].any():
        lines.append("Ablations, as the study calls them, are left out of the claims.")
    return "\n\n".join(lines)


def rules(found: list[ClaimResult]) -> pd.DataFrame:
    return pd.DataFrame([{"claim": one.claim.number, "true if": one.claim.rule} for one in found])


def contrast_table(found: list[ClaimResult], margin: float, rows: bool = True) -> pd.DataFrame:
    """A line a contrast of claims 1 to 6: the mean difference, points (costs: percent of the right side), and what each interval is over."""
    lines = []
    for one in found:
        for pair in one.pairs if one.claim.contrasts else ():
            lines.append({"claim": one.claim.number, "contrast": pair.contrast.name, **_measured(pair, margin, rows)})
    return pd.DataFrame(lines, dtype=object).fillna("")  # where a contrast is missing, counts of the others stay whole numbers


def _measured(pair: Paired, margin: float, rows: bool) -> dict:
    was = difference(pair.contrast)
    before = {"published (description)": f"{was[0]:+.1f} ({was[1]} distinct results)" if was else ""}
    if pair.missing:
        return {"difference": pair.missing, **before}
    d, part = pair.d, pair.part(margin)
    low, high = statistics.t_interval(d)
    both = crossed(pair) if rows else None
    bca = statistics.bootstrap_interval(d)
    few, cost = len(d) < SEEDS_FOR_A_VERDICT, pair.contrast.measure not in ACCURACY
    unit = _percent if cost else float
    return {
        "difference": f"{unit(d.mean()):+.2f}", "claimed": _claimed(part.low, part.high),
        "95 % over seeds": _range((unit(low), unit(high))), "95 % over seeds and rows": _range(both),
        f"bootstrap (from {SEEDS_FOR_A_BOOTSTRAP} seeds)": _range(tuple(map(unit, bca))),
        "spread": f"{unit(np.std(d, ddof=1)):.2f}" if len(d) > 1 else "",
        "p (t)": "" if few else f"{statistics.two_sided(d):.4f}",
        "p (sign-flip)": "" if few else f"{statistics.two_sided(d, statistics.flip_above):.4f}",
        "p (within the margin)": "" if few else f"{float(statistics.equivalent([replace(part, side=False)], margin)):.4f}",
        "MCC": f"{pair.mcc.mean():+.3f}" if len(pair.mcc) else "", "95 % of MCC, over seeds": _range(statistics.t_interval(pair.mcc), ".3f"),
        "seeds": len(d), "cells": len(pair.cells), **before,
    }


def _percent(log_ratio: float) -> float:
    """From 100 times a natural log ratio, in which costs are compared, to percent of the right side's: -69 means half, 50 % less."""
    return 100 * np.expm1(log_ratio / 100)


def _claimed(low: float, high: float) -> str:
    return f"above {low:g}" if np.isinf(high) else f"below {high:g}" if np.isinf(low) else f"{low:+g} to {high:+g}"


def _range(ends: tuple[float, float] | None, form: str = ".2f") -> str:
    return "" if ends is None or np.isnan(ends[0]) else f"{ends[0]:+{form}} to {ends[1]:+{form}}"


def learning_rate_table(by_rate: dict[float | str, list[ClaimResult]]) -> Styler | Markdown:
    """Claims by learning rate, or by the rule that chooses it: the verdict and the first contrast's mean difference."""
    if not by_rate:
        return Markdown("Each method has one learning rate in this study, so there is nothing to move a verdict.")
    told = lambda one: f"{one.verdict}" + (f" ({one.pairs[0].d.mean():+.1f})" if one.pairs and len(one.pairs[0].d) else "")
    columns = {rate if isinstance(rate, str) else f"{rate:g}": [told(one) for one in found] for rate, found in by_rate.items()}
    first = next(iter(by_rate.values()))
    return static(pd.DataFrame({"claim": [one.claim.number for one in first], **columns}))


def parts(found: Collected) -> pd.DataFrame:
    """Accuracy in each part of the sets that the task files break down: a line a run, trial and part. Shares.

    `guessing` is the yardstick of a part in which all rows have one label: there a constant answer scores everything or nothing.
    """
    lines = []
    for run, trials in found.runs:
        guessing = 1 / len(read_task(run.parameters.task).labels)
        for trial in trials:
            lines += [
                {"method": run.method, "variant": run.variant, "model": run.parameters.model, "task": run.parameters.task,
                 "shots": run.parameters.shots, "seed": trial["seed"], "outcome": trial["outcome_sha256"], "set": name, "domain": scores["domain"],
                 "part": part, "rows": values["n"], "accuracy": records.score(values), "metric": records.metric(values),
                 "constant": values.get("constant", np.nan), "guessing": guessing}
                for name, scores in trial["sets"].items() for part, values in scores["by"].items()
            ]
    return pd.DataFrame(lines)


def parts_table(table: pd.DataFrame) -> Styler | Markdown:
    """Mean accuracy over seeds, percent: a line a part, a column a method and variant, at the most shots of its model and task."""
    if not len(table):
        return Markdown("Nothing is broken down in this study so far.")
    most = pd.concat([at_most_shots(part)[0] for _, part in table.groupby(["model", "task"], sort=False)])
    lines = most.assign(line=(most["method"] + " " + most["variant"]).str.strip(), accuracy=100 * most["accuracy"])
    wide = lines.pivot_table(index=["model", "task", "set", "part", "rows"], columns="line", values="accuracy", sort=False)
    return static(wide.round(1).reset_index().map(lambda value: f"{value:.1f}" if isinstance(value, float) else value))


def at_most_shots(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The lines at the most shots, and a sentence naming the methods that have none there; empty if all have."""
    part = table[table["shots"].astype(str) == str(most_shots(table))]
    all_lines, present = ((lines["method"] + " " + lines["variant"]).str.strip().unique() for lines in (table, part))
    absent = sorted(set(all_lines) - set(present))
    return part, f"Without results at that count: {', '.join(absent)}." if absent else ""


def of_machines(trials: pd.DataFrame) -> str:
    """A sentence for where seconds stand side by side that do not compare."""
    count = trials["machine"].nunique()
    return f"Seconds are of {count} machines, and do not compare." if count > 1 else ""


def most_shots(table: pd.DataFrame) -> int | str:
    """The largest count of shots; 'all' only where there is nothing else."""
    counts = [shots for shots in table["shots"].unique() if not isinstance(shots, str)]
    return max(counts) if counts else "all"


def costs(trials: pd.DataFrame) -> Styler | Markdown:
    """Means over seeds of a trial: seconds, peak memory, trained parameters; by method, variant, model, task and shots."""
    if not len(trials):
        return Markdown(NOTHING)
    once = trials.drop_duplicates([*RUN, "seed"])
    table = once.groupby(RUN, sort=False)[["train_seconds", "seconds", "memory", "trainable"]].mean().reset_index()
    table["trainable"] = table["trainable"].map("{:,.0f}".format)
    names = {"train_seconds": "training, s", "seconds": "whole trial, s", "memory": "peak memory, GB", "trainable": "trained parameters"}
    return static(table.rename(columns=names).map(lambda value: f"{value:.2f}" if isinstance(value, float) else value))
