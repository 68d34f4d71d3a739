"""Spans as answers: those that a new head's tokens point to, and the likeliest that may be written behind a text, found exactly."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

import torch

from lowres.files import BadInput
from lowres.models.backbone import CHUNK
from lowres.models.batches import Rows, lay, read
from lowres.models.heads import of_its_tokens
from lowres.models.inputs import END, MORE, Inputs, Located, after_text
from lowres.tasks.tags import Tagged

if TYPE_CHECKING:
    from lowres.tasks.spans import Passage

AT_ONCE = 24  # tokens of its answers that a search reads in one pass
AHEAD = 1.0  # nats that a token is taken to cost which is read with the one in front of it
Search = Generator[list[int], torch.Tensor, Any]  # asks for the states of tokens by their numbers


def found_spans(backbone, head, inputs: Inputs, budget: int) -> torch.Tensor:
    """(texts, 3): the answer's first character in its passage, the one behind its last, and its log-probability; of tags (texts, 1 + most words): the
    log-probability of all, and each word's tag."""
    tagged = isinstance(inputs.answers[0].answer, Tagged)
    found = torch.zeros(len(inputs), 1 + max(len(one.answer.words) for one in inputs.answers) if tagged else 3)
    if not head.everywhere:
        for i, (ids, located) in enumerate(zip(inputs.ids, inputs.answers)):
            _put(found[i], _listed(backbone, head, ids, located) if tagged else _likeliest_span(backbone, head, ids, located))
        return found
    for rows in lay(head, inputs, backbone.device, budget):
        labels, scores = inputs.labels[rows.texts], head.logits(read(backbone, rows)).cpu()
        scores = scores.log_softmax(2) if tagged else of_its_tokens(scores, labels[:, 2]).log_softmax(1)
        for i, each, asked in zip(rows.texts, scores, labels):
            _put(found[i], _best_tags(each, asked) if tagged else _best_tokens(each, inputs.answers[i]))
    return found


def _put(row: torch.Tensor, values: Sequence[float]) -> None:
    row[: len(values)] = torch.tensor(values)


def _best_tokens(scores: torch.Tensor, located: Located) -> tuple[int, int, float]:
    """Of (tokens, 2) log-probabilities of being the answer's first and last: the likeliest span, by itself wherever else its string may stand. The
    text's first token stands for no answer."""
    options = located.passage.spans() + [(0, 0)] * bool(located.passage.none)
    begins, ends = zip(*(located.tokens(*span) for span in options))
    total = scores[list(begins), 0] + scores[list(ends), 1]
    best = int(total.argmax())
    return *options[best], float(total[best])


def _best_tags(scores: torch.Tensor, asked: torch.Tensor) -> list[float]:
    """Of (tokens, tags) log-probabilities the likeliest tag of each word, at its last token."""
    best = scores[asked[: len(scores)] != -100].max(1)
    return [float(best.values.sum()), *best.indices.tolist()]


def _likeliest_span(backbone, head, ids: list[int], located: Located) -> tuple[int, int, float]:
    """Of one text the likeliest span that is written behind it: its first character, the one behind its last, and log p.

    Exact: the likeliest of the passage's spans ("exact-extract", Castel et al. 2022, arXiv 2108.05857), among them what stands for no answer where
    there is such. A span that stands there several times is one string, with one probability: it is said to stand where it does first.
    """
    passage = located.passage
    written = {passage.none + END: (0, 0)} if passage.none else {}
    for start, end in passage.spans():
        written.setdefault(f" {passage.text[start:end]}{END}", (start, end))
    behind = Behind(backbone, ids)
    [(which, score, _)] = together(behind, [likeliest(behind, head.output(), behind.text, after_text(backbone.tokenizer, list(written)))])
    return *list(written.values())[which], score


