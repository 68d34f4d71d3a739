"""From one file of labelled rows to a task file and a study of it: what was found, what was guessed, how the rows were parted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lowres.files import ROOT, BadInput, located, near, shown, write_whole
from lowres.tasks.load import text_key
from lowres.tasks.table import Table, read_table

LABELS = ("label", "labels", "class", "category", "intent", "sentiment", "target", "topic", "y")
TEXTS = ("text", "sentence", "review", "message", "comment", "content", "body", "utterance", "query")
MOST_LABELS = 150
SHARE = 0.3  # of the rows are kept for the test
MOST_TESTED = 2000
SHOTS = (16, 8, 4, 2)
UNLABELLED = "unlabelled"  # the part of rows without a label
MOST_BEHIND = 20  # tokens of label words that are read behind each text, beside the first of each
WORDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class New:
    """What is written: a task, how the file's rows are parted, a study; and what is to be said."""

    task: dict
    split: pd.DataFrame
    study: dict
    said: list[str] = field(default_factory=list)


def new(name: str, file: str, text: Sequence[str] = (), label: str = "", source: str = "", held_out: Sequence[str] = (), elsewhere: str = "",
        tokens_of: Callable[[str], list[int]] = lambda word: [word]) -> tuple[list[Path], list[str]]:
    """Writes parameters/tasks/NAME.yaml, NAME.split.csv beside it, and parameters/studies/NAME.yaml. Returns these, and what was found and guessed.

    `tokens_of`: what a model reads a word as. Raises BadInput; then nothing is written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise BadInput(f"new: {name!r}: a name of letters, digits, '_' and '-' is wanted: it becomes a file's")
    tasks, studies = ROOT / "parameters" / "tasks", ROOT / "parameters" / "studies"
    places = [tasks / f"{name}.yaml", tasks / f"{name}.split.csv", studies / f"{name}.yaml"]
    if there := next((place for place in places if place.exists()), None):
        raise BadInput(f"{shown(there)}: is there already: choose another name, or remove it")
    paths = [located(one) for one in filter(None, (file, elsewhere))]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise BadInput(f"{shown(missing)}: there is no such file")
    made = _made(name, paths, tuple(text), label, source, tuple(held_out), tokens_of)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    made.task["folder"] = os.path.relpath(folder, tasks)
    for source in ("pool", "unlabelled") if "unlabelled" in made.task else ("pool",):
        made.task[source]["file"] = str(paths[0].relative_to(folder))
    for rows in made.task["evaluation"].values():
        rows["file"] = str(paths[rows.pop("path", 0)].relative_to(folder))
    for place, content in zip(places, (_as_yaml(made.task), made.split.to_csv(index=False), _as_yaml(made.study))):
        write_whole(place, content)
    return places, made.said


def _made(name: str, paths: list[Path], text: tuple, label: str, source: str, held_out: tuple, tokens_of: Callable[[str], list[int]]) -> New:
    table = read_table(paths[0], [*text, *filter(None, [label, source])])
    label = label or _guess_label(table)
    text = text or (_guess_text(table, label),)
    texts = pd.DataFrame({column: table.text(column) for column in text})
    labels = table.text(label).fillna("")
    if (empty := (texts.isna() | (texts.fillna("").apply(lambda column: column.str.strip()) == "")).any(axis=1) & (labels != "")).any():
        raise BadInput(f"{table.where}: {', '.join(text)}: is empty in {table.place(int(empty.idxmax()))}: fill it in, or remove its label")
    counts = labels[labels != ""].value_counts()
    if not 2 <= len(counts) <= MOST_LABELS:
        raise BadInput(f"{table.where}: {label}: has {len(counts)} different values, where 2 to {MOST_LABELS} labels are wanted: "
                       "name the column by --label")
    said = [f"{len(table.frame):,} rows; text: {', '.join(text)}; label: {label}, {len(counts)} of them: "
            + ", ".join(f"{value} {count:,}" for value, count in counts.head(8).items()) + (" …" if len(counts) > 8 else ""), *table.notes]
    if unlabelled := int((labels == "").sum()):
        said.append(f"{unlabelled:,} rows have no label: their texts may be read by adaptive (adapt: corpus) and distillation (inputs: pool)")
    parts, more = _parted(texts, labels, table, source, held_out)
    names = [str(value) for value in counts.index]
    words, kind = _words(names, tokens_of)
    evaluation = {"test": {"domain": "in", "part": "test"}, **{_plain(value): {"domain": "out", "part": value} for value in held_out}}
    if len(paths) > 1:
        evaluation["elsewhere"] = {"domain": "out", "path": 1}
    head = " ".join(f"{{{column}}}" for column in text)
    task = {"name": name, "version": 1, "description": f"{label} of {', '.join(text)}", "show_rows": False, "folder": "",
            "split": f"{name}.split.csv", "text": list(text), "label": label, "labels": names,
            **({"relabel": {"": None}, "unlabelled": {"part": UNLABELLED}} if unlabelled else {}), "pool": {"part": "pool"}, "evaluation": evaluation,
            "patterns": {"label": f"{head}\n{label.capitalize()}:", "plain": head, "it_was": f"{head} It was"},
            "label_words": {kind if kind == "letters" else "names": dict(zip(names, words))}}
    shown_words = ", ".join(f"{value} →{word!r}" for value, word in list(zip(names, words))[:6]) + (" …" if len(names) > 6 else "")
    said += [*more, f"label words: {shown_words}"
             + (" (arbitrary, since the labels' names are too many tokens: better words may be written into the file)" if kind == "letters" else "")
             + (" (by their first tokens, which tell them apart)" if kind == "first" else "")]
    rarest = int(labels[parts == "pool"].value_counts().min())
    shots = next((count for count in SHOTS if count <= rarest), None)
    if shots is None or counts.iloc[-1] < 3:
        raise BadInput(f"{table.where}: {label}: {counts.index[-1]!r} has {counts.iloc[-1]} rows: too few to learn from and be tested on "
                       "(at least 3)")
    said.append(f"{shots} examples of each label are learnt from, six times drawn anew; the rarest has {rarest} in the pool")
    return New(task, pd.DataFrame({"row": np.arange(len(parts)), "part": parts}), _study(name, shots, kind, len(names)), said)


def _guess_label(table: Table) -> str:
    by_name = [column for column in table.frame if str(column).strip().lower() in LABELS]
    few = [column for column in table.frame if 2 <= table.frame[column].astype(str).nunique() <= min(MOST_LABELS, len(table.frame) // 2)]
    found = [column for column in by_name if column in few] or (few if len(few) == 1 else by_name)
    if len(found) != 1:
        raise BadInput(f"{table.where}: which column is the label? Name it by --label (there are: {', '.join(map(str, table.frame.columns))})")
    return found[0]


def _guess_text(table: Table, label: str) -> str:
    others = [column for column in table.frame if column != label]
    if not others:
        raise BadInput(f"{table.where}: has no column beside {label!r}: name the text by --text{near(label, table.frame.columns)}")
    by_name = [column for column in others if str(column).strip().lower() in TEXTS]
    return by_name[0] if len(by_name) == 1 else max(others, key=lambda column: table.frame[column].astype(str).str.len().mean())


def _parted(texts: pd.DataFrame, labels: pd.Series, table: Table, source: str, held_out: tuple) -> tuple[pd.Series, list[str]]:
    """Each row's part: pool, test, the source that is held out, or unlabelled; '' for none. The same text is never on both sides."""
    key, parts = text_key(texts.fillna(""), list(texts), alike=True), pd.Series("", index=labels.index)
    sources = table.text(source).fillna("") if source else pd.Series("", index=labels.index)
    if unknown := [value for value in held_out if value not in set(sources)]:
        raise BadInput(f"{table.where}: {source or '--source'}: no row has {unknown[0]!r}{near(unknown[0], set(sources) - {''})}")
    away = sources.isin(held_out) & (labels != "")
    parts[away] = sources[away]
    here = (labels != "") & ~away & ~key.isin(set(key[away]))
    share, rng = min(SHARE, MOST_TESTED / max(1, here.sum())), np.random.default_rng(0)
    for _, rows in labels[here].groupby(labels[here], sort=True):
        once = rng.permutation(key[rows.index].unique())
        tested = set(once[: max(1, round(share * len(once)))]) if len(once) > 2 else set()
        parts[rows.index] = np.where(key[rows.index].isin(tested), "test", "pool")
    both = set(key[parts == "test"])  # one text under two labels
    parts[(parts == "pool") & key.isin(both)] = ""
    parts[labels == ""] = UNLABELLED
    sizes = ", ".join(f"{part} {count:,}" for part, count in parts[parts != ""].value_counts(sort=False).items())
    said = [f"{sizes} rows, parted once, by label, with seed 0"]
    if repeated := int(key[labels != ""].duplicated().sum()):
        said.append(f"{repeated:,} rows repeat another's text (in whatever case and white space); none of them stands on two sides")
    return parts, said


