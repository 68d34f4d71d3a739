"""Where a pattern or an instruction has its places: `{premise} Question: {hypothesis}` has two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lowres.files import ROOT, BadInput, checked, located, near, read_yaml, shown

OF_USER = " (text)"
CHOICE = "choice"  # in a pattern: one of a row's choices
OWN_KEYS = {"classification": ("scale",), "multi_label": ("questions", "separator"), "multiple_choice": ("choices", "right"),  # of a kind alone
            "extraction": ("passage", "start", "longest", "unanswerable"), "tagging": ("passage", "questions", "longest", "unanswerable")}
PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def fields(pattern: str) -> list[str]:
    """Their names, in order, each as often as it stands there. Raises ValueError if a brace is left open."""
    if set("{}") & set(PLACE.sub("", pattern)):
        raise ValueError("a brace is left open: one that stands for itself is written twice")
    return [found[1] for found in PLACE.finditer(pattern) if found[1] is not None]


def filled(pattern: str, values: Mapping[str, str]) -> str:
    """The pattern with a value in each place, by its name alone: nothing of Python's formatting is heeded. `{{` and `}}` are braces."""
    return PLACE.sub(lambda found: found[0][0] if found[1] is None else values[found[1]], pattern)


def choice_columns(names: Iterable[str]) -> list[str]:
    """Those of a frame's columns that hold its rows' choices, in their order."""
    return [name for name in names if re.fullmatch(rf"{CHOICE} \d+ of \d+", name)]


