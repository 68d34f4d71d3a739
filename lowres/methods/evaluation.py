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
from lowres.models.batches import lay, pack, read
from lowres.models.heads import of_its_tokens
from lowres.models.inputs import END, Choices, Inputs, Located, after_text, unconditional
from lowres.tasks.spans import spans

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
    """The final hidden state at each text's last token, without dropout: (texts, width).

    With a `head` that reads behind the text, or of texts with `choices`, its label logits instead, (texts, labels): the states would be too many.
    """
    backbone.whole.eval()
    states = torch.empty(len(ids), head.labels if head else backbone.width, device=backbone.device)
    before, branches = cache[0][0].shape[2] if cache else 0, head.branches if head else ()
    for rows in pack(ids, backbone.device, before, BUDGET, branches, choices, bool(head and head.whole)):
        states[rows.texts] = head.logits(read(backbone, rows, cache)) if head else backbone.hidden(rows, cache)
    return states


def found_spans(backbone, head, inputs: Inputs) -> torch.Tensor:
    """(texts, 3): the answer's first character in its passage, the one behind its last, and its log-probability."""
    if not head.everywhere:
        return torch.tensor([_likeliest_span(backbone, head, ids, located) for ids, located in zip(inputs.ids, inputs.answers)])
    found = torch.empty(len(inputs), 3)
    for rows in lay(head, inputs, backbone.device, BUDGET):
        scores = of_its_tokens(head.logits(read(backbone, rows)), inputs.labels[rows.texts, 2].to(backbone.device)).log_softmax(1).cpu()
        for i, each in zip(rows.texts, scores):
            found[i] = torch.tensor(_best_tokens(each, inputs.answers[i]))
    return found


def _best_tokens(scores: torch.Tensor, located: Located) -> tuple[int, int, float]:
    """Of (tokens, 2) log-probabilities of being the answer's first and last: the likeliest span, by itself wherever else its string may stand. The
    text's first token stands for no answer."""
    passage = located.passage
    options = spans(passage.text, passage.longest) + [(0, 0)] * bool(passage.none)
    begins, ends = zip(*(located.tokens(*span) for span in options))
    total = scores[list(begins), 0] + scores[list(ends), 1]
    best = int(total.argmax())
    return *options[best], float(total[best])


def _likeliest_span(backbone, head, ids: list[int], located: Located) -> tuple[int, int, float]:
    """The same of one text that its answer is written behind. Raises BadInput where the model cannot read so far.

    Exact: the likeliest of the passage's spans ("exact-extract", Castel et al. 2022, arXiv 2108.05857), among them what stands for no answer where
    there is such. A span that stands there several times is one string, with one probability: it is said to stand where it does first.
    """
    passage = located.passage
    written = {passage.none: (0, 0)} if passage.none else {}
    for start, end in spans(passage.text, passage.longest):
        written.setdefault(f" {passage.text[start:end]}", (start, end))
    tokens = after_text(backbone.tokenizer, [words + END for words in written])
    if (most := len(ids) + max(map(len, tokens)) - 1) > backbone.context_length:
        raise BadInput(f"max_length: a text and its longest span take {most} tokens, and {backbone.name!r} reads {backbone.context_length}")
    which, score = likeliest(backbone, head.output(), ids, tokens)
    return *list(written.values())[which], score


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
