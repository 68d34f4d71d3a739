"""A study's records, gathered: the trials that count as one table, and a sentence for all that is missing or does not belong.

A trial counts when its fingerprint is the one that the study file asks for. What other parameters, data, code or another
study of the same name left in the folder is named and left out, never mixed in.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from lowres.files import BadInput, safe
from lowres.runs import records
from lowres.runs.status import FingerprintInputs
from lowres.runs.study import Run, Study, read_study
from lowres.runs.summary import RUN, UNTRAINED
from lowres.tasks.shots import close_draws

# Settings that claims, advice and figures tell runs apart by; empty where a method has no such setting.
SETTINGS = ("fidelity", "adapt", "rank", "head", "loss", "inputs", "peft_type", "learning_rate")
CHOSEN = ("learning_rate", "loss")  # of several, the first that the study file lists is the main one: a choice made before the data
MOST_RUNS = 1000  # that are drawn, listed line by line, and whose predictions are read row by row
MOST_LINES = 20_000  # of the table that wait to be put into it: as they come they take five times the memory
# A mixture of these in one study is reported.
ENVIRONMENT = ("precision", "compiled", "threads", "device", "python", "torch", "transformers", "peft", "tokenizers", "datasets", "numpy")


@dataclass
class Collected:
    """What a study has so far. `trials` has a line a run, seed and evaluation set; accuracies are shares (0 to 1).

    Runs that the study file calls an `ablation` are there, and marked.
    """

    name: str
    description: str = ""
    folder: Path = Path()
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    runs: list[tuple[Run, list[dict[str, Any]]]] = field(default_factory=list)  # each with its trials that count
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)


def collect(study: str, outputs: str = "outputs") -> Collected:
    """A study by its name or its file's path. A study that cannot be read comes back empty, with the reason among its problems."""
    try:
        return collect_study(read_study(study, outputs=outputs))
    except BadInput as error:
        return Collected(safe(study), problems=[f"The study could not be read: {safe(error)}"])


def collect_study(study: Study) -> Collected:
    found = Collected(study.name, study.description, study.folder)
    asked, facts = {run.folder for run in study.runs}, FingerprintInputs()
    for run in study.runs:
        trials = _counting(run, found, facts)
        found.runs.append((run, trials))
        lacking = [seed for seed in run.parameters.seeds if seed not in {trial["seed"] for trial in trials}]
        if lacking:
            found.missing.append(run.name + ("" if not trials else f" (seeds {', '.join(map(str, lacking))})"))
    strangers = [path.parent for path in study.folder.glob("*/*/*/*/record.json") if path.parent not in asked]
    if strangers:
        names = ", ".join(f"`{safe('/'.join(path.parts[-4:]))}`" for path in sorted(strangers)[:6])
        found.problems.append(f"{len(strangers)} records in this folder belong to runs that the study does not ask for (another study of this "
                              f"name, or an earlier form of it). They are left out: {names}{' …' if len(strangers) > 6 else ''}")
    found.trials = _table(found.runs)
    found.problems += _mixed(found.environments)
    if stored := [trial["stored"] for _, trials in found.runs for trial in trials if "stored" in trial]:
        found.problems.append(f"{len(stored)} trials read states of the untrained model that others had computed: {sum(stored):,.0f} of their "
                              "seconds are what that had taken.")
    if said := close_draws(max((trial.get("in_common", 0) for _, trials in found.runs for trial in trials[1:]), default=0)):
        found.problems.append(f"**{said}.**")
    return found


def _counting(run: Run, found: Collected, facts: FingerprintInputs) -> list[dict[str, Any]]:
    """The run's trials with the fingerprints asked for: from its record, and those that finished without one yet."""
    record, trials, _ = records.read_run(run.folder)
    try:
        records.refuse_other_schema(record, run.folder)
    except BadInput as error:
        found.problems.append(f"{safe(error)}. Left out.")
        return []
    asked = facts.accepted(run, list(run.parameters.seeds), record)
    kept = {seed: trial for seed, trial in trials.items() if seed in asked}
    trials = {seed: trial for seed, trial in kept.items() if trial.get("fingerprint") in asked[seed]}
    stale = [seed for seed in kept if seed not in trials]
    if stale:
        found.problems.append(f"`{safe(run.name)}`: {len(stale)} trials were made with other parameters, data, weights or code than the "
                              "study asks for now (stale, or of another study of this name). Left out.")
    found.environments += [trial["environment"] for trial in trials.values() if "environment" in trial]
    return [trials[seed] for seed in run.parameters.seeds if seed in trials]


