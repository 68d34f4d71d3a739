"""Made-up records of a study, as the method notebooks leave them, from effects that a test chooses. Nothing trains."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from toys import ENTAILMENT, GRAMMAR

from lowres import files
from lowres.runs import records
from lowres.runs.status import FingerprintInputs
from lowres.runs.study import Run, Study, read_study

METHODS = [
    {"method": "vanilla"},
    {"method": "pbft"},
    {"method": "adaptive", "vary": {"adapt": ["pattern", "layers"]}},
    {"method": "lora", "set": {"head": "classifier"}, "vary": {"rank": [1, 8]}},
    {"method": "distillation", "vary": {"inputs": ["few-shot", "pool"]}},
    {"method": "in_context"},
]
SETS = {
    "cola": {"in_domain": ("in", 527, 0.693, "source"), "out_of_domain": ("out", 516, 0.686, "source")},
    "mnli": {"matched": ("in", 600, 0.52, ""), "hans": ("out", 600, 0.5, "heuristic")},
    GRAMMAR: {"in_domain": ("in", 200, 0.5, "phenomenon"), "out_of_domain": ("out", 200, 0.5, "phenomenon")},
    ENTAILMENT: {"in_domain": ("in", 200, 0.5, "heuristic"), "out_of_domain": ("out", 200, 0.5, "heuristic")},
}
PARTS = {"source": ["bc01", "cj99", "ks08", "rhl07"], "phenomenon": ["agreement", "island"],
         "heuristic": [f"{h}/{label}" for h in ("lexical_overlap", "subsequence", "constituent") for label in ("entailment", "non-entailment")],
         "": []}
SKILL = {"vanilla": 2.0, "pbft": 5.0, "adaptive": 4.0, "lora": 3.0, "distillation": 4.0, "in_context": 1.0, "baselines": 1.0}
SECONDS = {"vanilla": 30.0, "pbft": 32.0, "adaptive": 24.0, "lora": 20.0, "distillation": 60.0, "in_context": 8.0, "baselines": 4.0}
MEMORY = {"vanilla": 3.2, "pbft": 3.3, "adaptive": 2.4, "lora": 1.9, "distillation": 3.6, "in_context": 1.1, "baselines": 1.0}


def make_study(folder: Path, name: str = "made_up", tasks=("cola",), shots=(2, 16, 128), seeds=range(10), methods=METHODS,
               models=("facebook/opt-125m",), **more) -> str:
    """Writes a study file; its path."""
    path = folder / f"{name}.yaml"
    content = {"description": "made up for a test", "set": {"seeds": list(seeds), **more},
               "vary": {"model": list(models), "task": list(tasks), "shots": list(shots)}, "methods": methods}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def fill(study: Study, effect=None, spread: float = 2.0, seed: int = 0, only=None, predictions: bool = True) -> None:
    """Writes a record for every run: accuracy = constant + effect(run, domain) points + noise of a seed and a run.

    `spread`: standard deviation over seeds of a difference of two runs, points. `only(run, seed)`: which trials there are.
    """
    rng, facts = np.random.default_rng(seed), FingerprintInputs()
    for run in study.runs:
        marks = facts.fingerprints(run, list(run.parameters.seeds), None)
        trials = []
        for number in run.parameters.seeds:
            if only is None or only(run, number):
                trials.append(_trial(run, number, marks[number], effect or usual, spread, rng))
        if trials:
            _keep(run, [trial for trial, _ in trials], [table if predictions else table.head(0) for _, table in trials])


def _keep(run: Run, trials: list[dict], tables: list[pd.DataFrame]) -> None:
    """As `records.write_trial` for each trial and `records.merge` leave it, which write and read each trial's predictions besides."""
    content = io.BytesIO()
    in_order = [table for _, table in sorted(zip(trials, tables), key=lambda pair: pair[0]["seed"])]
    pd.concat(in_order, ignore_index=True).to_parquet(content, index=False, compression="zstd")
    kept = [{**trial, "predictions_sha256": records.content_checksum(table)} for trial, table in zip(trials, tables)]
    files.write_whole(run.folder / records.PREDICTIONS, content.getvalue())
    files.write_json(run.folder / "record.json", {
        **_record(run, kept), "fingerprints": [trial["fingerprint"] for trial in kept],
        "predictions_sha256": hashlib.sha256(content.getvalue()).hexdigest(),
    })