def _words(names: list[str], tokens_of: Callable[[str], list[int]]) -> tuple[list[str], str]:
    """A word for each label: its own name (with a space in front, small or as it is, in the fewest tokens), unless these are so many that reading
    them takes longer than the text; then a letter each, or two.

    And which of these it is: "one" token each, "first" tokens that differ, "several" tokens, "letters".
    """
    found: dict[tuple[int, ...], str] = {}
    for name in names:
        own = re.sub(r"[_\W]+", " ", name).strip()
        forms = [(tuple(tokens_of(word)), word) for word in (f" {own}", f" {own.lower()}", f" {own.capitalize()}") if own]
        apart = [(ids, word) for ids, word in forms if all(ids[:len(other)] != other[:len(ids)] for other in found)]
        if apart:
            ids, word = min(apart, key=lambda form: len(form[0]))
            found[ids] = word
    if len(found) == len(names) and (len({ids[0] for ids in found}) == len(names) or sum(len(ids) - 1 for ids in found) <= MOST_BEHIND):
        one, apart = all(len(ids) == 1 for ids in found), len({ids[0] for ids in found}) == len(names)
        return list(found.values()), "one" if one else "first" if apart else "several"
    pairs = [f" {letter}" for letter in WORDS] + [f" {a}{b}" for a in WORDS for b in WORDS.lower()]
    letters = [word for word in pairs if len(tokens_of(word)) == 1]
    if len(letters) < len(names):
        raise BadInput(f"new: for {len(names)} labels there are only {len(letters)} letters and pairs of one token: write label_words by hand")
    return letters[: len(names)], "letters"


