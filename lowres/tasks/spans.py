"""Kinds whose answers are spans of a passage: of `extraction` one, of `tagging` some, each of a type. What such answers are, which spans there are,
how they are scored.

Who needs this asks `task.kind`, as for `lowres.tasks.kinds`; how a span is found is in `lowres.methods.evaluation`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowres.files import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import Source, TaskFile

FIRST_WORDS = 10  # the fixed rules that are tried as a yardstick: the passage's first word, its first two, …
BEGINS, ENDS = re.compile(r"(?<!\S)(?=\S)|(?<!\w)(?=\w)"), re.compile(r"(?<=\S)(?!\S)|(?<=\w)(?!\w)")  # a word, or letters and digits in one
MARKS, ARTICLES = str.maketrans("", "", string.punctuation), re.compile(r"\b(a|an|the)\b")
VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # adapters whose virtual tokens cannot stand in front of a text that is read once


class Passage(NamedTuple):
    """A text, of which an answer is a span of at most `longest` words; `none`: what is written where there is no answer (empty: there always is)."""

    text: str
    longest: int
    none: str = ""
    parts: bool = True  # whether a span may begin or end within a word


    def spans(self) -> list[tuple[int, int]]:
        """Those of which one may be an answer."""
        words = [found.span() for found in re.finditer(r"\S+", self.text)]
        whole = ((first, last) for i, (first, _) in enumerate(words) for _, last in words[i : i + self.longest])
        return spans(self.text, self.longest) if self.parts else list(whole)


class Answer(NamedTuple):
    """A span of a passage: its first character and the one behind its last; from 0 to 0 where there is no answer."""

    start: int
    end: int
    passage: Passage

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]

    @property
    def place(self) -> str:
        return f"{self.start}:{self.end}"


class Tagged(NamedTuple):
    """The entities of a text, (first word, word behind the last, type) each, in order; and what is asked for each type."""

    entities: tuple[tuple[int, int, int], ...]
    passage: Passage
    questions: tuple[str, ...]

    @property
    def words(self) -> list[tuple[int, int]]:
        """Each word's first character, and the one behind its last."""
        return [found.span() for found in re.finditer(r"\S+", self.passage.text)]

    @property
    def end(self) -> int:
        """The character behind the last entity."""
        return self.words[self.entities[-1][1] - 1][1] if self.entities else 0

    def texts(self, kind: int) -> list[str]:
        """Those of the entities of a type."""
        words = self.words
        return [self.passage.text[words[first][0] : words[last - 1][1]] for first, last, which in self.entities if which == kind]

    def tags(self) -> list[int]:
        """A number a word: 0 for O, 1 + 2 t for B and 2 + 2 t for I of the type t."""
        found = [0] * len(self.words)
        for first, last, kind in self.entities:
            found[first:last] = [1 + 2 * kind] + [2 + 2 * kind] * (last - first - 1)
        return found