def usual(run, domain: str) -> float:
    """Points above constant prediction: methods differ, shots help, out of domain is worse."""
    shots = run.parameters.shots if isinstance(run.parameters.shots, int) else 512
    return SKILL[run.method] + np.log2(shots) - 3 * (domain == "out")


def filled(folder: Path, outputs: Path | None = None, effect=None, spread: float = 2.0, **options) -> tuple[str, str]:
    """A study file and its records; returns what the notebook's parameters `study` and `outputs` take."""
    outputs = outputs or folder / "outputs"
    path = make_study(folder, **options)
    fill(read_study(path, outputs=str(outputs)), effect, spread)
    return path, str(outputs)


def _trial(run, seed: int, mark: str, effect, spread: float, rng) -> tuple[dict, pd.DataFrame]:
    sets, tables = {}, []
    for name, (domain, rows, constant, by) in SETS[run.parameters.task].items():
        # Half of the variance of a difference is each side's own.
        accuracy = constant + (effect(run, domain) + rng.normal(0, spread / np.sqrt(2))) / 100
        found, table = _predicted(seed, name, rows, constant, float(np.clip(accuracy, 0.02, 0.98)), rng)
        sets[name] = {"domain": domain, **found, "by": _parts(PARTS[by], found["accuracy"], rows)}
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    outcome = hashlib.sha256(table[["logit_no", "logit_yes"]].to_numpy().tobytes()).hexdigest()[:16]
    steps = 40 if run.method != "in_context" else 0
    cost = float(rng.normal(1, 0.02))
    total = 125_240_832 if "125" in run.parameters.model else 331_198_976
    trial = {
        "seed": seed, "fingerprint": mark, "shots_sha256": "0" * 16, "outcome_sha256": outcome,
        "losses": (0.7 * np.exp(-np.arange(steps) / 20) + rng.uniform(0, 0.05, steps)).round(4).tolist(),
        "seconds": {"train": SECONDS[run.method] * cost * total / 1.25e8, "evaluate": 3.0, "other": 1.0},
        "memory": {"resident": MEMORY[run.method] * total / 1.25e8 * float(rng.normal(1, 0.01))},
        "trainable": {"lora": 36864 * getattr(run.parameters, "rank", 1), "in_context": 0}.get(run.method, total), "parameters": total,
        "cut": {}, "tokens": {"training": 1000, "evaluation": 1000}, "flops": 1e12, "sets": sets,
    }
    if run.method == "in_context":  # what the backbone gives without an example: nothing here
        untrained = {name: {**found, "accuracy": found["constant"] - 0.05, "mcc": 0.0} for name, found in sets.items()}
        trial["also"] = {"zero-shot": {"sets": untrained, "outcome_sha256": "0" * 16}}
    return trial, table


def _predicted(seed: int, name: str, rows: int, constant: float, accuracy: float, rng) -> tuple[dict, pd.DataFrame]:
    gold = (np.arange(rows) < round(constant * rows)).astype(int)
    right = rng.permutation(rows) < round(accuracy * rows)
    predicted = np.where(right, gold, 1 - gold)
    size = rng.gamma(2, 0.6, rows).astype(np.float32)
    logits = np.where(predicted == 1, size, -size)
    table = pd.DataFrame({"trial": seed, "set": name, "row": np.arange(rows), "label": gold, "prediction": predicted,
                          "logit_no": np.zeros(rows, np.float32), "logit_yes": logits})
    found = {"accuracy": float(right.mean()), "mcc": float(np.corrcoef(gold, predicted)[0, 1]), "macro_f1": float(right.mean()), "n": rows,
             "constant": constant, "commonest_prediction": float(max(predicted.mean(), 1 - predicted.mean()))}
    return found, table


def _parts(names: list[str], accuracy: float, rows: int) -> dict:
    lean = [0.3 if name.endswith("/entailment") else -0.3 if "/" in name else 0.02 * i for i, name in enumerate(names)]
    return {name: {"accuracy": float(np.clip(accuracy + more, 0, 1)), "n": rows // len(names)} for name, more in zip(names, lean)}


def _record(run, trials: list[dict]) -> dict:
    return {
        "schema_version": records.SCHEMA_VERSION, "results_version": records.RESULTS_VERSION, "method": run.method, "parameters": {},
        "distinct_trials": records.distinct(trials), "trials": trials,
        "labels": ["no", "yes"], "notes": [], "provenance": {"data": {}, "model": run.parameters.model},
        "environment": {"precision": "float32", "threads": 2, "device": "a processor", "torch": "2", "transformers": "5"},
    }
