"""Whole trials against the usual ways, and the training step against its limit, for one model.

A paper's trial takes the authors' way hours. So every way's step and evaluation batch is measured, in turn, and a trial is composed of them:
set-up + steps x step + batches x batch. `check` runs one short trial of each way whole, and says how far off composing is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lowres.methods.evaluation import predict
from lowres.methods.training import steps, train
from lowres.models.backbone import load_backbone
from lowres.models.batches import Inputs, pack
from lowres.models.heads import Classifier
from lowres.parameters import Vanilla
from lowres.tasks.shots import Streams
from tests.benchmarks import compiled, limit, peers, workloads
from tests.benchmarks.peers import AUTHORS, Peer
from tests.benchmarks.stepping import Stepped
from tests.benchmarks.timing import Row, Samples, alternate, called, composed, marked, ratio, shown, target, usual

TARGETS = {("A", "cola"): 20, ("A", "mnli"): 8, ("B", "cola"): 1.8, ("B", "mnli"): 1.8}
SHOTS = (2, 16, 128)
PART = 0.75  # of the limit
Texts = list[list[int]]


class Case:
    """One model with its texts: training sets by task and shots, evaluation sets by task, and what a trial of each way does with them."""

    def __init__(self, name: str, scratch: Path, scale: int):
        self.name, self.scratch = called(name), scratch / "trainer"
        folder = workloads.model_folder(name, scratch)
        # OPT's shapes are measured as a trial is by default: compiled, too, they would take six minutes more.
        self.ways = ["lowres"] if name in workloads.OPT_SHAPES else [*compiled.WAYS]
        self.backbone = load_backbone(folder, device="cpu", compiled="compiled" in self.ways)
        self.start = compiled.start(folder, scratch) if self.backbone.compiled else ()
        top = workloads.vocabulary(self.backbone)
        self.shots = {(task, shots): workloads.texts(task, 2 * shots, top) for task in workloads.EVALUATED for shots in SHOTS}
        self.evaluated = {task: [text for kind, count in kinds.items() for text in workloads.texts(kind, count // scale, top)]
                          for task, kinds in workloads.EVALUATED.items()}
        self.times: dict[str, float] = {}  # how often a trial does what a job does

    def head(self) -> Classifier:
        return Classifier(self.backbone, 2, 0)

    def loaded(self, way: peers.Way, ids: Texts = (), epochs: int = 40) -> Peer:
        return Peer(way, peers.classifier(self.backbone.folder), self.scratch, ids, epochs)

    def set_up_jobs(self) -> dict[str, Callable]:
        """What comes before the first step, tokenization left out, and how texts share rows, which lowres settles before an evaluation."""
        jobs = {f"{way.name} set-up": lambda way=way: self.loaded(way).ready() for way in peers.WAYS}
        jobs["lowres set-up"] = lambda: (self.backbone.restore(), self.head())
        return jobs | {f"lowres {task} packing": lambda ids=ids: next(pack(ids)) for task, ids in self.evaluated.items()}

    def step_jobs(self, a: Peer, b: Peer) -> dict[str, Callable]:
        sizes = {(task, 2 * shots): self.shots[task, shots] for task in workloads.EVALUATED for shots in SHOTS[:2]}
        texts = sum(sizes.values(), [])
        ours = Stepped(self.backbone, self.head(), workloads.inputs(texts))
        jobs, at = {}, 0
        for (task, size), batch in sizes.items():
            for way in self.ways:
                jobs[f"{way} {task} step {size}"] = compiled.done(way, partial(ours.step, list(range(at, at + size))))
            jobs[f"B {task} step {size}"] = usual(partial(b.step, batch))
            if task == "cola":  # padded to 128 tokens, a batch of either task is the same
                jobs[f"A step {size}"] = usual(partial(a.step, batch))
            at += size
        return jobs | {f"B {task} step grouped": usual(partial(b.step, self.grouped(task, b))) for task in workloads.EVALUATED}

    def grouped(self, task: str, b: Peer) -> Texts:
        """Of the batches of 128 shots, grouped by length, the one whose size is nearest to their mean."""
        batches = peers.grouped(self.shots[task, 128], 32)
        mean = b.tokens(batches) / len(batches)
        return min(batches, key=lambda batch: abs(b.tokens([batch]) - mean))

    def evaluation_jobs(self, a: Peer, b: Peer) -> dict[str, Callable]:
        jobs: dict[str, Callable] = {}
        for task, ids in self.evaluated.items():
            sample = workloads.sample(ids)
            for way in self.ways:
                jobs[f"{way} {task} evaluation"] = compiled.done(way, partial(predict, self.backbone, self.head(), {"set": workloads.inputs(sample)}))
                self.times[f"{way} {task} evaluation"] = len(ids) / len(sample)
            batches = b.evaluation_batches(ids)
            some = workloads.thirds(batches)
            jobs[f"B {task} evaluation"] = usual(partial(b.evaluate, some))
            self.times[f"B {task} evaluation"] = b.tokens(batches) / b.tokens(some)
            self.times[f"A {task} evaluation"] = math.ceil(len(ids) / AUTHORS.evaluation_batch)
        return jobs | {"A evaluation": usual(partial(a.evaluate, a.evaluation_batches(self.evaluated["cola"])[:1]))}

    def parts(self, way: str, task: str, shots: int, samples: Samples) -> dict[str, tuple[float, list[float]]]:
        """A trial's parts: how often, and a part's seconds."""
        size = "grouped" if way == "B" and shots == SHOTS[-1] else min(32, 2 * shots)
        both = "" if way == "A" else f" {task}"
        count = steps(2 * shots, Vanilla(shots=shots))
        ours = way in compiled.WAYS
        found = {"set-up": (1, samples["lowres set-up" if ours else f"{way} set-up"]), "steps": (count, samples[f"{way}{both} step {size}"]),
                 "batches": (self.times[f"{way} {task} evaluation"], samples[f"{way}{both} evaluation"])}
        if ours:
            found["packing"] = 1, samples[f"lowres {task} packing"]
        if way == "compiled":
            found["start"] = 1, [self.start[1]] * len(found["set-up"][1])
        return found

    def limits(self) -> dict[str, limit.Products]:
        def work(ids: Texts) -> None:
            for rows in pack(ids):
                head.loss(self.backbone.hidden(rows), workloads.inputs(ids).labels[rows.texts]).backward()

        head = self.head()
        self.backbone.model.train()
        look = compiled.done("lowres", lambda: {task: limit.products_of(partial(work, self.shots[task, 16])) for task in workloads.EVALUATED})
        found = look()
        self.backbone.model.zero_grad()
        return found


def whole_trials(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """Every way's trial of the paper's sizes, and how near lowres' step is to its limit."""
    case = Case(name, scratch, scale=100 if quick else 1)
    samples = alternate(case.set_up_jobs(), repeats)
    products = case.limits()
    a, b = peers.pair(case.backbone.folder, case.scratch)
    alone = {f"{task} products": limit.Alone(found).seconds for task, found in products.items()}
    jobs = {**case.step_jobs(a, b), **alone, **case.evaluation_jobs(a, b)}
    samples |= alternate(jobs, repeats, warm=("A step 32", "lowres mnli step 32", *(job for job in jobs if job.startswith("compiled"))))
    rows = [against(case, way, ours, task, shots, samples)
            for way in "AB" for ours in case.ways for task in case.evaluated for shots in SHOTS]
    rows += [near_limit(case, way, task, products[task], samples) for way in case.ways for task in products]
    if name in workloads.OPT_SHAPES:
        return rows
    told = f"the first time on a machine {case.start[0]:.3g} s"
    return rows + [Row("compiling, before it gains", case.name, case.start[1], "s", 1, parts=told), *check(case, samples)]