def entities(tags: list[int]) -> tuple[tuple[int, int, int], ...]:
    """What such numbers say, strictly: an entity begins with B, and I of another type or behind O belongs to none."""
    found, start = [], None
    for i, tag in enumerate([*tags, 0]):
        if start is not None and (tag == 0 or tag % 2 or tag != tags[start] + 1):
            found.append((start, i, (tags[start] - 1) // 2))
            start = None
        if tag % 2:
            start = i
    return tuple(found)


def spans(text: str, longest: int) -> list[tuple[int, int]]:
    """The spans of a text that may be an answer, each once, by where they start: those of at most `longest` words.

    Words are parted by white space. A span begins where a word does, or a run of letters and digits in it, and ends where one ends: of
    "(the 1980s)" also "1980s".
    """
    words = [found.span() for found in re.finditer(r"\S+", text)]
    starts, ends = ([[i for i in range(a, b + 1) if mark.match(text, i)] for a, b in words] for mark in (BEGINS, ENDS))
    return [(start, end) for i, begun in enumerate(starts) for start in begun for ended in ends[i : i + longest] for end in ended if end > start]


def is_span(text: str, start: int, end: int, longest: int) -> bool:
    """Whether `spans` has it."""
    return bool(BEGINS.match(text, start) and ENDS.match(text, end)) and 0 < len(text[start:end].split()) <= longest


def normalized(answer: str) -> str:
    """As SQuAD 1.1 compares answers: small letters, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(MARKS)).split())


def token_f1(said: str, gold: str) -> float:
    """F1 of the words that two answers have in common, as SQuAD 1.1 counts them; of an answer without a word whether both are."""
    ours, theirs = normalized(said).split(), normalized(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


class Extraction:
    """An answer is a span of the row's passage. Logits are (rows, 3): its first character, the one behind its last, its log-probability."""

    name, metric, loss, several, kept = "extraction", "f1", "span", True, ""
    without = {"method": ("distillation", "baselines"), "adapt": ("pattern",), "loss": ("vocabulary",), "scoring": ("likelihood",),
               "word_score": ("mean", "first", "character", "unconditional"), "class_weights": ("balanced",), "fidelity": ("as_coded",),
               "peft_type": VIRTUAL, "label_words": (), "demonstrations": (), "calibrate": (), "choose": ()}

    def labels_in(self, table: Table, spec: TaskFile, source: Source) -> pd.Series:
        """Each row's answer. Raises BadInput for one that does not stand in its passage, where it is said to stand."""
        answers = table.text(spec.label).fillna("")
        passages = table.text(spec.columns[spec.passage]).fillna("")
        starts = table.text(spec.start).fillna("") if spec.start else [""] * len(answers)
        found = []
        for row, (answer, text, start) in enumerate(zip(answers, passages, starts)):
            where = lambda row=row: f"in {table.place(row)}"  # noqa: E731
            if not answer and not spec.unanswerable:
                raise BadInput(f"{table.where}: {spec.label}: is empty {where()}: a task with rows without an answer has the key unanswerable")
            if answer and spec.start and not re.fullmatch(r"\d+", start):
                raise BadInput(f"{table.where}: {spec.start}: {start!r} {where()} is no number of a character")
            first = int(start) if answer and spec.start else text.find(answer)
            if first < 0 or text[first : first + len(answer)] != answer:
                place = f"at {spec.start} {first} of" if spec.start else "in"
                raise BadInput(f"{table.where}: {spec.label}: {answer!r} {where()} does not stand {place} its {spec.passage}")
            found.append(Answer(first, first + len(answer), Passage(text, spec.longest, spec.unanswerable)))
        return answers.__class__(found, index=answers.index, dtype=object)

    def arranged(self, rows: pd.DataFrame, spec: TaskFile) -> tuple[pd.DataFrame, list[str]]:
        """Rows as they are used, and what is to be said of them."""
        return rows, []

    def remarks(self, rows: pd.DataFrame) -> list[str]:
        """A word on answers that are no span that can be given."""
        answers = [answer for answer in rows["label"] if answer.text]
        lost = sum(not is_span(answer.passage.text, answer.start, answer.end, answer.passage.longest) for answer in answers)
        longest = answers[0].passage.longest if answers else 0
        return [f"{lost} of {len(answers):,} answers have more than {longest} words, or end within one, and cannot be given"] if lost else []

    def written(self, label: Answer, labels: list[str]) -> str:
        return label.place

    def blank(self, text: str) -> Answer:
        """The label of a row all of whose texts are `text`."""
        return Answer(0, 0, Passage(text, 1))

    def gold(self, rows: pd.DataFrame) -> np.ndarray:
        """(rows,): answers."""
        return rows["label"].to_numpy(object)

    def counts(self, rows: pd.DataFrame, labels: int) -> np.ndarray:
        """(labels,): rows with an answer, and without."""
        return np.bincount([not answer.text for answer in rows["label"]], minlength=labels)

    def drawn(self, pool: pd.DataFrame, shots: int, stream: np.random.Generator, uneven: bool) -> list[int]:
        """Places in the pool: `shots` rows with an answer and, where the pool has such, as many without one, in turn."""
        answered = np.array([bool(answer.text) for answer in pool["label"]])
        found = [stream.permutation(np.flatnonzero(answered == there)) for there in (True, False) if (answered == there).any()]
        if (fewest := min(map(len, found))) < shots and not uneven:
            raise BadInput(f"shots: {shots} is more than the {fewest} rows that the pool has with an answer, or without one")
        return [rows[nth] for nth in range(shots) for rows in found if nth < len(rows)]

    def options(self, labels: int) -> int:
        """No number of answers is the same for all rows."""
        return 0

    def outputs(self, labels: list[str]) -> list[str]:
        """What the columns of logits are."""
        return ["start", "end", "log_probability"]

    def said(self, gold: np.ndarray, logits: np.ndarray) -> list[Answer]:
        """What was answered, of the passages that the gold answers stand in."""
        return [Answer(start, end, answer.passage) for answer, (start, end) in zip(gold, logits[:, :2].astype(int).tolist())]

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        """SQuAD 1.1's F1, by its name as `metric`, and exact match (Rajpurkar et al. 2016, arXiv 1606.05250), means over rows; count, and the share
        of the commonest answer. The yardstick beside them is `constant`: F1 of the best fixed rule."""
        said = self.said(gold, logits)
        exact = [normalized(one.text) == normalized(other.text) for one, other in zip(said, gold)]
        commonest = Counter(normalized(one.text) for one in said).most_common(1)[0][1]
        return self.part(gold, logits) | {"exact_match": float(np.mean(exact)), "commonest_prediction": commonest / len(said)}

    def constant(self, gold: np.ndarray) -> float:
        """The best F1 of a fixed rule: always the passage's first word, or its first two, …; or never an answer."""
        first = lambda text, count: text.split(maxsplit=count)[:count]  # noqa: E731
        return max(float(np.mean([token_f1(" ".join(first(answer.passage.text, count)), answer.text) for answer in gold]))
                   for count in range(FIRST_WORDS + 1))

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        scores = [token_f1(one.text, other.text) for one, other in zip(self.said(gold, logits), gold)]
        return {"metric": self.metric, self.metric: float(np.mean(scores)), "n": len(gold), "constant": self.constant(gold)}

    def answers(self, rows: pd.DataFrame, logits: np.ndarray, labels: list[str]) -> dict[str, list[str]]:
        """Places alone, since no text is kept; an answer that reads as the gold one does has its place."""
        gold = self.gold(rows)
        same = [other if normalized(one.text) == normalized(other.text) else one for one, other in zip(self.said(gold, logits), gold)]
        return {"label": [answer.place for answer in gold], "prediction": [answer.place for answer in same]}

    def named(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        return predictions.assign(**{name: predictions[name].replace("0:0", "(none)") for name in ("label", "prediction")})

    def decisions(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """A line a row: whether it has an answer, and where what was said stands to that."""
        pairs = [[tuple(map(int, place.split(":"))) for place in pair] for pair in zip(predictions["label"], predictions["prediction"])]
        return predictions[["set"]].assign(label=["no answer" if gold == (0, 0) else "the answer" for gold, _ in pairs],
                                           prediction=[_stands(*pair) for pair in pairs])

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(logits[:, 2])


class Tagging(Extraction):
    """Entities among a text's words, which are parted by single spaces. Logits are (rows, 1 + most words): the log-probability, each word's tag."""

    name, metric, loss = "tagging", "entity_f1", "tags"

    def labels_in(self, table: Table, spec: TaskFile, source: Source) -> pd.Series:
        """Each row's entities. Raises BadInput for tags that are not as many as words, that break BIO, or of an unknown type."""
        texts, tags = (table.text(column).fillna("") for column in (spec.columns[spec.passage], spec.label))
        names = {label: label for label in spec.labels} | spec.relabel | source.relabel
        found = []
        for row, (text, said) in enumerate(zip(texts, tags)):
            try:
                found.append(Tagged(_read(said, text, names, spec.labels), Passage(text, spec.longest, spec.unanswerable, False), tuple(spec.asked)))
            except ValueError as wrong:
                raise BadInput(f"{table.where}: {spec.label}: {wrong} in {table.place(row)}") from None
        return texts.__class__(found, index=texts.index, dtype=object)

    def remarks(self, rows: pd.DataFrame) -> list[str]:
        found = [last - first for label in rows["label"] for first, last, _ in label.entities]
        longest = rows["label"].iloc[0].passage.longest if len(rows) else 0
        lost = sum(length > longest for length in found)
        return [f"{lost} of {len(found):,} entities have more than {longest} words, and cannot be written"] if lost else []

    def written(self, label: Tagged, labels: list[str]) -> str:
        return _told(label.entities, labels)

    def blank(self, text: str) -> Tagged:
        return Tagged((), Passage(text, 1, text, False), ("",))

    def counts(self, rows: pd.DataFrame, labels: int) -> np.ndarray:
        """(labels,): entities of each type."""
        return np.bincount([kind for label in rows["label"] for *_, kind in label.entities], minlength=labels)

    def drawn(self, pool: pd.DataFrame, shots: int, stream: np.random.Generator, uneven: bool) -> list[int]:
        """Places in the pool, greedily (Yang and Katiyar 2020, arXiv 2010.02405): the pool's rarest type first, each that has not enough entities
        gets the next row of the permuted pool with one. In rounds, so that the draw of 2 shots is the first rows of that of 16."""
        of_row = np.array([np.bincount([kind for *_, kind in label.entities], minlength=len(label.questions)) for label in pool["label"]])
        total, order = of_row.sum(axis=0), stream.permutation(len(pool))
        if total.min() < shots and not uneven:
            raise BadInput(f"shots: {shots} is more than the {total.min()} examples that the pool has of label {total.argmin()}")
        waiting = {kind: iter(order[of_row[order, kind] > 0]) for kind in np.argsort(total, kind="stable")}
        found, have = {}, np.zeros(len(total), int)
        for nth in range(1, shots + 1):
            for kind, rows in waiting.items():
                if have[kind] < nth and (row := next((row for row in rows if row not in found), None)) is not None:
                    found[row] = None
                    have += of_row[row]
        return list(found)

    def outputs(self, labels: list[str]) -> list[str]:
        return ["log_probability"]

    def found(self, gold: np.ndarray, logits: np.ndarray) -> list[tuple[tuple[int, int, int], ...]]:
        """The entities of each row that its tags say."""
        return [entities(tags[: len(label.words)]) for label, tags in zip(gold, logits[:, 1:].astype(int).tolist())]

    def metrics(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        """Entity F1, by its name as `metric`: an entity counts if its first and last word and its type are right (seqeval's strict mode; CoNLL 2003),
        over all rows; macro-F1 over types; the share of rows with exactly the right entities; count; the share of the commonest answer. The
        yardstick beside them is `constant`, no entity at all, which has 0."""
        said = self.found(gold, logits)
        kinds = range(len(gold[0].questions))
        of = lambda rows, kind: [tuple(one for one in row if one[2] == kind) for row in rows]  # noqa: E731
        right = [label.entities for label in gold]
        each = [_entity_f1(of(right, kind), of(said, kind)) for kind in kinds]
        return self.part(gold, logits) | {"macro_f1": float(np.mean(each)), "exact_match": float(np.mean([a == b for a, b in zip(right, said)])),
                                          "commonest_prediction": Counter(said).most_common(1)[0][1] / len(said)}

    def constant(self, gold: np.ndarray) -> float:
        return 0.0

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        score = _entity_f1([label.entities for label in gold], self.found(gold, logits))
        return {"metric": self.metric, self.metric: score, "n": len(gold), "constant": self.constant(gold)}

    def answers(self, rows: pd.DataFrame, logits: np.ndarray, labels: list[str]) -> dict[str, list[str]]:
        gold = self.gold(rows)
        return {"label": [_told(label.entities, labels) for label in gold], "prediction": [_told(row, labels) for row in self.found(gold, logits)]}

    def named(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        return predictions.assign(**{name: predictions[name].replace("", "(none)") for name in ("label", "prediction")})

    def decisions(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """A line an entity, one that is there or one that was said: its type and what was said of the same words."""
        lines = []
        for name, *pair in predictions[["set", "label", "prediction"]].itertuples(index=False):
            right, said = (dict(one.split(" ", 1) for one in cell.split("|") if one) for cell in pair)
            lines += [(name, right.get(place, "no entity"), said.get(place, "no entity")) for place in {**right, **said}]
        return predictions.__class__(lines, columns=["set", "label", "prediction"])

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(logits[:, 0])


def _read(said: str, text: str, names: dict[str, str | None], labels: list[str]) -> tuple[tuple[int, int, int], ...]:
    """A row's entities. Raises ValueError with what is wrong with its tags."""
    words, tags = text.split(" "), said.split(" ")
    if len(words) != len(tags) or not all(words):
        raise ValueError(f"{len(tags)} tags for {len(words)} words" if all(words) else "words are not parted by single spaces")
    found, last = [], "O"
    for i, tag in enumerate(tags):
        kind = tag[2:]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or kind not in names and "*" not in names):
            raise ValueError(f"{tag!r} of word {i} is no tag: O, or B- or I- and one of {', '.join(labels)} is wanted")
        if tag[:2] == "I-" and last[2:] != kind:
            raise ValueError(f"{tag!r} of word {i} breaks BIO: it follows {last!r}")
        if tag[:2] == "B-":
            found.append([i, i + 1, names.get(kind, names.get("*"))])
        elif tag[:2] == "I-":
            found[-1][1] = i + 1
        last = tag
    return tuple((first, behind, labels.index(label)) for first, behind, label in found if label is not None)


def _told(found: tuple[tuple[int, int, int], ...], labels: list[str]) -> str:
    return "|".join(f"{first}:{last} {labels[kind]}" for first, last, kind in found)


def _entity_f1(gold: list[tuple], said: list[tuple]) -> float:
    """2 TP / (2 TP + FP + FN) over all rows' entities; 0 where there is none."""
    right = sum(len(set(one) & set(other)) for one, other in zip(gold, said))
    return 2 * right / max(1, sum(map(len, gold)) + sum(map(len, said)))


def _stands(gold: tuple[int, int], said: tuple[int, int]) -> str:
    if said == (0, 0):
        return "no answer"
    if said == gold:
        return "the answer"
    return "a span that overlaps it" if said[0] < gold[1] and gold[0] < said[1] else "a span elsewhere"
