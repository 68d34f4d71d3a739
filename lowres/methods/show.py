"""What the frozen backbone makes of a pattern, label words and a text, before any training; by a call or with controls.

Nothing here trains or is kept: it is where a pattern is tried before it goes into a task file.
"""

from __future__ import annotations

import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from lowres import files
from lowres.files import BadInput, safe
from lowres.methods import choose, in_context, layers_and_corpus
from lowres.methods.evaluation import predict
from lowres.models.batches import encode
from lowres.models.heads import Classifier, Verbalizer, word_head
from lowres.tasks.load import Task
from lowres.tasks.shots import Streams, checksum, draw
from lowres.tasks.task_file import TaskFile, fields, filled

if TYPE_CHECKING:
    from ipywidgets import VBox
    from matplotlib.figure import Figure


def describe_task(task: Task) -> pd.DataFrame:
    """A line a set: rows, labels, and the score of the best constant answer. Prints what was dropped, and why."""
    print(f"{task.file.name}: {task.file.description}")
    for note in task.notes:
        print(f"- {note}")
    lines = []
    for name, rows in {"pool": task.pool, **task.evaluation}.items():
        counts = task.kind.counts(rows, len(task.labels))
        domain = task.file.evaluation[name].domain if name in task.evaluation else ""
        lines.append({
            "set": name, "domain": {"in": "in", "out": "out of"}.get(domain, ""), "rows": f"{len(rows):,}",
            **{label: int(count) for label, count in zip(task.labels, counts)},
            "constant, %": f"{100 * task.kind.constant(task.kind.gold(rows)):.1f}" if domain else "",
        })
    if task.unlabelled is not None:
        lines.append({"set": "unlabelled", "rows": f"{len(task.unlabelled):,}"})
    return pd.DataFrame(lines).fillna("").set_index("set")


