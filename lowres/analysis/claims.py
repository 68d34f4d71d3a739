"""The paper's seven claims, each with its contrasts and its decision rule, written down before any data were seen.

The unit is the seed: a method's accuracy is averaged over shot counts (draws are nested, so these are not independent), over the
tasks, models and settings named, and compared within the seed. A claim is a list of contrasts; each says between which bounds a
mean difference lies, in percentage points, the bounds being multiples of the margin. All must hold for the claim to be
supported; one that is refuted contradicts it, unless it is a side clause. Claim 7 has a rule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import inf

import numpy as np
import pandas as pd

from lowres.analysis.collect import main_runs
from lowres.analysis.statistics import Part
from lowres.files import BadInput
from lowres.runs.summary import UNTRAINED, interval
from lowres.tasks.task_file import read_task

COLA = ("cola", "cola_union")  # the same task, evaluated in two ways
PAPER = {"cola": "cola", "cola_union": "cola", "mnli": "mnli", "mnli_three": "mnli"}  # the project's task files of the paper's tasks
ACCURACY = ("in", "out")
FAMILY = 7


@cache
def paper_task(task: str) -> str:
    """Which of the paper's tasks a task is, by whatever name or path it was given: 'cola' or 'mnli'; '' for one's own, however it is called."""
    try:
        spec = read_task(task)
    except BadInput:
        return ""
    return PAPER[spec.name] if spec.name in PAPER and spec == read_task(spec.name) else ""


@dataclass(frozen=True)
class Side:
    """Which runs stand on one side: methods, and settings that a run must have. Several that fit are averaged."""

    name: str
    methods: tuple[str, ...]
    where: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Contrast:
    """`left` minus `right`. Measures: accuracy in or out of domain, points; train seconds or memory, 100 times the natural log ratio."""

    left: Side
    right: Side
    measure: str
    low: float = 0
    high: float = inf  # bounds, in margins
    tasks: tuple[str, ...] = ()  # empty: all that the study has
    same_head: bool = False  # compared head by head, so that a new classifier is not held against label words
    side: bool = False  # a side clause, not part of whether the methods are equivalent

    @property
    def name(self) -> str:
        where = {"in": "in domain", "out": "out of domain", "train_seconds": "training seconds", "memory": "peak memory"}[self.measure]
        return f"{self.left.name} − {self.right.name}, {where}" + (", CoLA" if self.tasks == COLA else "")


@dataclass(frozen=True)
class Claim:
    number: int
    text: str  # what the paper's summaries say
    rule: str  # what exactly makes it true here
    contrasts: tuple[Contrast, ...] = ()


VANILLA = Side("vanilla", ("vanilla",))
PBFT = Side("PBFT", ("pbft",))
FULL = Side("full fine-tuning", ("vanilla", "pbft"))
LORA = Side("LoRA", ("lora",), (("peft_type", "LORA"),))
ADAPTIVE = Side("adaptive", ("adaptive",))
PATTERN = Side("adaptive (pattern)", ("adaptive",), (("adapt", "pattern"),))
LAYERS = Side("adaptive (layers)", ("adaptive",), (("adapt", "layers"),))
DISTILLED = Side("distillation", ("distillation",))
FEW = Side("distillation (few-shot)", ("distillation",), (("inputs", "few-shot"),))
POOL = Side("distillation (pool)", ("distillation",), (("inputs", "pool"),))
FIVE = (VANILLA, PBFT, ADAPTIVE, LORA, DISTILLED)  # the paper's methods; in-context learning is this project's yardstick
CLAIMS = (
    Claim(1, "Vanilla fine-tuning beats PBFT on CoLA; PBFT trails vanilla on out-of-domain data.",
          "vanilla − PBFT is above 0 in domain on CoLA, and above 0 out of domain over all tasks",
          (Contrast(VANILLA, PBFT, "in", tasks=COLA), Contrast(VANILLA, PBFT, "out"))),
    Claim(2, "Adaptive fine-tuning improves on PBFT.",
          "adaptive (the pattern chosen for the task: summary 0's reading) − PBFT is above 0 in domain",
          (Contrast(PATTERN, PBFT, "in"),)),
    Claim(3, "LoRA and adaptive fine-tuning are comparable to, or slightly worse than, full fine-tuning.",
          "LoRA, and adaptive (layers: the authors' code), each less full fine-tuning with the same head, lie in domain above "
          "−2 margins (slightly worse) and below +1 margin",
          (Contrast(LORA, FULL, "in", -2, 1, same_head=True), Contrast(LAYERS, FULL, "in", -2, 1, same_head=True))),
    Claim(4, "LoRA needs less compute and memory.",
          "LoRA's training seconds and its peak memory are each below those of full fine-tuning with the same head, as trained in this study",
          (Contrast(LORA, FULL, "train_seconds", -inf, 0, same_head=True), Contrast(LORA, FULL, "memory", -inf, 0, same_head=True))),
    Claim(5, "Context distillation generalises out of domain better than the others and beats standard fine-tuning; "
             "few-shot distillation is a cheaper, acceptable alternative.",
          "out of domain, distillation less each of vanilla, PBFT, adaptive and LoRA is above 0; in domain, less vanilla, too; and "
          "few-shot less pool distillation is above −2 margins out of domain, its training seconds below the pool's (side clauses: the study's "
          "settings decide much of them, so they can keep the claim from being supported, and not contradict it)",
          (*(Contrast(DISTILLED, other, "out") for other in (VANILLA, PBFT, ADAPTIVE, LORA)), Contrast(DISTILLED, VANILLA, "in"),
           Contrast(FEW, POOL, "out", -2, inf, side=True), Contrast(FEW, POOL, "train_seconds", -inf, 0, side=True))),
    Claim(6, "Out of domain, the alternatives are comparable to vanilla fine-tuning and PBFT.",
          "out of domain, adaptive, LoRA and distillation, each less vanilla and each less PBFT: all six within ±1 margin",
          tuple(Contrast(one, other, "out", -1, 1) for one in (ADAPTIVE, LORA, DISTILLED) for other in (VANILLA, PBFT))),
    Claim(7, "No method wins everywhere: choose by memory, compute and data.",
          "for each of the five methods there is an arena (a task in or out of domain, training seconds, or peak memory) in which another of "
          "the five is better; it is contradicted by one method that is better than all others in all arenas"),
)


@dataclass(frozen=True)
class Line:
    """One run on one evaluation set: its settings, and by seed what was measured."""

    settings: dict[str, object]  # method, variant, model, task, shots, domain, set, folder, and the study's settings
    by_seed: dict[int, dict[str, object]]  # accuracy (share), mcc, how far both are above their yardsticks, train_seconds, memory (GB), outcome

    def __getitem__(self, key: str) -> object:
        return self.settings[key]


@dataclass
class Paired:
    """A contrast's differences, one a seed, and what went into them."""

    contrast: Contrast
    d: np.ndarray = field(default_factory=lambda: np.empty(0))  # (seeds,)
    mcc: np.ndarray = field(default_factory=lambda: np.empty(0))  # (seeds,): the same differences of MCC, for accuracies
    learnt: bool = True  # of accuracies: whether either side's mean over the cells is above the yardsticks, by accuracy or MCC
    identical: float = 0.0  # of its pairs of trials, the share in which both sides are one trial, to the last digit
    seeds: list[int] = field(default_factory=list)
    cells: dict[tuple, tuple[list[Line], list[Line]]] = field(default_factory=dict)  # (task, model, shots[, head]) -> left and right
    missing: str = ""
    copies: int = 0  # seeds left out because they repeat another's predictions
    apart: int = 0  # of seconds: cells in which the sides' trials ran on different machines

    def part(self, margin: float) -> Part:
        low, high = (times * margin if np.isfinite(times) else times for times in (self.contrast.low, self.contrast.high))
        return Part(self.d, low, high, self.contrast.side)


