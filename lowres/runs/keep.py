"""`lowres keep`: a study's trial trained once more and written as a folder to take away, held against the trial by plain transformers.
`lowres predict`: what such a folder says of a file's rows."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowres import locks
from lowres.files import BadInput, located, read_json, shown, whole_folder, write_json, write_whole
from lowres.methods.kept import ABOUT, EXPECTED, Kept, check_can_be_kept, load, read_about
from lowres.models.identity import PREPARED
from lowres.runs import records, summary
from lowres.runs.execute import Options, pinned
from lowres.runs.process import run_notebook
from lowres.runs.progress import time_text
from lowres.runs.status import NOTEBOOKS, FingerprintInputs
from lowres.runs.study import Run, Study
from lowres.tasks.kinds import kind_of_file
from lowres.tasks.load import load_task, sha256
from lowres.tasks.shots import draw
from lowres.tasks.table import Table, pieces
from lowres.tasks.task_file import TaskFile, read_task

CHUNK = 1000  # rows that are predicted, and written, at a time
NEAR = {"float32": 1e-4, "bfloat16": 5e-2}  # how far logits may lie apart; in bfloat16 they have three digits
PLAIN = """
import sys, numpy, pandas, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, rows, out, precision = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
texts = pandas.read_parquet(rows)["text"].tolist()
order, logits = sorted(range(len(texts)), key=lambda i: len(texts[i])), [None] * len(texts)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        found = model(**tokenizer([texts[i] for i in batch], padding=True, return_tensors="pt")).logits.float().numpy()
        for i, line in zip(batch, found):
            logits[i] = line
