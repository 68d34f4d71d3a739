"""Label logits on evaluation sets, and what they are worth beside their yardsticks."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowres.files import BadInput
from lowres.models import store
from lowres.models.batches import lay, pack, read
from lowres.models.heads import of_its_tokens
from lowres.models.inputs import END, MORE, Choices, Inputs, Located, after_text, tokens_after_text, unconditional
from lowres.tasks.tags import Tagged

if TYPE_CHECKING:
    import pandas as pd

BUDGET = 4096  # tokens in one forward pass, when no gradient is kept
AT_ONCE = 8  # beginnings of answers that are followed to their ends at a time


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
    which, score, _ = _written(backbone, head, ids, list(written))
    return *list(written.values())[which], score


def _written(backbone, head, ids: list[int], texts: list[str]) -> tuple[int, float, list[int]]:
    """Which of some texts is the likeliest behind another, its log p, and its tokens. Raises BadInput where the model cannot read so far."""
    tokens = after_text(backbone.tokenizer, texts)
    if (most := len(ids) + max(map(len, tokens)) - 1) > backbone.context_length:
        raise BadInput(f"max_length: a text and its longest span take {most} tokens, and {backbone.name!r} reads {backbone.context_length}")
    which, score = likeliest(backbone, head.output(), ids, tokens)
    return which, score, tokens[which]


def _listed(backbone, head, ids: list[int], located: Located) -> list[float]:
    """Of one text the entities that are listed behind each type's question, span by span, each the likeliest that stands behind the last one and ends
    the list, or does not. Of two types that want the same word the likelier span has it."""
    label, passage, total, found = located.answer, located.passage, 0.0, []
    for kind, question in enumerate(label.questions):
        behind, begin, more = ids + tokens_after_text(backbone.tokenizer, question), 0, True
        while more and (spans := [span for span in passage.spans() if span[0] >= begin]):
            written = {passage.none + END: (0, 0)} if not begin else {}
            for span in spans:
                for end in (END, MORE):
                    written.setdefault(f" {passage.text[span[0] : span[1]]}{end}", span)
            which, score, tokens = _written(backbone, head, behind, list(written))
            text, (first, begin) = list(written.items())[which]
            behind, total, more = behind + tokens, total + score, text.endswith(MORE)
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


def likeliest(backbone, output: torch.Tensor, ids: list[int], answers: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Which of some sequences of tokens is the likeliest behind a text, the first of equals, and its log-probability.

    The text is read once. What answers begin with in common is followed once, and the likeliest beginnings first: as a sequence is at most as
    probable as its first token, those that begin with one less probable than a whole answer need not be read.
    """
    stems = sorted({tuple(answer[:-1]) for answer in answers})
    paths = [path for path, other in zip(stems, [*stems[1:], ()]) if other[: len(path)] != path]
    of_path: list[list[int]] = [[] for _ in paths]
    for i, answer in enumerate(answers):
        of_path[bisect_left(paths, tuple(answer[:-1]))].append(i)
    cache = backbone.encode_context(ids[:-1]) if len(ids) > 1 else None
    first = foretold(backbone, output, [ids[-1:]], cache)[0][0]
    bounds = first[torch.tensor([path[0] if path else answers[of_path[i][0]][0] for i, path in enumerate(paths)])].tolist()
    order = sorted(range(len(paths)), key=lambda i: -bounds[i])
    which, best = 0, -torch.inf
    for begin in range(0, len(order), AT_ONCE):
        some = [i for i in order[begin : begin + AT_ONCE] if bounds[i] >= best]
        if not some:
            break
        for i, words in zip(some, foretold(backbone, output, [[ids[-1], *paths[i]] for i in some], cache)):
            so_far = [0.0]
            for depth, token in enumerate(paths[i]):
                so_far.append(so_far[-1] + words[depth, token].item())
            for k in of_path[i]:
                depth = len(answers[k]) - 1
                score = so_far[depth] + words[depth, answers[k][-1]].item()
                if (score, -k) > (best, -which):
                    which, best = k, score
    return which, best


def foretold(backbone, output: torch.Tensor, texts: list[list[int]], cache) -> list[torch.Tensor]:
    """Of each text the log-probabilities of all words behind each of its tokens, (tokens, vocabulary), behind a context that was read before."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(texts)
    for rows in pack(texts, backbone.device, cache[0][0].shape[2] if cache else 0, BUDGET):
        lengths = [len(texts[i]) for i in rows.texts]
        places = torch.cat([torch.arange(end - n + 1, end + 1) for end, n in zip(rows.last.tolist(), lengths)]).to(backbone.device)
        hidden = backbone.hidden(replace(rows, last=places), cache)
        for i, part in zip(rows.texts, hidden.split(lengths)):
            found[i] = (part @ output.T).log_softmax(1)
    return found


def evaluated(task, logits: dict[str, np.ndarray]) -> dict[str, dict]:
    """Per evaluation set: its domain, the kind's metrics, and score, count and yardstick by each break-down the task file names."""
    result = {}
    for name, rows in task.evaluation.items():
        gold = task.kind.gold(rows)
        by = [column if column != "label" else "gold" for column in task.file.evaluation[name].break_down_by]
        result[name] = {"domain": task.file.evaluation[name].domain, **task.kind.metrics(gold, logits[name]), "by": {}}
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