KEYS = ["method", "variant", "model", "task", "shots", "domain", "set", "folder", "fidelity", "adapt", "head", "inputs", "peft_type"]
MEASURED = ["accuracy", "mcc", "above", "mcc_above", "train_seconds", "memory", "machine", "outcome"]


def relevant(trials: pd.DataFrame) -> list[Line]:
    """What claims look at: one fidelity (as described, if the study has it), main settings, no ablations."""
    if not len(trials):
        return []
    table = main_runs(trials)
    accuracy, mcc = (table[name] for name in UNTRAINED)
    table = table.assign(above=table["accuracy"] - np.fmax(table["constant"], accuracy), mcc_above=table["mcc"] - np.fmax(0, mcc))
    lines: dict[tuple, Line] = {}
    for key, seed, measured in zip(table[KEYS].itertuples(index=False, name=None), table["seed"], table[MEASURED].to_dict("records")):
        if key not in lines:
            settings = dict(zip(KEYS, key))
            if settings["method"] in ("vanilla", "pbft"):  # a full fine-tuning has the head that its method is
                words = settings["method"] == "pbft" and settings["fidelity"] != "as_coded"
                settings["head"] = "verbalizer" if words else "classifier"
            lines[key] = Line(settings, {})
        lines[key].by_seed[seed] = measured
    return list(lines.values())


