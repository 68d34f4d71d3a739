"""What lowres costs beside itself: LoRA beside all weights, one run beside five, memory, a kernel's start, padding."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
from peft import LoraConfig

from lowres.files import ROOT
from lowres.locks import scratch_folder
from lowres.methods.cost import Meter
from lowres.methods.evaluation import BUDGET, predict
from lowres.models.adapters import attach
from lowres.models.backbone import load_backbone
from lowres.models.batches import pack
from lowres.models.heads import Classifier
from lowres.parameters import METHODS, LoRA
from lowres.runs import records
from lowres.runs.process import run_notebook
from tests.benchmarks import compiled, workloads
from tests.benchmarks.stepping import Stepped
from tests.benchmarks.timing import Row, alternate, called, marked, ratio, shown

GIGABYTES = {"vanilla": 4.0, "lora": 2.0}
FIRST_STEP = """
import time, pathlib
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: (pathlib.Path({told!r}).write_text(str(time.time())), 1 / 0))"""


def attached(backbone) -> None:
    """LoRA as the method's own parameters have it."""
    p = LoRA()
    attach(backbone, LoraConfig(r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, task_type="CAUSAL_LM"), seed=0)


def lora_step(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """A step on 32 texts with an adapter, against one with all weights: same texts, same head, same precision."""
    backbones = {method: load_backbone(name, device="cpu", compiled=True) for method in GIGABYTES}
    attached(backbones["lora"])
    ids = {task: workloads.texts(task, 32, workloads.vocabulary(backbones["lora"])) for task in ("cola", "mnli")}
    jobs = {}
    for method, backbone in backbones.items():
        stepped = Stepped(backbone, Classifier(backbone, 2, 0), workloads.inputs(sum(ids.values(), [])))
        jobs |= {f"{way} {method} {task}": compiled.done(way, partial(stepped.step, list(range(32 * i, 32 * i + 32))))
                 for i, task in enumerate(ids) for way in compiled.WAYS}
    samples = alternate(jobs, repeats)
    return [_beside(name, way, task, samples[f"{way} lora {task}"], samples[f"{way} vanilla {task}"]) for way in compiled.WAYS for task in ids]


def _beside(name: str, way: str, task: str, lora: list[float], full: list[float]) -> Row:
    return ratio("LoRA step / full step", f"{called(name)} {task} 32{marked(way)}", lora, full, unit="", target=0.75, at_most=True,
                 parts=f"{shown(lora)} / {shown(full)} s")


def memory(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """Peak resident set of a trial as its record has it, each in a fresh process. Twice is enough: peaks repeat to 4 %."""
    repeats = min(repeats, 2)
    found: dict[tuple[str, str], list[float]] = {(method, way): [] for way in compiled.WAYS for method in GIGABYTES}
    for way in [*compiled.WAYS] * repeats:
        # Side by side: nothing is timed.
        calls = [f"from tests.benchmarks import costs; costs.trial_memory({method!r}, {name!r}, {way == 'compiled'})" for method in GIGABYTES]
        started = [subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE, text=True) for call in calls]
        for method, process in zip(GIGABYTES, started):
            found[method, way].append(float(process.communicate()[0].split()[-1]))
    return [Row(f"peak memory, {method}", f"{called(name)} mnli 32{marked(way)}", float(np.median(peaks)), "GB", repeats, GIGABYTES[method],
                at_most=True, low=min(peaks), high=max(peaks)) for (method, way), peaks in found.items()]


def trial_memory(method: str, name: str, layers_compiled: bool) -> None:
    """Prints the peak gigabytes of the heaviest steps of a trial at 128 shots, and of an evaluation pass."""
    from lowres.runs import summary  # noqa: F401  what a method's notebook has imported by then

    backbone = load_backbone(name, device="cpu", compiled=layers_compiled)
    top = workloads.vocabulary(backbone)
    shots, ids = workloads.texts("mnli", 256, top), workloads.texts("mnli", 200, top)
    draw = np.random.default_rng(0)
    batches = [draw.permutation(256)[:32].tolist() for _ in range(320)]
    heaviest = max(batches, key=lambda batch: sum(len(shots[i]) for i in batch))
    meter = Meter()
    backbone.restore()
    if method == "lora":
        attached(backbone)
    head = Classifier(backbone, 2, 0)
    stepped = Stepped(backbone, head, workloads.inputs(shots))
    for batch in (batches[0], heaviest):
        stepped.step(batch)
    predict(backbone, head, {"set": workloads.inputs(ids)})
    print(meter.memory()["resident"])


def first_step(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """From asking for a kernel to the end of the first optimizer step of the vanilla notebook, whose weights lie in the cache."""
    told = scratch / "first-step"
    notebook = nbformat.read(ROOT / "notebooks" / "vanilla.ipynb", as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if "run.each_seed(" in cell.source)
    notebook.cells.insert(at, nbformat.v4.new_code_cell(FIRST_STEP.format(told=str(told))))
    nbformat.write(notebook, scratch / "vanilla.ipynb")
    seconds = []
    for _ in range(repeats + 1):
        start = time.time()
        run(scratch / "vanilla.ipynb", name, [0], expected="ZeroDivisionError")
        seconds.append(float(told.read_text()) - start)
    found = seconds[1:]  # the first may have had files to read that the others find in memory
    return [Row("kernel start to first step", called(name), float(np.median(found)), "s", repeats, 5, at_most=True, low=min(found), high=max(found))]


def five_trials(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """One run of five seeds against five runs of one: a notebook's start and end are paid once, a further seed costs what its record says."""
    one, trial = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        trial += run(ROOT / "notebooks" / "vanilla.ipynb", name, [0])
        one.append(time.perf_counter() - start)
    together, apart = [whole + 4 * further for whole, further in zip(one, trial)], [5 * whole for whole in one]
    told = f"a run {shown(one)} s, its trial {shown(trial)} s; in a run: a run + 4 trials; in five: 5 runs"
    return [ratio("five trials in a run / in five", f"{called(name)} grammar 2", together, apart, unit="", target=0.75, at_most=True, parts=told)]


def run(notebook: Path, model: str, seeds: list[int], expected: str = "") -> list[float]:
    """A vanilla run at 2 shots, all else by default: its trials' seconds. Raises RuntimeError if it ends otherwise than expected."""
    with scratch_folder() as folder:
        parameters = METHODS["vanilla"](model=model, shots=2, seeds=seeds, output_dir=str(folder / "kept")).model_dump()
        ended = run_notebook(notebook, folder / "run.ipynb", parameters, folder, {})
        if expected not in ended.message or bool(ended.kind) != bool(expected):
            raise RuntimeError(json.dumps([ended.kind, ended.message]))
        return [sum(trial["seconds"].values()) for trial in records.read_trials(folder / "kept")[0].values()]


def padding(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """Tokens computed for each that is needed: of 40 epochs of training at 16 and 128 shots, and of a trial's evaluation. Counted, not timed."""
    rows = []
    for task, kinds in workloads.EVALUATED.items():
        for shots in (16, 128):
            ids = workloads.texts(task, 2 * shots, 1000)
            orders = [np.random.default_rng(seed).permutation(len(ids)) for seed in range(4 if quick else 40)]
            batches = [[ids[i] for i in order[start : start + 32]] for order in orders for start in range(0, len(ids), 32)]
            rows.append(_padded(f"{task} training {shots}", batches))
        every = [text for kind, count in kinds.items() for text in workloads.texts(kind, count // (40 if quick else 1), 1000)]
        rows.append(_padded(f"{task} evaluation", [every], BUDGET))
    return rows


def _padded(case: str, batches: list, *budget: int) -> Row:
    computed = sum(rows.ids.numel() for batch in batches for rows in pack(batch, "cpu", 0, *budget))
    needed = sum(len(text) for batch in batches for text in batch)
    return Row("tokens computed for each needed", case, computed / needed, "", 1, 1.15, at_most=True, parts=f"{computed:,} / {needed:,}")
