"""The steps of tests/gpu/check.sh: python -m tests.gpu.steps NAME DEVICE [CASE]. Each prints its rows as they become known.

On a CPU they rehearse: models of a few weights, the same code.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stand_ins import eventually, short_folder, start_runner, write_study  # noqa: E402
from toys import GRAMMAR  # noqa: E402

from lowres.methods.evaluation import predict  # noqa: E402
from lowres.models.backbone import load_backbone  # noqa: E402
from lowres.models.batches import encode  # noqa: E402
from lowres.models.heads import Classifier, word_head  # noqa: E402
from lowres.models.identity import EMBEDDED, PACKAGES  # noqa: E402
from lowres.runs import records  # noqa: E402
from lowres.tasks.load import load_task  # noqa: E402
from tests.benchmarks import workloads  # noqa: E402
from tests.benchmarks.stepping import Stepped  # noqa: E402

LOGITS = {"float32": 1e-4, "bfloat16": 2e-2}  # by which one device's may differ from the other's
EQUAL = 0.99  # of the predictions


def row(step: str, case: str, figure: str, wanted: str = "", reached: bool | None = None) -> None:
    told = {True: f"{figure}, reached", False: f"**{figure}: not reached**", None: figure}[reached]
    print(f"| {step} | {case} | {told} | {wanted} |", flush=True)


def model_for(device: str, case: str, scratch: Path) -> str:
    """The embedded model, or one of OPT's shapes with random weights; to rehearse, a tiny one, or a single layer of the shape."""
    if device == "cpu":
        if case in workloads.OPT_SHAPES:
            workloads.OPT_SHAPES[case] |= {"num_hidden_layers": 1, "vocab_size": 2000}
        else:
            return workloads.tiny(scratch)
    return workloads.model_folder(EMBEDDED if case == "embedded" else case, scratch)


def machine(device: str, scratch: Path) -> None:
    from importlib.metadata import version

    name = torch.cuda.get_device_name() if device == "cuda" else "a processor, to rehearse"
    row("machine", f"{name}, {os.cpu_count()} cores", ", ".join(f"{package} {version(package)}" for package in PACKAGES))


def tests(device: str, scratch: Path) -> None:
    """What the methods rest on, with this machine's versions; a runner and its kernels are tried by `resume`."""
    files = [f"tests/test_{name}.py" for name in ("batches_and_heads", "evaluation")]
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], capture_output=True, text=True)
    said = (ended.stdout.strip().splitlines() or [ended.stderr[-200:]])[-1]
    row("tests", "batches, heads, evaluation", said, "all", ended.returncode == 0)


def parity(device: str, scratch: Path) -> None:
    """A device's label logits against the processor's: the same texts, the frozen model's label words."""
    name, task = model_for(device, "embedded", scratch), load_task(GRAMMAR, "", 200)
    pattern, words = task.file.pattern(""), task.file.words("")
    for precision, most in LOGITS.items():
        found = []
        for place in ("cpu", device):
            backbone = load_backbone(name, place, precision)
            sets = {key: encode(backbone, rows, pattern, 128) for key, rows in task.evaluation.items()}
            logits = predict(backbone, word_head(backbone, task.file, words), sets)
            found.append(torch.cat([torch.tensor(part) for part in logits.values()]))
        apart = (found[0] - found[1]).abs().max().item()
        equal = (found[0].argmax(1) == found[1].argmax(1)).double().mean().item()
        row("parity", f"logits, {precision}", f"{apart:.2g} apart", f"at most {most:g}", apart <= most)
        row("parity", f"predictions, {precision}", f"{100 * equal:.1f} % equal", f"{100 * EQUAL:g} %", equal >= EQUAL)


def study_of(device: str, scratch: Path, runs: int, seeds: int):
    """Pattern-based fine-tuning of 16 shots, a run a learning rate."""
    settings = {"device": device, "model": model_for(device, "embedded", scratch), "task": GRAMMAR, "evaluation_rows": 100, "epochs": 5}
    return write_study(scratch, range(seeds), [16 + i for i in range(runs)], ["pbft"], **settings)


