"""From one file of labelled rows to a task file and a study of it: what was found, what was guessed, how the rows were parted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lowres.files import ROOT, BadInput, located, near, shown, write_whole
from lowres.tasks.load import text_key
from lowres.tasks.several import JOINED
from lowres.tasks.table import Table, read_table

LABELS = ("label", "labels", "class", "category", "intent", "sentiment", "target", "tags", "topic", "y")
TEXTS = ("text", "sentence", "review", "message", "comment", "content", "body", "utterance", "query")
MOST_LABELS = 150
SHARE = 0.3  # of the rows are kept for the test
MOST_TESTED = 2000
SHOTS = (16, 8, 4, 2)
UNLABELLED = "unlabelled"  # the part of rows without a label
MOST_BEHIND = 20  # tokens of label words that are read behind each text, beside the first of each
BETWEEN = ("|", ";")  # several labels of a row, where nothing else is told
MOST_QUESTIONS = 20  # that are read behind each text
WORDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class New:
    """What is written: a task, how the file's rows are parted, a study; and what is to be said."""

    task: dict
    split: pd.DataFrame
    study: dict
    said: list[str] = field(default_factory=list)


def new(name: str, file: str, text: Sequence[str] = (), label: str = "", source: str = "", held_out: Sequence[str] = (), elsewhere: str = "",
        separator: str = "", tokens_of: Callable[[str], list[int]] = lambda word: [word]) -> tuple[list[Path], list[str]]:
    """Writes parameters/tasks/NAME.yaml, NAME.split.csv beside it, and parameters/studies/NAME.yaml. Returns these, and what was found and guessed.

    `separator`: what stands between several labels of a row. `tokens_of`: what a model reads a word as. Raises BadInput; then nothing is written.
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
    made = _made(name, paths, tuple(text), label, source, tuple(held_out), separator, tokens_of)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    made.task["folder"] = os.path.relpath(folder, tasks)
    for source in ("pool", "unlabelled") if "unlabelled" in made.task else ("pool",):
        made.task[source]["file"] = str(paths[0].relative_to(folder))
    for rows in made.task["evaluation"].values():
        rows["file"] = str(paths[rows.pop("path", 0)].relative_to(folder))
    for place, content in zip(places, (_as_yaml(made.task), made.split.to_csv(index=False), _as_yaml(made.study))):
        write_whole(place, content)
    return places, made.said


@dataclass
class Labels:
    """What a file's rows are labelled with: `each` row's own, none where there is none; what stands `between` several, "" where a row has one."""

    column: str
    between: str
    each: pd.Series
    counts: pd.Series = field(init=False)

    def __post_init__(self) -> None:
        self.counts = self.each.explode().dropna().value_counts()

    @property
    def there(self) -> pd.Series:
        """Whether a row is labelled; of several, none is an answer, too."""
        return self.each.map(len).gt(0) | bool(self.between)

    @property
    def rarest(self) -> pd.Series:
        """Of each row's labels the one that the fewest rows have, "" where there is none: by these rows are parted."""
        return self.each.map(lambda own: min(own, key=lambda label: (self.counts[label], label), default=""))


def _made(name: str, paths: list[Path], text: tuple, label: str, source: str, held_out: tuple, separator: str,
          tokens_of: Callable[[str], list[int]]) -> New:
    table = read_table(paths[0], [*text, *filter(None, [label, source])])
    labels = _labels(table, label or _guess_label(table, separator), separator)
    text = text or (_guess_text(table, labels.column),)
    texts = pd.DataFrame({column: table.text(column) for column in text})
    if (empty := (texts.isna() | (texts.fillna("").apply(lambda column: column.str.strip()) == "")).any(axis=1) & labels.there).any():
        raise BadInput(f"{table.where}: {', '.join(text)}: is empty in {table.place(int(empty.idxmax()))}: fill it in, or remove its label")
    said = [*_counted(table, text, labels), *table.notes]
    parts, more = _parted(texts, labels, table, source, held_out)
    names = [str(value) for value in labels.counts.index]
    asked, kind, told = _asked(names, bool(labels.between), tokens_of)
    evaluation = {"test": {"domain": "in", "part": "test"}, **{_plain(value): {"domain": "out", "part": value} for value in held_out}}
    if len(paths) > 1:
        evaluation["elsewhere"] = {"domain": "out", "path": 1}
    unlabelled = not labels.there.all()
    task = {"name": name, "version": 1, "description": f"{labels.column} of {', '.join(text)}",
            **({"kind": "multi_label", "separator": labels.between} if labels.between else {}), "show_rows": False, "folder": "",
            "split": f"{name}.split.csv", "text": list(text), "label": labels.column, "labels": names,
            **({"relabel": {"": None}, "unlabelled": {"part": UNLABELLED}} if unlabelled else {}), "pool": {"part": "pool"}, "evaluation": evaluation,
            "patterns": _patterns(" ".join(f"{{{column}}}" for column in text), labels), **asked}
    shots, enough = _shots(table, labels, parts)
    return New(task, pd.DataFrame({"row": np.arange(len(parts)), "part": parts}), _study(name, shots, kind, len(names)), [*said, *more, told, enough])