def paired(lines: list[Line], contrast: Contrast) -> Paired:
    """A contrast's differences by seed, from `relevant` lines.

    A cell (task, model, shots) counts when both sides have it with as many seeds as the best cell, and as many runs as the best of
    these, so that a study that is still running is compared where it is complete. Seconds need both sides' trials on one machine.
    """
    result = Paired(contrast)
    other = contrast.tasks == COLA and not any(paper_task(line["task"]) for line in lines)
    if contrast.tasks and not other:  # a study of other tasks alone is asked of those that it has
        lines = [line for line in lines if {line["task"], paper_task(line["task"])} & set(contrast.tasks)]
    if contrast.measure in ACCURACY:
        lines = [line for line in lines if line["domain"] == contrast.measure]
    keys = ["task", "model", "shots"] + ["head"] * contrast.same_head
    left, right = (_cells(lines, side, keys) for side in (contrast.left, contrast.right))
    both = {cell: (left[cell], right[cell]) for cell in left if cell in right}
    if not both:
        empty = [side.name for side, found in ((contrast.left, left), (contrast.right, right)) if not found]
        result.missing = f"no {' and no '.join(empty)}" if empty else f"{contrast.name}: no task, model and shot count that both have"
        return result
    seeds = {cell: _seeds(one + other, contrast.measure) for cell, (one, other) in both.items()}
    size = {cell: (len(seeds[cell]), len({line["folder"] for line in one + other})) for cell, (one, other) in both.items()}  # seeds, runs
    result.cells = {cell: both[cell] for cell in both if size[cell] == max(size.values())}
    result.apart = sum(len(seeds[cell]) < len(_seeds(one + other, "")) for cell, (one, other) in both.items())
    common = sorted(set.intersection(*(seeds[cell] for cell in result.cells)))
    result.seeds = _without_copies(result.cells, common)
    result.copies = len(common) - len(result.seeds)
    result.missing = "" if result.seeds else f"{contrast.name}: no seed that both have" + " on one machine" * bool(result.apart)
    if result.seeds:
        one, other = (_mean(result, side, contrast.measure) for side in (0, 1))
        result.d = one - other
        if contrast.measure in ACCURACY:
            _beside(result)
    return result


def _seeds(lines: list[Line], measure: str) -> set[int]:
    """Those that all have; of seconds, those for which all were measured on one machine."""
    common = set.intersection(*(set(line.by_seed) for line in lines))
    return common if measure != "train_seconds" else {seed for seed in common if len({line.by_seed[seed]["machine"] for line in lines}) == 1}


def _beside(pair: Paired) -> None:
    """What tells how much a difference of accuracies is worth: MCC, and whether a side has more than a constant and the untrained model."""
    pair.mcc = _mean(pair, 0, "mcc") - _mean(pair, 1, "mcc")
    pair.learnt = any(interval(_mean(pair, side, name))[0] > 0 for side in (0, 1) for name in ("above", "mcc_above"))
    same = [{line.by_seed[seed]["outcome"] for line in one} == {line.by_seed[seed]["outcome"] for line in other}
            for one, other in pair.cells.values() for seed in pair.seeds]
    pair.identical = float(np.mean(same))


def _mean(pair: Paired, side: int, measure: str) -> np.ndarray:
    """(seeds,): one side's scores, mean over the cells."""
    return np.mean([_score(cell[side], measure, pair.seeds) for cell in pair.cells.values()], axis=0)