numpy.save(out, numpy.stack(logits))
"""

OURS = """
import sys, numpy, pandas, lowres
folder, rows, out, _ = sys.argv[1:]
texts = pandas.read_parquet(rows).rename(columns=lambda name: name.removeprefix("text "))
numpy.save(out, lowres.load(folder).read(texts)[0])
"""


@dataclass
class Checked:
    """How a kept folder's answers stand to the trial that it was made of, and to the one in the study's records."""

    rows: int
    cut: int
    farthest: float
    other_labels: int
    other_than_recorded: int | None  # None: no trial of the study has these examples
    scores: dict[str, float]  # by evaluation set
    loader: str

    def sentence(self) -> str:
        rows = f"{self.rows:,} evaluation rows"
        said = [f"Loaded anew by {self.loader} in a process of its own, it gave {rows} the labels that the trial gave them, its logits at most "
                f"{self.farthest:.1e} apart" if not self.other_labels else
                f"Loaded anew by {self.loader}, it gave {self.other_labels} of {rows} another label than the trial"]
        said += [f"{self.cut:,} that are longer than max_length were left out of this"] if self.cut else []
        if self.other_than_recorded is not None:
            said.append(f"{self.other_than_recorded} of the labels are others than the study's records have (another processor rounds otherwise)"
                        if self.other_than_recorded else "They are those of the study's records")
        return ". ".join(said) + "."


def keep(study: Study, run: Run, seed: int | None = None, folder: str = "", all_rows: bool = False, tell: Callable[[str], None] = print
         ) -> tuple[Path, str]:
    """Trains a run's trial once more, or with `all_rows` on every labelled row of the pool, and keeps its model. Returns the folder, and how it was
    checked. Raises BadInput; then nothing is left."""
    check_can_be_kept(run.method, run.parameters)
    trial = _trial(run, seed)
    name = f"{run.name.replace('/', '-')}-{'all-rows' if all_rows else 'seed'}-{trial['seed']}"
    target = located(folder) if folder else study.folder / "kept" / name
    if target.exists():
        raise BadInput(f"{shown(target)}: is there already: name another place by --folder, or remove it")
    changed, rows = _all_rows(run, trial, tell) if all_rows else ({}, 0)
    with locks.scratch_folder() as scratch:
        made = scratch / "kept"
        made.mkdir()
        notebook = located(NOTEBOOKS) / f"{run.method}.ipynb"
        given = run.parameters.model_copy(update={"seeds": [trial["seed"]], "output_dir": "", **changed}).model_dump(exclude_defaults=True)
        environment = {locks.KEEP: str(made), locks.NOTEBOOK: str(notebook), **pinned(Options(threads=trial["environment"]["threads"]))}
        ended = run_notebook(notebook, scratch / "run.ipynb", given, scratch, environment)
        if ended.kind:
            raise BadInput(f"keep: the trial could not be trained again: {ended.message}")
        found = _checked(made, scratch, run, trial["seed"], all_rows)
        write_whole(made / "README.md", card(run, trial, found, read_json(made / ABOUT), rows))
        for path in made.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        sums = [f"{sha256(path)}  {path.relative_to(made)}" for path in sorted(made.rglob("*")) if path.is_file()]
        write_whole(made / "SHA256SUMS", "\n".join(sums) + "\n")
        with whole_folder(target) as beside:  # scratch may lie on another disk
            shutil.copytree(made, beside, dirs_exist_ok=True)
    return target, found.sentence()


def _all_rows(run: Run, trial: dict[str, Any], tell: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """The parameters that take every labelled row of the pool, and how many that are; says how long it will take."""
    p = run.parameters
    task = load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate)
    rows, examples = len(task.pool), len(draw(task.pool, p.shots, trial["seed"], p.uneven))
    took = records.seconds_of(trial)
    seconds = took + records.seconds_of(trial, records.TRAINING) * (rows / examples - 1)
    tell(f"trained on all {rows:,} labelled rows of the pool instead of {examples}: {time_text(seconds)}")
    most = int(task.kind.counts(task.pool, len(task.labels)).max())
    return {"shots": rows if task.kind.several else most, "uneven": True}, rows  # of several, a row without any is drawn once a round


def _trial(run: Run, seed: int | None) -> dict[str, Any]:
    trials, record = records.read_trials(run.folder)[0], records.read_record(run.folder)
    wanted = run.parameters.seeds[0] if seed is None else seed
    if wanted not in run.parameters.seeds:
        raise BadInput(f"--seed: {wanted} is no seed of {run.name} (there are: {', '.join(map(str, run.parameters.seeds))})")
    marks = FingerprintInputs().accepted(run, [wanted], record)[wanted]
    if trials.get(wanted, {}).get("fingerprint") not in marks:
        raise BadInput(f"keep: {run.name} has no finished trial of seed {wanted}: `lowres run` makes it, and then it can be held against it")
    return trials[wanted]


def _checked(made: Path, scratch: Path, run: Run, seed: int, all_rows: bool) -> Checked:
    """Raises BadInput for a folder that answers otherwise than the trial did."""
    expected, about = pd.read_parquet(scratch / EXPECTED), read_json(made / ABOUT)
    whole, columns = expected[~expected["cut"]], [column for column in expected if column.startswith("logit_")]
    whole.drop(columns=[*columns, "set", "row", "cut"]).to_parquet(scratch / "whole.parquet")
    code, loader = (OURS, "lowres") if "classifier" in about else (PLAIN, "plain transformers")
    done = subprocess.run([sys.executable, "-c", code, str(made), str(scratch / "whole.parquet"), str(scratch / "found.npy"), about["precision"]],
                          capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        raise BadInput(f"keep: {loader} cannot load what was made: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    kind = kind_of_file(read_task(run.parameters.task))
    told = lambda logits: np.asarray(kind.answered(logits, about["labels"]))  # noqa: E731
    found, asked = np.load(scratch / "found.npy"), whole[columns].to_numpy()
    others, farthest = int((told(found) != told(asked)).sum()), float(np.abs(found - asked).max(initial=0))
    if farthest > NEAR[about["precision"]] or (others and about["precision"] == "float32"):
        raise BadInput(f"keep: what was made answers otherwise than the trial: {others} of {len(whole)} labels, logits up to {farthest:.1e} apart")
    kept = records.read_predictions(run.folder)
    both = expected.assign(answer=told(expected[columns].to_numpy())).merge(kept[kept["trial"] == seed], on=["set", "row"])
    other = None if all_rows else int((both["answer"] != both["prediction"]).sum())
    return Checked(len(whole), int(expected["cut"].sum()), farthest, others, other, about["scores"], loader)


def card(run: Run, trial: dict[str, Any], found: Checked, about: dict[str, Any], all_rows: int) -> str:
    """The folder's README: what it is, how good, and how to use it. `all_rows`: how many it was trained on, where that is all of the pool."""
    p, trials = run.parameters, list(records.read_trials(run.folder)[0].values())
    spec: TaskFile = read_task(p.task)
    lines = [f"- {line}" for line in summary.headline(trials)]
    own = ", ".join(f"{name} {100 * score:.1f} %" for name, score in found.scores.items())
    examples = f"all {all_rows:,} labelled rows of the pool" if all_rows else f"{p.shots} labelled examples of each"
    which = f"this folder was trained on {all_rows:,} rows, so that these are an estimate of it, and a low one; on the same sets it has" if all_rows \
        else "this folder is one of them"
    took = records.seconds_of(trial, records.TRAINING)
    plain = {key: field.default for key, field in type(p).model_fields.items()}
    settings = "".join(f", {key} {value}" for key, value in about["parameters"].items()
                       if value != plain[key] and key not in ("model", "task", "shots"))
    return f"""# {spec.name}: {spec.description}

A classifier with the labels {', '.join(f'`{label}`' for label in spec.labels)}, made by `{run.method}`{settings} from {examples}
(seed {trial['seed']}), on {p.model}. Backbone's licence: {PREPARED[p.model].licence if p.model in PREPARED else f'see {p.model}'}.

## Use

{_example(about, kind_of_file(spec).several)}`lowres predict FOLDER FILE`; from Python, `lowres.load("FOLDER").predict(texts)`.
Inputs are read to {about['max_length']} tokens; the end of a longer text is not.

## How good it is

Over {len(trials)} draws of {p.shots} examples of each label (95 % intervals of the mean); {which}: {own}.

{chr(10).join(lines)}

{found.sentence()} Training {'a draw' if all_rows else 'it'} took {took:.0f} s on {trial['environment']['device']}.

Not tried: other texts than these sets, other languages, whether its probabilities can be believed, and what it does to people.
"""