def _table(runs: list[tuple[Run, list[dict[str, Any]]]]) -> pd.DataFrame:
    pieces, lines, listed = [], [], set()
    for run, trials in runs:
        p = run.parameters
        settings = {key: getattr(p, key, "") for key in SETTINGS}
        # Runs that differ in nothing but what is CHOSEN: the first in the study file is the main one.
        group = str([run.method, sorted((k, str(v)) for k, v in p.model_dump().items() if k not in (*CHOSEN, "output_dir", "seeds"))])
        labels = {"method": run.method, "variant": run.variant, "model": p.model, "task": p.task, "shots": p.shots,
                  **settings, "group": group, "main": group not in listed,
                  "ablation": run.ablation, "folder": str(run.folder), "chosen_from": str(getattr(p, "choose", "") or "")}
        listed.add(group)
        for trial in trials:
            lines += records.as_lines(trial, **labels, train_seconds=records.seconds_of(trial, records.TRAINING), machine=_machine(trial),
                                      parameters=trial["parameters"], settings=run.settings)
        if len(lines) > MOST_LINES:
            pieces.append(pd.DataFrame(lines))
            lines = []
    pieces += [pd.DataFrame(lines)] if lines else []
    if not pieces:
        return pd.DataFrame()
    table, before = pd.concat(pieces, ignore_index=True), _untrained(runs)
    places = zip(table["model"], table["task"], table["set"], table["n"])
    table[UNTRAINED] = [before.get(place, (np.nan, np.nan)) for place in places]
    return table


def shown(found: Collected) -> Collected:
    """What figures and long tables show: all of it, or of more than MOST_RUNS runs those of the first models and tasks, at least of one."""
    places = Counter((run.parameters.model, run.parameters.task) for run, trials in found.runs if trials)
    until = dict(zip(places, accumulate(places.values())))
    kept = {place for place, count in until.items() if count <= max(MOST_RUNS, next(iter(until.values())))}
    if len(kept) == len(places):
        return found
    there = [place in kept for place in zip(found.trials["model"], found.trials["task"])]
    return replace(found, trials=found.trials[there],
                   runs=[(run, trials) for run, trials in found.runs if (run.parameters.model, run.parameters.task) in kept])


def main_runs(trials: pd.DataFrame) -> pd.DataFrame:
    """No ablations, of several settings of one choice the first, and of both fidelities as described, where the study has that."""
    if not len(trials):
        return trials
    part = trials[trials["main"] & ~trials["ablation"]]
    return part[part["fidelity"] != "as_coded"] if (part["fidelity"] == "as_described").any() else part


def _machine(trial: dict[str, Any]) -> str:
    """What seconds depend on besides the work."""
    return ", ".join(str(trial.get("environment", {}).get(key, "")) for key in ("device", "threads", "precision", "compiled"))


def _untrained(runs: list[tuple[Run, list[dict[str, Any]]]]) -> dict[tuple, tuple[float, float]]:
    """By model, task, set and its rows: accuracy and MCC without any example, as the study's first run of in-context learning has them.

    Its pattern and label words are that run's; calibrated answers are another thing.
    """
    found: dict[tuple, tuple[float, float]] = {}
    for run, trials in runs:
        for trial in trials[:1] if not getattr(run.parameters, "calibrate", False) else ():  # no seed changes it
            for name, scores in trial.get("also", {}).get("zero-shot", {}).get("sets", {}).items():
                found.setdefault((run.parameters.model, run.parameters.task, name, scores["n"]), (records.score(scores), scores.get("mcc", np.nan)))
    return found


def _mixed(environments: list[dict[str, Any]]) -> Iterator[str]:
    for key in ENVIRONMENT:
        values = sorted({str(environment.get(key, False)) for environment in environments})
        if len(values) > 1:
            yield f"The trials differ in {key} ({', '.join(map(safe, values))}): seconds do not compare, and small differences may come from it."


