"""The usual ways, for comparison: transformers' Trainer as the authors ran it, and as one would who knows how to tune it.

A: float32, every text padded to 128 tokens, evaluation in batches of 8.
B: bfloat16 autocast, texts padded to their batch's longest, grouped by length, evaluation in batches of 64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


@dataclass(frozen=True)
class Way:
    name: str
    padded_to: int | None
    bfloat16: bool
    evaluation_batch: int


AUTHORS = Way("A", 128, False, 8)
TUNED = Way("B", None, True, 64)
WAYS = (AUTHORS, TUNED)


def named(name: str) -> Way:
    return next(way for way in WAYS if way.name == name)


class Texts(torch.utils.data.Dataset):
    """Token ids as the Trainer takes them."""

    def __init__(self, ids: list[list[int]]):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"input_ids": self.ids[i], "labels": i % 2}


class LabelWords(nn.Module):
    """A causal language model's logits of the label words at each text's last token. Padded on the left, it computes the last token's logits
    alone; on the right, all."""

    def __init__(self, model: nn.Module, words: list[int], left: bool):
        super().__init__()
        self.model, self.words, self.left, self.config = model, words, left, model.config

    def forward(self, input_ids, attention_mask):
        if self.left:
            last = self.model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=1, use_cache=False).logits[:, -1]
        else:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            last = logits[torch.arange(len(logits)), attention_mask.sum(1) - 1]
        return {"logits": last[:, self.words]}


def collated(way: Way, pad: int, ids: list[list[int]], side: str = "right", labels: bool = True) -> dict[str, torch.Tensor]:
    rows = pad_sequence([torch.tensor(text) for text in ids], batch_first=True, padding_value=pad, padding_side=side)
    missing = max(0, (way.padded_to or 0) - rows.shape[1])
    rows = nn.functional.pad(rows, (0, missing) if side == "right" else (missing, 0), value=pad)
    batch = {"input_ids": rows, "attention_mask": (rows != pad).long()}
    return {**batch, "labels": torch.arange(len(ids)) % 2} if labels else batch


def grouped(ids: list[list[int]], size: int) -> list[list[list[int]]]:
    """Batches of nearly equal lengths, as the Trainer makes them."""
    torch.manual_seed(0)
    order = list(LengthGroupedSampler(size, lengths=[len(text) for text in ids]))
    return [[ids[i] for i in order[start : start + size]] for start in range(0, len(ids), size)]


def classifier(folder: Path) -> nn.Module:
    """transformers' own: the backbone's weights and a new head on the last token."""
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)


def label_words(way: Way, folder: Path, words: list[int]) -> LabelWords:
    return LabelWords(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), words, left=way.bfloat16)


class Peer:
    """A Trainer, to be run whole, or step by step by its own methods so that it can alternate with others."""

    def __init__(self, way: Way, model: nn.Module, scratch: Path, ids: list[list[int]] = (), epochs: int = 40):
        self.way, self.pad = way, model.config.pad_token_id
        self.side = "left" if isinstance(model, LabelWords) and model.left else "right"
        self.labelled = not isinstance(model, LabelWords)
        arguments = TrainingArguments(
            str(scratch), use_cpu=True, bf16=way.bfloat16, per_device_train_batch_size=32, per_device_eval_batch_size=way.evaluation_batch,
            num_train_epochs=epochs, learning_rate=1e-5, warmup_steps=0.1, weight_decay=0.0, save_strategy="no", report_to="none",
            train_sampling_strategy="random" if way.padded_to else "group_by_length", remove_unused_columns=False, disable_tqdm=True,
        )
        self.trainer = Trainer(model, arguments, data_collator=self._collate, train_dataset=Texts(ids))

    def _collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        return self.batch([example["input_ids"] for example in examples])

    def batch(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        return collated(self.way, self.pad, ids, self.side, self.labelled)

    def ready(self, optimizer_of: Peer | None = None) -> Peer:
        """Wraps the model and makes the optimizer, as `train()` does first. Peers that share weights can share its two moments, too."""
        self.model, _ = self.trainer._prepare_for_training(1_000_000, None, None)
        if optimizer_of:
            self.trainer.optimizer, self.trainer.lr_scheduler = optimizer_of.trainer.optimizer, optimizer_of.trainer.lr_scheduler
        return self

    def step(self, ids: list[list[int]]) -> None:
        """What the Trainer does for one batch between two callbacks, from the texts to the cleared gradients."""
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = 1
        (batch,), count = trainer.get_batch_samples(iter([self.batch(ids)]), 1, trainer.args.device)
        loss = trainer.training_step(self.model, batch, count)
        assert torch.isfinite(loss)
        trainer._clip_grad_norm(self.model)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()

    def evaluate(self, batches: list[list[list[int]]]) -> None:
        """What the Trainer's evaluation does with each batch."""
        model = getattr(self, "model", None) or self._for_evaluation()
        model.eval()
        for ids in batches:
            self.trainer.prediction_step(model, self.batch(ids), prediction_loss_only=False)

    def _for_evaluation(self) -> nn.Module:
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model, evaluation_mode=True)
        return self.model

    def evaluation_batches(self, ids: list[list[int]]) -> list[list[list[int]]]:
        """The batches of a whole evaluation, in the Trainer's order."""
        size = self.way.evaluation_batch
        return grouped(ids, size) if not self.way.padded_to else [ids[start : start + size] for start in range(0, len(ids), size)]

    def tokens(self, batches: list[list[list[int]]]) -> int:
        """How many are computed, padding and all."""
        return sum((self.way.padded_to or max(map(len, ids))) * len(ids) for ids in batches)


def pair(folder: Path, scratch: Path) -> tuple[Peer, Peer]:
    """A and B, ready to step. They share weights and the optimizer's moments, or a model of 350 million weights would not fit beside lowres' own."""
    model = classifier(folder)
    # Copied before either is wrapped: accelerate marks a model as done, and would leave the marked copy without autocast.
    other = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    a = Peer(AUTHORS, model, scratch).ready()
    return a, Peer(TUNED, other, scratch).ready(optimizer_of=a)
