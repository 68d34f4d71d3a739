"""Context distillation (Askell et al. 2021, arXiv 2112.00861; Snell et al. 2022, arXiv 2209.15189): one model, twice.

The frozen teacher reads a context C and an input x; the student reads x alone and learns the teacher's distribution. No gold label of
an input is used, and an input is never among its own demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.methods.evaluation import predict, scored
from lowres.methods.in_context import Context, demonstrated, instructed, instruction, predict_after, without_prefix
from lowres.methods.training import Outcome, train
from lowres.models.batches import Inputs, encode
from lowres.models.heads import Classifier, Verbalizer, read_behind
from lowres.tasks.shots import Streams

if TYPE_CHECKING:
    import pandas as pd


class LastState:
    """A head that reads nothing off the last token's state: every target is computed from it."""

    branches = ()

    @staticmethod
    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@dataclass
class Lesson:
    """What is learnt on, and what the teacher sees besides.

    inputs: texts whose `labels` are their own numbers, for the student to look its targets up. contexts: the teacher's. which: for each
    input, the number of its context.
    """

    inputs: Inputs
    contexts: list[Context]
    which: np.ndarray

    @property
    def read(self) -> int:
        """Tokens that the teacher reads: each context once, and every input (with the student's prefix)."""
        return sum(len(context.tokens) for context in self.contexts) + sum(map(len, self.inputs.ids))


def unlabelled(texts: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The texts alone: whatever was their label, what stands there now is their number."""
    return texts[columns].assign(label=np.arange(len(texts)))


def drawn_from_pool(texts: pd.DataFrame, shots: pd.DataFrame, rows: int, streams: Streams) -> pd.DataFrame:
    """`rows` of a task's `texts` that are no shots, by the seed's own stream. Raises BadInput if there are not so many."""
    others = np.flatnonzero(~texts.index.isin(shots.index))
    if len(others) < rows:
        raise BadInput(f"unlabelled: {rows} is more than the {len(others)} rows that the pool has beside the shots")
    return texts.iloc[streams.unlabelled.permutation(others)[:rows]]


def folds(shots: int, labels: int) -> np.ndarray:
    """0 or 1 for each shot, by its place in the draw (one of each label in turn), whatever its label says."""
    return np.arange(shots) // labels % 2


def prepare(teacher, student, task, p, shots: pd.DataFrame, streams: Streams, pattern: str, words: list[str], room: int = 0) -> Lesson:
    """The inputs and the contexts of one trial. `room`: tokens that any other input of the teacher takes.

    few-shot inputs see the demonstrations of the other fold only; pool inputs are no shots; so none is its own demonstration.
    Raises BadInput if a context does not fit.
    """
    few = p.inputs == "few-shot"
    chosen = shots if few else drawn_from_pool(task.texts, shots, p.unlabelled, streams)
    inputs = encode(student, unlabelled(chosen, task.file.text), pattern, p.max_length)
    room = max(room, *map(len, without_prefix(teacher, inputs).ids))
    which = np.zeros(len(inputs), int)
    if p.context == "instruction":
        return Lesson(inputs, [instructed(teacher, task.file, words, room)], which)
    order = streams.demonstrations.permutation(len(shots))
    fold = folds(len(shots), len(words)) if few else np.zeros(len(shots), int)
    contexts = [
        demonstrated(teacher, shots[fold == f], order[fold == f], pattern, words, p.demonstrations, p.max_length, room) for f in np.unique(fold)
    ]
    return Lesson(inputs, contexts, 1 - fold if few else which)


@dataclass
class Targets:
    """The teacher's distributions, (inputs, events): log-probabilities at the temperature.

    Events are the label words (`tokens` is None), or each input's `tokens` (inputs, k) and, last, all the rest.
    """

    log: torch.Tensor
    temperature: float
    tokens: torch.Tensor | None = None


def label_targets(logits: torch.Tensor, temperature: float) -> Targets:
    """softmax(z / T) over the label words; logits: (inputs, labels)."""
    return Targets(F.log_softmax(logits / temperature, dim=1), temperature)


def targets(teacher, words: list[str], lesson: Lesson, p) -> Targets:
    """What the teacher says of a lesson's inputs, each behind its context."""
    sets, head = {"inputs": without_prefix(teacher, lesson.inputs)}, Verbalizer(teacher, words, score=p.word_score)
    if head.branches:  # words of several tokens: not to be told from the last states
        logits = predict_after(teacher, head, sets, lesson.contexts, {"inputs": lesson.which})["inputs"]
        return label_targets(torch.from_numpy(logits).to(teacher.device), p.temperature)
    return taught(teacher, head, predict_after(teacher, LastState, sets, lesson.contexts, {"inputs": lesson.which})["inputs"], p)


@torch.no_grad()
def taught(teacher, head: Verbalizer, states: np.ndarray, p) -> Targets:
    """What the teacher says of the inputs, from its last states (inputs, width): computed once, before any training."""
    hidden = torch.from_numpy(states).to(teacher.device)
    if p.top_k:
        return top_k_targets(hidden, teacher.output, p.top_k, p.temperature)
    return label_targets(head.logits(hidden), p.temperature)


@torch.no_grad()
def top_k_targets(states: torch.Tensor, output: torch.Tensor, k: int, temperature: float) -> Targets:
    """The k tokens that the teacher finds likeliest and the rest; states: (inputs, width), output: (vocabulary, width)."""
    logs, tokens = [], []
    for part in states.split(64):  # logits over the whole vocabulary are large
        logits = part @ output.T
        tokens.append(logits.topk(k, dim=1).indices)
        logs.append(with_rest(logits / temperature, tokens[-1]))
    return Targets(torch.cat(logs), temperature, torch.cat(tokens))


def with_rest(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(inputs, vocabulary) -> log-probabilities (inputs, k + 1) of each input's `tokens` and of all others together."""
    total = logits.logsumexp(dim=1, keepdim=True)
    rest = logits.scatter(1, tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, tokens), rest], dim=1) - total


