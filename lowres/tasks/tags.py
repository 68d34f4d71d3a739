"""A kind whose answers are some spans of a text, each of a type, `tagging`: what entities are, what tags say, how they are scored.

Who needs this asks `task.kind`, as for `lowres.tasks.kinds`; how entities are found is in `lowres.methods.search`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowres.files import BadInput
from lowres.tasks.classification import greedily
from lowres.tasks.spans import Extraction, Passage

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.table import Table
    from lowres.tasks.task_file import Source, TaskFile


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


class Tagging(Extraction):
    """Entities among a text's words, which are parted by single spaces. Logits are (rows, 1 + most words): the log-probability, each word's tag."""

    name, metric, loss, form, nothing = "tagging", "entity_f1", "tags", Tagged, ""

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
        """Places in the pool, as `greedily` draws them."""
        of_row = [np.bincount([kind for *_, kind in label.entities], minlength=len(label.questions)) for label in pool["label"]]
        return greedily(np.array(of_row), shots, stream, uneven)

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

    def ruled(self, gold: np.ndarray, shots: pd.DataFrame) -> dict[str, float]:
        """As `from_shots` entity F1 of a dictionary of the examples' entities, each with the type that it has most often there (of equals the first):
        from the left, the longest one that words spell is said to be there."""
        types: dict[tuple[str, ...], Counter[int]] = {}
        for label in shots["label"]:
            for first, last, kind in label.entities:
                types.setdefault(tuple(label.passage.text.split()[first:last]), Counter())[kind] += 1
        known = {words: min(counts, key=lambda kind: (-counts[kind], kind)) for words, counts in types.items()}
        return {"from_shots": _entity_f1([label.entities for label in gold], [_looked_up(label.passage.text.split(), known) for label in gold])}

    def part(self, gold: np.ndarray, logits: np.ndarray) -> dict[str, float | str]:
        score = _entity_f1([label.entities for label in gold], self.found(gold, logits))
        return {"metric": self.metric, self.metric: score, "n": len(gold), "constant": self.constant(gold)}

    def answers(self, rows: pd.DataFrame, logits: np.ndarray, labels: list[str]) -> dict[str, list[str]]:
        gold = self.gold(rows)
        return {"label": [_told(label.entities, labels) for label in gold], "prediction": [_told(row, labels) for row in self.found(gold, logits)]}

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
    if words != re.findall(r"\S+", text):
        raise ValueError("words are not parted by single spaces")
    if len(words) != len(tags):
        raise ValueError(f"{len(tags)} tags for {len(words)} words")
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


def _looked_up(words: list[str], known: dict[tuple[str, ...], int]) -> tuple[tuple[int, int, int], ...]:
    """The entities among a text's words that a dictionary has."""
    found, i, longest = [], 0, max(map(len, known), default=0)
    while i < len(words):
        length = next((length for length in range(longest, 0, -1) if tuple(words[i : i + length]) in known), 0)
        found += [(i, i + length, known[tuple(words[i : i + length])])] if length else []
        i += length or 1
    return tuple(found)


def _entity_f1(gold: list[tuple], said: list[tuple]) -> float:
    """2 TP / (2 TP + FP + FN) over all rows' entities; 0 where there is none."""
    right = sum(len(set(one) & set(other)) for one, other in zip(gold, said))
    return 2 * right / max(1, sum(map(len, gold)) + sum(map(len, said)))
