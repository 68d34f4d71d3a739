"""A kind whose answers are spans of a passage, `extraction`: what such an answer is, which spans there are, how they are scored.

Who needs this asks `task.kind`, as for `lowres.tasks.kinds`; how a span is found is in `lowres.methods.search`.
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

    name, metric, loss, several, kept, form = "extraction", "f1", "span", True, "", Answer
    nothing = "0:0"  # how predictions keep an answer that is none
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
            if answer and spec.start and not re.fullmatch(r"\d{1,9}", start):
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
        return max(_of_first_words(gold, count) for count in range(FIRST_WORDS + 1))

    def ruled(self, gold: np.ndarray, shots: pd.DataFrame) -> dict[str, float]:
        """As `from_shots` F1 of the passage's first words, as many as the examples' answers have most often (of equals the fewest)."""
        lengths = Counter(len(answer.text.split()) for answer in shots["label"])
        return {"from_shots": _of_first_words(gold, min(lengths, key=lambda count: (-lengths[count], count)))}

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        scores = [token_f1(one.text, other.text) for one, other in zip(self.said(gold, logits), gold)]
        return {"metric": self.metric, self.metric: float(np.mean(scores)), "n": len(gold), "constant": self.constant(gold)}

    def answers(self, rows: pd.DataFrame, logits: np.ndarray, labels: list[str]) -> dict[str, list[str]]:
        """Places alone, since no text is kept; an answer that reads as the gold one does has its place."""
        gold = self.gold(rows)
        same = [other if normalized(one.text) == normalized(other.text) else one for one, other in zip(self.said(gold, logits), gold)]
        return {"label": [answer.place for answer in gold], "prediction": [answer.place for answer in same]}

    def named(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        return predictions.assign(**{name: predictions[name].replace(self.nothing, "(none)") for name in ("label", "prediction")})

    def decisions(self, predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """A line a row: whether it has an answer, and where what was said stands to that."""
        pairs = [[tuple(map(int, place.split(":"))) for place in pair] for pair in zip(predictions["label"], predictions["prediction"])]
        return predictions[["set"]].assign(label=["no answer" if gold == (0, 0) else "the answer" for gold, _ in pairs],
                                           prediction=[_stands(*pair) for pair in pairs])

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(logits[:, 2])


def _of_first_words(gold: np.ndarray, count: int) -> float:
    """F1 of always answering so many of the passage's first words."""
    first = (" ".join(answer.passage.text.split(maxsplit=count)[:count]) for answer in gold)
    return float(np.mean([token_f1(said, answer.text) for said, answer in zip(first, gold)]))


def _stands(gold: tuple[int, int], said: tuple[int, int]) -> str:
    if said == (0, 0):
        return "no answer"
    if said == gold:
        return "the answer"
    return "a span that overlaps it" if said[0] < gold[1] and gold[0] < said[1] else "a span elsewhere"