def _listed(backbone, head, ids: list[int], located: Located) -> list[float]:
    """Of one text the entities that are listed behind each type's question. Of two types that want the same word the likelier span has it."""
    label, passage, none = located.answer, located.passage, located.passage.none + END
    written = [f" {passage.text[start:end]}{mark}" for start, end in passage.spans() for mark in (END, MORE)]
    tokens = dict(zip([none, *written], after_text(backbone.tokenizer, [none, *written])))
    behind = Behind(backbone, ids)
    questions = [behind.put(question, behind.text) for question in after_text(backbone.tokenizer, list(label.questions))]
    each = together(behind, [_entities(behind, head.output(), question, passage, tokens) for question in questions])
    found = [(score, *span, kind) for kind, listed in enumerate(each) for score, span in listed]
    return [sum(score for score, *_ in found), *_without_overlaps([one for one in found if one[2]], label)]


def _entities(behind: Behind, output: torch.Tensor, question: int, passage: Passage, tokens: dict[str, list[int]]) -> Search:
    """What is listed behind a question, span by span, with its log p each: the likeliest that stands behind the last one and ends the list, or does
    not; from 0 to 0 where there is none."""
    found: list[tuple[float, tuple[int, int]]] = []
    none, begin = passage.none + END, 0
    while spans := [span for span in passage.spans() if span[0] >= begin]:
        options = {} if begin else {none: (0, 0)}
        for start, end in spans:
            for mark in (END, MORE):
                options.setdefault(f" {passage.text[start:end]}{mark}", (start, end))
        which, score, stem = yield from likeliest(behind, output, question, [tokens[text] for text in options])
        text, span = list(options.items())[which]
        found.append((score, span))
        if text.endswith(END):
            break
        question, begin = behind.put(tokens[text][-1:], stem), span[1]
    return found


def _without_overlaps(found: list[tuple[float, int, int, int]], label: Tagged) -> list[int]:
    """Each word's tag, of spans (log p, first character, the one behind the last, type), the likelier ones first."""
    words, kept = label.words, []
    for _, start, end, kind in sorted(found, reverse=True):
        if all(end <= first or last <= start for first, last, _ in kept):
            kept.append((start, end, kind))
    places = [(sum(last <= start for _, last in words), sum(first < end for first, _ in words), kind) for start, end, kind in sorted(kept)]
    return label._replace(entities=tuple(places)).tags()


class Behind:
    """What is read behind a text, which is read once: tokens that each stand behind the text or behind another of them, and see what is in front of
    them and nothing else. They are told by number."""

    def __init__(self, backbone, ids: list[int]):
        self.begin = (len(ids) - 1) // CHUNK * CHUNK
        self.backbone, self.past = backbone, backbone.past(backbone.encode_context(ids[: self.begin]))
        self.tokens, self.path = [], []  # those that are put and not read yet; of each that was put all in front of it and itself
        self.text = self.put(ids[self.begin:])  # the last of them

    def put(self, tokens: list[int], last: int = -1) -> int:
        """Some tokens, one behind the other, behind one that was put before; the number of the last."""
        for token in tokens:
            self.path.append([*(self.path[last] if last >= 0 else []), last := len(self.path)])
            self.tokens.append(token)
        return last

    def check_room(self, last: int, answers: Sequence[Sequence[int]]) -> None:
        """Raises BadInput where the model cannot read so far."""
        if (most := self.begin + len(self.path[last]) + max(map(len, answers)) - 1) > (reads := self.backbone.context_length):
            raise BadInput(f"max_length: a text and its longest span take {most} tokens, and {self.backbone.name!r} reads {reads}")

    def read(self) -> tuple[int, torch.Tensor]:
        """Reads what was put, in one pass: the first one's number, and the final hidden states, (tokens, width)."""
        device, count = self.backbone.device, len(self.tokens)
        paths = self.path[-count:]
        seen = torch.zeros(count, self.begin + len(self.path), dtype=torch.bool)
        seen[:, : self.begin] = True
        rows = torch.arange(count).repeat_interleave(torch.tensor([len(path) for path in paths]))
        seen[rows, self.begin + torch.tensor([other for path in paths for other in path])] = True
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        ids, positions = torch.tensor([self.tokens]), self.begin - 1 + torch.tensor([[len(path) for path in paths]])
        laid = Rows(ids.to(device), positions.to(device), mask.to(device), torch.arange(count, device=device), [])
        self.tokens = []
        return len(self.path) - count, self.backbone.hidden_behind(laid, self.past)