def opening(found: Collected) -> str:
    """The study in a few lines: what it asks, how much of it is there, what does not belong, whether its trials are trials. Markdown."""
    present = sum(bool(trials) for _, trials in found.runs)
    lines = [f"**{safe(found.name)}**: {safe(found.description)}" if found.description else f"**{found.name}**"]
    if found.runs:
        seeds = sum(len(trials) for _, trials in found.runs)
        asked = sum(len(run.parameters.seeds) for run, _ in found.runs)
        lines.append(f"{present} of {len(found.runs)} runs have results, {seeds} of {asked} trials.")
    if not present:
        lines.append("**There is nothing to analyse yet**: `lowres run` makes the runs, and every section below says what it waits for.")
    elif found.trials["seed"].nunique() == 1:
        lines.append("**There is one seed only**: no interval, no test and no verdict can be had from it.")
    if found.missing:
        names = ", ".join(f"`{safe(name)}`" for name in found.missing[:8])
        lines.append(f"Missing, {len(found.missing)} runs or parts of runs: {names}{' …' if len(found.missing) > 8 else ''}")
    if len(few := shown(found).runs) < len(found.runs):
        places = len({(run.parameters.model, run.parameters.task) for run, _ in few})
        lines.append(f"Figures, parts, costs and mistakes below are of {len(few):,} of these runs, those of the first {places} models and tasks; "
                     "answer, advice, claims and `results.csv` are of all.")
    lines += found.problems
    copied = copies(found.trials)
    if copied:
        names = ", ".join(f"`{safe(name)}`" for name in copied[:5])
        lines.append(f'<span class="warning" style="color:#b00020">**{len(copied)} runs have trials that are copies of each other** '
                     f"(the claims count each once): {names}</span>")
    return "\n\n".join(lines)


def copies(trials: pd.DataFrame) -> list[str]:
    """Names of the runs of which some trials have identical predictions."""
    if not len(trials):
        return []
    return [" ".join(map(str, name)) for name, run in trials.groupby(RUN, sort=False) if run["outcome"].nunique() < run["seed"].nunique()]


BINS = 10


@dataclass(frozen=True)
class Predicted:
    """One trial on one evaluation set."""

    rows: str  # marks which rows these are, in which order
    correct: np.ndarray  # (rows,) bool
    bins: np.ndarray  # (BINS, 3): of the rows in a tenth of confidence, how many, their confidences' sum, how many were right


def read_predicted(folder: str, seed: int) -> dict[str, Predicted]:
    """By evaluation set; empty if the predictions are not at hand."""
    return _read_all(folder).get(seed, {})


def rows_right(folders: Iterable[str], name: str, seeds: Iterable[int]) -> tuple[str, np.ndarray] | None:
    """Of an evaluation set, which rows, and the share of these runs that got each right: (seeds, rows). None where predictions are not at hand, or
    not of the same rows."""
    table = [[read_predicted(folder, seed).get(name) for seed in seeds] for folder in folders]
    if not table or any(one is None for run in table for one in run):
        return None
    marks = {one.rows for run in table for one in run}
    if len(marks) > 1:
        return None
    return marks.pop(), np.mean([[one.correct for one in run] for run in table], axis=0, dtype=np.float32)


@cache
def _read_all(folder: str) -> dict[int, dict[str, Predicted]]:
    found: dict[int, dict[str, Predicted]] = {}
    table = records.read_predictions(Path(folder))
    table = table if len(table) and table["label"].dtype.kind == "i" else table[:0]  # of several labels a row each is right or wrong by itself
    for (seed, name), part in table.groupby(["trial", "set"], sort=False) if len(table) else ():
        found.setdefault(int(seed), {})[name] = _predicted(part.sort_values("row"))
    return found


def _predicted(part: pd.DataFrame) -> Predicted:
    logits = part[[column for column in part if column.startswith("logit_")]].to_numpy(np.float64)
    confidence = softmax(logits, axis=1).max(axis=1)
    correct = (part["label"] == part["prediction"]).to_numpy()
    tenth = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = np.stack([np.bincount(tenth, weight, BINS) for weight in (np.ones(len(tenth)), confidence, correct)], axis=1)
    return Predicted(hashlib.sha256(part["row"].to_numpy().tobytes()).hexdigest(), correct, bins)


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