def _labels(table: Table, column: str, separator: str) -> Labels:
    """Raises BadInput for too few or too many of them."""
    cells = table.text(column, separator or BETWEEN[0]).fillna("")
    lists = table.frame[column].map(lambda cell: isinstance(cell, list) or hasattr(cell, "tolist") and hasattr(cell, "__len__")).any()
    between = separator or (BETWEEN[0] if lists else next((mark for mark in BETWEEN if _recur(set(cells), mark)), ""))
    once = lambda cell: list(dict.fromkeys(part.strip() for part in cell.split(between) if part.strip()))  # noqa: E731
    each = cells.map(once if between else lambda cell: [cell][: len(cell)])
    found = Labels(column, between, each)
    if between and (barred := next((label for label in found.counts.index if JOINED in label), None)):
        raise BadInput(f"{table.where}: {column}: {barred!r} has a bar in it, which is written between labels: {between!r} was taken to part them")
    if not 2 <= len(found.counts) <= MOST_LABELS:
        raise BadInput(f"{table.where}: {column}: has {len(found.counts)} different values, where 2 to {MOST_LABELS} labels are wanted: "
                       "name the column by --label")
    return found


def _recur(cells: set[str], mark: str) -> bool:
    """Whether cells name several labels with this mark between them: some do, and what stands there is found in other cells, too."""
    times = Counter(part.strip() for cell in cells for part in set(cell.split(mark)))
    return any(times[part.strip()] > 1 for cell in cells if mark in cell for part in cell.split(mark) if part.strip())


def _counted(table: Table, text: tuple, labels: Labels) -> list[str]:
    """What was found in the file."""
    several = f" (several a row, or none: kind multi_label, {labels.between!r} between them)" if labels.between else ""
    said = [f"{len(table.frame):,} rows; text: {', '.join(text)}; label: {labels.column}{several}, {len(labels.counts)} of them: "
            + ", ".join(f"{value} {count:,}" for value, count in labels.counts.head(8).items()) + (" …" if len(labels.counts) > 8 else "")]
    if unlabelled := int((~labels.there).sum()):
        said.append(f"{unlabelled:,} rows have no label: their texts may be read by adaptive (adapt: corpus) and distillation (inputs: pool)")
    if labels.between and (none := int((labels.each.map(len) == 0).sum())):
        said.append(f"{none:,} rows have no label: none is right for these")
    return said


def _patterns(head: str, labels: Labels) -> dict[str, str]:
    """The text alone, behind which questions follow, or in front of it what asks for one label word."""
    return {"plain": head} if labels.between else {"label": f"{head}\n{labels.column.capitalize()}:", "plain": head, "it_was": f"{head} It was"}


def _asked(names: list[str], several: bool, tokens_of: Callable[[str], list[int]]) -> tuple[dict, str, str]:
    """The task's label words, and of several labels a row its questions; which kind of words they are; and what is to be said of it."""
    if several:
        spoken = Counter(map(_spoken, names))
        questions = {value: f"\nIs it about {_spoken(value) if spoken[_spoken(value)] == 1 else value}?" for value in names}
        return {"questions": questions, "label_words": {"yes_no": {"no": " No", "yes": " Yes"}}}, "questions", \
            f"each label is asked for by a question, {questions[names[0]].strip()!r} (better ones may be written into the file)"
    words, kind = _words(names, tokens_of)
    shown_words = ", ".join(f"{value} →{word!r}" for value, word in list(zip(names, words))[:6]) + (" …" if len(names) > 6 else "")
    how = {"letters": " (arbitrary, since the labels' names are too many tokens: better words may be written into the file)",
           "first": " (by their first tokens, which tell them apart)"}
    return {"label_words": {kind if kind == "letters" else "names": dict(zip(names, words))}}, kind, f"label words: {shown_words}{how.get(kind, '')}"


def _shots(table: Table, labels: Labels, parts: pd.Series) -> tuple[int, str]:
    """How many examples of each label are learnt from, and a sentence on it. Raises BadInput if a label has too few."""
    rarest = int(labels.each[parts == "pool"].explode().value_counts().reindex(labels.counts.index, fill_value=0).min())
    shots, (fewest, rows) = next((count for count in SHOTS if count <= rarest), None), next(reversed([*labels.counts.items()]))
    if shots is None or rows < 3:
        raise BadInput(f"{table.where}: {labels.column}: {fewest!r} has {rows} rows: too few to learn from and be tested on (at least 3)")
    return shots, f"{shots} examples of each label are learnt from, six times drawn anew; the rarest has {rarest} in the pool"


def _guess_label(table: Table, separator: str) -> str:
    by_name = [column for column in table.frame if str(column).strip().lower() in LABELS]
    few = [column for column in table.frame if _could_label(table, column, separator)]
    found = [column for column in by_name if column in few] or (few if len(few) == 1 else by_name)
    if len(found) != 1:
        raise BadInput(f"{table.where}: which column is the label? Name it by --label (there are: {', '.join(map(str, table.frame.columns))})")
    return found[0]


