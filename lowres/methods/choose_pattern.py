"""Which pattern and label words suit a task, told from the labelled shots alone.

Every pattern of the task file is tried with all its label words, and with words searched among the backbone's own predictions.
A candidate's score is the mean calibrated log-probability that the frozen backbone gives the gold label of shots in a held-out fold:

    log p(y | x) = log softmax over y of ( LMhead(h(P(x)))[V(y)] - LMhead(h(P("N/A")))[V(y)] )

that is, the label words' probabilities divided by those after a content-free input (Zhao et al. 2021, arXiv 2102.09690), which uses no
shot at all. Words are searched on the other folds only, so that no label scores the words it has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lowres.files import BadInput
from lowres.methods.evaluation import last_states
from lowres.methods.prompts import empty_example
from lowres.models.batches import Inputs, encode
from lowres.models.heads import Verbalizer, tokens_after_text
from lowres.tasks.shots import Streams

FOLDS = 4
ENOUGH = 16  # shots per class below which scores are noise and the default stays
NOT_TRIED = ("plain", "as_coded")  # no place for a word; the authors' input for their random head
SEARCHED = "searched"


@dataclass
class Candidate:
    """A pattern with label words (one a label), and what the shots say of it. scores: calibrated log p of each shot's gold label."""

    pattern: str
    label_words: str
    words: list[str]
    scores: np.ndarray
    gain: float = 0.0  # over the default, mean over the shots, in nats
    error: float = 0.0  # the standard error of that gain, paired by shot

    @property
    def score(self) -> float:
        return round(float(self.scores.mean()), 6)  # rounded: sums in another order must not break ties


@dataclass
class Choice:
    """The candidate to use, why, and all candidates, best first."""

    chosen: Candidate
    default: Candidate
    reason: str
    ranking: list[Candidate]
    skipped: list[str]

    def table(self, most: int = 12) -> pd.DataFrame:
        """The ranking as a reader sees it: its first lines, and the default's and the chosen one's wherever they stand."""
        marks = {id(self.default): "default", id(self.chosen): "chosen"}
        if self.chosen is self.default:
            marks[id(self.default)] = "default, chosen"
        return pd.DataFrame([
            {"pattern": c.pattern, "label words": ", ".join(map(repr, c.words)) + (" (searched)" if c.label_words == SEARCHED else ""),
             "mean log p": f"{c.score:.3f}", "gain over default": f"{c.gain:+.3f} ± {c.error:.3f}", "": marks.get(id(c), ""), "rank": rank}
            for rank, c in enumerate(self.ranking, 1) if rank <= most or id(c) in marks
        ]).set_index("rank")

    def record(self) -> dict[str, Any]:
        line = lambda c: {"pattern": c.pattern, "label_words": c.label_words, "words": c.words, "score": c.score,
                          "gain": round(c.gain, 6), "error": round(c.error, 6)}
        return {"chosen": line(self.chosen), "default": line(self.default), "reason": self.reason, "skipped": self.skipped,
                "ranking": [line(c) for c in self.ranking]}


def choose(backbone, task_file, shots: pd.DataFrame, p, streams: Streams) -> Choice:
    """Ranks all candidates by the shots and picks one; reads nothing but the shots and the task file. Deterministic given the seed.

    The best candidate whose gain exceeds its standard error replaces the default, the first in the file on ties; below ENOUGH shots
    per class none does unless `p.choose_always`. Raises BadInput if the default's words cannot be told apart.
    """
    candidates, skipped = _candidates(backbone, task_file, shots, p, streams)
    default = candidates[0]
    for candidate in candidates:
        gains = candidate.scores - default.scores
        candidate.gain, candidate.error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    ranking = sorted(candidates, key=lambda candidate: -candidate.score)  # stable: the file's order on ties
    better = [candidate for candidate in ranking if candidate.gain > candidate.error]
    fewest = int(shots["label"].value_counts().min())
    if fewest < ENOUGH and not p.choose_always:
        return Choice(default, default, f"the default stays: {fewest} shots per class are fewer than {ENOUGH}", ranking, skipped)
    if not better:
        return Choice(default, default, "the default stays: no candidate's gain exceeds its standard error", ranking, skipped)
    return Choice(better[0], default, "the best candidate whose gain over the default exceeds its standard error", ranking, skipped)