def against(case: Case, way: str, our_way: str, task: str, shots: int, samples: Samples) -> Row:
    theirs, ours = (case.parts(one, task, shots, samples) for one in (way, our_way))
    told = "; ".join(f"{one}: {told_parts(parts)}" for one, parts in ((our_way, ours), (way, theirs)))
    named = f"{case.name} {task} {shots}{marked(our_way)}"
    return ratio(f"trial against {way}", named, composed(theirs), composed(ours), target=target(TARGETS[way, task], way, our_way), parts=told)


def told_parts(parts: dict[str, tuple[float, list[float]]]) -> str:
    return " + ".join(f"{what} {shown(seconds)}" if times == 1 else f"{times:.4g} {what} x {shown(seconds)}"
                      for what, (times, seconds) in parts.items()) + " s"


def near_limit(case: Case, our_way: str, task: str, products: limit.Products, samples: Samples) -> Row:
    alone, step = samples[f"{task} products"], samples[f"{our_way} {task} step 32"]
    told = f"{limit.flops(products) / 1e9:.0f} GFLOP; alone {shown(alone)} s, step {shown(step)} s"
    return ratio("step's part of the limit", f"{case.name} {task} 32{marked(our_way)}", alone, step, unit="", target=PART, parts=told)


def check(case: Case, samples: Samples, epochs: int = 2, rows: int = 64) -> list[Row]:
    """A short trial of each way, whole, against its composition: MNLI's lengths, 16 shots."""
    shots, ids = case.shots["mnli", 16], workloads.evenly(case.evaluated["mnli"], rows)
    result = []
    for way in ("lowres", "A", "B"):
        parts = case.parts(way, "mnli", 16, samples)
        parts.pop("packing", None)
        parts["steps"] = epochs, parts["steps"][1]
        parts["batches"] = parts["batches"][0] * len(ids) / len(case.evaluated["mnli"]), parts["batches"][1]
        whole = (compiled.done("lowres", partial(ours, case, shots, ids, epochs)) if way == "lowres"
                 else usual(partial(theirs, case, peers.named(way), shots, ids, epochs)))
        start = time.perf_counter()
        whole()
        seconds = time.perf_counter() - start
        told = f"whole {seconds:.3g} s; composed {told_parts(parts)}"
        result.append(ratio("a short trial, whole / composed", f"{case.name} {way}", [seconds] * len(composed(parts)), composed(parts), parts=told))
    return result


def ours(case: Case, shots: Texts, ids: Texts, epochs: int) -> None:
    """Layers as they are."""
    case.backbone.restore()
    head = case.head()
    train(case.backbone, head, workloads.inputs(shots), Vanilla(epochs=epochs), Streams(0))
    predict(case.backbone, head, {"set": Inputs(ids, workloads.inputs(ids).labels)})


def theirs(case: Case, way: peers.Way, shots: Texts, ids: Texts, epochs: int) -> None:
    peer = case.loaded(way, shots, epochs)
    peer.trainer.train()
    peer.trainer.predict(peers.Texts(ids))