def together(behind: Behind, searches: list[Search]) -> list[Any]:
    """What each of some searches comes to, their next tokens read in the same passes."""
    found, asked = [None] * len(searches), {i: next(search) for i, search in enumerate(searches)}
    while asked:
        first, hidden = behind.read()
        for i, wanted in list(asked.items()):
            try:
                asked[i] = searches[i].send(hidden[[number - first for number in wanted]])
            except StopIteration as ended:
                found[i] = ended.value
                del asked[i]
    return found


class Beginnings:
    """Sequences of tokens as a tree of what they begin with, each beginning once; node 0 is the empty one."""

    def __init__(self, answers: Sequence[Sequence[int]]):
        self.token, self.parent = [-1], [-1]  # of each node
        self.next: list[dict[int, int]] = [{}]  # of each node, by token
        self.ends: list[list[tuple[int, int]]] = [[]]  # of each node the sequences that are one token more: that token, and which
        for which, answer in enumerate(answers):
            node = 0
            for token in answer[:-1]:
                if token not in self.next[node]:
                    self.next[node][token] = len(self.token)
                    for each, value in ((self.token, token), (self.parent, node), (self.next, {}), (self.ends, [])):
                        each.append(value)
                node = self.next[node][token]
            self.ends[node].append((answer[-1], which))

    def likeliest(self, bounds: dict[int, float]) -> list[int]:
        """Which nodes to read next, of those whose beginnings were read: the likeliest AT_ONCE, among them what follows them as if each further token
        took AHEAD off, for a pass over few tokens takes nearly as long as one over many."""
        waiting = [(-bound, node) for node, bound in bounds.items()]
        heapify(waiting)
        found: list[int] = []
        while waiting and len(found) < AT_ONCE:
            cost, node = heappop(waiting)
            found.append(node)
            for other in self.next[node].values():
                heappush(waiting, (cost + AHEAD, other))
        return found


def likeliest(behind: Behind, output: torch.Tensor, last: int, answers: Sequence[Sequence[int]]) -> Search:
    """Which of some sequences of tokens is the likeliest behind a token that is put, the first of equals; its log-probability; and the number of its
    last token but one. A generator: it asks for the states of tokens that it has put.

    What answers begin with in common is read once, and the likeliest beginnings first: since a sequence is at most as probable as its beginning,
    those less probable than a whole answer are not read on.
    """
    behind.check_room(last, answers)
    tree = Beginnings(answers)
    which, best, stem, bounds, nodes, place = 0, -torch.inf, last, {0: 0.0}, [0], {0: last}
    while bounds:
        words = (yield [place[node] for node in nodes]) @ output.T
        asked = [(row, token) for row, node in enumerate(nodes) for token in (*tree.next[node], *(token for token, _ in tree.ends[node]))]
        row, token = torch.tensor(asked, device=words.device).T
        scores = iter((words[row, token] - words.logsumexp(1)[row]).tolist())
        for node in nodes:
            so_far = bounds.pop(node)
            bounds |= {other: so_far + next(scores) for other in tree.next[node].values()}
            for _, k in tree.ends[node]:
                if (score := so_far + next(scores), -k) > (best, -which):
                    which, best, stem = k, score, place[node]
        bounds = {node: bound for node, bound in bounds.items() if bound >= best}
        nodes = tree.likeliest(bounds)
        for node in nodes:
            place[node] = behind.put([tree.token[node]], place[tree.parent[node]])
    return which, best, stem
