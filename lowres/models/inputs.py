"""Texts as token ids, and what else a row brings: choices that may follow its text, or a passage that its answer stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import TYPE_CHECKING

import torch

from lowres.files import BadInput
from lowres.tasks.spans import Answer, Passage
from lowres.tasks.tags import Tagged
from lowres.tasks.task_file import CHOICE, PLACE, choice_columns, fields, filled

if TYPE_CHECKING:
    import pandas as pd


END, MORE = "\n", ","  # behind an answer that is written, and between several


@dataclass
class Choices:
    """What may follow a text: the tokens of each choice that not all of them begin with. `shared`: how many of the text's last tokens belong to
    the choices, too. `characters`: of each choice. `asked`: how many of each choice's first tokens are a question, which is read and not foretold."""

    own: list[list[int]]
    shared: int
    characters: list[int]
    asked: list[int] = field(default_factory=list)

    def read(self, whole: bool) -> list[list[int]]:
        """The tokens that are read behind the text: the last of a choice only if it is read as a whole."""
        return self.own if whole else [tokens[:-1] for tokens in self.own]


@dataclass
class Located:
    """A text's right answer; its passage as far as it is read; and of each of its tokens which characters of the passage it has, (0, 0) elsewhere."""

    answer: Answer | Tagged
    passage: Passage
    characters: list[tuple[int, int]]

    @property
    def lost(self) -> bool:
        """Whether the answer stands in what was cut off."""
        return self.answer.end > len(self.passage.text)

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last token of a span of the passage; the text's first twice where it has none."""
        found = [i for i, (first, last) in enumerate(self.characters) if first < end and start < last]
        return (found[0], found[-1]) if found else (0, 0)


@dataclass
class Inputs:
    """Encoded texts. `labels` is a tensor of their indices, (texts,), or, for several labels a text, of 0 and 1, (texts, labels); of spans,
    (texts, 3), the answer's first token, its last, and how many the text has; of tags, (texts, most tokens), each word's at its last token and
    -100 elsewhere. `cut` counts the texts that were too long; `pattern` is what
    stands around them. `choices`: behind each text, where there are any; of spans the right answer as it is written. `answers`: where it stands."""

    ids: list[list[int]]
    labels: torch.Tensor
    cut: int = 0
    pattern: str = ""
    choices: list[Choices] = field(default_factory=list)
    answers: list[Located] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids)) + sum(len(tokens) for row in self.choices for tokens in row.own)

    def take(self, index: Sequence[int]) -> Inputs:
        own = {name: [rows[i] for i in index] for name in ("choices", "answers") if (rows := getattr(self, name))}
        return Inputs([self.ids[i] for i in index], self.labels[list(index)], **own)