def _cells(lines: list[Line], side: Side, keys: list[str]) -> dict[tuple, list[Line]]:
    found: dict[tuple, list[Line]] = {}
    for line in lines:
        if line["method"] in side.methods and all(line[key] == value for key, value in side.where):
            found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def _without_copies(cells: dict[tuple, tuple[list[Line], list[Line]]], seeds: list[int]) -> list[int]:
    """A seed whose predictions, on either side and everywhere, repeat an earlier seed's is a copy, not a trial."""
    first: tuple[dict, dict] = ({}, {})  # by side: predictions -> the first seed that has them
    for seed in seeds:
        for side in (0, 1):
            first[side].setdefault(tuple(line.by_seed[seed]["outcome"] for pair in cells.values() for line in pair[side]), seed)
    return [seed for seed in seeds if all(seed in found.values() for found in first)]


def _score(side: list[Line], measure: str, seeds: list[int]) -> np.ndarray:
    """(seeds,): mean over the side's runs and sets; accuracy in percent, cost as 100 times its natural logarithm, the rest as it is."""
    column = "accuracy" if measure in ACCURACY else measure
    values = np.array([[line.by_seed[seed][column] for seed in seeds] for line in side], float)
    if measure in ("mcc", "above", "mcc_above"):
        return values.mean(axis=0)
    return 100 * (values if measure in ACCURACY else np.log(values.clip(min=1e-3))).mean(axis=0)


# The authors' own numbers, as description: laid over figures and beside claims, never part of a verdict. `published_results.csv` is made from the
# result files of their repository (github.com/iamvarada/llm_finetuning, commit 4e8e767): one line a distinct result, `copies` saying how many of
# the logged runs it stands for. Each setting has one or two distinct results; see `note`. Their in-domain CoLA set contains the out-of-domain one,
# and all accuracies are the last epoch's.
OUT = {"cola": "cola_out_of_domain_dev", "mnli": "hans"}  # the out-of-domain set that is compared
THEIR_ADAPTIVE = "layers"  # what the authors ran as "adaptive"


@cache
def published() -> pd.DataFrame:
    """A line a distinct result; accuracies are shares, `shots` a number or 'all', `rank` empty but for LoRA."""
    table = pd.read_csv(files("lowres.analysis") / "published_results.csv", dtype={"shots": str, "rank": "Int64"}, keep_default_na=False,
                        na_values={"rank": [""]})
    table["shots"] = [int(shots) if shots.isdigit() else shots for shots in table["shots"]]
    return table


def series(method: str, task: str, domain: str) -> pd.DataFrame:
    """A method's published accuracies in percent: model, shots, rank, accuracy, copies; one line a distinct result."""
    task = paper_task(task)
    table = published()
    table = table[(table["method"] == method) & (table["task"] == task) & (table["out_of_domain_set"] == OUT.get(task))]
    column = "in_domain_accuracy" if domain == "in" else "out_of_domain_accuracy"
    return table.assign(accuracy=100 * table[column])[["model", "shots", "rank", "accuracy", "copies"]]


def difference(contrast: Contrast) -> tuple[float, int] | None:
    """A contrast in the published numbers: mean over the settings that both sides have, points; and how many distinct results that rests on."""
    if contrast.measure not in ("in", "out"):
        return None
    found, count = [], 0
    for task in OUT:
        if contrast.tasks and task not in contrast.tasks:
            continue
        sides = [_of_side(side, task, contrast.measure) for side in (contrast.left, contrast.right)]
        if any(side is None for side in sides):
            continue
        means = [side.groupby(["model", "shots"])["accuracy"].mean() for side in sides]
        gaps = (means[0] - means[1]).dropna()
        found += list(gaps)
        count += sum(side.set_index(["model", "shots"]).index.isin(gaps.index).sum() for side in sides)
    return (sum(found) / len(found), int(count)) if found else None


def _of_side(side: Side, task: str, domain: str) -> pd.DataFrame | None:
    where = dict(side.where)
    if where.get("adapt", THEIR_ADAPTIVE) != THEIR_ADAPTIVE or where.get("inputs") == "pool":
        return None  # nothing was published for these readings
    parts = [part for method in side.methods if len(part := series(method, task, domain))]
    return pd.concat(parts) if parts else None
