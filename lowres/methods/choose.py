"""What suits a task, told from the labelled shots alone: the pattern and the label words, or any listed settings.

A candidate takes the default's place only if the shots say so: its mean gain in log-probability of gold labels, paired by shot, exceeds its
standard error. Patterns (`pattern`) are scored without training:

Every pattern of the task file is tried with all its label words, and with words searched among the backbone's own predictions.
A candidate's score is the mean calibrated log-probability that the frozen backbone gives the gold label of shots in a held-out fold:

    log p(y | x) = log softmax over y of ( LMhead(h(P(x)))[V(y)] - LMhead(h(P("N/A")))[V(y)] )

that is, the label words' probabilities divided by those after a content-free input (Zhao et al. 2021, arXiv 2102.09690), which uses no
shot at all. Words are searched on the other folds only, so that no label scores the words it has chosen.

Settings (`settings`) are scored by training on halves: the shots are parted in two twice, by label, and each half is once trained on and once
held out, so that every shot is scored twice by models that have not seen it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from lowres.files import BadInput
from lowres.methods.evaluation import last_states, predict
from lowres.methods.in_context import empty_example
from lowres.methods.training import Diverged
from lowres.models.batches import Inputs, encode
from lowres.models.heads import Verbalizer
from lowres.models.inputs import tokens_after_text
from lowres.tasks.shots import Streams

FOLDS = 4
DIVISIONS = 2  # of the shots in halves
DIVERGED = -1000.0  # log p of a model that is no model any more
ENOUGH = 16  # shots per class below which a pattern's scores are noise and the default stays
ENOUGH_FOR_HALVES = 8  # the same of settings
NOT_TRIED = ("plain", "as_coded")  # no place for a word; the authors' input for their random head
SEARCHED = "searched"


@dataclass
class Candidate:
    """What the shots say of one choice. scores: log p of each shot's gold label (of a pattern calibrated)."""

    scores: np.ndarray
    pattern: str = ""
    label_words: str = ""
    words: list[str] = field(default_factory=list)  # one a label
    settings: dict[str, Any] = field(default_factory=dict)
    gain: float = 0.0  # over the default, mean over the shots, in nats
    error: float = 0.0  # the standard error of that gain, paired by shot

    @property
    def score(self) -> float:
        return round(float(self.scores.mean()), 6)  # rounded: sums in another order must not break ties

    def record(self) -> dict[str, Any]:
        what = self.settings or {"pattern": self.pattern, "label_words": self.label_words, "words": self.words}
        return {**what, "score": self.score, "gain": round(self.gain, 6), "error": round(self.error, 6)}


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
            {**c.settings, **({} if c.settings else {"pattern": c.pattern, "label words": ", ".join(map(repr, c.words))
                                                    + (" (searched)" if c.label_words == SEARCHED else "")}),
             "mean log p": f"{c.score:.3f}", "gain over default": f"{c.gain:+.3f} ± {c.error:.3f}", "": marks.get(id(c), ""), "rank": rank}
            for rank, c in enumerate(self.ranking, 1) if rank <= most or id(c) in marks
        ]).set_index("rank")

    def record(self) -> dict[str, Any]:
        return {"chosen": self.chosen.record(), "default": self.default.record(), "reason": self.reason, "skipped": self.skipped,
                "ranking": [candidate.record() for candidate in self.ranking]}


def pattern(backbone, task_file, shots: pd.DataFrame, p, streams: Streams) -> Choice:
    """Ranks all patterns and label words by the shots and picks one; reads nothing but the shots and the task file. Deterministic given the seed.

    Below ENOUGH shots per class the default stays, unless `p.choose_always`. Raises BadInput if the default's words cannot be told apart.
    """
    candidates, skipped = _candidates(backbone, task_file, shots, p, streams)
    return decided(candidates, shots, 0 if p.choose_always else ENOUGH, skipped)


