"""What every method notebook does around its method: check the parameters, keep the trials, show the results."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lowres import files
from lowres.files import ROOT, BadInput, located, shown
from lowres.locks import SCRATCH, STOP
from lowres.methods.cost import Meter, flops
from lowres.models.identity import weights
from lowres.parameters import METHODS, Parameters, validated
from lowres.runs import records
from lowres.runs.checks import check_method, check_words, forget_files, rehearse
from lowres.tasks.load import Task, data_checksums
from lowres.tasks.task_file import extended_task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lowres.methods.training import Training


PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "tokenizers")


@dataclass
class Outcome:
    """What a notebook's `trial` hands back: the labelled examples drawn, the training, the label logits by set."""

    shots: pd.DataFrame
    training: Training
    logits: dict[str, np.ndarray]
    extra: dict[str, Any] = field(default_factory=dict)  # the method's own findings, for the record
    evaluation: dict[str, Any] | None = None  # the encoded evaluation sets, where they differ from trial to trial
    read: int = 0  # tokens read besides, without a gradient: contexts, a teacher's inputs


class Interrupted(Exception):
    """The runner was asked to stop. What is finished is kept; `lowres run` continues after it."""


class Run:
    """One executed notebook: its checked parameters, its finished trials, its record."""

    def __init__(self, method: str, parameters: Parameters):
        self.method, self.parameters = method, parameters
        self.task_file = extended_task(parameters.task, tuple(parameters.also_evaluate))
        self.folder = located(parameters.output_dir) if parameters.output_dir else None
        self.started, self.clock, self.load_seconds = _now(), time.perf_counter(), 0.0
        self.trials: list[dict[str, Any]] = []
        self.meter = Meter()
        self.backbone_identity = weights(parameters)
        self.data = data_checksums(self.task_file, parameters.data_dir)

    def fingerprint(self, seed: int) -> str:
        return records.fingerprint(self.method, self.parameters, seed, self.task_file, self.data, self.backbone_identity)

    def each_seed(self, trial: Callable[[int], Outcome], backbone, task: Task, evaluation: dict) -> list[dict[str, Any]]:
        """Runs `trial` for every seed that is not finished yet; a finished one is read back. Kept whole, at once.

        `evaluation` has the encoded evaluation sets, for the count of tokens and of texts that were cut.
        """
        from lowres.methods.evaluation import evaluated, predictions
        from lowres.tasks.shots import fewest, in_common

        self.load_seconds = time.perf_counter() - self.clock
        common = in_common(fewest(task.pool), self.parameters.shots)
        self._warn(evaluation, common)
        for seed in self.parameters.seeds:
            found = self.folder and records.read_trial(self.folder, seed, self.fingerprint(seed))
            if found:
                print(f"seed {seed}: finished before, read back")
                self.trials.append(found)
                continue
            if self.folder:
                records.put_trial_aside(self.folder, seed)
            if os.environ.get(STOP) and Path(os.environ[STOP]).exists():
                raise Interrupted(f"before seed {seed}")
            self.meter = Meter()
            with self.meter.phase("trial"):
                outcome = trial(seed)
            _must_be_numbers(outcome.logits, seed)
            result = {"seed": seed, "fingerprint": self.fingerprint(seed), **self._described(outcome, backbone, evaluation)}
            result |= {"in_common": round(common, 3), "sets": evaluated(task, outcome.logits)}
            if self.folder:
                records.write_trial(self.folder, result, predictions(task, outcome.logits, seed))
            self.trials.append(result)
            scores = ", ".join(f"{name} {found['accuracy']:.3f}" for name, found in result["sets"].items())
            print(f"seed {seed}: accuracy {scores} ({sum(result['seconds'].values()):.0f} s)", flush=True)
        return self.trials

    def once(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        """What all trials share: computed by the first that asks, its seconds charged to each that does."""
        result, seconds, charged = None, 0.0, None

        def shared() -> Any:
            nonlocal result, seconds, charged
            if charged is None:
                start = self.meter.clock()
                result = compute()
                seconds = self.meter.clock() - start
            elif charged is not self.meter:
                self.meter.shared += seconds
            charged = self.meter
            return result

        return shared

    def _warn(self, evaluation: dict, common: float) -> None:
        from lowres.tasks.shots import close_draws

        for name, inputs in evaluation.items():
            if inputs.cut:
                print(f"{name}: {inputs.cut} of {len(inputs):,} texts are longer than max_length and were cut")
        if len(self.parameters.seeds) > 1 and close_draws(common):
            print(close_draws(common))

    def _described(self, outcome: Outcome, backbone, evaluation: dict) -> dict[str, Any]:
        from lowres.tasks.shots import checksum

        evaluation = outcome.evaluation or evaluation
        seconds = dict(self.meter.seconds)
        seconds["other"] = seconds.pop("trial") - sum(value for key, value in self.meter.seconds.items() if key != "trial")
        if backbone.compiled:
            seconds["compile"] = self.meter.compiling()
        evaluated_tokens = sum(len(ids) for inputs in evaluation.values() for ids in inputs.ids)
        training = outcome.training
        total, embedded = backbone.parameters(), backbone.embeddings()
        return {
            "shots_sha256": checksum(outcome.shots),
            "outcome_sha256": hashlib.sha256(b"".join(part.tobytes() for part in outcome.logits.values())).hexdigest()[:16],
            "losses": [round(loss, 6) for loss in training.losses],
            "learning_rates": training.learning_rates[:: max(1, len(training.learning_rates) // 100)],
            "seconds": {key: round(value, 3) for key, value in seconds.items()},
            "memory": self.meter.memory(),
            "environment": environment(backbone),  # a trial's own: a run may be finished on another day, elsewhere
            "trainable": training.trainable,
            "parameters": total,
            "cut": {"training": training.cut, **{name: inputs.cut for name, inputs in evaluation.items()}},
            "tokens": {"training": training.tokens, "evaluation": evaluated_tokens, "read": outcome.read},
            "flops": flops(total - embedded, min(training.trainable, total - embedded), training.tokens, evaluated_tokens + outcome.read,
                           max(0, training.skipped - embedded)),
            **outcome.extra,
        }

    def finish(self, backbone, task: Task) -> None:
        """Writes the record; says where, and whether the trials are trials."""
        different = records.distinct(self.trials)
        if different < len(self.trials):
            print(f"WARNING: only {different} of {len(self.trials)} trials differ: the others are copies and tell nothing new.")
        if not self.folder:
            print("output_dir is empty: nothing was kept.")
            return
        record = {
            "schema_version": records.SCHEMA_VERSION, "results_version": records.RESULTS_VERSION, "method": self.method,
            "parameters": records.stored(self.parameters), "fingerprints": [trial["fingerprint"] for trial in self.trials],
            "distinct_trials": different, "trials": self.trials, "labels": task.labels, "notes": task.notes,
            "environment": environment(backbone), "provenance": provenance(self, task),
            "start": self.started, "end": _now(), "load_seconds": round(self.load_seconds, 3),  # data, backbone, token ids
        }
        scratch = os.environ.get(SCRATCH)
        files.write_json((Path(scratch) if scratch else self.folder) / "record.json", record)
        if not scratch:
            files.write_whole(self.folder / "parameters.yaml", records.as_yaml(self.parameters))
        print(f"record: {shown(self.folder)}/record.json")


def start(method: str, values: dict[str, Any], notebook: str = "") -> Run:
    """Checks the parameters of a method's notebook, or of another `notebook` that takes the same.

    `values` are its globals, in which nothing else stands yet when it is run for the first time.
    Run again in the same kernel, the other names are the notebook's own, and what was read from files is read anew. Raises BadInput.
    """
    known = METHODS[method].model_fields
    again = isinstance(values.get("run"), Run)
    given = {
        key: value for key, value in values.items()
        if key in known or not (again or key in ("In", "Out") or key.startswith("_") or callable(value) or isinstance(value, ModuleType))
    }
    if again:
        forget_files()
    run = Run(method, validated(method, given, f"notebooks/{notebook or method}.ipynb"))
    p = run.parameters
    check_words(p.model, p.task, getattr(p, "pattern", ""), getattr(p, "label_words", None))
    check_method(p)
    rehearse(p)
    return run


def _must_be_numbers(logits: dict[str, np.ndarray], seed: int) -> None:
    """A last step may spoil weights after the last loss. No number's largest is the first label, and would count as an answer."""
    import numpy as np

    if spoilt := [name for name, part in logits.items() if not np.isfinite(part).all()]:
        raise BadInput(f"seed {seed}: {spoilt[0]}: the model's answers are no numbers: the training has diverged")


def environment(backbone) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else processor()
    return {
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "device": device,
        "threads": torch.get_num_threads(), "precision": backbone.precision, "compiled": backbone.compiled, "system": platform.system(),
    }


def provenance(run: Run, task: Task) -> dict[str, Any]:
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    notebook = ROOT / "notebooks" / f"{run.method}.ipynb"
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", "lowres", "notebooks", "parameters")),
        "data": task.checksums, "model": run.backbone_identity,
        "notebook_sha256": hashlib.sha256(notebook.read_bytes()).hexdigest() if notebook.is_file() else None,
    }


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
