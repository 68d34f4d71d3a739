"""A study's records, gathered: the trials that count as one table, and a sentence for all that is missing or does not belong.

A trial counts when its fingerprint is the one that the study file asks for. What other parameters, data, code or another
study of the same name left in the folder is named and left out, never mixed in.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowres import records
from lowres.analysis import RUN, UNTRAINED
from lowres.errors import BadInput
from lowres.shots import close_draws
from lowres.status import Facts
from lowres.study import Run, Study, read_study
from lowres.tasks import read_task

# Settings that claims, advice and figures tell runs apart by; empty where a method has no such setting.
SETTINGS = ("fidelity", "adapt", "rank", "head", "loss", "inputs", "peft_type", "learning_rate")
CHOSEN = ("learning_rate", "loss")  # of several, the first that the study file lists is the main one: a choice made before the data
# A mixture of these in one study is reported.
ENVIRONMENT = ("precision", "compiled", "threads", "device", "python", "torch", "transformers", "peft", "tokenizers", "datasets", "numpy")
EXERCISE = "These tasks are made by this project, for learning the tool: **nothing here is a verdict about the paper or about a method.**"


@dataclass
class Collected:
    """What a study has so far. `trials` has a line a run, seed and evaluation set; accuracies are shares (0 to 1).

    Of a method's runs in one place (model, task, shots), those that are asked for with fewer seeds than the others are an `ablation`.
    """

    name: str
    description: str = ""
    folder: Path = Path()
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    runs: list[tuple[Run, list[dict[str, Any]]]] = field(default_factory=list)  # each with its trials that count
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exercise(self) -> bool:
        """Only embedded tasks."""
        return bool(len(self.trials)) and bool(self.trials["embedded"].all())


def collect(study: str, outputs: str = "outputs") -> Collected:
    """A study by its name or its file's path. A study that cannot be read comes back empty, with the reason among its problems."""
    try:
        return collect_study(read_study(study, outputs=outputs))
    except BadInput as error:
        return Collected(safe(study), problems=[f"The study could not be read: {safe(error)}"])


def collect_study(study: Study) -> Collected:
    found = Collected(study.name, study.description, study.folder)
    asked, facts = {run.folder for run in study.runs}, Facts()
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
    if said := close_draws(max((trial.get("in_common", 0) for _, trials in found.runs for trial in trials[1:]), default=0)):
        found.problems.append(f"**{said}.**")
    return found


def _counting(run: Run, found: Collected, facts: Facts) -> list[dict[str, Any]]:
    """The run's trials with the fingerprints asked for: from its record, and those that finished without one yet."""
    try:
        record = records.read_record(run.folder) or {"trials": []}
    except BadInput as error:
        found.problems.append(f"{safe(error)}. Left out.")
        return []
    asked = facts.accepted(run, list(run.parameters.seeds), record)
    trials = {trial["seed"]: trial for trial in record["trials"] if trial.get("fingerprint") in asked.get(trial["seed"], ())}
    stale = [trial["seed"] for trial in record["trials"] if trial["seed"] in asked and trial["seed"] not in trials]
    for seed in set(asked) - set(trials):
        late = [trial for mark in asked[seed] if (trial := records.read_trial(run.folder, seed, mark))]
        if late:
            trials[seed] = late[0]
    if stale:
        found.problems.append(f"`{safe(run.name)}`: {len(stale)} trials were made with other parameters, data, weights or code than the "
                              "study asks for now (stale, or of another study of this name). Left out.")
    found.environments += [trial["environment"] for trial in trials.values() if "environment" in trial]
    return [trials[seed] for seed in run.parameters.seeds if seed in trials]


def _table(runs: list[tuple[Run, list[dict[str, Any]]]]) -> pd.DataFrame:
    parts, listed = [], set()
    most: dict[tuple, int] = {}  # seeds asked of a method in one place
    for run, _ in runs:
        most[_place(run)] = max(most.get(_place(run), 0), len(run.parameters.seeds))
    for run, trials in runs:
        p = run.parameters
        settings = {key: getattr(p, key, "") for key in SETTINGS}
        # Runs that differ in nothing but what is CHOSEN: the first in the study file is the main one.
        group = str([run.method, sorted((k, str(v)) for k, v in p.model_dump().items() if k not in (*CHOSEN, "output_dir", "seeds"))])
        labels = {"method": run.method, "variant": run.variant, "model": p.model, "task": p.task, "shots": p.shots,
                  **settings, "group": group, "main": group not in listed,
                  "ablation": len(p.seeds) < most[_place(run)], "embedded": bool(read_task(p.task).embedded),
                  "folder": str(run.folder)}
        listed.add(group)
        if trials:
            part = records.as_table({"trials": trials}, **labels)
            part["train_seconds"] = part["seed"].map({trial["seed"]: records.seconds_of(trial, records.TRAINING) for trial in trials})
            part["machine"] = part["seed"].map({trial["seed"]: _machine(trial) for trial in trials})
            part["parameters"] = part["seed"].map({trial["seed"]: trial["parameters"] for trial in trials})
            parts.append(part)
    if not parts:
        return pd.DataFrame()
    table, before = pd.concat(parts, ignore_index=True), _untrained(runs)
    places = zip(table["model"], table["task"], table["set"], table["n"])
    table[UNTRAINED] = [before.get(place, (np.nan, np.nan)) for place in places]
    return table


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
                found.setdefault((run.parameters.model, run.parameters.task, name, scores["n"]), (scores["accuracy"], scores["mcc"]))
    return found


def _place(run: Run) -> tuple:
    p = run.parameters
    return run.method, getattr(p, "fidelity", ""), p.model, p.task, p.shots


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
    if found.exercise:
        lines.append(EXERCISE)
    if found.missing:
        names = ", ".join(f"`{safe(name)}`" for name in found.missing[:8])
        lines.append(f"Missing, {len(found.missing)} runs or parts of runs: {names}{' …' if len(found.missing) > 8 else ''}")
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


def safe(text: Any) -> str:
    """Text from a record or a file as it may stand in Markdown or HTML: nothing in it is markup."""
    return html.escape(str(text)).replace("`", "'").replace("|", "&#124;").replace("$", "&#36;")
