"""Text -> pattern -> token ids -> rows without padding.

Texts are laid end to end in rows of about ROW tokens; positions start anew with each text and an attention mask keeps
every text to itself, so a text's result is what it would be alone, and next to no token is computed in vain
(padded to 128 tokens, CoLA is 89 % padding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowres.files import BadInput
from lowres.tasks.kinds import kind_of
from lowres.tasks.task_file import fields, filled

if TYPE_CHECKING:
    import pandas as pd


ROW = 128  # attention's cost grows with a row's square: 32 texts of 12 tokens take 9 % less time in 4 rows of 96 than in 1 of 384
BUDGET = 2048  # tokens in one forward pass: bounds the memory of a training step


@dataclass
class Inputs:
    """Encoded texts. `labels` is a tensor of their indices, (texts,), or, for several labels a text, of 0 and 1, (texts, labels). `cut` counts the
    texts that were too long; `pattern` is what stands around them."""

    ids: list[list[int]]
    labels: torch.Tensor
    cut: int = 0
    pattern: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Sequence[int]) -> Inputs:
        return Inputs([self.ids[i] for i in index], self.labels[list(index)])


@dataclass
class Rows:
    """Some texts in rows, ready for the backbone.

    ids, positions: (rows, length). mask: (rows, 1, length, before + length), 0 where a token may look and the smallest
    number elsewhere. last: where in the flattened rows each text ends, (texts,); with branches, where it ends and where each of their tokens
    is, (texts, 1 + tokens). texts: which texts of the inputs these are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    texts: list[int]


def encode(backbone, examples: pd.DataFrame, pattern: str, max_length: int) -> Inputs:
    """Examples through a pattern, as token ids with the backbone's prefix in front.

    An input of more than `max_length` tokens loses the end of its longest text column, never a part of the pattern.
    """
    columns = list(dict.fromkeys(fields(pattern)))  # a pattern may say a text twice
    room = min(max_length, backbone.context_length) - len(backbone.prefix)
    records = examples[columns].to_dict("records")
    ids = backbone.tokenize([filled(pattern, record) for record in records]) if records else []
    cut = 0
    for i, record in enumerate(records):
        cut += len(ids[i]) > room
        while len(ids[i]) > room:
            longest = max(columns, key=lambda column: len(record[column]))
            excess = len(ids[i]) - room
            words = backbone.tokenize([record[longest]])[0]
            if len(words) <= 1:
                raise BadInput(f"max_length: {max_length} leaves no room for a text beside the pattern {pattern!r}")
            shorter = backbone.tokenizer.decode(words[: max(len(words) - excess, len(words) // 2)])  # two long texts are cut in turn
            record[longest] = shorter if len(shorter) < len(record[longest]) else record[longest][:-1]
            ids[i] = backbone.tokenize([filled(pattern, record)])[0]
    return Inputs([backbone.prefix + text for text in ids], torch.tensor(kind_of(examples).gold(examples)), cut, pattern)


def pack(ids: list[list[int]], device: torch.device | str = "cpu", before: int = 0, budget: int = BUDGET,
         branches: Sequence[list[int]] = ()) -> Iterator[Rows]:
    """Lays texts into rows, at most `budget` tokens at a time. `before`: tokens that every row sees in front of it.

    `branches`: tokens that stand behind each text, each branch as if it were the only one: it sees the text and itself.
    """
    behind = [token for branch in branches for token in branch]
    ids = [text + behind for text in ids] if behind else ids
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    rows: list[list[int]] = []
    # A row reads all that stands in front of it: behind 1,500 tokens rows of 500 take 0.65 of the time that rows of 128 take.
    length = max(ROW, before // 3, len(ids[order[0]])) if order else 0
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by how many tokens they have left
    for i in order:  # longest first, each where it leaves the least room
        room = next((room for room in range(len(ids[i]), length + 1) if with_room[room]), None)
        row = len(rows) if room is None else with_room[room].pop()
        if room is None:
            rows.append([])
            room = length
        rows[row].append(i)
        with_room[room - len(ids[i])].append(row)
    at_once = max(1, budget // max(before + length, 1))
    for start in range(0, len(rows), at_once):
        laid = _lay(ids, rows[start : start + at_once], device, before)
        yield _branched(laid, branches) if behind else laid


def _branched(laid: Rows, branches: Sequence[list[int]]) -> Rows:
    """The same rows, each of whose texts ends with branches that do not see each other."""
    device, (count, length) = laid.ids.device, laid.ids.shape
    steps = torch.cat([torch.arange(len(branch)) for branch in branches]).to(device)
    branch = torch.cat([torch.full((len(tokens),), number + 1) for number, tokens in enumerate(branches)]).to(device)
    end = laid.last[:, None] - len(steps)  # where the text itself ends
    here = end + 1 + torch.arange(len(steps), device=device)
    positions, branch_of = laid.positions.flatten(), torch.zeros(count * length, dtype=torch.long, device=device)
    positions[here] = positions[end] + 1 + steps
    branch_of[here] = branch
    looks, seen = branch_of.view(count, length, 1), branch_of.view(count, 1, length)
    laid.mask[..., -length:].masked_fill_(((seen > 0) & (seen != looks))[:, None], torch.finfo(torch.float32).min)
    return Rows(laid.ids, positions.view(count, length), laid.mask, torch.cat([end, here], dim=1), laid.texts)


def _lay(ids: list[list[int]], rows: list[list[int]], device: torch.device | str, before: int) -> Rows:
    length = max(sum(len(ids[i]) for i in row) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owner = torch.full((len(rows), length), -1)
    last, texts = [], []
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + len(ids[i])
            tokens[r, start:end] = torch.tensor(ids[i])
            positions[r, start:end] = torch.arange(before, before + len(ids[i]))
            owner[r, start:end] = i
            last.append(r * length + end - 1)
            texts.append(i)
            start = end
    sees = (owner[:, :, None] == owner[:, None, :]).tril()
    sees = torch.cat([torch.ones(len(rows), length, before, dtype=torch.bool), sees], dim=2)
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    return Rows(tokens.to(device), positions.to(device), mask.to(device), torch.tensor(last, device=device), texts)