@contextmanager
def running(study, workers: int) -> Iterator[subprocess.Popen]:
    """A runner that does not outlive this step."""
    with short_folder() as temporary:
        runner = start_runner(study, "notebooks", temporary, workers)
        try:
            yield runner
        finally:
            with suppress(ProcessLookupError):
                os.killpg(runner.pid, signal.SIGKILL)
            runner.wait()


def resume(device: str, scratch: Path) -> None:
    """A runner that is killed once a trial is finished, and another that goes on."""
    study = study_of(device, scratch, 1, 3)
    kept = lambda: records.read_trials(study.runs[0].folder)[0]
    with running(study, 1):
        before = eventually(kept, "the first trial")
    with running(study, 1) as runner:
        code = runner.wait()
    same = all(kept().get(seed) == trial for seed, trial in before.items())
    row("resume", f"killed after {len(before)} of 3 trials", f"{len(kept())} trials, those finished before as they were: {same}", "all 3",
        code == 0 and same and len(kept()) == 3)


def trials(device: str, scratch: Path, workers: str) -> None:
    """So many runs at a time on one device, each in a kernel of its own."""
    count = int(workers) if device == "cuda" else min(2, int(workers))
    study, begun = study_of(device, scratch, count, 4), time.monotonic()
    with running(study, count) as runner:
        code = runner.wait()
    wall, found = time.monotonic() - begun, [trial for run in study.runs for trial in records.read_trials(run.folder)[0].values()]
    seconds = sum(map(records.seconds_of, found)) / len(found)
    hourly = f"{3600 * count / seconds:,.0f} once begun ({seconds:.2f} s each), {3600 * len(found) / wall:,.0f} with starts"
    row("trials an hour", f"{count} workers", f"{hourly} ({len(found)} in {wall:.0f} s)", f"all {4 * count}", code == 0 and len(found) == 4 * count)
    row("peak memory", f"{count} workers, of one", f"{max(map(records.peak_memory, found)):.2f} GB")


def speed(device: str, scratch: Path, case: str) -> None:
    """Training steps on 32 texts as long as MNLI's, and the part of the device's own peak that their products are."""
    backbone = load_backbone(model_for(device, case, scratch), device)
    inputs = workloads.inputs(workloads.texts("mnli", 32, workloads.vocabulary(backbone)))
    stepped = Stepped(backbone, Classifier(backbone, 2, 0), inputs)
    seconds = _timed(device, lambda: stepped.step(list(range(32))), 20 if device == "cuda" else 1)
    operations = 6 * (backbone.parameters() - backbone.embeddings()) * inputs.tokens / seconds
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row("speed", f"{case}, a step of 32 texts, {backbone.precision}", f"{1000 * seconds:.1f} ms, {inputs.tokens / seconds:,.0f} tokens a second, "
        f"{operations / 1e12:.2f} TFLOP/s: {100 * operations / _peak(device):.1f} % of a large product's")
    row("peak memory", f"{case}, training", f"{peak / 1e9:.2f} GB")


def _peak(device: str) -> float:
    """Operations a second of a large product in bfloat16."""
    size = 8192 if device == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / _timed(device, lambda: a @ a, 10)


def _timed(device: str, job, times: int) -> float:
    """Seconds of one, on average, after two that do not count."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    job(), job(), wait()
    begun = time.perf_counter()
    for _ in range(times):
        job()
    wait()
    return (time.perf_counter() - begun) / times


if __name__ == "__main__":
    name, device, *case = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("its time was up"))
    with tempfile.TemporaryDirectory() as scratch:
        {step.__name__: step for step in (machine, tests, parity, resume, trials, speed)}[name](device, Path(scratch), *case)
    os._exit(0)  # the thread of the steps waits for another
