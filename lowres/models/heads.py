"""What turns the last token's hidden state into label logits: a new classifier, or the language-model head's own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.models.inputs import tokens_after_text

if TYPE_CHECKING:
    from lowres.models.batches import Following
    from lowres.tasks.task_file import TaskFile

PIECE = 256  # tokens whose logits over the whole vocabulary are held at a time: 50 MB for 50,000 words


def softmax_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of (texts, labels) with indices (texts,), summed over the texts."""
    return F.cross_entropy(logits, labels, weights, reduction="sum")


def sigmoid_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Binary cross-entropy of (texts, labels) with 0 and 1 (texts, labels), summed over both; `weights` are those of a label's texts that have it."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), pos_weight=weights, reduction="sum")


def span_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of the first token and of the last, halved, as transformers' question answering has it; summed over the texts. `logits`:
    (texts, most tokens, 2); `labels`: (texts, 3), both places and how many tokens a text has."""
    scores = of_its_tokens(logits, labels[:, 2])
    return (F.cross_entropy(scores[..., 0], labels[:, 0], reduction="sum") + F.cross_entropy(scores[..., 1], labels[:, 1], reduction="sum")) / 2


def tags_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of each word's tag, (texts, most tokens, tags) with (texts, most of all), -100 where none is asked for; summed over words."""
    return F.cross_entropy(logits.flatten(0, 1), labels[:, : logits.shape[1]].flatten(), weights, reduction="sum")


def of_its_tokens(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Scores of a text's own tokens; the smallest number elsewhere, so that they have no probability."""
    beyond = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
    return logits.masked_fill(beyond[..., None], torch.finfo(logits.dtype).min)


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss, "choice": softmax_loss, "span": span_loss, "tags": tags_loss}  # by a kind's `loss`
ROWS = {"choice": lambda labels: 1, "span": lambda labels: 2, "tags": lambda labels: 1 + 2 * labels}  # of a new matrix, where it has not one a label


class Classifier(nn.Module):
    """p(y | x) = softmax(W h(x)): a new matrix W of (labels, width), drawn from the trial's own stream; of several labels a
    text each has a sigmoid. Of choices each has a score w h(x, choice), by one vector w. Of spans two vectors score each token as the first
    and the last of the answer; of tags each word's last token is one of O, and B and I of each label (`everywhere`)."""

    branches = ()  # a text is read, and nothing behind it
    whole = True  # choices to their ends
    class_weights: torch.Tensor | None = None  # (labels,), of the loss

    def __init__(self, backbone, labels: int, seed: int, loss: str = "softmax"):
        super().__init__()
        self.of_logits, self.labels, self.everywhere = LOSSES[loss], labels, loss in ("span", "tags")
        spread = getattr(backbone.model.config, "initializer_range", None) or getattr(backbone.model.config, "init_std", 0.02)
        weight = torch.empty(ROWS.get(loss, int)(labels), backbone.width).normal_(0, spread, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight.to(backbone.device))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (texts, width) -> (texts, labels); of choices (texts, choices, width) -> (texts, choices); of spans and tags (texts, tokens, width)
        -> (texts, tokens, 2, or tags)."""
        return (hidden @ self.weight.T).squeeze(-1) if hidden.ndim == 3 else hidden @ self.weight.T

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed over the texts."""
        return self.of_logits(self.logits(hidden), labels, self.class_weights)