def shorten(backbone, record: dict[str, str], columns: list[str], excess: int, refusal: str) -> None:
    """Cuts the end off a record's longest text, by so many tokens or half of it."""
    longest = max(columns, key=lambda column: len(record[column]), default="")
    words = backbone.tokenize([record[longest]])[0] if columns else []
    if len(words) <= 1:
        raise BadInput(refusal)
    shorter = backbone.tokenizer.decode(words[: max(len(words) - excess, len(words) // 2)])  # two long texts are cut in turn
    record[longest] = shorter if len(shorter) < len(record[longest]) else record[longest][:-1]


def encode_choices(backbone, examples: pd.DataFrame, labels: torch.Tensor, pattern: str, max_length: int) -> Inputs:
    """Rows of choices: the tokens that a row's filled patterns begin with in common, which are read once, and behind them those of each choice.

    A choice begins where the tokens of the pattern without it end. Where nothing stands in front of it, something must, to foretell its first
    token: the token by which the tokenizer ends a text. An input that is too long loses the end of its longest other text.
    """
    names, columns = choice_columns(examples), [name for name in dict.fromkeys(fields(pattern)) if name != CHOICE]
    front, room = _front(backbone), min(max_length, backbone.context_length)
    inputs = Inputs([], labels, pattern=pattern)
    for row, record in zip(examples.index, examples[[*columns, *names]].to_dict("records")):
        alone, whole = _told(backbone, pattern, record, names)
        inputs.cut += len(front) + max(map(len, whole)) > room
        while (excess := len(front) + max(map(len, whole)) - room) > 0:
            shorten(backbone, record, columns, excess, f"max_length: {max_length} leaves no room for the choices of row {row}")
            alone, whole = _told(backbone, pattern, record, names)
        shared = min(_in_common(whole), min(map(len, whole)) - 1)
        begin = min(_in_common([alone, tokens]) for tokens in whole)
        inputs.ids.append(front + whole[0][:shared])
        inputs.choices.append(Choices([tokens[shared:] for tokens in whole], max(0, shared - begin), [len(record[name].strip()) for name in names]))
    return inputs


def encode_passages(backbone, examples: pd.DataFrame, pattern: str, max_length: int) -> Inputs:
    """Rows with answers in a passage: where these are, and what is written behind the pattern. One that is too long loses the end of its longest
    text, which may be where an answer stands."""
    inputs, columns = Inputs([], torch.empty(0), pattern=pattern), list(dict.fromkeys(fields(pattern)))
    for row, record in zip(examples.index, examples[[*columns, "label"]].to_dict("records")):
        answer = record.pop("label")
        name = next(column for column in columns if record[column] == answer.passage.text)
        choices = _written(backbone.tokenizer, answer) if isinstance(answer, Answer) else _listed(backbone.tokenizer, answer)
        room = min(max_length, backbone.context_length - max(map(len, choices.own))) - len(backbone.prefix)
        ids, offsets = _with_offsets(backbone, pattern, record, name)
        inputs.cut += len(ids) > room
        while len(ids) > room:
            shorten(backbone, record, columns, len(ids) - room, f"max_length: {max_length} leaves no room for the texts of row {row}")
            ids, offsets = _with_offsets(backbone, pattern, record, name)
        read = commonprefix([record[name], answer.passage.text])
        inputs.ids.append(backbone.prefix + ids)
        inputs.choices.append(choices)
        inputs.answers.append(Located(answer, answer.passage._replace(text=read), [(0, 0)] * len(backbone.prefix) + offsets))
    if inputs.answers and isinstance(inputs.answers[0].answer, Tagged):
        return replace(inputs, labels=_tags(inputs.answers))
    places = [[*one.tokens(one.answer.start, 0 if one.lost else one.answer.end), len(one.characters)] for one in inputs.answers]
    return replace(inputs, labels=torch.tensor(places, dtype=torch.long).view(-1, 3))


def _written(tokenizer, answer: Answer) -> Choices:
    """The right answer as it is written behind a pattern."""
    return Choices([tokens_after_text(tokenizer, (f" {answer.text}" if answer.text else answer.passage.none) + END)], 0, [len(answer.text)])


def _listed(tokenizer, answer: Tagged) -> Choices:
    """For each type the question, and behind it its entities as they are written: one behind the other, in the order of the text."""
    own, asked = [], after_text(tokenizer, list(answer.questions))
    for kind in range(len(asked)):
        said = [f" {text}" for text in answer.texts(kind)] or [answer.passage.none]
        listed = [text + (END if i == len(said) - 1 else MORE) for i, text in enumerate(said)]
        own.append(asked[kind] + [token for tokens in after_text(tokenizer, listed) for token in tokens])
    return Choices(own, 0, [0] * len(own), [len(tokens) for tokens in asked])


def _tags(located: list[Located]) -> torch.Tensor:
    """(texts, most tokens): each word's tag at its last token, -100 elsewhere, and for words that were cut off nowhere."""
    labels = torch.full((len(located), max(len(one.characters) for one in located)), -100)
    for i, one in enumerate(located):
        for (start, end), tag in zip(one.answer.words, one.answer.tags()):
            if end <= len(one.passage.text):
                labels[i, one.tokens(start, end)[1]] = tag
    return labels


def _with_offsets(backbone, pattern: str, record: dict[str, str], name: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The filled pattern's tokens, and which characters of the text `name` each has; (0, 0) where it has none."""
    place = next(found.start() for found in PLACE.finditer(pattern) if found[1] == name)
    begin, length = len(filled(pattern[:place], record)), len(record[name])
    found = backbone.tokenizer(filled(pattern, record), add_special_tokens=False, return_offsets_mapping=True)
    within = [(max(0, first - begin), min(length, last - begin)) for first, last in found["offset_mapping"]]
    return found["input_ids"], [(first, last) if first < last else (0, 0) for first, last in within]


def after_text(tokenizer, words: list[str]) -> list[list[int]]:
    """The tokens of each of some words that stand behind other text: SentencePiece vocabularies put a space of their own in front of a text's first
    word."""
    before = ["x" if each[:1].isspace() else "\n" for each in words]
    alone = {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in set(before)}
    together = tokenizer([text + each for text, each in zip(before, words)], add_special_tokens=False)["input_ids"] if words else []
    return [ids[alone[text]:] for text, ids in zip(before, together)]


def tokens_after_text(tokenizer, words: str) -> list[int]:
    """The same of one."""
    return after_text(tokenizer, [words])[0]


def _told(backbone, pattern: str, record: dict[str, str], names: list[str]) -> tuple[list[int], list[list[int]]]:
    """The pattern's tokens without a choice, and with each."""
    alone, *whole = (filled(pattern, {**record, CHOICE: choice}) for choice in ("", *(record[name] for name in names)))
    alone, *whole = backbone.tokenize([alone.rstrip(), *whole])
    return alone, whole


def _in_common(texts: list[list[int]]) -> int:
    """How many tokens texts begin with in common."""
    return next((i for i, tokens in enumerate(zip(*texts)) if len(set(tokens)) > 1), min(map(len, texts)))


def _front(backbone) -> list[int]:
    """What stands in front of a choice with nothing else in front of it."""
    end = backbone.tokenizer.eos_token_id
    if not backbone.prefix and end is None:
        raise BadInput(f"model: {backbone.name!r}: its tokenizer has no token that could stand in front of a choice")
    return backbone.prefix or [end]


def unconditional(backbone, ids: list[list[int]], choices: list[Choices]) -> list[list[int]]:
    """Texts without what stands in front of their choices."""
    return [_front(backbone) + text[len(text) - row.shared:] for text, row in zip(ids, choices)]