def stratified_folds(labels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Each row's fold: every label spread evenly over FOLDS folds, or as many as its examples allow."""
    fold = np.zeros(len(labels), int)
    count = min(FOLDS, int(np.bincount(labels).min()))
    for label in np.unique(labels):
        rows = stream.permutation(np.flatnonzero(labels == label))
        fold[rows] = np.arange(len(rows)) % count
    return fold


def search(log_probs: torch.Tensor, labels: np.ndarray, tokenizer, top: int) -> list[int]:
    """A token for each label: among the `top` words likeliest after its examples, the one whose log-probability they raise most over
    the other labels' examples. log_probs: (rows, vocabulary). Each word serves one label; ties go to the likelier, then the lower id.
    Empty where the vocabulary has no word left for a label."""
    found: list[int] = []
    for label in range(labels.max() + 1):
        mean = log_probs[labels == label].mean(0)
        likeliest = torch.sort(mean, descending=True, stable=True).indices.tolist()
        words = []
        for token in likeliest:
            if len(words) == top:
                break
            if token not in found and _is_word(tokenizer, token):
                words.append(token)
        if not words:
            return []
        raised = mean - log_probs[labels != label].mean(0)
        found.append(max(words, key=lambda token: round(float(raised[token]), 6)))
    return found


def _candidates(backbone, task_file, shots: pd.DataFrame, p, streams: Streams) -> tuple[list[Candidate], list[str]]:
    """All candidates with their scores, the default first, and the label words that this tokenizer cannot say."""
    patterns = {name: text for name, text in task_file.patterns.items() if name not in NOT_TRIED or name == p.pattern}
    first = p.pattern or next(iter(task_file.patterns))
    patterns = {first: task_file.patterns[first], **patterns}
    default_words = p.label_words or next(iter(task_file.label_words))
    sets, skipped = {}, []
    for name in dict.fromkeys([default_words, *task_file.label_words]):
        words = task_file.words(name)
        try:
            sets[name] = Verbalizer(backbone, words, score=p.word_score)
        except BadInput as error:
            if name == default_words:
                raise
            skipped.append(f"{name}: {error}")
    labels = shots["label"].to_numpy()
    folds = stratified_folds(labels, streams.folds)
    found = []
    for pattern, text in patterns.items():
        inputs = encode(backbone, pd.concat([shots[[*task_file.text, "label"]], empty_example(task_file)]), text, p.max_length)
        states = last_states(backbone, inputs.ids)
        hidden, free = states[:-1], states[-1]
        found += [Candidate(pattern, name, task_file.words(name), _of_words(backbone, head, inputs, states, labels)) for name, head in sets.items()]
        if p.search_words and folds.max() > 0:
            searched = _searched(backbone, pattern, hidden, free, labels, folds, p.search_words)
            found += [searched] if searched else []
    return found, skipped


def _of_words(backbone, head: Verbalizer, inputs: Inputs, states: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """The same for a task file's label words, from the `states` behind the shots and, last, a content-free input, which are read once for all."""
    if not head.branches:
        return _scores(backbone, states[:-1], states[-1], head.ids, labels)
    logits = last_states(backbone, inputs.ids, head=head)
    return _of_gold(logits[:-1] - logits[-1], labels)


@torch.inference_mode()
def _scores(backbone, hidden: torch.Tensor, free: torch.Tensor, ids: Sequence[int] | torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Calibrated log-probability of each row's gold label: (rows). Dividing probabilities is subtracting logits."""
    words = backbone.output[ids]
    return _of_gold(hidden @ words.T - words @ free, labels)


def _of_gold(logits: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    log_probs = logits.log_softmax(1)
    return log_probs[torch.arange(len(labels)), torch.tensor(labels)].double().cpu().numpy()


@torch.inference_mode()
def _searched(backbone, pattern: str, hidden: torch.Tensor, free: torch.Tensor, labels: np.ndarray, folds: np.ndarray, top: int) -> Candidate | None:
    """Words searched anew on the other folds for each held-out fold, which they are scored on; then, to be used, on all shots."""
    log_probs = (hidden @ backbone.output.T).log_softmax(1).cpu()
    scores = np.empty(len(labels))
    for fold in range(folds.max() + 1):
        held = folds == fold
        ids = search(log_probs[~held], labels[~held], backbone.tokenizer, top)
        if not ids:
            return None
        scores[held] = _scores(backbone, hidden[held], free, ids, labels[held])
    ids = search(log_probs, labels, backbone.tokenizer, top)
    return Candidate(pattern, SEARCHED, [_word(backbone.tokenizer, token) for token in ids], scores)


def _is_word(tokenizer, token: int) -> bool:
    """Whether a token is the beginning of a word, all letters, that is read back as itself."""
    piece, word = tokenizer.convert_ids_to_tokens(token), _word(tokenizer, token)
    if piece is None or piece[:1] not in ("Ġ", "▁") or not word[1:].isalpha():  # how byte-level and SentencePiece vocabularies write a space in front
        return False
    return tokens_after_text(tokenizer, word) == [token]


def _word(tokenizer, token: int) -> str:
    """A token that begins a word, as text with the space in front (SentencePiece leaves out a first word's)."""
    return " " + tokenizer.decode([token]).strip()
