"""A trained model to take away: a folder that plain transformers loads, and what it answers.

The label logits of every method that trains are a product of the last hidden state with one row a label: a new classifier's, or the label words' of
the language-model head. So a kept model is a sequence classifier of the backbone's family whose score matrix has these rows; adapters are merged
into the weights. Its tokenizer puts the backbone's prefix in front itself, its config holds the pattern. Of a baseline, scikit-learn's classifier
is kept as plain arrays, and of a probe the backbone's name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lowres.files import BadInput, read_json, shown
from lowres.methods.evaluation import evaluated, last_states
from lowres.methods.training import Outcome
from lowres.models import adapters
from lowres.models.backbone import Backbone, load_backbone, resolved_precision, without_weights
from lowres.models.batches import encode
from lowres.models.heads import Verbalizer, read_behind
from lowres.models.weights import context_length, load_tokenizer, prefix_tokens
from lowres.tasks.kinds import KINDS, kind_of_file
from lowres.tasks.load import Task
from lowres.tasks.task_file import fields, filled, read_task

ABOUT = "lowres.json"  # what the folder is, beside what transformers reads
CLASSIFIER = "classifier.safetensors"  # of a baseline
EXPECTED = "expected.parquet"  # beside the folder while it is made: texts in their pattern, and the logits that the trial gave them
SEVERAL_TOKENS = ("keep: label words of several tokens cannot become a sequence classifier, which reads each text once: words of one token each, "
                  "word_score: first or head: classifier can be kept")
QUESTIONS = ("keep: of several labels a text, a method with label words asks a question each behind it, which is no sequence classifier: vanilla, "
             "head: classifier or a baseline can be kept")


def check_can_be_kept(method: str, p) -> None:
    """Raises BadInput for a method that leaves no weights of its own."""
    kind = kind_of_file(read_task(p.task))
    if not kind.kept:
        raise BadInput(f"keep: models of tasks of kind {kind.name} cannot be kept yet")
    if method == "in_context":
        raise BadInput("keep: in_context trains nothing, so there is nothing to keep: its model is the backbone behind a prompt")
    if getattr(p, "classifier", "") == "brought":
        raise BadInput("keep: another program's answers are no model")
    if getattr(p, "fidelity", "") == "as_coded" and method == "distillation":
        raise BadInput("keep: distillation as_coded trains two models with heads of their own, of which none is the method's")
    worded = hasattr(p, "label_words") and getattr(p, "head", "verbalizer") == "verbalizer" and p.fidelity == "as_described"
    if worded and kind.several:
        raise BadInput(QUESTIONS)
    if worded and any(read_behind(without_weights(p.model).tokenizer, read_task(p.task).words(p.label_words), p.word_score)):
        raise BadInput(SEVERAL_TOKENS)


def write_with_answers(folder: Path, run, outcome: Outcome, about: dict[str, Any]) -> None:
    """Right after a trial, in its kernel: the model into `folder`, with what it is `about`, and beside it what it must answer."""
    p, task, parts = run.parameters, run.task, []
    about |= {"method": run.method, "max_length": p.max_length, "model": p.model, "task": task.file.name, "kind": task.kind.name,
              "scores": {name: score[task.kind.metric] for name, score in evaluated(task, outcome.logits).items()}}
    baseline = outcome.classifier is not None
    pattern = "" if baseline else run.backbone.trained[1]
    for name, rows in task.evaluation.items():
        told = pd.DataFrame(outcome.logits[name], columns=[f"logit_{label}" for label in task.labels], index=rows.index)
        told = told.assign(set=name, row=rows.index, cut=False)
        if baseline:
            told = told.assign(**{f"text {column}": rows[column] for column in task.file.text})
        else:
            told["text"] = [filled(pattern, record) for record in rows[task.file.text].to_dict("records")]
            whole = [len(run.backbone.prefix) + len(ids) for ids in run.backbone.tokenize(list(told["text"]))]
            told["cut"] = [length > len(ids) for length, ids in zip(whole, run.evaluation[name].ids)]
        parts.append(told)
    if baseline:
        write_classifier(folder, outcome.classifier, task, p, about | {"precision": run.backbone.precision if p.classifier == "probe" else "float32"})
    else:
        write(folder, run.backbone, task, about)
    pd.concat(parts).to_parquet(folder.parent / EXPECTED, index=False)


def write_classifier(folder: Path, classifier, task: Task, p, about: dict[str, Any]) -> None:
    """Writes what a baseline fitted as arrays (no pickle), and what it reads."""
    from safetensors.numpy import save_file

    from lowres.methods.baselines import arrays

    found, words = arrays(classifier)
    save_file({name: np.ascontiguousarray(part) for name, part in found.items()}, folder / CLASSIFIER)
    about |= {"classifier": p.classifier, "pattern": task.file.pattern(p.pattern) if p.classifier == "probe" else "", "text": task.file.text,
              "labels": task.labels, "words": words}
    pd.Series(about).to_json(folder / ABOUT, indent=1, force_ascii=False)


def write(folder: Path, backbone: Backbone, task: Task, about: dict[str, Any]) -> None:
    """Writes the model that `backbone` was last trained to be, with its tokenizer and `about`. Raises BadInput for one that transformers has no
    sequence classifier for, or an adapter that cannot be merged."""
    from transformers import AutoModelForSequenceClassification

    head, pattern = backbone.trained
    if head.branches:
        raise BadInput(SEVERAL_TOKENS)
    with torch.no_grad():
        rows = (backbone.output[head.ids] if isinstance(head, Verbalizer) else head.weight).detach().float().cpu().clone()
    if backbone.bottlenecks:
        raise BadInput("keep: a bottleneck adapter is no part of transformers' own models: LORA, or a method that trains the weights, can be kept")
    if backbone.adapter is not None:
        if not hasattr(backbone.adapter, "merge_and_unload") or backbone.adapter.active_peft_config.is_prompt_learning:
            raise BadInput("keep: virtual tokens in front of the text are no weights of the model: an adapter that can be merged (LORA) can be kept")
        adapters.save(backbone, head, folder / "adapter")
        backbone.adapter.merge_and_unload()
        backbone.adapter = None
    tokenizer = _with_prefix(backbone)
    config = copy.deepcopy(backbone.model.config)
    labels = task.labels
    config.num_labels, config.id2label, config.problem_type = len(labels), dict(enumerate(labels)), task.kind.kept
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
    """A kept model, ready to answer. `read`: a frame of texts -> label logits (rows, labels), and which texts were longer than it reads."""

    about: dict[str, Any]
    read: Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]]

    @property
    def labels(self) -> list[str]:
        return self.about["labels"]

    @property
    def kind(self):
        return KINDS[self.about.get("kind", "classification")]

    def predict(self, texts: Sequence[str] | pd.DataFrame) -> pd.DataFrame:
        """A line a text: its label (of several, all, with '|' between them), a probability for each label, and what is to be known of it ('' for
        most).

        `texts`: of a model with one text column; for several, a frame with these columns. An empty text has no label; of one that is too long the
        end was not read.
        """
        columns = self.about["text"]
        rows = texts if isinstance(texts, pd.DataFrame) else pd.DataFrame({columns[0]: list(texts)})
        if missing := [column for column in columns if column not in rows]:
            raise BadInput(f"predict: column {missing[0]!r} is missing: this model reads {', '.join(columns)}")
        words = rows[columns].astype(object).where(rows[columns].notna(), "").astype(str)
        empty = words.apply(lambda column: column.str.strip() == "").any(axis=1).to_numpy()
        logits, notes = np.full((len(rows), len(self.labels)), np.nan), np.where(empty, "empty text", "").astype(object)
        here = np.flatnonzero(~empty)
        if len(here):
            logits[here], cut = self.read(words.iloc[here])
            notes[here[cut]] = f"read to {self.about['max_length']} tokens"
        given = self.kind.chosen(np.nan_to_num(logits))
        answers = [self.kind.written(one, self.labels) if known else "" for one, known in zip(given, ~empty)]
        chances = pd.DataFrame(self.kind.probabilities(logits), columns=[f"p({label})" for label in self.labels])
        return pd.concat([pd.Series(answers, name="predicted"), chances, pd.Series(notes, name="note")], axis=1).set_axis(rows.index)


def read_about(folder: Path) -> dict[str, Any]:
    about = read_json(folder / ABOUT)
    if about is None:
        raise BadInput(f"{shown(folder)}: is no folder that `lowres keep` made: it has no {ABOUT}")
    return about


@lru_cache(maxsize=2)
def load(folder: str | Path, device: str = "cpu") -> Kept:
    """A kept model by its folder. Raises BadInput for a folder that is none."""
    place = Path(folder).expanduser()
    about = read_about(place)
    if "classifier" in about:
        return Kept(about, _baseline(place, about, device))
    backbone, weight = _sequence_classifier(place, about, device)
    return Kept(about, lambda rows: _through(backbone, rows, about, lambda states: (states @ weight.T).float().cpu().numpy()))


def _sequence_classifier(place: Path, about: dict[str, Any], device: str) -> tuple[Backbone, torch.Tensor]:
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    model.get_output_embeddings = lambda: score(model)  # which is what a backbone's output is here
    tokenizer, where = load_tokenizer(place), torch.device(device)
    backbone = Backbone(str(place), place, model.to(where), tokenizer, prefix_tokens(tokenizer), context_length(model.config, str(place)), where,
                        resolved_precision(about["precision"], where))
    return backbone, score(model).weight.detach()


def _baseline(place: Path, about: dict[str, Any], device: str) -> Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]]:
    from safetensors.numpy import load_file

    from lowres.methods.baselines import answers, joined, rebuilt

    classifier = rebuilt(load_file(place / CLASSIFIER), about["words"], KINDS[about.get("kind", "classification")].several)
    answer = lambda features: answers(classifier, {"rows": features})["rows"]
    if about["classifier"] == "tfidf":
        return lambda rows: (answer(joined(rows, about["text"])), np.zeros(len(rows), bool))
    backbone = load_backbone(about["model"], device, about["precision"])
    return lambda rows: _through(backbone, rows, about, lambda states: answer(states.float().cpu().numpy()))


def _through(backbone: Backbone, rows: pd.DataFrame, about: dict[str, Any], answer: Callable) -> tuple[np.ndarray, np.ndarray]:
    """What is answered from the last states of the texts in their pattern, and which of them were cut."""
    inputs = encode(backbone, rows.assign(label=0), about["pattern"], about["max_length"])
    whole = encode(backbone, rows.assign(label=0), about["pattern"], 10**9).ids if inputs.cut else inputs.ids
    return answer(last_states(backbone, inputs.ids)), np.array([len(a) > len(b) for a, b in zip(whole, inputs.ids)], bool)
