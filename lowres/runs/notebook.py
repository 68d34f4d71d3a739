"""What every method notebook does around its method: check the parameters, keep the trials, show the results."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowres import files, locks
from lowres.files import ROOT, BadInput, located, shown
from lowres.methods import choose
from lowres.methods.cost import Meter, flops, matrix_rate
from lowres.methods.evaluation import evaluated, predictions
from lowres.models import store
from lowres.models.backbone import Backbone, load_backbone
from lowres.models.batches import Inputs, encode
from lowres.models.heads import behind
from lowres.models.identity import environment, weights
from lowres.parameters import Parameters, validated
from lowres.runs import mistakes, records, summary
from lowres.runs.checks import check_method, check_words, forget_files, parameter_names, rehearse
from lowres.tasks.kinds import refuse
from lowres.tasks.load import Task, data_checksums, load_task
from lowres.tasks.shots import Streams, checksum, close_draws, fewest, in_common
from lowres.tasks.task_file import extended_task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from pandas.io.formats.style import Styler

    from lowres.methods.training import Outcome, Training


class Run:
    """One executed notebook: its checked parameters, its task and backbone (loaded when first asked for), its finished trials, its record."""

    def __init__(self, method: str, parameters: Parameters):
        self.method, self.parameters = method, parameters
        self.task_file = extended_task(parameters.task, tuple(parameters.also_evaluate))
        self.folder = located(parameters.output_dir) if parameters.output_dir else None
        self.started, self.clock, self.load_seconds = _now(), time.perf_counter(), 0.0
        self.encoded: dict[str, dict[str, Inputs]] = {}  # the evaluation sets by pattern
        self.evaluation: dict[str, Inputs] = {}  # the last of these
        self.trials: list[dict[str, Any]] = []
        self.predicted: dict[int, pd.DataFrame] = {}  # by seed, of trials that this notebook made
        self.meter = Meter()
        self.backbone_identity = weights(parameters)
        self.data = data_checksums(self.task_file, parameters.data_dir)

    def fingerprint(self, seed: int) -> str:
        return records.fingerprint(self.method, self.parameters, seed, self.task_file, self.data, self.backbone_identity)

    @cached_property
    def task(self) -> Task:
        p = self.parameters
        return load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate)

    @cached_property
    def backbone(self) -> Backbone:
        p = self.parameters
        backbone = load_backbone(p.model, p.device, p.precision, p.compiled)
        backbone.meter = self.meter
        return backbone

    def encode(self, pattern: str) -> dict[str, Inputs]:
        """The evaluation sets in a pattern, as the backbone reads them."""
        if pattern not in self.encoded:
            sets = self.task.evaluation.items()
            self.encoded[pattern] = {name: encode(self.backbone, rows, pattern, self.parameters.max_length) for name, rows in sets}
        self.evaluation = self.encoded[pattern]
        return self.evaluation

    def fitted(self, fit: Callable, shots: pd.DataFrame, seed: int) -> tuple[Any, Training, dict[str, Any]]:
        """What `fit(shots, p, streams)` trains: the head and the training; and, where `p.choose` lists settings, what the shots chose, which counts
        as much as all that was trained for it."""
        p, found, tokens = self.parameters, {}, 0
        if p.choose:
            with self.meter.phase("choose"):
                choice, tokens = choose.settings(self.backbone, fit, shots, p, seed)
            p, found = p.model_copy(update=choice.chosen.settings), {"settings": choice.record()}
        head, training = fit(shots, p, Streams(seed))
        training.tokens += tokens
        return head, training, training.found | found

    def each_seed(self, trial: Callable[[int], Outcome]) -> list[dict[str, Any]]:
        """Runs `trial` for every seed that is not finished yet; a finished one is read back. Kept whole, at once."""
        self.load_seconds = time.perf_counter() - self.clock
        common = in_common(fewest(self.task.pool), self.parameters.shots)
        self._warn(common)
        self.trials, finished = [], self._finished() if self.folder else {}
        for seed in self.parameters.seeds:
            found = finished.get(seed)
            result = found or self._made(trial, seed, common)
            self.trials.append(result)
            scores = ", ".join(f"{name} {records.score(scores):.3f}" for name, scores in result["sets"].items())
            metric = records.metric(next(iter(result["sets"].values())))
            print(f"seed {seed}: {metric} {scores} ({sum(result['seconds'].values()):.0f} s{', read back' if found else ''})", flush=True)
            if cut := result["cut"]["training"]:
                print(f"seed {seed}: {cut} training texts are longer than max_length and were cut")
            self.answer.show(self.trials)
        return self.trials

    def _made(self, trial: Callable[[int], Outcome], seed: int, common: float) -> dict[str, Any]:
        if os.environ.get(locks.STOP) and Path(os.environ[locks.STOP]).exists():
            raise locks.Interrupted(f"before seed {seed}")
        self.meter = Meter()
        if backbone := vars(self).get("backbone"):  # it is loaded
            backbone.meter = self.meter
        with self.meter.phase("trial"):
            outcome = trial(seed)
        _must_be_numbers(outcome.logits, seed)
        if os.environ.get(locks.KEEP):
            from lowres.methods.kept import write_with_answers

            asked = {key: value for key, value in records.stored(self.parameters).items() if key not in ("data_dir", "output_dir", "seeds")}
            write_with_answers(Path(os.environ[locks.KEEP]), self, outcome, {"seed": seed, "parameters": asked})
        result = {"seed": seed, "fingerprint": self.fingerprint(seed), **self._described(outcome)}
        result |= {"in_common": round(common, 3), "sets": evaluated(self.task, outcome.logits, outcome.shots)}
        self.predicted[seed] = predictions(self.task, outcome.logits, seed)
        return records.write_trial(self.folder, result, self.predicted[seed]) if self.folder else result

    def results(self) -> pd.DataFrame:
        """A line an evaluation set: the score, its interval, the yardstick."""
        return summary.results(self.trials)

    def breakdown(self) -> pd.DataFrame:
        """The score in each part that the task file names."""
        return summary.breakdown(self.trials)

    def confusions(self) -> pd.DataFrame:
        """Which label is taken for which, the commonest first."""
        return mistakes.confusions(self._predictions(), self.task.labels, self.task.kind).reset_index(drop=True)

    def mistakes(self, most: int = 10) -> Styler:
        """The rows that most trials get wrong and are surest of: where wrong labels are found. With whole texts where the task may show them."""
        table = mistakes.with_texts(mistakes.wrong_rows(self._predictions(), self.task.labels, self.task.kind).head(most), self.task)
        texts = [column for column in self.task.file.text if column in table]
        shown = table.style.hide(axis="index").format(precision=3, escape="html").set_uuid("mistakes")
        return shown.set_properties(subset=texts, **{"text-align": "left"})

    def _predictions(self) -> pd.DataFrame:
        import pandas as pd

        kept = records.read_predictions(self.folder) if self.folder else None
        return pd.concat([found if (found := self.predicted.get(trial["seed"])) is not None else kept[kept["trial"] == trial["seed"]]
                          for trial in self.trials])

    def cost(self) -> pd.DataFrame:
        """Seconds, memory, parameters and operations, a line a trial."""
        return summary.cost(self.trials, environment(self.backbone), matrix_rate(str(self.backbone.device), self.backbone.precision))

    def _finished(self) -> dict[int, dict[str, Any]]:
        """The trials that count, by seed. Others that plain papermill finds in `output_dir` make room first. (The runner has seen to its own.)"""
        trials, faults = records.read_trials(self.folder)
        counting = {seed: trial for seed, trial in trials.items() if trial["fingerprint"] == self.fingerprint(seed)}
        in_the_way = faults or len(counting) < len(trials)
        if in_the_way and set(self.parameters.seeds) - set(counting) and not os.environ.get(locks.SCRATCH):
            with locks.locked(self.folder):
                records.put_aside(self.folder, counting)
        return counting

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

    def _warn(self, common: float) -> None:
        for name, inputs in self.evaluation.items():
            if inputs.cut:
                print(f"{name}: {inputs.cut} of {len(inputs):,} texts are longer than max_length and were cut")
        if len(self.parameters.seeds) > 1 and close_draws(common):
            print(close_draws(common))

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        evaluation, backbone = self.evaluation, self.backbone
        seconds = dict(self.meter.seconds)
        seconds["other"] = seconds.pop("trial") - sum(value for key, value in self.meter.seconds.items() if key != "trial")
        if backbone.compiled:
            seconds["compile"] = self.meter.compiling()
        evaluated_tokens = sum(sum(map(len, inputs.ids)) if inputs.answers else inputs.tokens for inputs in evaluation.values())
        training, read = outcome.training, outcome.read + self._behind() * sum(map(len, evaluation.values()))
        total, embedded = backbone.parameters(), backbone.embeddings()
        return {
            "shots_sha256": checksum(outcome.shots),
            "outcome_sha256": hashlib.sha256(b"".join(part.tobytes() for part in outcome.logits.values())).hexdigest()[:16],
            "losses": [round(loss, 6) for loss in training.losses],
            "seconds": {key: round(value, 3) for key, value in seconds.items()},
            "memory": self.meter.memory(),
            **({"stored": round(self.meter.stored, 3)} if self.meter.stored else {}),  # seconds of these that were not spent here
            "environment": environment(backbone),  # a trial's own: a run may be finished on another day, elsewhere
            "trainable": training.trainable,
            "parameters": total,
            "cut": {"training": training.cut, **{name: inputs.cut for name, inputs in evaluation.items()}},
            "tokens": {"training": training.tokens, "evaluation": evaluated_tokens, "read": read},
            "flops": flops(total - embedded, min(training.trainable, total - embedded), training.tokens, evaluated_tokens + read,
                           max(0, training.skipped - embedded)),
            **outcome.extra,
        }

    def _behind(self) -> int:
        """Tokens of label words that are read behind each text, beside the first of each word."""
        p = self.parameters
        if self.backbone.trained:
            return sum(map(len, self.backbone.trained[0].branches))
        words = self.task.file.words(p.label_words) if hasattr(p, "label_words") else []
        return sum(behind(self.backbone.tokenizer, self.task.file, words, p.word_score)) if words else 0

    def finish(self) -> None:
        """Writes the record and fills in the answer on top; says where the record is, and whether the trials are trials."""
        different = records.distinct(self.trials)
        if different < len(self.trials):
            print(f"WARNING: only {different} of {len(self.trials)} trials differ: the others are copies and tell nothing new.")
        self.answer.show(self.trials, final=True)
        if not self.folder:
            print("output_dir is empty: nothing was kept.")
            return
        record = {
            "schema_version": records.SCHEMA_VERSION, "results_version": records.RESULTS_VERSION, "method": self.method,
            "parameters": records.stored(self.parameters), "distinct_trials": different, "trials": self.trials, "labels": self.task.labels,
            "notes": self.task.notes, "environment": environment(self.backbone), "provenance": provenance(self), "start": self.started,
            "end": _now(), "load_seconds": round(self.load_seconds, 3),  # data, backbone, token ids
        }
        if scratch := os.environ.get(locks.SCRATCH):
            files.write_json(Path(scratch) / "record.json", record)
        else:
            with locks.locked(self.folder):
                files.write_whole(self.folder / "parameters.yaml", records.as_yaml(self.parameters))
                records.merge(self.folder, record)
        print(f"record: {shown(self.folder)}/record.json")


def start(method: str, values: dict[str, Any], notebook: str = "", **fixed: Any) -> Run:
    """Checks the parameters of a method's notebook, or of another `notebook` that takes the same, before anything is loaded.

    `values` are its globals, `fixed` what the notebook itself decides. What was read from files before is read anew. Raises BadInput.
    """
    names = parameter_names(values)
    forget_files()
    given = {key: values[key] for key in names if key in values} | fixed
    run = Run(method, validated(method, given, f"notebooks/{notebook or method}.ipynb"))
    p = run.parameters
    store.limit()
    refuse(run.task_file.kind, method, p)
    if notebook and (not run.task_file.label_words or run.task_file.answers != run.task_file.labels):
        raise BadInput(f"{notebook}: shows what a word for each label gets, and tasks of kind {run.task_file.kind} have none")
    check_words(p)
    check_method(p)
    rehearse(p)
    run.answer = summary.Answer(method, p)
    return run


def _must_be_numbers(logits: dict[str, np.ndarray], seed: int) -> None:
    """A last step may spoil weights after the last loss. No number's largest is the first label, and would count as an answer."""
    import numpy as np

    if spoilt := [name for name, part in logits.items() if not np.isfinite(part).all()]:
        raise BadInput(f"seed {seed}: {spoilt[0]}: the model's answers are no numbers: the training has diverged")


def provenance(run: Run) -> dict[str, Any]:
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", "lowres", "notebooks", "parameters")),
        "data": run.task.checksums, "model": run.backbone_identity,
        "code": records.code_checksum(os.environ.get(locks.NOTEBOOK, "")),  # of the notebook that ran, where that is known
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