def describe_draw(task: Task, shots: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """The first examples of a draw; row numbers alone where the task's texts are not ours to print."""
    print(f"{len(shots)} examples, checksum {checksum(shots)}" + (f"; the first {most}:" if len(shots) > most else ""))
    columns = task.file.text if task.file.show_rows else []
    table = shots.head(most)[columns].copy()
    table["label"] = [task.kind.written(label, task.labels) for label in shots["label"].head(most)]
    table.index.name = "pool row"
    return table


def describe_pattern(backbone, task: Task, pattern: str, words: list[str]) -> pd.DataFrame | None:
    """A made-up text in the pattern, and how probable the backbone finds each label word there, or yes to each label's question, before any
    training. Of choices and spans the pattern alone: each stands for itself."""
    print("pattern:", repr(pattern))
    if not words:
        return None
    example = pd.DataFrame([{**dict.fromkeys(task.file.text, "The children were playing in the garden."), "label": 0}])
    print("example:", repr(filled(pattern, example.iloc[0])))
    head = word_head(backbone, task.file, words)
    logits = predict(backbone, head, {"example": encode(backbone, example, pattern, backbone.context_length)})
    if task.file.questions:
        return pd.DataFrame({"label": task.labels, "question": task.file.asked,
                             f"probability of {words[1]!r}": [f"{share:.3f}" for share in torch.tensor(logits["example"][0]).sigmoid()]}
                            ).set_index("label")
    return pd.DataFrame({"label": task.labels, "label word": [repr(word) for word in words],
                         "probability among them": [f"{share:.3f}" for share in torch.tensor(logits["example"][0]).softmax(0)]}).set_index("label")


def describe_adaptation(run) -> pd.DataFrame | str:
    """What the reading that ran did, a line a seed: the pattern chosen; or nats per token on texts of the pool that were never trained on."""
    trials = run.trials
    if run.parameters.adapt == "pattern":
        for reason in dict.fromkeys(trial["choice"]["reason"] for trial in trials):
            print(f"seed {', '.join(str(trial['seed']) for trial in trials if trial['choice']['reason'] == reason)}: {reason}")
        chosen = {trial["seed"]: trial["choice"]["chosen"] for trial in trials}
        lines = [{"seed": seed, "pattern": c["pattern"], "label words": ", ".join(map(repr, c["words"])),
                  "gain over default, nats": f"{c['gain']:+.3f} ± {c['error']:.3f}"} for seed, c in chosen.items()]
        return pd.DataFrame(lines).set_index("seed")
    if run.parameters.adapt == "corpus":
        keys = {"texts": "texts read", "tokens": "tokens read", "held_out": "texts held out", "before": "loss before", "after": "loss after"}
        table = pd.DataFrame([{"seed": trial["seed"], **trial["corpus"]} for trial in trials]).set_index("seed")[list(keys)]
        return table.rename(columns=keys).round(3)
    trained, total = trials[0]["trainable"], trials[0]["parameters"]
    return f"{trained:,} of {total:,} weights trained, the top layers' and a new classifier's if there is one; the others were frozen."


def describe_first_adaptation(run) -> pd.DataFrame | None:
    """The first seed's: all candidates, ranked; or the optimizer's groups. Knowing nothing is -log(labels): -0.693 with two.

    Each candidate was written into the task file before any scoring, or searched among the words that the backbone itself finds likely, on
    other folds than it is scored on. The default stays unless a candidate's gain, paired by shot, exceeds its standard error; below 16
    shots it stays in any case (`choose_always`), since that is a low bar for the best of many.
    """
    p, task, backbone, streams = run.parameters, run.task, run.backbone, Streams(run.parameters.seeds[0])
    backbone.restore()
    if p.adapt == "pattern":
        choice = choose.pattern(backbone, task.file, draw(task.pool, p.shots, streams.seed, p.uneven), p, streams)
        print(f"{choice.reason}: {choice.chosen.pattern}, {choice.chosen.words}")
        return choice.table()
    if p.adapt == "layers":
        groups = layers_and_corpus.layer_groups(backbone, Classifier(backbone, len(task.labels), streams.weights, task.kind.loss), p)
        weights = [sum(weight.numel() for weight in group["params"]) for group in groups]
        print(f"{layers_and_corpus.frozen(backbone):,} of {backbone.parameters():,} weights are frozen")
        return pd.DataFrame({"group": [g["name"] for g in groups], "learning rate": [f"{g['lr']:.2e}" for g in groups], "weights": weights})
    return None


def tokens(backbone, text: str) -> list[str]:
    """A text as the backbone reads it, piece by piece, behind the prefix that it puts in front."""
    return [backbone.tokenizer.decode([token]) for token in backbone.prefix + backbone.tokenize([text])[0]]


def label_probabilities(backbone, spec: TaskFile, pattern: str, words: dict[str, str], example: dict[str, str]) -> pd.DataFrame:
    """A line a label: its word, its probability among the label words after the pattern, and the same calibrated by a content-free input.

    `words`: a label word for each label. `example`: a text for each of the task's text columns. Raises BadInput for a pattern
    without a place for each of them, or words that are not one token each.
    """
    rows = pd.DataFrame([{**example, "label": 0}])
    logits, empty = _logits(backbone, spec, pattern, words, rows)
    return pd.DataFrame({
        "label": spec.labels, "label word": [repr(words[label]) for label in spec.labels],
        "probability": softmax(logits, axis=1)[0].round(3), "calibrated": softmax(in_context.calibrated(logits, empty), axis=1)[0].round(3),
    }).set_index("label")


def score_shots(backbone, task: Task, shots: pd.DataFrame, pattern: str, words: dict[str, str]) -> pd.DataFrame:
    """How labelled examples fare under a pattern: a line each for plain and calibrated answers, beside the constant one.

    right, %: gold labels that are likeliest. mean log p: of the gold label, in nats; log(1 / labels) is knowing nothing.
    """
    logits, empty = _logits(backbone, task.file, pattern, words, shots)
    gold, labels = shots["label"].to_numpy(), len(task.labels)
    ways = {"as it is": softmax(logits, axis=1), "calibrated": softmax(in_context.calibrated(logits, empty), axis=1)}
    lines = [{"answers": name, "right, %": 100 * (part.argmax(1) == gold).mean(), "mean log p": np.log(part[np.arange(len(gold)), gold]).mean()}
             for name, part in ways.items()]
    lines.append({"answers": "constant", "right, %": 100 * np.bincount(gold).max() / len(gold), "mean log p": -np.log(labels)})
    return pd.DataFrame(lines).round({"right, %": 1, "mean log p": 3}).set_index("answers")


def _logits(backbone, spec: TaskFile, pattern: str, words: dict[str, str], rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Label logits (rows, labels) of the rows, and of a content-free input, from one pass."""
    _check_pattern(pattern, spec)
    head = Verbalizer(backbone, [words[label] for label in spec.labels])
    both = pd.concat([rows[[*spec.text, "label"]], in_context.empty_example(spec)])
    inputs = encode(backbone, both, pattern, backbone.context_length)
    logits = predict(backbone, head, {"all": inputs})["all"]
    return logits[:-1], logits[-1:]


def _check_pattern(pattern: str, spec: TaskFile) -> None:
    try:
        columns = fields(pattern)
    except ValueError as error:
        raise BadInput(f"pattern: {pattern!r}: {error}") from None
    if sorted(columns) != sorted(spec.text):
        raise BadInput(f"pattern: {pattern!r} wants a place for each of {', '.join(f'{{{column}}}' for column in spec.text)}, once")


def controls(backbone, task: Task, shots: pd.DataFrame, pattern: str, words: dict[str, str], example: dict[str, str]) -> VBox:
    """Controls over the calls above. What they show is made anew when one changes, with the lines of code that would show the same."""
    import ipywidgets

    wide = {"style": {"description_width": "initial"}, "layout": {"width": "min(44em, 98%)"}, "continuous_update": False}
    asked = ipywidgets.Text(pattern.replace("\n", r"\n"), description="pattern", **wide)
    said = {label: ipywidgets.Text(words[label], description=f"word: {label}", **wide) for label in task.labels}
    given = {column: ipywidgets.Text(example[column], description=column, **wide) for column in task.file.text}
    shown = ipywidgets.HTML()

    def render(_=None) -> None:
        values = [{name: box.value for name, box in boxes.items()} for boxes in (said, given)]
        try:
            shown.value = _page(backbone, task, shots, asked.value.replace(r"\n", "\n"), *values)
        except BadInput as error:
            shown.value = f'<p role="alert"><strong>{html.escape(str(error))}</strong></p>'

    for control in (asked, *said.values(), *given.values()):
        control.observe(render, "value")
    render()
    return ipywidgets.VBox([asked, *said.values(), *given.values(), shown])


def _page(backbone, task: Task, shots: pd.DataFrame, pattern: str, words: dict[str, str], example: dict[str, str]) -> str:
    """The controls' result as HTML; every text from a control is escaped."""
    first = label_probabilities(backbone, task.file, pattern, words, example)
    second = score_shots(backbone, task, shots, pattern, words)
    boxes = [f'<span style="border:1px solid #999;border-radius:3px;padding:0 2px;white-space:pre">{html.escape(repr(piece)[1:-1])}</span>'
             for piece in tokens(backbone, filled(pattern, example))]
    code = [f"text_pattern = {pattern!r}", f"words = {words!r}", f"example = {example!r}",
            "show.tokens(backbone, text_pattern.format(**example))",
            "show.label_probabilities(backbone, task.file, text_pattern, words, example)",
            "show.score_shots(backbone, task, examples, text_pattern, words)"]
    form = {"border": 0, "justify": "left", "col_space": "7em"}
    return (f'<h4>Tokens</h4><div style="line-height:1.9">{" ".join(boxes)}</div>'
            f"<h4>The backbone's opinion</h4>{first.to_html(**form)}"
            f"<h4>How {len(shots)} labelled examples fare</h4>{second.to_html(**form)}"
            f'<h4>The same as code</h4><pre style="white-space:pre-wrap">{html.escape(chr(10).join(code))}</pre>')


@dataclass
class Picture:
    """A figure, its file's name without ending, and what it shows in words."""

    figure: Figure
    name: str
    alt: str


DOTS = 72  # an inch: places are sought at the size at which letters are shown, as they do not shrink evenly


def theme() -> None:
    import seaborn as sns  # with matplotlib it takes 1 s, which no first trial has to wait for

    looks = {"figure.dpi": DOTS, "axes.titlesize": "medium", "legend.frameon": False, "svg.hashsalt": "lowres"}
    sns.set_theme(context="notebook", style="whitegrid", rc=looks)


def loss_curves(trials: list[dict], labels: int = 0) -> None:
    """Shows training loss against the step, a line a trial; beside it log(labels), the cross-entropy of knowing nothing of so many labels (or sets
    of labels)."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    theme()
    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for trial, colour in zip(trials, sns.color_palette("crest", len(trials))):
        axes.plot(np.arange(1, len(trial["losses"]) + 1), trial["losses"], color=colour, label=f"seed {trial['seed']}")
    if labels:
        axes.axhline(math.log(labels), color="0.4", linestyle=":", label="knowing nothing")
    axes.set(xlabel="optimizer step", ylabel="training loss", title=f"Training loss, {len(trials)} trials")
    axes.set_ylim(bottom=min([0, *(loss for trial in trials for loss in trial["losses"])]))
    figure.legend(loc="outside right upper")  # beside the curves: eight seeds' names would lie on them
    plt.close(figure)  # it is shown once, below
    first, last = (np.mean([trial["losses"][i] for trial in trials]) for i in (0, -1))
    show(Picture(figure, "training", f"Training loss against the optimizer step, {len(trials)} trials: from {first:.2f} to {last:.2f} in the mean"
               + (f"; dotted: knowing nothing, {math.log(labels):.2f}." if labels else ".")))


def show(drawn: Picture, folder: Path | None = None) -> None:
    """Displays a figure with its words as alternative text and caption; with a folder, writes FOLDER/figures/NAME.png and .svg, whole."""
    from IPython.display import Markdown, display

    buffer = io.BytesIO()
    if drawn.figure.stale:
        drawn.figure.draw_without_rendering()
    drawn.figure.set_layout_engine(None)  # its places are found now: each format would seek them anew, twice
    drawn.figure.savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None})
    picture = few_colours(buffer)
    if folder and folder.is_dir():
        vectors = io.BytesIO()
        drawn.figure.savefig(vectors, format="svg", metadata={"Date": None})
        for kind, content in (("png", picture), ("svg", vectors.getvalue())):
            files.write_whole(folder / "figures" / f"{drawn.name}.{kind}", content)
    # The words stand in the notebook three times: as the picture's alternative, for viewers without pictures, and as a caption.
    display({"image/png": picture, "text/plain": drawn.alt}, metadata={"image/png": {"alt": drawn.alt}}, raw=True)
    display(Markdown(f"*{safe(drawn.alt)}*"))


def few_colours(png: io.BytesIO) -> bytes:
    """The same picture with a palette of 256 colours, a quarter of the bytes: an analysis of 24 figures stays below 1 MB.

    By octree: Pillow's default (median cut) drops rare colours, and a method's colour may be that of a few pixels.
    """
    from PIL import Image

    smaller = io.BytesIO()
    palette = Image.open(png).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(smaller, format="png", optimize=True)
    return smaller.getvalue()
