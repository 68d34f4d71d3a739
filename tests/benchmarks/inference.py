"""Evaluation and teachers against the usual ways: label words of a causal language model, with the embedded model."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from lowres.methods.evaluation import predict
from lowres.methods.in_context import Context, predict_after
from lowres.models.backbone import load_backbone
from lowres.models.batches import pack
from lowres.models.heads import Verbalizer
from tests.benchmarks import compiled, peers, workloads
from tests.benchmarks.peers import AUTHORS, TUNED, Peer
from tests.benchmarks.timing import Row, alternate, called, composed, marked, ratio, target, usual
from tests.benchmarks.trials import told_parts

WORDS = [" Yes", " No"]
INPUTS, DEMONSTRATIONS = 500, 16
SOME = 8  # inputs of the teacher without a cache that are measured


def hans(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """HANS's 30,000 rows: batches are measured, the whole is composed."""
    backbone = load_backbone(name, device="cpu", compiled=True)
    head = Verbalizer(backbone, WORDS)
    ids = workloads.texts("hans", 300 if quick else workloads.EVALUATED["mnli"]["hans"], workloads.vocabulary(backbone))
    a, b = (Peer(way, peers.label_words(way, backbone.folder, head.ids.tolist()), scratch) for way in (AUTHORS, TUNED))
    sample, batches = workloads.sample(ids), {peer: peer.evaluation_batches(ids) for peer in (a, b)}
    some = {a: batches[a][:1], b: workloads.thirds(batches[b])}
    samples = alternate({
        "packing": lambda: next(pack(ids)),
        **{way: compiled.done(way, partial(predict, backbone, head, {"set": workloads.inputs(sample)})) for way in compiled.WAYS},
        "A": usual(partial(a.evaluate, some[a])), "B": usual(partial(b.evaluate, some[b])),
    }, repeats)
    times = {**dict.fromkeys(compiled.WAYS, len(ids) / len(sample)), "A": math.ceil(len(ids) / AUTHORS.evaluation_batch),
             "B": b.tokens(batches[b]) / b.tokens(some[b])}
    parts = {way: {"batches": (count, samples[way])} for way, count in times.items()}
    for way in compiled.WAYS:
        parts[way]["packing"] = 1, samples["packing"]
    parts["compiled"]["start"] = 1, [compiled.start(name, scratch)[1]] * len(samples["packing"])
    return [ratio(f"HANS against {way}", f"{called(name)} {len(ids):,} rows{marked(ours)}", composed(parts[way]), composed(parts[ours]),
                  target=target(least, way, ours), parts=f"{ours}: {told_parts(parts[ours])}; {way}: {told_parts(parts[way])}")
            for way, least in (("A", 8), ("B", 1.5)) for ours in compiled.WAYS]


def teacher(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """A context that is read once, against the tuned way that reads it with every input."""
    backbone = load_backbone(name, device="cpu")
    head = Verbalizer(backbone, WORDS)
    b = Peer(TUNED, peers.label_words(TUNED, backbone.folder, head.ids.tolist()), scratch)
    return [_teacher(backbone, head, b, task, repeats, quick) for task in ("cola", "mnli")]


def _teacher(backbone, head, b: Peer, task: str, repeats: int, quick: bool) -> Row:
    """The prompt is as long as 16 texts of the task with a label word and an empty line each; it fits a tiny model's context if cut."""
    top = workloads.vocabulary(backbone)
    shown, ids = (workloads.texts(task, count, top, seed) for seed, count in enumerate((DEMONSTRATIONS, INPUTS)))
    prompt = sum((text + head.ids[:1].tolist() * 2 for text in shown), [])[: backbone.context_length - workloads.LONGEST]
    sample, some = workloads.sample(ids), workloads.evenly(ids, 4 if quick else SOME)
    samples = alternate({
        "prompt": lambda: backbone.encode_context(prompt),
        "cached": partial(predict_after, backbone, head, {"set": workloads.inputs(sample)}, [Context(prompt)]),
        "uncached": usual(partial(b.evaluate, [[prompt + text for text in some]])),
    }, repeats)
    # The measured pass has read the prompt already, so only what else it took is repeated.
    behind = [max(cached - prompt_, 0.0) for cached, prompt_ in zip(samples["cached"], samples["prompt"])]
    ours = {"prompt": (1, samples["prompt"]), "batches": (INPUTS / len(sample), behind)}
    theirs = {"batches": (INPUTS / len(some), samples["uncached"])}
    told = f"prompt of {len(prompt)} tokens; lowres: {told_parts(ours)}; without a cache: {told_parts(theirs)}"
    case = f"{called(backbone.name)} {task} {DEMONSTRATIONS}"
    return ratio("teacher against no cache", case, composed(theirs), composed(ours), target=6, parts=told)