class Verbalizer(nn.Module):
    """p(y | x) = softmax over y of LMhead(h(P(x)))[V(y)]: no new weights, only the rows of the label words V(y).

    A label word of several tokens w1 .. wn has the logit sum over t of log p(wt | P(x), w1 .. wt-1), with `score` "mean" a token's share of that,
    with "first" the first token's alone. The text is read once for all words: each word's continuation branches off behind it (`branches`). One
    token's log-probability and its logit differ by the same for all labels, so words of one token each are the case above.

    With `over` "vocabulary" the training loss takes its softmax over all words (Mosbach et al. 2023); predictions compare label words either way.
    """

    whole, everywhere = False, False
    class_weights: torch.Tensor | None = None  # (labels,), of the loss

    def __init__(self, backbone, words: list[str], over: str = "label_words", score: str = "sum"):
        super().__init__()
        self.output = lambda: backbone.output  # looked up when used: the head owns no weights
        tokens = word_tokens(backbone.tokenizer, words, score)
        self.labels = len(words)
        self.ids = torch.tensor([ids[0] for ids in tokens], device=backbone.device)
        self.branches = [ids[:-1] for ids in tokens if len(ids) > 1]
        self.label_of = torch.tensor([label for label, ids in enumerate(tokens) for _ in ids[1:]], device=backbone.device)
        self.following = torch.tensor([token for ids in tokens for token in ids[1:]], device=backbone.device)
        self.share = torch.tensor([1 / len(ids) if score == "mean" else 1.0 for ids in tokens], device=backbone.device)
        self.over = over

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (texts, width), or with branches (texts, 1 + tokens of all branches, width) -> (texts, labels).

        Computes the label words' rows alone, unless a word has several tokens: a probability wants the whole vocabulary.
        """
        return self.log_probabilities(hidden) * self.share if self.branches else hidden @ self.output()[self.ids].T

    def log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """(texts, 1 + tokens of all branches, width) -> the words' log-probabilities, (texts, labels)."""
        first = (hidden[:, 0] @ self.output().T).log_softmax(1)[:, self.ids]
        places = hidden[:, 1:].flatten(0, 1)
        wanted = self.following.repeat(len(hidden))
        parts = [-F.cross_entropy(h @ self.output().T, t, reduction="none") for h, t in zip(places.split(PIECE), wanted.split(PIECE))]
        return first.index_add(1, self.label_of, torch.cat(parts).view(len(hidden), -1))

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over the texts."""
        if self.over == "label_words":
            return F.cross_entropy(self.logits(hidden), labels, self.class_weights, reduction="sum")
        if not self.branches and self.class_weights is None:
            return F.cross_entropy(hidden @ self.output().T, self.ids[labels], reduction="sum")
        words = self.logits(hidden) if self.branches else (hidden @ self.output().T).log_softmax(1)[:, self.ids]
        return F.nll_loss(words, labels, self.class_weights, reduction="sum")


class Questions(nn.Module):
    """p(label | x) = sigmoid of (LMhead(h)[yes] - LMhead(h)[no]), h behind the text in its pattern and the label's question: no new weights.

    The text is read once for all labels: each question branches off behind it. `questions`: one a label, `words`: for no and yes, a token each.
    """

    whole, everywhere = False, False
    class_weights: torch.Tensor | None = None  # (labels,), of the loss

    def __init__(self, backbone, questions: list[str], words: list[str], score: str = "sum"):
        super().__init__()
        self.output = lambda: backbone.output
        self.labels = len(questions)
        self.branches = [tokens_after_text(backbone.tokenizer, question) for question in questions]
        self.ids = torch.tensor(one_token_each(backbone.tokenizer, words, score), device=backbone.device)
        self.ends = torch.tensor([len(branch) for branch in self.branches], device=backbone.device).cumsum(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (texts, 1 + tokens of all questions, width) -> (texts, labels)."""
        no, yes = self.output()[self.ids]
        return hidden[:, self.ends] @ (yes - no)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed over texts and labels."""
        return sigmoid_loss(self.logits(hidden), labels, self.class_weights)


class Likelihood(nn.Module):
    """p(choice | x) = softmax over the choices of their scores, each choice's log-probability in the pattern: no new weights.

    `score`: "sum" over its tokens, which is the log-probability itself; "mean", a token's share of that; "character", a character's;
    "unconditional": less the log-probability of the same tokens with nothing in front of them (Holtzman et al. 2021, arXiv 2104.08315), which
    `evaluation.predict` takes off, since that is another text. What the choices begin with in common is read once.
    """

    branches, whole, everywhere = (), False, False
    class_weights: torch.Tensor | None = None  # none: a choice's place is no class

    def __init__(self, backbone, labels: int, score: str = "sum"):
        super().__init__()
        self.output = lambda: backbone.output
        self.labels, self.score = labels, score

    def logits(self, read: Following) -> torch.Tensor:
        """(texts, choices)."""
        parts = []
        for start, hidden in zip(range(0, len(read.hidden), PIECE), read.hidden.split(PIECE)):
            words = hidden @ self.output().T
            here = (read.place >= start) & (read.place < start + PIECE)
            place = read.place[here] - start
            parts.append(words[place, read.token[here]] - words.logsumexp(1)[place])
        total = torch.zeros(read.tokens.numel(), device=read.hidden.device).index_add(0, read.choice, torch.cat(parts)).view_as(read.tokens)
        return total / {"mean": read.tokens, "character": read.characters}.get(self.score, 1)

    def loss(self, read: Following, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over the texts."""
        return softmax_loss(self.logits(read), labels, self.class_weights)


