"""What turns the last token's hidden state into label logits: a new classifier, or the language-model head's own rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lowres.files import BadInput


class Classifier(nn.Module):
    """p(y | x) = softmax(W h(x)): a new matrix W of (labels, width), drawn from the trial's own stream."""

    def __init__(self, backbone, labels: int, seed: int):
        super().__init__()
        spread = getattr(backbone.model.config, "initializer_range", None) or getattr(backbone.model.config, "init_std", 0.02)
        weight = torch.empty(labels, backbone.width).normal_(0, spread, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight.to(backbone.device))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (texts, width) -> (texts, labels)."""
        return hidden @ self.weight.T

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over the texts."""
        return F.cross_entropy(self.logits(hidden), labels, reduction="sum")


class Verbalizer(nn.Module):
    """p(y | x) = softmax over y of LMhead(h(P(x)))[V(y)]: no new weights, only the rows of the label words V(y).

    With `vocabulary` the training loss takes its softmax over all words (Mosbach et al. 2023); predictions compare label words either way.
    """

    def __init__(self, backbone, words: list[str], over: str = "label_words"):
        super().__init__()
        self.output = lambda: backbone.output  # looked up when used: the head owns no weights
        self.ids = torch.tensor(word_ids(backbone.tokenizer, words), device=backbone.device)
        self.over = over

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (texts, width) -> (texts, labels). Computes the label words' rows alone."""
        return hidden @ self.output()[self.ids].T

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, summed over the texts."""
        if self.over == "vocabulary":
            return F.cross_entropy(hidden @ self.output().T, self.ids[labels], reduction="sum")
        return F.cross_entropy(self.logits(hidden), labels, reduction="sum")


def word_ids(tokenizer, words: list[str]) -> list[int]:
    """Each label word's one token. Raises BadInput for a word of several tokens, or two words with the same first one."""
    tokens = [tokens_after_text(tokenizer, word) for word in words]
    first: dict[int, str] = {}
    for word, ids in zip(words, tokens):
        if ids and ids[0] in first:
            raise BadInput(f"label_words: {word!r} and {first[ids[0]]!r} share their first token, so they cannot be told apart")
        if len(ids) != 1:
            pieces = tokenizer.convert_ids_to_tokens(ids)
            raise BadInput(f"label_words: {word!r} is {len(ids)} tokens ({', '.join(pieces)}); one is wanted (mind the space in front)")
        first[ids[0]] = word
    return [ids[0] for ids in tokens]


def tokens_after_text(tokenizer, words: str) -> list[int]:
    """The tokens of words that stand behind other text: SentencePiece vocabularies put a space of their own in front of a text's first word."""
    before = "x" if words[:1].isspace() else "\n"
    alone, together = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + words))
    return together[len(alone):]