def _example(about: dict[str, Any], several: bool) -> str:
    """The lines by which plain transformers answers; of a baseline none, since it is scikit-learn's."""
    if "classifier" in about:
        return ""
    places = ", ".join(f"{name}={name}" for name in about["text"])
    call = f"PATTERN.format({places})" if all(map(str.isidentifier, about["text"])) else "PATTERN with the texts in its places"
    answer = "print([label for i, label in model.config.id2label.items() if logits[0, i] > 0], logits.sigmoid().tolist())" \
        if several else "print(model.config.id2label[int(logits.argmax())], logits.softmax(1).tolist())"
    return f"""```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
PATTERN = {about['pattern']!r}
tokenizer, model = AutoTokenizer.from_pretrained("FOLDER"), AutoModelForSequenceClassification.from_pretrained("FOLDER").eval()
logits = model(**tokenizer([{call}], return_tensors="pt", padding=True)).logits
{answer}
```

Or """


def predict_file(folder: str, file: str, out: str = "", tell=print) -> Path:
    """Writes a file's rows with what a kept model says of them: all columns in their order, then `predicted`, a probability a label, a note.

    CHUNK rows at a time, whatever the file's length; what a broken call has written is gone on with. Raises BadInput before the model is loaded.
    """
    path, place = located(file), located(folder)
    about, target = read_about(place), _target(path, out)
    rows = _rows_of(path, about, tell)
    part, mark = target.with_name(f".{target.name}.part"), {"file": sha256(path), "model": sha256(place / ABOUT)}
    state = read_json(f"{part}.json") or {}
    done = state.get("rows", 0) if {key: state.get(key) for key in mark} == mark and part.is_file() else 0
    kept, begun, marked = load(place), time.monotonic(), state.get("marked", 0) if done else 0
    with part.open("r+b" if done else "wb") as stream:
        stream.truncate(state.get("bytes", 0) if done else 0)
        stream.seek(0, os.SEEK_END)
        for table in pieces(path, about["text"], CHUNK):
            if (now := table.start + len(table.frame)) <= done and rows:
                continue
            answers = _answers(kept, table)
            marked += int((answers["note"] != "").sum())
            stream.write(WRITERS[target.suffix](pd.concat([table.frame, answers], axis=1), stream.tell() == 0).encode())
            stream.flush()
            write_json(Path(f"{part}.json"), {**mark, "rows": now, "bytes": stream.tell(), "marked": marked})
            tell(f"{now:,} of {rows:,} rows, {(now - done) / (time.monotonic() - begun):,.0f} a second")
    os.replace(part, target)
    Path(f"{part}.json").unlink(missing_ok=True)
    if marked:
        tell(f"{marked:,} rows have a note: an empty text, a row that does not fit, or a text that was read to its {about['max_length']}th token")
    return target