def _study(name: str, shots: int, kind: str, labels: int) -> dict:
    """All methods (a pattern is chosen from 16 shots on); where words say nothing, or a context cannot hold all labels, those that need neither.
    Ten epochs were enough on the task `sentiment`."""
    fits, head = kind != "letters", {} if kind in ("one", "first") else {"head": "classifier"}  # what answers in several tokens cannot be kept
    trained = [{"method": "vanilla"}, {"method": "lora", **({"set": head} if head else {})},
               {"method": "adaptive", "set": {"adapt": "layers", **head}}]
    chosen = [{"method": "adaptive"}] if shots >= 16 else []  # below, the default pattern stays
    worded = [{"method": "pbft"}, *chosen, *([{"method": "in_context"}, {"method": "distillation"}] if labels <= 20 else [])] if fits else []
    return {"description": f"Which method should I use on {name}, and does it hold elsewhere? The same six draws of labelled examples for each.",
            "set": {"model": "smollm2-135m", "seeds": [0, 1, 2, 3, 4, 5], "evaluation_rows": 500, "epochs": 10,
                    **({"word_score": "first"} if kind == "first" else {})},
            "vary": {"task": [name], "shots": [shots]},
            "methods": [*worded, *trained, {"method": "baselines", "vary": {"classifier": ["probe", "tfidf"]}}]}


def _plain(value: str) -> str:
    return re.sub(r"\W+", "_", value).strip("_") or "held_out"


def _as_yaml(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150, default_flow_style=None)