def _inside_the_folder(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError("a path inside the data folder is wanted, without '..' and without the file's ending")
    return path


class Hub(BaseModel):
    """A data set on the Hugging Face hub, as `datasets.load_dataset` takes it. Loading scripts are never run."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str
    config: str | None = None
    split: str
    revision: str


class Source(BaseModel):
    """Where the rows of one set come from. `file` may list several, which are read as one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: Annotated[str, AfterValidator(_inside_the_folder)] | list[Annotated[str, AfterValidator(_inside_the_folder)]] = []
    hub: Hub | None = None
    relabel: dict[str, str | None] = {}  # on top of the task's
    part: str = ""  # of the file's rows, by the task's `split`; empty: all
    where: dict[str, list[str]] = {}  # of the file's rows, those with one of these values in that column

    @property
    def files(self) -> list[str]:
        return [self.file] if isinstance(self.file, str) else self.file


class EvaluationSet(Source):
    """Rows that are only ever predicted."""

    domain: Literal["in", "out"]
    break_down_by: list[str] = []
    task: str = ""  # another task as it was asked for, whose columns and labels these rows have; filled in by `also_evaluate`


class TaskFile(BaseModel):
    """What a task file may say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    version: int
    description: str
    # One label a row; several, or none; one of its choices; a span of its passage; the entities among its words.
    kind: Literal["classification", "multi_label", "multiple_choice", "extraction", "tagging"] = "classification"
    show_rows: bool = False  # whether notebooks may print the texts
    embedded: Literal["", "sentiment"] = ""  # rows that `lowres prepare` gets
    folder: str = ""  # where its files lie, relative to the task file; empty: the data folder that is asked for
    split: str = ""  # a .csv with the columns row and part, relative to the task file: which rows of a file are whose
    text: list[str] = Field(min_length=1)  # of choices what they are about, if anything; behind it stand their own names here, `choice 1 of 2`
    choices: list[str] = []  # multiple_choice: the columns with a row's choices
    right: str = ""  # multiple_choice: the one of them that is right in every row, which then are put in another order; empty: `label` names it
    scale: bool = False  # classification: labels are steps, in their order: how far answers are off is told besides
    passage: str = ""  # extraction: the one of `text` that answers are spans of; of tagging its only one
    start: str = ""  # extraction: the column with an answer's first character in its passage, from 0; empty: where it stands first
    longest: int = Field(10, ge=1)  # extraction, tagging: words of the longest span that is given as an answer
    unanswerable: str = ""  # extraction, tagging: what is written where there is no answer; empty: there always is
    label: str = "label"
    separator: str = Field("|", min_length=1)  # multi_label: between the labels of a row
    labels: list[str] = Field(min_length=1)  # in the order of their indices; of choices what `label` calls them (else by their columns)
    relabel: dict[str, str | None] = {}  # a value of the label column -> a label, or nothing to drop it; "*": every value that is not named
    pool: Source
    unlabelled: Source | None = None  # more rows like the pool's, of which only the texts are read
    evaluation: dict[str, EvaluationSet] = Field(min_length=1)
    checksums: dict[str, str] = {}  # file -> SHA-256
    patterns: dict[str, str] = Field(min_length=1)
    questions: dict[str, str] = {}  # multi_label, tagging: what is asked behind the pattern, a question a label
    label_words: dict[str, dict[str, str]]  # a word for each label; of questions for "no" and "yes"; of choices and spans none
    instruction: str = ""  # what a teacher may be told; {a label} stands for its word

    @property
    def columns(self) -> dict[str, str]:
        """By the name that a text has here, the column of the files: a column called `label` is not the label's index."""
        named = dict(zip(choice_columns(self.text), self.choices))
        return {name: named.get(name, name.removesuffix(OF_USER)) for name in self.text}

    @property
    def places(self) -> list[str]:
        """What a pattern has a place for."""
        return [name for name in self.text if name not in choice_columns(self.text)] + [CHOICE] if self.choices else self.text

    @model_validator(mode="before")
    @classmethod
    def _no_text_is_called_as_the_label_is_here(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "label" not in (content.get("text") or ()):
            return content
        named = lambda text: text.replace("{label}", f"{{label{OF_USER}}}") if isinstance(text, str) else text  # noqa: E731
        patterns = {name: named(text) for name, text in (content.get("patterns") or {}).items()}
        passage = {"passage": f"label{OF_USER}"} if content.get("passage") == "label" else {}
        return content | passage | {"text": [f"label{OF_USER}" if name == "label" else name for name in content["text"]], "patterns": patterns}

    @model_validator(mode="before")
    @classmethod
    def _choices_are_texts(cls, content: Any) -> Any:
        """A row's choices are among its texts, and name the labels where nothing else does."""
        if not isinstance(content, dict) or content.get("kind") != "multiple_choice":
            return content
        if not isinstance(choices := content.get("choices"), list) or len({str(column) for column in choices}) < max(2, len(choices)):
            raise ValueError(f"choices: two columns at least are wanted, each once, not {choices}")
        if content.get("right") and "label" in content:
            raise ValueError("right: goes without `label`, which would name the right choice as well")
        named = [f"{CHOICE} {i} of {len(choices)}" for i in range(1, len(choices) + 1)]
        labels = [f"{CHOICE} {i}" for i in range(1, len(choices) + 1)] if content.get("right") else choices
        texts = content.get("text") or []
        return {"labels": labels, "label_words": {}} | content | {"text": [*texts, *named] if isinstance(texts, list) else texts}

    @model_validator(mode="before")
    @classmethod
    def _spans_have_no_labels(cls, content: Any) -> Any:
        """A row of spans has an answer, or, where that is possible, none; of tagging, its text is the passage."""
        if isinstance(content, dict) and content.get("kind") == "tagging" and isinstance(content.get("text"), list) and "passage" not in content:
            return {"label_words": {}} | content | {"passage": "".join(map(str, content["text"][:1]))}
        if not isinstance(content, dict) or content.get("kind") != "extraction":
            return content
        for key in ("labels", "label_words"):
            if key in content:
                raise ValueError(f"{key}: there are none of spans, which stand for themselves")
        return content | {"labels": ["answered", "unanswerable"] if content.get("unanswerable") else ["answered"], "label_words": {}}

    @model_validator(mode="after")
    def _holds_together(self) -> TaskFile:
        for name, pattern in self.patterns.items():
            try:
                columns = fields(pattern)
            except ValueError as error:
                raise ValueError(f"patterns.{name}: {pattern!r}: {error}") from None
            for column in columns:
                if column not in self.places:
                    raise ValueError(f"patterns.{name}: {pattern!r} asks for {column!r}, which is no text column{near(column, self.places)}")
            for column in set(self.places) - set(columns):
                raise ValueError(f"patterns.{name}: {pattern!r} has no place for the text column {column!r}")
        parted = [source for source in (self.pool, self.unlabelled, *self.evaluation.values()) if source and source.part]
        if bool(parted) != bool(self.split):
            raise ValueError("split: a file of rows and parts goes with `part` in a source, and the other way round")
        if "plain" not in self.patterns:
            raise ValueError("patterns: one must be called plain, the text with nothing added")
        for name, words in self.label_words.items():
            if set(words) != set(self.answers):
                raise ValueError(f"label_words.{name}: a word for each of {self.answers} is wanted, not {words}")
        for key in dict.fromkeys(key for keys in OWN_KEYS.values() for key in keys):
            if key not in OWN_KEYS.get(self.kind, ()) and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: goes with kind: {' or '.join(kind for kind, keys in OWN_KEYS.items() if key in keys)}")
        own = {"multi_label": self._asks_for_each_label, "multiple_choice": self._has_choices, "extraction": self._has_a_passage,
               "tagging": self._has_words}
        own.get(self.kind, lambda: None)()
        if len(self.labels) < 2 and not self.passage:
            raise ValueError(f"labels: two at least are wanted, not {self.labels}")
        if not self.label_words and not self.choices and not self.passage:
            raise ValueError("label_words: one set of them at least is wanted, by its name")
        for label in fields(self.instruction):
            if label not in self.labels:
                raise ValueError(f"instruction: asks for the word of {label!r}, which is no label{near(label, self.labels)}")
        sets = {"": self, "pool.": self.pool, **{f"evaluation.{name}.": rows for name, rows in self.evaluation.items()}}
        for where, source in sets.items():
            for value, label in source.relabel.items():
                if label is not None and label not in self.labels:
                    raise ValueError(f"{where}relabel: {value!r} becomes {label!r}, which is no label{near(label, self.labels)}")
        return self

    @property
    def answers(self) -> list[str]:
        """What label words stand for."""
        return ["no", "yes"] if self.kind == "multi_label" else self.labels

    @property
    def asked(self) -> list[str]:
        """A question for each of `labels`, in their order."""
        return [self.questions[label] for label in self.labels]

    def _asks_for_each_label(self) -> None:
        for label in self.labels:
            if "|" in label or self.separator in label:  # bars stand between labels where they are written
                raise ValueError(f"labels: {label!r} contains what stands between labels")
            if not self.questions.get(label, "").strip():
                raise ValueError(f"questions: there is none for the label {label!r}")
        for label in self.questions:
            if label not in self.labels:
                raise ValueError(f"questions: {label!r} is no label{near(label, self.labels)}")

    def _has_choices(self) -> None:
        if self.right and self.right not in self.choices:
            raise ValueError(f"right: {self.right!r} is none of the choices{near(self.right, self.choices)}")
        if len(self.labels) != len(self.choices):
            raise ValueError(f"labels: a name for each of {len(self.choices)} choices is wanted, not {self.labels}")
        if CHOICE in self.text or self.label_words:
            raise ValueError(f"text: a column called {CHOICE!r} is not possible beside choices" if CHOICE in self.text
                             else "label_words: there are none of choices, which stand for themselves")
        for name, pattern in self.patterns.items():
            if not pattern.endswith(f"{{{CHOICE}}}") or fields(pattern).count(CHOICE) > 1:
                raise ValueError(f"patterns.{name}: {pattern!r} does not end with {{{CHOICE}}}, which stands there once")

    def _has_words(self) -> None:
        if len(self.text) > 1 or self.label_words:
            raise ValueError("text: one column of words is wanted" if len(self.text) > 1 else "label_words: there are none of spans")
        if not self.unanswerable:
            raise ValueError("unanswerable: is wanted: what is written where there is no such entity")
        self._asks_for_each_label()
        self._has_a_passage()

    def _has_a_passage(self) -> None:
        if self.passage not in self.text:
            raise ValueError(f"passage: {self.passage!r} is no text column{near(self.passage, self.text)}")
        if self.kind == "extraction" and any(source.relabel for source in (self, self.pool, *self.evaluation.values())):
            raise ValueError("relabel: spans stand for themselves, and no value becomes another")
        for name, pattern in self.patterns.items():
            if fields(pattern).count(self.passage) > 1:
                raise ValueError(f"patterns.{name}: {pattern!r} has the passage twice: where its spans stand would be open")

    def pattern(self, name: str) -> str:
        """The pattern of that name; the first if the name is empty."""
        return self._named("patterns", name)

    def words(self, name: str) -> list[str]:
        """A word for each of `answers`, in their order: the label words of that name; the first if it is empty; of choices and spans none."""
        if not self.label_words and not name:
            return []
        words = self._named("label_words", name)
        return [words[answer] for answer in self.answers]

    def _named(self, key: Literal["patterns", "label_words"], name: str) -> Any:
        choices = getattr(self, key)
        if name and name not in choices:
            raise BadInput(f"{self.name}: {key}: there is no {name!r}{near(name, choices)}")
        return choices[name] if name else next(iter(choices.values()))


def task_path(name: str) -> Path:
    """The file of a task given by name or by path."""
    folder = ROOT / "parameters" / "tasks"
    path = located(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"task: there is no task {name!r}{near(name, [p.stem for p in folder.glob('*.yaml')])}")
    return path


@cache
def read_task(name: str) -> TaskFile:
    """The checked task file, with what it extends filled in. Reads no data."""
    path = task_path(name)
    content = read_yaml(path)
    seen = {path}
    while "extends" in content:
        base = path.parent / f"{content.pop('extends')}.yaml"
        if base in seen:
            raise BadInput(f"{shown(path)}: extends: {base.stem!r} extends itself")
        seen.add(base)
        content = {**read_yaml(base), **content}
    spec = checked(TaskFile, content, shown(path))
    places = {key: str((path.parent / value).resolve()) for key in ("folder", "split") if (value := getattr(spec, key))}
    return spec.model_copy(update=places)


@cache
def extended_task(name: str, also_evaluate: tuple[str, ...]) -> TaskFile:
    """A task with the evaluation sets of others beside its own, out of domain. Raises BadInput if their forms differ, or two are one."""
    spec = read_task(name)
    sets = dict(spec.evaluation)
    for asked in also_evaluate:
        other = read_task(asked)
        if task_path(asked) == task_path(name):
            raise BadInput(f"{spec.name}: also_evaluate: {asked!r} is the task itself")
        if [read_task(one).name for one in also_evaluate].count(other.name) > 1:
            raise BadInput(f"{spec.name}: also_evaluate: two tasks are called {other.name!r}")
        if other.kind != spec.kind:
            raise BadInput(f"{spec.name}: also_evaluate: {other.name!r} is a task of kind {other.kind}, not {spec.kind}")
        if (len(other.labels), len(other.text)) != (len(spec.labels), len(spec.text)):
            raise BadInput(
                f"{spec.name}: also_evaluate: {other.name!r} has {len(other.labels)} labels and {len(other.text)} text columns, "
                f"not {len(spec.labels)} and {len(spec.text)}"
            )
        for set_name, rows in other.evaluation.items():
            sets[f"{other.name}.{set_name}"] = rows.model_copy(update={"task": asked, "domain": "out"})
    return spec.model_copy(update={"evaluation": sets}) if also_evaluate else spec