def _target(path: Path, out: str) -> Path:
    if not path.is_file():
        raise BadInput(f"{shown(path)}: there is no such file")
    target = located(out) if out else path.with_name(f"{path.stem}.predicted{path.suffix if path.suffix in WRITERS else '.csv'}")
    if target.suffix not in WRITERS:
        raise BadInput(f"--out: {target.name!r}: a name that ends with {', '.join(WRITERS)} is wanted")
    if target.exists():
        raise BadInput(f"{shown(target)}: is there already: name another by --out, or remove it")
    return target


def _rows_of(path: Path, about: dict[str, Any], tell: Callable[[str], None]) -> int:
    """How many rows a file has; tells what was guessed of it. Raises BadInput for one that has not the columns that are read, has those that are
    written, or cannot be read to its end."""
    rows, odd, notes, first, columns = 0, 0, [], "", about["text"]
    for table in pieces(path, columns, CHUNK):
        for column in columns:
            table.text(column)
        if taken := [name for name in ("predicted", "note", *(f"p({label})" for label in about["labels"])) if name in table.frame]:
            raise BadInput(f"{shown(path)}: column {taken[0]!r} would be written twice: rename it")
        rows, odd, notes = rows + len(table.frame), odd + len(table.odd), notes + table.notes
        first = first or next(iter(table.odd.values()), "")
    if rows and odd == rows:
        raise BadInput(f"{shown(path)}: not one row fits: {first}")
    for note in notes[:10] + [f"and {len(notes) - 10} more of this kind"] * (len(notes) > 10):
        tell(note)
    return rows


def _answers(kept: Kept, table: Table) -> pd.DataFrame:
    """What a model says of each row; of one that does not fit the file, why it was not read."""
    texts = pd.DataFrame({column: table.text(column) for column in kept.about["text"]})
    texts.iloc[list(table.odd)] = ""
    answers = kept.predict(texts)
    for i, why in table.odd.items():
        answers.loc[i, "note"] = why
    return answers


def _separated(delimiter: str):
    def write(rows: pd.DataFrame, first: bool) -> str:
        text = io.StringIO()
        lone = any("\r" in value for value in rows.to_numpy().ravel() if isinstance(value, str))  # which csv does not quote of itself
        rows.to_csv(text, sep=delimiter, index=False, header=first, quoting=csv.QUOTE_NONNUMERIC if lone else csv.QUOTE_MINIMAL, float_format="%.6g")
        return text.getvalue()

    return write


def _lines(rows: pd.DataFrame, first: bool) -> str:
    plain = lambda value: value.tolist() if hasattr(value, "tolist") else None if value != value else value
    return "".join(json.dumps({key: plain(value) for key, value in line.items()}, ensure_ascii=False, default=str) + "\n"
                   for line in rows.to_dict("records"))


WRITERS = {".csv": _separated(","), ".tsv": _separated("\t"), ".jsonl": _lines}