class Written(Likelihood):
    """p(answer | x) = the probability that the model writes the answer behind the pattern, and then a line break: no new weights.

    Learnt by its logarithm, so that all other words compete; answered by the likeliest of the passage's spans (`search.found_spans`). Of tags a
    question for each type stands between, and its entities are listed.
    """

    def __init__(self, backbone):
        super().__init__(backbone, 3)

    def loss(self, read: Following, labels: torch.Tensor) -> torch.Tensor:
        """-log p of the right answers, in nats, summed over the texts."""
        return -self.logits(read).sum()


def word_head(backbone, spec: TaskFile, words: list[str], over: str = "label_words", score: str = "sum") -> Verbalizer | Questions | Likelihood:
    """The head that reads words behind a task's pattern: one for each label; where a question is asked for each label, no and yes; choices; or a
    passage's spans."""
    if spec.passage:
        return Written(backbone)
    if spec.choices:
        return Likelihood(backbone, len(spec.labels), score)
    if spec.questions:
        return Questions(backbone, spec.asked, words, score)
    return Verbalizer(backbone, words, over, score)


def behind(tokenizer, spec: TaskFile, words: list[str], score: str) -> list[int]:
    """How many tokens `word_head` reads behind a text, by branch. Raises BadInput as it does."""
    if not spec.questions:
        return read_behind(tokenizer, words, score)
    one_token_each(tokenizer, words, score)
    return [len(tokens_after_text(tokenizer, question)) for question in spec.asked]


def one_token_each(tokenizer, words: list[str], score: str) -> list[int]:
    """The tokens of the answers to a question. Raises BadInput for an answer of several."""
    tokens = word_tokens(tokenizer, words, score)
    for word, ids in zip(words, tokens):
        if len(ids) > 1:
            raise BadInput(f"label_words: {word!r} is {len(ids)} tokens; of an answer to questions one is wanted, or word_score: first")
    return [ids[0] for ids in tokens]


def word_tokens(tokenizer, words: list[str], score: str = "sum") -> list[list[int]]:
    """Each label word's tokens; of score "first" the first one alone. Raises BadInput for words that cannot be told apart."""
    tokens = [tokens_after_text(tokenizer, word) for word in words]
    seen: dict[tuple[int, ...], str] = {}
    for word, ids in zip(words, tokens):
        if not ids:
            raise BadInput(f"label_words: {word!r} is 0 tokens; one at least is wanted")
        for before, other in seen.items():
            shorter = min(len(before), len(ids)) if score != "first" else 1
            if list(before[:shorter]) == ids[:shorter]:
                what = "share their first token" if shorter == 1 else "begin with the same tokens, and one ends there"
                raise BadInput(f"label_words: {word!r} and {other!r} {what}, so they cannot be told apart")
        seen[tuple(ids)] = word
    return [ids[:1] for ids in tokens] if score == "first" else tokens


def read_behind(tokenizer, words: list[str], score: str = "sum") -> list[int]:
    """How many tokens are read behind a text to tell each label word: its own but the last. Raises BadInput as `word_tokens` does."""
    return [len(ids) - 1 for ids in word_tokens(tokenizer, words, score)]
