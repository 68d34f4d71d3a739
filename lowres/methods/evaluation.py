"""Label logits on evaluation sets, and what they are worth beside their yardsticks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

    from lowres.models.backbone import Cache

BUDGET = 4096  # tokens in one forward pass, when no gradient is kept
AT_ONCE = 64  # tokens of answers that are read in one pass
AHEAD = 2.0  # nats that a token is taken to cost which is read with the one in front of it


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
    tokens = after_text(backbone.tokenizer, list(written))
    _check_room(backbone, len(ids), tokens)
    begin = (len(ids) - 1) // CHUNK * CHUNK  # the rest is read in one pass with what foretells the first token
    which, score = likeliest(backbone, head.output(), backbone.encode_context(ids[:begin]), ids[begin:], tokens)
    return *list(written.values())[which], score


def _check_room(backbone, length: int, answers: Sequence[Sequence[int]]) -> None:
    """Raises BadInput where the model cannot read so far."""
    if (most := length + max(map(len, answers)) - 1) > backbone.context_length:
        raise BadInput(f"max_length: a text and its longest span take {most} tokens, and {backbone.name!r} reads {backbone.context_length}")


def _listed(backbone, head, ids: list[int], located: Located) -> list[float]:
    """Of one text the entities that are listed behind each type's question, span by span, each the likeliest that stands behind the last one and ends
    the list, or does not. Of two types that want the same word the likelier span has it. The text is read once for all of them."""
    label, passage, total, found = located.answer, located.passage, 0.0, []
    spans, none = passage.spans(), passage.none + END
    written = [f" {passage.text[start:end]}{mark}" for start, end in spans for mark in (END, MORE)]
    tokens = dict(zip([none, *written], after_text(backbone.tokenizer, [none, *written])))
    before = backbone.encode_context(ids)
    for kind, question in enumerate(after_text(backbone.tokenizer, list(label.questions))):
        begin, more = 0, True
        while more and (left := [i for i, (start, _) in enumerate(spans) if start >= begin]):
            options = {} if begin else {none: (0, 0)}
            for i in left:
                for text in written[2 * i : 2 * i + 2]:
                    options.setdefault(text, spans[i])
            _check_room(backbone, len(ids) + len(question), answers := [tokens[text] for text in options])
            which, score = likeliest(backbone, head.output(), before, question, answers)
            text, (first, begin) = list(options.items())[which]
            question, total, more = question + tokens[text], total + score, text.endswith(MORE)
            found += [(score, first, begin, kind)] if begin else []
    return [total, *_without_overlaps(found, label)]


def _without_overlaps(found: list[tuple[float, int, int, int]], label: Tagged) -> list[int]:
    """Each word's tag, of spans (log p, first character, the one behind the last, type), the likelier ones first."""
    words, kept = label.words, []
    for _, start, end, kind in sorted(found, reverse=True):
        if all(end <= first or last <= start for first, last, _ in kept):
            kept.append((start, end, kind))
    places = [(sum(last <= start for _, last in words), sum(first < end for first, _ in words), kind) for start, end, kind in sorted(kept)]
    return label._replace(entities=tuple(places)).tags()


class Beginnings:
    """Sequences of tokens as a tree of what they begin with, each beginning once; node 0 is the empty one."""

    def __init__(self, answers: Sequence[Sequence[int]]):
        self.token, self.path = [-1], [[]]  # of each node; `path`: the nodes from behind 0 to itself
        self.next: list[dict[int, int]] = [{}]  # of each node, by token
        self.ends: list[list[tuple[int, int]]] = [[]]  # of each node the sequences that are one token more: that token, and which
        for which, answer in enumerate(answers):
            node = 0
            for token in answer[:-1]:
                if token not in self.next[node]:
                    self.next[node][token] = len(self.token)
                    self.path.append([*self.path[node], len(self.token)])
                    self.token.append(token)
                    self.next.append({})
                    self.ends.append([])
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

    def laid(self, nodes: list[int], place: dict[int, int], front: int, device: torch.device) -> Rows:
        """Nodes in one row, each of which sees the `front` tokens in front of all and its own beginning. `place`: of all that were read before; these
        join them."""
        for node in nodes:
            place[node] = front + len(place)
        seen = torch.zeros(len(nodes), front + len(place), dtype=torch.bool)
        seen[:, :front] = True
        seen[tuple(zip(*((row, place[other]) for row, node in enumerate(nodes) for other in self.path[node])))] = True
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        positions = torch.tensor([[front + len(self.path[node]) - 1 for node in nodes]])
        ids = torch.tensor([[self.token[node] for node in nodes]])
        return Rows(ids.to(device), positions.to(device), mask.to(device), torch.arange(len(nodes), device=device), [])


def likeliest(backbone, output: torch.Tensor, before: Cache, front: list[int], answers: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Which of some sequences of tokens is the likeliest behind a text, the first of equals, and its log-probability.

    `before`: what was read of the text; `front`: its last tokens, one at least, which are read here. What answers begin with in common is read once,
    and the likeliest beginnings first: since a sequence is at most as probable as its beginning, those less probable than a whole answer are not
    read on.
    """
    tree, past, length = Beginnings(answers), backbone.past(before), before[0][0].shape[2] if before else 0
    hidden = backbone.hidden_behind(next(pack([front], backbone.device, length)), past)
    which, best, bounds, nodes, place = 0, -torch.inf, {0: 0.0}, [0], {}
    while True:
        words = hidden @ output.T
        asked = [(row, token) for row, node in enumerate(nodes) for token in (*tree.next[node], *(token for token, _ in tree.ends[node]))]
        row, token = torch.tensor(asked, device=words.device).T
        scores = iter((words[row, token] - words.logsumexp(1)[row]).tolist())
        for node in nodes:
            so_far = bounds.pop(node)
            bounds |= {other: so_far + next(scores) for other in tree.next[node].values()}
            for _, k in tree.ends[node]:
                best, which = max((best, which), (so_far + next(scores), k), key=lambda one: (one[0], -one[1]))
        bounds = {node: bound for node, bound in bounds.items() if bound >= best}
        if not bounds:
            return which, best
        nodes = tree.likeliest(bounds)
        hidden = backbone.hidden_behind(tree.laid(nodes, place, length + len(front), backbone.device), past)


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
