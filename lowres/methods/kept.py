"""A trained model to take away: a folder that plain transformers loads, and what it answers.

The label logits of every method that trains are a product of the last hidden state with one row a label: a new classifier's, or the label words' of
the language-model head. So a kept model is a sequence classifier of the backbone's family whose score matrix has these rows; adapters are merged
into the weights. Its tokenizer puts the backbone's prefix in front itself, its config holds the pattern.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import nn

from lowres.files import BadInput, read_json, shown
from lowres.methods.evaluation import last_states
from lowres.models import adapters
from lowres.models.backbone import Backbone, resolved_precision
from lowres.models.batches import Inputs, encode
from lowres.models.heads import Verbalizer
from lowres.models.weights import context_length, load_tokenizer, prefix_tokens
from lowres.tasks.load import Task
from lowres.tasks.task_file import fields, filled

ABOUT = "lowres.json"  # what the folder is, beside what transformers reads
EXPECTED = "expected.parquet"  # beside the folder while it is made: texts in their pattern, and the logits that the trial gave them
NOTHING_TO_KEEP = {
    "in_context": "in_context trains nothing, so there is nothing to keep: its model is the backbone behind a prompt",
    "baselines": "baselines leave the backbone as it is: keep is for methods that train it",
}
CHUNK = 1000  # rows that are predicted, and written, at a time


def check_can_be_kept(method: str, p) -> None:
    """Raises BadInput for a method that leaves no weights of its own."""
    if method in NOTHING_TO_KEEP:
        raise BadInput(f"keep: {NOTHING_TO_KEEP[method]}")
    if getattr(p, "fidelity", "") == "as_coded" and method == "distillation":
        raise BadInput("keep: distillation as_coded trains two models with heads of their own, of which none is the method's")


def write_with_answers(folder: Path, backbone: Backbone, task: Task, evaluation: dict[str, Inputs], logits: dict[str, np.ndarray],
                       about: dict[str, Any]) -> None:
    """Right after a trial, in its kernel: the model into `folder`, and beside it what it must answer."""
    _, pattern = backbone.trained
    parts = []
    for name, rows in task.evaluation.items():
        texts = [filled(pattern, record) for record in rows[task.file.text].to_dict("records")]
        whole = [len(backbone.prefix) + len(ids) for ids in backbone.tokenize(texts)]
        told = pd.DataFrame(logits[name], columns=[f"logit_{label}" for label in task.labels], index=rows.index)
        cut = [length > len(ids) for length, ids in zip(whole, evaluation[name].ids)]
        parts.append(told.assign(set=name, row=rows.index, text=texts, cut=cut))
    write(folder, backbone, task.labels, about)
    pd.concat(parts).to_parquet(folder.parent / EXPECTED, index=False)


def write(folder: Path, backbone: Backbone, labels: list[str], about: dict[str, Any]) -> None:
    """Writes the model that `backbone` was last trained to be, with its tokenizer and `about`. Raises BadInput for one that transformers has no
    sequence classifier for, or an adapter that cannot be merged."""
    from transformers import AutoModelForSequenceClassification

    head, pattern = backbone.trained
    with torch.no_grad():
        rows = (backbone.output[head.ids] if isinstance(head, Verbalizer) else head.weight).detach().float().cpu().clone()
    if backbone.adapter is not None:
        if not hasattr(backbone.adapter, "merge_and_unload") or backbone.adapter.active_peft_config.is_prompt_learning:
            raise BadInput("keep: virtual tokens in front of the text are no weights of the model: an adapter that can be merged (LORA) can be kept")
        adapters.save(backbone, head, folder / "adapter")
        backbone.adapter.merge_and_unload()
        backbone.adapter = None
    tokenizer = _with_prefix(backbone)
    config = copy.deepcopy(backbone.model.config)
    config.num_labels, config.id2label = len(labels), dict(enumerate(labels))
    config.label2id, config.pad_token_id = {label: i for i, label in enumerate(labels)}, tokenizer.pad_token_id
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError:
        raise BadInput(f"keep: transformers has no sequence classifier for models like {backbone.name!r}") from None
    model.base_model.load_state_dict({key: value.detach().cpu() for key, value in backbone.model.base_model.state_dict().items()})
    score(model).weight.data = rows
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about |= {"pattern": pattern, "text": list(dict.fromkeys(fields(pattern))), "labels": labels, "precision": backbone.precision}
    pd.Series(about).to_json(folder / ABOUT, indent=1, force_ascii=False)


def score(model: nn.Module) -> nn.Linear:
    """A sequence classifier's last layer, the one that lies outside its base model."""
    return next(module for name, module in model.named_children() if name != model.base_model_prefix and isinstance(module, nn.Linear))