class DistilledVerbalizer(Verbalizer):
    """The verbalizer, learning T^2 KL(teacher || student) instead of labels."""

    def __init__(self, backbone, words: list[str], targets: Targets, score: str = "sum"):
        super().__init__(backbone, words, score=score)
        self.targets = targets

    def loss(self, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Summed over the texts. hidden: (texts, width); inputs: their numbers, (texts,)."""
        targets = self.targets
        if targets.tokens is None:
            student = F.log_softmax(self.logits(hidden) / targets.temperature, dim=1)
        else:
            student = with_rest(hidden @ self.output().T / targets.temperature, targets.tokens[inputs])
        # T^2 keeps the gradient's size: T (softmax(z/T) - p), whatever T (Hinton et al. 2015).
        return targets.temperature**2 * F.kl_div(student, targets.log[inputs], reduction="sum", log_target=True)


class CodedStudent(Classifier):
    """As the authors coded it: half their KL with the teacher's raw logits z as target, half the cross-entropy with gold labels.

    torch's `kl_div` says z log z - z log q; z log z is NaN for a negative logit, but a constant without gradient, so it is left out here:
    the training is theirs (if their divergence was averaged over the batch, which is not known), the loss a number. It may be negative,
    since z is no distribution.
    """

    def __init__(self, backbone, labels: int, seed: int, teacher: torch.Tensor, gold: torch.Tensor):
        super().__init__(backbone, labels, seed)
        self.teacher, self.gold = teacher.to(backbone.device), gold.to(backbone.device)

    def loss(self, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Summed over the texts. inputs: their numbers, (texts,)."""
        logits = self.logits(hidden)
        divergence = -(self.teacher[inputs] * F.log_softmax(logits, dim=1)).sum()
        return 0.5 * divergence + 0.5 * F.cross_entropy(logits, self.gold[inputs], reduction="sum")


def trial_as_coded(run, shots: pd.DataFrame, pattern: str, seed: int) -> Outcome:
    """The authors' procedure: a random head as the teacher, the same prompt for teacher and student, half of the loss on gold labels."""
    p, task, backbone, streams = run.parameters, run.task, run.backbone, Streams(seed)
    backbone.restore()
    inputs = encode(backbone, unlabelled(shots, task.file.text), pattern, p.max_length)
    untrained = Classifier(backbone, len(task.labels), streams.teacher)
    with run.meter.phase("teach"):
        raw = predict(backbone, untrained, {"inputs": inputs})["inputs"]
    gold = torch.tensor(shots["label"].to_numpy())
    head = CodedStudent(backbone, len(task.labels), streams.weights, torch.from_numpy(raw), gold)
    with run.meter.phase("compare"):
        answers = {"teacher": untrained, "student before": head}
        also = {name: scored(task, predict(backbone, one, run.evaluation)) for name, one in answers.items()}
    with run.meter.phase("train"):
        training = train(backbone, head, inputs, p, streams)
    with run.meter.phase("evaluate"):
        logits = predict(backbone, head, run.evaluation)
    return Outcome(shots, training, logits, {"also": also}, read=sum(map(len, inputs.ids)))


def check_distillation(p, spec) -> None:
    """What can be told from the task file, the tokenizers and the models' configurations, before weights are read. Raises BadInput."""
    from transformers import AutoConfig

    from lowres.models.weights import load_tokenizer, prefix_tokens, resolve

    if p.context == "instruction":
        instruction(spec, spec.words(p.label_words))
    folders = [resolve(name, weights=False) for name in (p.model, p.teacher) if name]
    sizes = [AutoConfig.from_pretrained(folder).get_text_config().vocab_size for folder in folders]
    if p.top_k and any(read_behind(load_tokenizer(folders[0]), spec.words(p.label_words), p.word_score)):
        raise BadInput(f"top_k: {p.top_k} tokens are distilled, and the label words of {spec.name!r} are several each: 0 distils the words")
    if p.top_k >= sizes[0]:
        raise BadInput(f"top_k: {p.top_k} leaves no rest of the {sizes[0]:,} tokens in the vocabulary of {p.model!r}")
    if p.rank:
        from lowres.models.adapters import check_student

        check_student(p)
    tokenizers = [load_tokenizer(folder) for folder in folders]
    same = [(tokenizer.get_vocab(), prefix_tokens(tokenizer), size) for tokenizer, size in zip(tokenizers, sizes)]
    if same[0] != same[-1]:
        raise BadInput(f"teacher: {p.teacher!r} and the student {p.model!r} have different vocabularies, so no token is common to both")


def check(p) -> None:
    from lowres.tasks.task_file import read_task

    check_distillation(p, read_task(p.task))


def describe_lesson(teacher, student, words: list[str], lesson: Lesson, p, most: int = 4) -> pd.DataFrame:
    """The first inputs: the label words' probabilities at the temperature, by teacher and untrained student, and their divergence."""
    import pandas as pd

    few = {"inputs": lesson.inputs.take(range(min(most, len(lesson.inputs))))}
    shown = {"inputs": without_prefix(teacher, few["inputs"])}
    heads = [Verbalizer(model, words, score=p.word_score) for model in (teacher, student)]
    behind = predict_after(teacher, heads[0], shown, lesson.contexts, {"inputs": lesson.which[:most]})["inputs"]
    alone = predict(student, heads[1], few)["inputs"]
    taught, told = (F.log_softmax(torch.from_numpy(logits) / p.temperature, dim=1) for logits in (behind, alone))
    columns = [(who, log.exp()[:, i], word) for who, log in (("teacher", taught), ("student", told)) for i, word in enumerate(words)]
    table = {f"{who}, {word!r}": [f"{x:.3f}" for x in column] for who, column, word in columns}
    divergence = F.kl_div(told, taught, reduction="none", log_target=True).sum(1)
    return pd.DataFrame({**table, "KL, nats": [f"{x:.3f}" for x in divergence]}).rename_axis("input")