def _could_label(table: Table, column: str, separator: str) -> bool:
    try:
        return len(_labels(table, column, separator).counts) <= len(table.frame) // 2
    except BadInput:
        return False


def _guess_text(table: Table, label: str) -> str:
    others = [column for column in table.frame if column != label]
    if not others:
        raise BadInput(f"{table.where}: has no column beside {label!r}: name the text by --text{near(label, table.frame.columns)}")
    by_name = [column for column in others if str(column).strip().lower() in TEXTS]
    return by_name[0] if len(by_name) == 1 else max(others, key=lambda column: table.frame[column].astype(str).str.len().mean())


def _parted(texts: pd.DataFrame, labels: Labels, table: Table, source: str, held_out: tuple) -> tuple[pd.Series, list[str]]:
    """Each row's part: pool, test, the source that is held out, or unlabelled; '' for none. The same text is never on both sides."""
    key, parts = text_key(texts.fillna(""), list(texts), alike=True), pd.Series("", index=texts.index)
    sources, there = table.text(source).fillna("") if source else parts.copy(), labels.there
    if unknown := [value for value in held_out if value not in set(sources)]:
        raise BadInput(f"{table.where}: {source or '--source'}: no row has {unknown[0]!r}{near(unknown[0], set(sources) - {''})}")
    away = sources.isin(held_out) & there
    parts[away] = sources[away]
    here = there & ~away & ~key.isin(set(key[away]))
    share, rng = min(SHARE, MOST_TESTED / max(1, here.sum())), np.random.default_rng(0)
    for _, rows in labels.rarest[here].groupby(labels.rarest[here], sort=True):
        once = rng.permutation(key[rows.index].unique())
        tested = set(once[: max(1, round(share * len(once)))]) if len(once) > 2 else set()
        parts[rows.index] = np.where(key[rows.index].isin(tested), "test", "pool")
    both = set(key[parts == "test"])  # one text under two labels
    parts[(parts == "pool") & key.isin(both)] = ""
    parts[~there] = UNLABELLED
    sizes = ", ".join(f"{part} {count:,}" for part, count in parts[parts != ""].value_counts(sort=False).items())
    said = [f"{sizes} rows, parted once, by label, with seed 0"]
    if repeated := int(key[there].duplicated().sum()):
        said.append(f"{repeated:,} rows repeat another's text (in whatever case and white space); none of them stands on two sides")
    return parts, said


def _words(names: list[str], tokens_of: Callable[[str], list[int]]) -> tuple[list[str], str]:
    """A word for each label: its own name (with a space in front, small or as it is, in the fewest tokens), unless these are so many that reading
    them takes longer than the text; then a letter each, or two.

    And which of these it is: "one" token each, "first" tokens that differ, "several" tokens, "letters".
    """
    found: dict[tuple[int, ...], str] = {}
    for name in names:
        own = _spoken(name)
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
    if kind == "questions":
        return _study_of_questions(name, shots, labels)
    fits, head = kind != "letters", {} if kind in ("one", "first") else {"head": "classifier"}  # what answers in several tokens cannot be kept
    trained = [{"method": "vanilla"}, {"method": "lora", **({"set": head} if head else {})},
               {"method": "adaptive", "set": {"adapt": "layers", **head}}]
    chosen = [{"method": "adaptive"}] if shots >= 16 else []  # below, the default pattern stays
    worded = [{"method": "pbft"}, *chosen, *([{"method": "in_context"}, {"method": "distillation"}] if labels <= 20 else [])] if fits else []
    return _study_file(name, shots, [*worded, *trained], {"word_score": "first"} if kind == "first" else {})


def _study_of_questions(name: str, shots: int, labels: int) -> dict:
    """Of several labels a row: classifiers, which can be kept; and, where they are not too many, the questions, also to the untrained model."""
    asked = [{"method": "pbft"}, {"method": "in_context", "set": {"demonstrations": 0}}] if labels <= MOST_QUESTIONS else []
    head = {"head": "classifier"}
    trained = [{"method": "vanilla"}, {"method": "lora", "set": head}, {"method": "adaptive", "set": {"adapt": "layers", **head}}]
    return _study_file(name, shots, [*asked, *trained])


def _study_file(name: str, shots: int, methods: list[dict], more: dict | None = None) -> dict:
    return {"description": f"Which method should I use on {name}, and does it hold elsewhere? The same six draws of labelled examples for each.",
            "set": {"model": "smollm2-135m", "seeds": [0, 1, 2, 3, 4, 5], "evaluation_rows": 500, "epochs": 10, **(more or {})},
            "vary": {"task": [name], "shots": [shots]},
            "methods": [*methods, {"method": "baselines", "vary": {"classifier": ["probe", "tfidf"]}}]}


def _spoken(name: str) -> str:
    """A label's name in words."""
    return re.sub(r"[_\W]+", " ", name).strip()


def _plain(value: str) -> str:
    return re.sub(r"\W+", "_", value).strip("_") or "held_out"


def _as_yaml(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150, default_flow_style=None)
