"""What a method notebook shows a reader on the way: the data, one draw, the pattern. Tables are static: any viewer shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from lowres.batches import encode
from lowres.evaluation import constant_accuracy, predict
from lowres.heads import Verbalizer
from lowres.shots import checksum

if TYPE_CHECKING:
    from lowres.tasks import Task


def describe_task(task: Task) -> pd.DataFrame:
    """A line a set: rows, labels, and the accuracy of constant prediction. Prints what was dropped, and why."""
    print(f"{task.file.name}: {task.file.description}")
    for note in task.notes:
        print(f"- {note}")
    lines = []
    for name, rows in {"pool": task.pool, **task.evaluation}.items():
        counts = rows["label"].value_counts()
        domain = task.file.evaluation[name].domain if name in task.evaluation else ""
        lines.append({
            "set": name, "domain": {"in": "in", "out": "out of"}.get(domain, ""), "rows": f"{len(rows):,}",
            **{label: int(counts.get(i, 0)) for i, label in enumerate(task.labels)},
            "constant, %": f"{100 * constant_accuracy(rows['label'].to_numpy()):.1f}" if domain else "",
        })
    return pd.DataFrame(lines).set_index("set")


def describe_draw(task: Task, shots: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """The first examples of a draw; row numbers alone where the task's texts are not ours to print."""
    print(f"{len(shots)} examples, checksum {checksum(shots)}" + (f"; the first {most}:" if len(shots) > most else ""))
    columns = task.file.text if task.file.show_rows else []
    table = shots.head(most)[columns].copy()
    table["label"] = [task.labels[i] for i in shots["label"].head(most)]
    table.index.name = "pool row"
    return table


def describe_pattern(backbone, task: Task, pattern: str, words: list[str]) -> pd.DataFrame:
    """A made-up text in the pattern, and how probable the backbone finds each label word there, before any training."""
    example = pd.DataFrame([{**dict.fromkeys(task.file.text, "The children were playing in the garden."), "label": 0}])
    print("pattern:", repr(pattern))
    print("example:", repr(pattern.format(**example.iloc[0])))
    logits = predict(backbone, Verbalizer(backbone, words), {"example": encode(backbone, example, pattern, backbone.context_length)})
    return pd.DataFrame({"label": task.labels, "label word": [repr(word) for word in words],
                         "probability among them": [f"{share:.3f}" for share in torch.tensor(logits["example"][0]).softmax(0)]}).set_index("label")
