"""Text -> pattern -> token ids -> rows without padding.

Texts are laid end to end in rows of about ROW tokens; positions start anew with each text and an attention mask keeps
every text to itself, so a text's result is what it would be alone, and next to no token is computed in vain
(padded to 128 tokens, CoLA is 89 % padding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lowres.models.inputs import Choices, Inputs, encode_choices, encode_passages, shorten
from lowres.tasks.kinds import kind_of
from lowres.tasks.task_file import CHOICE, fields, filled

if TYPE_CHECKING:
    import pandas as pd


ROW = 128  # attention's cost grows with a row's square: 32 texts of 12 tokens take 9 % less time in 4 rows of 96 than in 1 of 384
BUDGET = 2048  # tokens in one forward pass: bounds the memory of a training step


@dataclass
class Following:
    """Where tokens of choices are foretold: `place` among a pass's hidden states, ascending, the `token` that follows there, and which of all its
    choices that is a token of. `tokens`, `characters`: (texts, choices). With the states themselves it is what a head scores."""

    place: torch.Tensor
    token: torch.Tensor
    choice: torch.Tensor
    tokens: torch.Tensor
    characters: torch.Tensor
    hidden: torch.Tensor | None = None  # (places, width)


@dataclass
class Rows:
    """Some texts in rows, ready for the backbone.

    ids, positions: (rows, length). mask: (rows, 1, length, before + length), 0 where a token may look and the smallest
    number elsewhere. last: where in the flattened rows each text ends, (texts,); with branches, where it ends and where each of their tokens
    is, (texts, 1 + tokens); with choices, where each ends, (texts, choices), or every place that foretells a token of one (`following`); or every
    token's place, (texts, most tokens), filled up with the last. texts: which texts of the inputs these are. ends: where a text and all behind it
    end, (texts,), if `last` does not say so.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    texts: list[int]
    ends: torch.Tensor | None = None
    following: Following | None = None


def read(backbone, rows: Rows, cache=None) -> torch.Tensor | Following:
    """What a head takes: the final hidden states of `rows`, and what follows them where choices are scored token by token."""
    hidden = backbone.hidden(rows, cache)
    return replace(rows.following, hidden=hidden) if rows.following else hidden


def lay(head, inputs: Inputs, device: torch.device | str = "cpu", budget: int = BUDGET) -> Iterator[Rows]:
    """Inputs in rows as a head wants them read: each text and what stands behind it, or each token of a text and nothing else."""
    if not head.everywhere:
        yield from pack(inputs.ids, device, 0, budget, head.branches, inputs.choices, head.whole)
        return
    for rows in pack(inputs.ids, device, 0, budget):
        lengths = torch.tensor([len(inputs.ids[i]) for i in rows.texts], device=device)
        steps = torch.arange(int(lengths.max()), device=device)
        yield replace(rows, last=(rows.last - lengths + 1)[:, None] + steps.minimum(lengths[:, None] - 1), ends=rows.last)


def encode(backbone, examples: pd.DataFrame, pattern: str, max_length: int) -> Inputs:
    """Examples through a pattern, as token ids with the backbone's prefix in front.

    An input of more than `max_length` tokens loses the end of its longest text column, never a part of the pattern.
    """
    columns = list(dict.fromkeys(fields(pattern)))  # a pattern may say a text twice
    if kind_of(examples).loss in ("span", "tags"):
        return encode_passages(backbone, examples, pattern, max_length)
    if CHOICE in columns and CHOICE not in examples:
        return encode_choices(backbone, examples, torch.tensor(kind_of(examples).gold(examples)), pattern, max_length)
    room = min(max_length, backbone.context_length) - len(backbone.prefix)
    records = examples[columns].to_dict("records")
    ids = backbone.tokenize([filled(pattern, record) for record in records]) if records else []
    cut = 0
    for i, record in enumerate(records):
        cut += len(ids[i]) > room
        while len(ids[i]) > room:
            shorten(backbone, record, columns, len(ids[i]) - room,
                    f"max_length: {max_length} leaves no room for a text beside the pattern {pattern!r}")
            ids[i] = backbone.tokenize([filled(pattern, record)])[0]
    return Inputs([backbone.prefix + text for text in ids], torch.tensor(kind_of(examples).gold(examples)), cut, pattern)


def pack(ids: list[list[int]], device: torch.device | str = "cpu", before: int = 0, budget: int = BUDGET,
         branches: Sequence[list[int]] = (), choices: Sequence[Choices] = (), whole: bool = False) -> Iterator[Rows]:
    """Lays texts into rows, at most `budget` tokens at a time. `before`: tokens that every row sees in front of it.

    `branches`: tokens that stand behind each text, each branch as if it were the only one: it sees the text and itself. So does each of a text's
    own `choices`, which are read to their ends (`whole`), or as far as their last tokens are foretold.
    """
    behind = [token for branch in branches for token in branch]
    ids = [text + behind for text in ids] if behind else ids
    ids = [text + [token for tokens in row.read(whole) for token in tokens] for text, row in zip(ids, choices)] if choices else ids
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
        yield _branched(laid, branches) if behind else _followed(laid, choices, whole) if choices else laid


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


def _followed(laid: Rows, choices: Sequence[Choices], whole: bool) -> Rows:
    """The same rows, each of whose texts ends with its own choices, which do not see each other."""
    (count, length), device, tokens = laid.ids.shape, laid.ids.device, laid.ids.flatten().tolist()
    positions, branch_of = laid.positions.flatten().tolist(), [0] * (count * length)
    places, tips, found = [], [], []  # found: place, token, choice
    for text, last in zip(laid.texts, laid.last.tolist()):
        row, base, first = choices[text], len(tips), len(places)
        parts = row.read(whole)
        end = start = last - sum(map(len, parts))  # where the text itself ends
        places += range(end - row.shared, end + 1)
        found += [(first + i, tokens[end - row.shared + i + 1], base + k) for i in range(row.shared) for k in range(len(parts))]
        asked = row.asked or [0] * len(parts)
        found += [(first + row.shared, own[0], base + k) for k, own in enumerate(row.own) if not asked[k]]
        for k, part in enumerate(parts):
            for i in range(len(part)):
                start += 1
                positions[start], branch_of[start] = positions[end] + 1 + i, k + 1
                if i + 1 < asked[k]:
                    continue
                if not whole:
                    found.append((len(places), row.own[k][i + 1], base + k))
                places.append(start)
            tips.append(start)
    seen = torch.tensor(branch_of, device=device).view(count, 1, length)
    laid.mask[..., -length:].masked_fill_(((seen > 0) & (seen != seen.mT))[:, None], torch.finfo(torch.float32).min)
    laid = replace(laid, positions=torch.tensor(positions, device=device).view(count, length), ends=laid.last)
    if whole:
        return replace(laid, last=torch.tensor(tips, device=device).view(len(laid.texts), -1))
    rows = [choices[text] for text in laid.texts]
    counts = [[row.shared + len(own) for own in row.own] for row in rows], [row.characters for row in rows]
    following = Following(*torch.tensor(found, device=device).T, *(torch.tensor(count, device=device) for count in counts))
    return replace(laid, last=torch.tensor(places, device=device), following=following)


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