def settings(backbone, fit: Callable, shots: pd.DataFrame, p, seed: int) -> tuple[Choice, int]:
    """Ranks the combinations of what `p.choose` lists, and what `p` itself says, and picks one; and how many tokens that took to train.

    `fit(shots, p, streams)` trains a method and returns its head, as a notebook's does. Every candidate has the same halves, new weights and order.
    """
    kept = {key: getattr(p, key) for key in p.choose}
    asked = [dict(zip(p.choose, values)) for values in itertools.product(*p.choose.values())]
    options = [kept, *(one for one in asked if one != kept)]
    labels, tokens = shots["label"].to_numpy(), 0
    scores = np.zeros((len(options), len(shots)))
    if np.bincount(labels).min() >= ENOUGH_FOR_HALVES:
        for halves in _halves(labels, Streams(seed).folds):
            half = in_turn(shots[halves])
            for i, one in enumerate(options):
                try:
                    head, training = fit(half, p.model_copy(update=one | {"choose": {}}), Streams(seed))
                except Diverged:
                    scores[i, ~halves] += DIVERGED
                    continue
                tokens += training.tokens
                held = encode(backbone, shots[~halves], backbone.trained[1], p.max_length)
                logits = torch.from_numpy(predict(backbone, head, {"held": held})["held"])
                scores[i, ~halves] += _of_gold(logits, labels[~halves]) / DIVISIONS
    return decided([Candidate(row, settings=one) for one, row in zip(options, scores)], shots, ENOUGH_FOR_HALVES), tokens


def in_turn(shots: pd.DataFrame) -> pd.DataFrame:
    """One of each label in turn, as a draw has them."""
    nth = shots.groupby("label").cumcount().to_numpy()
    return shots.iloc[np.lexsort((shots["label"].to_numpy(), nth))]


def _halves(labels: np.ndarray, stream: np.random.Generator) -> list[np.ndarray]:
    """Which shots are trained on, (shots,) each: DIVISIONS divisions in two, half of every label on either side, then the other way round."""
    found = []
    for _ in range(DIVISIONS):
        half = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            half[stream.permutation(np.flatnonzero(labels == label))[: (labels == label).sum() // 2]] = True
        found += [half, ~half]
    return found


def decided(candidates: list[Candidate], shots: pd.DataFrame, enough: int, skipped: Sequence[str] = ()) -> Choice:
    """The best candidate whose gain over the first, the default, exceeds its standard error; the first listed on ties.

    Below `enough` shots per class the default stays.
    """
    default, skipped = candidates[0], list(skipped)
    for candidate in candidates:
        gains = candidate.scores - default.scores
        candidate.gain, candidate.error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    ranking = sorted(candidates, key=lambda candidate: -candidate.score)  # stable: the file's order on ties
    better = [candidate for candidate in ranking if candidate.gain > candidate.error]
    fewest = int(shots["label"].value_counts().min())
    if fewest < enough:
        return Choice(default, default, f"the default stays: {fewest} shots per class are fewer than {enough}", ranking, skipped)
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
        found += [Candidate(_of_words(backbone, head, inputs, states, labels), pattern, name, task_file.words(name)) for name, head in sets.items()]
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
    return Candidate(scores, pattern, SEARCHED, [_word(backbone.tokenizer, token) for token in ids])


def _is_word(tokenizer, token: int) -> bool:
    """Whether a token is the beginning of a word, all letters, that is read back as itself."""
    piece, word = tokenizer.convert_ids_to_tokens(token), _word(tokenizer, token)
    if piece is None or piece[:1] not in ("Ġ", "▁") or not word[1:].isalpha():  # how byte-level and SentencePiece vocabularies write a space in front
        return False
    return tokens_after_text(tokenizer, word) == [token]


def _word(tokenizer, token: int) -> str:
    """A token that begins a word, as text with the space in front (SentencePiece leaves out a first word's)."""
    return " " + tokenizer.decode([token]).strip()
