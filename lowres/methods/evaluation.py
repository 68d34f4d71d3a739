"""Label logits on evaluation sets, and what they are worth beside their yardsticks."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowres.files import BadInput
from lowres.models import store
from lowres.models.backbone import CHUNK
from lowres.models.batches import Rows, lay, pack, read
from lowres.models.heads import of_its_tokens
from lowres.models.inputs import END, MORE, Choices, Inputs, Located, after_text, unconditional
from lowres.tasks.tags import Tagged

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.spans import Passage

BUDGET = 4096  # tokens in one forward pass, when no gradient is kept
AT_ONCE = 24  # tokens of its answers that a search reads in one pass
AHEAD = 1.0  # nats that a token is taken to cost which is read with the one in front of it
Search = Generator[list[int], torch.Tensor, Any]  # asks for the states of tokens by their numbers


@torch.inference_mode()
def predict(backbone, head, sets: dict[str, Inputs], cache=None) -> dict[str, np.ndarray]:
    """Label logits (rows, labels) of every set, in one sorted pass over all of them.

    `cache`: what stands in front of every text, from `Backbone.encode_context`; the texts are then without the backbone's prefix.
    """
    if any(inputs.answers for inputs in sets.values()):
        backbone.whole.eval()
        return {name: found_spans(backbone, head, inputs).numpy() for name, inputs in sets.items()}
    ids, choices = [text for inputs in sets.values() for text in inputs.ids], [row for inputs in sets.values() for row in inputs.choices]
    if head.branches or choices:
        logits = last_states(backbone, ids, cache, head, choices)
        if getattr(head, "score", "") == "unconditional":
            logits -= last_states(backbone, unconditional(backbone, ids, choices), None, head, choices)
    else:
        logits = head.logits(last_states(backbone, ids, cache))
    logits = logits.float().cpu().numpy()
    ends = np.cumsum([len(inputs) for inputs in sets.values()])
    return dict(zip(sets, np.split(logits, ends[:-1])))


@torch.inference_mode()
def last_states(backbone, ids: list[list[int]], cache=None, head=None, choices: Sequence[Choices] = ()) -> torch.Tensor:
    """The final hidden state at each text's last token, without dropout: (texts, width). Of a backbone as it came they may have been kept.

    With a `head` that reads behind the text, or of texts with `choices`, its label logits instead, (texts, labels): the states would be too many.
    """
    if not head:
        return store.states(backbone, ids, cache, lambda: _read_all(backbone, ids, cache, None, ()), BUDGET)
    return _read_all(backbone, ids, cache, head, choices)


def _read_all(backbone, ids: list[list[int]], cache, head, choices: Sequence[Choices]) -> torch.Tensor:
    backbone.whole.eval()
    states = torch.empty(len(ids), head.labels if head else backbone.width, device=backbone.device)
    before, branches = cache[0][0].shape[2] if cache else 0, head.branches if head else ()
    for rows in pack(ids, backbone.device, before, BUDGET, branches, choices, bool(head and head.whole)):
        states[rows.texts] = head.logits(read(backbone, rows, cache)) if head else backbone.hidden(rows, cache)
    return states


def found_spans(backbone, head, inputs: Inputs) -> torch.Tensor:
    """(texts, 3): the answer's first character in its passage, the one behind its last, and its log-probability; of tags (texts, 1 + most words): the
    log-probability of all, and each word's tag."""
    tagged = isinstance(inputs.answers[0].answer, Tagged)
    found = torch.zeros(len(inputs), 1 + max(len(one.answer.words) for one in inputs.answers) if tagged else 3)
    if not head.everywhere:
        for i, (ids, located) in enumerate(zip(inputs.ids, inputs.answers)):
            _put(found[i], _listed(backbone, head, ids, located) if tagged else _likeliest_span(backbone, head, ids, located))
        return found
    for rows in lay(head, inputs, backbone.device, BUDGET):
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


def evaluated(task, logits: dict[str, np.ndarray], shots: pd.DataFrame | None = None) -> dict[str, dict]:
    """Per evaluation set: its domain, the kind's metrics, what a rule made of the shots gets, where they are given and the kind has such; and score,
    count and yardstick by each break-down the task file names."""
    result = {}
    for name, rows in task.evaluation.items():
        gold = task.kind.gold(rows)
        by = [column if column != "label" else "gold" for column in task.file.evaluation[name].break_down_by]
        result[name] = {"domain": task.file.evaluation[name].domain, **task.kind.metrics(gold, logits[name]), "by": {}}
        result[name] |= task.kind.ruled(gold, shots) if shots is not None else {}
        for group, part in rows[by].reset_index(drop=True).groupby(by) if by else []:
            result[name]["by"]["/".join(map(str, group))] = task.kind.part(gold[part.index], logits[name][part.index])
    return result


def predictions(task, logits: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """One line a prediction, with no text: trial, set, row, label, prediction, a logit a label (or what else the kind's are)."""
    import pandas as pd

    parts = []
    for name, rows in task.evaluation.items():
        parts.append(pd.DataFrame({
            "trial": seed, "set": name, "row": rows.index, **task.kind.answers(rows, logits[name], task.labels),
            **{f"logit_{what}": logits[name][:, i] for i, what in enumerate(task.kind.outputs(task.labels))},
        }))
    return pd.concat(parts, ignore_index=True).astype({"row": "int32"})


def scored(task, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """For the key `also` of an outcome's `extra`: metrics, and what tells equal results."""
    outcome = hashlib.sha256(b"".join(part.tobytes() for part in logits.values())).hexdigest()[:16]
    return {"sets": evaluated(task, logits), "outcome_sha256": outcome}