def _with_prefix(backbone: Backbone):
    """A copy of the tokenizer that puts the backbone's prefix in front by itself, and can pad."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(backbone.tokenizer)
    if backbone.prefix and tokenizer("")["input_ids"] != backbone.prefix:
        word = tokenizer.convert_ids_to_tokens(backbone.prefix[0])
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{word} $A", special_tokens=[(word, backbone.prefix[0])])
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0), "right"
    return tokenizer


@dataclass
class Kept:
    """A kept model, ready to answer."""

    backbone: Backbone
    weight: torch.Tensor
    about: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        return self.about["labels"]

    def predict(self, texts: Sequence[str] | pd.DataFrame) -> pd.DataFrame:
        """A line a text: its label, a probability for each label, and what is to be known of it ('' for most).

        `texts`: of a model with one text column; for several, a frame with these columns. An empty text has no label; of one that is too long the
        end was not read.
        """
        columns = self.about["text"]
        rows = texts if isinstance(texts, pd.DataFrame) else pd.DataFrame({columns[0]: list(texts)})
        if missing := [column for column in columns if column not in rows]:
            raise BadInput(f"predict: column {missing[0]!r} is missing: this model reads {', '.join(columns)}")
        words = rows[columns].astype(object).where(rows[columns].notna(), "").astype(str)
        empty = (words == "").any(axis=1) | words.apply(lambda column: column.str.strip() == "").any(axis=1)
        logits, notes = np.full((len(rows), len(self.labels)), np.nan), np.where(empty, "empty text", "").astype(object)
        here = np.flatnonzero(~empty)
        if len(here):
            inputs = encode(self.backbone, words.iloc[here].assign(label=0), self.about["pattern"], self.about["max_length"])
            logits[here] = (last_states(self.backbone, inputs.ids) @ self.weight.T).float().cpu().numpy()
            whole = encode(self.backbone, words.iloc[here].assign(label=0), self.about["pattern"], 10**9).ids if inputs.cut else inputs.ids
            notes[here[[len(a) > len(b) for a, b in zip(whole, inputs.ids)]]] = f"read to {self.about['max_length']} tokens"
        answers = [self.labels[i] if known else "" for i, known in zip(np.nan_to_num(logits).argmax(axis=1), ~empty)]
        chances = pd.DataFrame(softmax(logits, axis=1), columns=[f"p({label})" for label in self.labels])
        return pd.concat([pd.Series(answers, name="predicted"), chances, pd.Series(notes, name="note")], axis=1).set_axis(rows.index)


@lru_cache(maxsize=2)
def load(folder: str | Path, device: str = "cpu") -> Kept:
    """A kept model by its folder. Raises BadInput for a folder that is none."""
    from transformers import AutoModelForSequenceClassification, logging

    place = Path(folder).expanduser()
    about = read_json(place / ABOUT)
    if about is None:
        raise BadInput(f"{shown(place)}: is no folder that `lowres keep` made: it has no {ABOUT}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    model.get_output_embeddings = lambda: score(model)  # which is what a backbone's output is here
    tokenizer, where = load_tokenizer(place), torch.device(device)
    backbone = Backbone(str(folder), place, model.to(where), tokenizer, prefix_tokens(tokenizer), context_length(model.config, str(folder)), where,
                        resolved_precision(about["precision"], where))
    return Kept(backbone, score(model).weight.detach(), about)


def in_chunks(rows: pd.DataFrame, start: int = 0) -> Iterator[pd.DataFrame]:
    for first in range(start, len(rows), CHUNK):
        yield rows.iloc[first : first + CHUNK]
