"""How long a trial will take on this machine, told before there is one: the operations that a plan asks for over a rate measured here.

Operations are those of `methods.cost.flops`, and attention's behind a context. The rate is that of one layer of the model itself, read and
trained as methods read and train it, by as many threads at once as there will be: so it has in it what a layer does besides its products.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache

import torch
from dask.system import CPU_COUNT
from platformdirs import user_cache_path
from torch import nn

from lowres.files import read_json, write_json
from lowres.methods.choose import NOT_TRIED
from lowres.models.adapters import layer_stack, shape_of
from lowres.models.backbone import resolved_precision, without_weights
from lowres.models.batches import encode
from lowres.models.heads import behind
from lowres.models.identity import processor
from lowres.parameters import Adaptive, Baselines, Distillation, InContext, LoRA, Parameters
from lowres.runs.checks import check_study, fetch_weights
from lowres.runs.cluster import default_workers
from lowres.runs.progress import TimeLeft, time_text
from lowres.runs.study import Run, Study
from lowres.tasks.load import load_task
from lowres.tasks.task_file import read_task

LONG = 3600  # seconds from which a plan says what would make it shorter
SAMPLE = 256  # rows of a set whose lengths stand for all
# Where spans are written: as many tokens of a text take as long as the search for its likeliest span, of tags for each type. Measured on 20 rows each
# of XQuAD and CrossNER with smollm2-135m untrained; a trained model is surer and reads less, a longer text has more spans: it is a size, no more.
SEARCHED = {"extraction": 110, "tagging": 210}
READ, STEPPED = (8, 128), 2**24  # rows of tokens that are read, and weights of which an optimizer takes a step, to measure a rate


@dataclass(frozen=True)
class Sizes:
    """A model, and a task's texts as it reads them. `weights` are those that multiply, `all_weights` also the embeddings."""

    weights: int
    all_weights: int
    layers: int
    hidden: int
    reads: int
    labels: int
    pool: int
    text: float  # tokens of a text of the pool, on average
    evaluation: float  # tokens of all evaluation sets, and what a search for spans behind them takes


@dataclass(frozen=True)
class Work:
    """What a trial does, in tokens. `trained` go forward and backward, `read` forward, `once` forward, for all of a run's trials together;
    `pairs` are those of a token and one of a context in front of it. `trainable` and `skipped` are shares of the weights,
    the latter twice where they are passed over forward, too."""

    trained: float = 0.0
    read: float = 0.0
    once: float = 0.0
    pairs: float = 0.0
    steps: float = 0.0
    trainable: float = 1.0
    skipped: float = 0.0


@dataclass(frozen=True)
class Rate:
    """Operations a second of one worker while the others work too; and seconds a step and trained weight that no token takes."""

    reading: float
    training: float
    step: float


@lru_cache(maxsize=64)
def sizes(model: str, task: str, data_dir: str, rows: int, also: tuple[str, ...], pattern: str, max_length: int, words: tuple[str, str]) -> Sizes:
    loaded, reader, shape = _loaded(task, data_dir, rows, also), without_weights(model), _shape(model)
    text, (name, score) = loaded.file.pattern(pattern), words
    more = sum(behind(reader.tokenizer, loaded.file, loaded.file.words(name), score)) if score and not loaded.file.passage else 0
    searched = SEARCHED.get(loaded.file.kind, 0) * (len(loaded.file.questions) or 1) if score else 0

    def tokens(part) -> float:
        some = part.sample(min(len(part), SAMPLE), random_state=0)
        return encode(reader, some, text, max_length).tokens / len(some) + more

    embedded = {id(weight): weight.numel() for weight in (shape.get_input_embeddings().weight, shape.get_output_embeddings().weight)}
    total, layers = sum(weight.numel() for weight in shape.parameters()), layer_stack(shape.base_model)
    return Sizes(total - sum(embedded.values()), total, len(layers), shape.config.hidden_size, reader.context_length, len(loaded.labels),
                 len(loaded.pool), tokens(loaded.pool), sum(len(part) * (tokens(part) + searched) for part in loaded.evaluation.values()))


@lru_cache(maxsize=2)
def _loaded(task: str, data_dir: str, rows: int, also: tuple[str, ...]):
    return load_task(task, data_dir, rows, also)


@cache
def _shape(model: str):
    return shape_of(model)


def sizes_for(p: Parameters) -> Sizes:
    plain = not hasattr(p, "pattern") or getattr(p, "head", "") == "classifier"
    words = (p.label_words, p.word_score) if hasattr(p, "label_words") and not plain else ("", "")
    return sizes(p.model, p.task, p.data_dir, p.evaluation_rows, tuple(p.also_evaluate), getattr(p, "pattern", "") or ("plain" if plain else ""),
                 p.max_length, words)


def work(p: Parameters, s: Sizes) -> Work:
    """What one trial of a method asks for."""
    shots = s.pool if p.shots == "all" else p.shots * s.labels
    own = {InContext: _in_context, Baselines: _baselines, Distillation: _distillation, Adaptive: _adaptive}.get(type(p), _trained)
    return own(p, s, shots)


def _trained(p, s: Sizes, examples: float) -> Work:
    times = 1 + 2 * (1 + math.prod(map(len, p.choose.values()))) if p.choose else 1  # each candidate trains on four halves of the shots
    return Work(times * examples * s.text * p.epochs, s.evaluation, steps=times * math.ceil(examples / p.batch_size) * p.epochs,
                trainable=0.0 if isinstance(p, LoRA) else 1.0)


def _adaptive(p, s: Sizes, examples: float) -> Work:
    usual = asdict(_trained(p, s, examples))
    if p.adapt == "pattern":
        return Work(**usual | {"read": s.evaluation + (len(set(read_task(p.task).patterns) - set(NOT_TRIED))) * examples * s.text})
    if p.adapt == "corpus":
        return Work(**usual | {"trained": usual["trained"] + p.corpus_steps * p.batch_size * s.text * s.all_weights / s.weights,
                               "steps": usual["steps"] + p.corpus_steps})
    top = (p.train_layers or max(1, s.layers // 6)) / s.layers
    below = 1 - top  # read once a text, those of the evaluation sets once for all trials; then passed over forward as well as backward
    return Work(**usual | {"trainable": top, "skipped": 2 * below, "read": below * examples * s.text + top * s.evaluation,
                           "once": below * s.evaluation})


def _in_context(p, s: Sizes, examples: float) -> Work:
    if p.scoring == "likelihood" or p.demonstrations == 0:
        return Work(examples * s.text * (p.scoring == "likelihood"), 0, s.evaluation)
    shown = examples if p.demonstrations == "all" else min(p.demonstrations * s.labels, examples)
    context = _context(shown, s)
    return Work(0, context + s.evaluation, s.evaluation, context * s.evaluation + context**2 / 2)


def _baselines(p, s: Sizes, examples: float) -> Work:
    return Work(0, examples * s.text, s.evaluation) if p.classifier == "probe" else Work()


def _distillation(p, s: Sizes, examples: float) -> Work:
    """The teacher reads the inputs and, to be compared, the evaluation sets behind its contexts; the untrained student these once."""
    if p.fidelity == "as_coded":
        return Work(**asdict(_trained(p, s, examples)) | {"trained": 2 * examples * s.text * p.epochs})
    few = p.inputs == "few-shot"
    inputs = examples if few else p.unlabelled
    shown = examples if p.demonstrations == "all" else min(p.demonstrations * s.labels, examples)
    context = _context(min(shown, examples / 2) if few else shown, s) if p.context == "demonstrations" else 2 * s.text
    usual, taught = asdict(_trained(p, s, inputs)), inputs * s.text
    return Work(**usual | {"read": (2 if few else 1) * context + taught + 2 * s.evaluation, "once": s.evaluation,
                           "pairs": context * (taught + s.evaluation) + context**2, "trainable": 0.0 if p.rank else 1.0})


def _context(demonstrations: float, s: Sizes) -> float:
    """Tokens: a demonstration has a label word and an empty line; what does not fit is left out."""
    return min(demonstrations * (s.text + 2), s.reads - 2 * s.text)


def seconds(one: Work, s: Sizes, rate: Rate) -> float:
    """What a trial takes, as records have it: what a run's trials share is charged to each."""
    forward = 2 * s.weights
    read = forward * (one.read + one.once) + 4 * s.layers * s.hidden * one.pairs
    trained = forward * (2 - one.skipped + one.trainable) * one.trained
    return read / rate.reading + trained / rate.training + one.steps * one.trainable * s.all_weights * rate.step


def expected(runs: list[Run], workers: int, threads: int) -> dict[str, tuple[float, float]]:
    """Seconds a trial, and how many of these a run's trials share, by run's name; a model's rate is measured once and kept."""
    found = {}
    for run in runs:
        p = run.parameters
        s = sizes_for(p)
        one, rate = work(p, s), rate_of(p.model, p.device, p.precision, threads, workers)
        found[run.name] = seconds(one, s, rate), 2 * s.weights * one.once / rate.reading
    return found


def before_start(study: Study, remaining: dict[Run, int], workers: int | None, here: bool) -> tuple[list[str], dict]:
    """What is said before a study begins, and what is `expected` of its runs. Raises BadInput for what cannot be run, and for weights that cannot
    be fetched: once, and not by each run."""
    said = check_study(study)
    if not here:  # other machines, of which nothing was measured, and which have a cache of their own
        return said, {}
    fetch_weights(run.parameters for run in remaining)
    found, more = foretold(remaining, workers)
    return said + more, found


def foretold(remaining: dict[Run, int], workers: int | None = None) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """What is `expected`, and sentences: how long so many trials of each run take, and what would make more than an hour shorter."""
    workers = workers or default_workers()
    threads = max(1, CPU_COUNT // workers)
    found = expected(list(remaining), workers, threads)
    total = TimeLeft([], found).of(remaining, workers)
    said = [f"expected: {time_text(total)} with {workers} workers, by a rate measured on this machine"]
    if total > LONG:
        for key in ("evaluation_rows", "epochs"):
            changed = {_halved(run, key): trials for run, trials in remaining.items()}
            said.append(f"  with half the {key}: {time_text(TimeLeft([], expected(list(changed), workers, threads)).of(changed, workers))}")
        fewer = TimeLeft([], found).of({run: -(-trials // 2) for run, trials in remaining.items()}, workers)
        said.append(f"  with half the seeds: {time_text(fewer)}; --only takes a part of the study")
    return found, said


def _halved(run: Run, key: str) -> Run:
    """The same run with half of something, if it has that; all rows are 0, and taken for 4,000."""
    p = run.parameters
    return replace(run, parameters=p.model_copy(update={key: -(-(getattr(p, key) or 4000) // 2)} if hasattr(p, key) else {}))


@cache
def rate_of(model: str, device: str, precision: str, threads: int, workers: int) -> Rate:
    """Of a model on this machine, from the user's cache folder if it was measured before."""
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    precision, shape = resolved_precision(precision, place), _shape(model)
    machine = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    layer = sum(weight.numel() for weight in layer_stack(shape.base_model)[0].parameters())
    key = f"layers of {layer:,} weights, {precision}, {machine}, {workers} x {threads} threads, torch {torch.__version__}"
    file = user_cache_path("lowres") / "rates.json"
    kept = read_json(file) or {}
    if key not in kept:
        kept[key] = asdict(_measured(shape.config, place, precision, threads, workers))
        try:
            write_json(file, kept)
        except OSError:  # a cache that cannot be written costs two seconds each time
            pass
    return Rate(**kept[key])


def _measured(config, place: torch.device, precision: str, threads: int, workers: int) -> Rate:
    """One layer of this form with random weights, in as many threads as there will be workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _keep_blocks()
    try:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda layer: _one(layer, place, precision), [_layer(config, place) for _ in range(workers)]))
    finally:
        torch.set_num_threads(before)
    return Rate(*(sum(values) / workers for values in zip(*found)))


def _keep_blocks() -> None:
    """Memory is kept as kernels keep it (`process.KERNEL_ENVIRONMENT`): given back and faulted in anew it takes half of a step's time."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        for setting, value in ((-8, 1), (-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):  # arenas, mmap's threshold, trim's, padding
            mallopt(setting, value)


def _layer(config, place: torch.device):
    from transformers import AutoModel

    layers = config.num_hidden_layers
    first = {key: value[:1] for key, value in config.to_dict().items() if isinstance(value, list) and len(value) == layers}  # what each layer is
    config = type(config).from_dict({**config.to_dict(), **first, "num_hidden_layers": 1, "vocab_size": 1024, "pad_token_id": 0})
    return AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32).to(place)


def _one(model, place: torch.device, precision: str) -> tuple[float, float, float]:
    weights = sum(weight.numel() for weight in layer_stack(model).parameters())
    ids = torch.randint(0, 1024, READ, device=place)
    many = nn.Parameter(torch.zeros(STEPPED, device=place))  # more than a processor's caches hold, as a model's are
    many.grad = torch.ones_like(many)
    optimizer = torch.optim.AdamW([many], lr=1e-6, fused=True)

    def states() -> torch.Tensor:
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model(input_ids=ids, use_cache=False).last_hidden_state

    def train() -> None:
        states().float().mean().backward()
        model.zero_grad(set_to_none=True)

    def step() -> None:
        torch.nn.utils.get_total_norm([many.grad])
        optimizer.step()

    reading, training, stepping = (_timed(job, place) for job in (torch.inference_mode()(states), train, step))
    return 2 * weights * ids.numel() / reading, 6 * weights * ids.numel() / training, stepping / STEPPED


def _timed(job: Callable[[], None], place: torch.device, least: float = 0.3) -> float:
    """The median of several times, at least two after a first that does not count."""
    job()
    times: list[float] = []
    while len(times) < 2 or sum(times) < least:
        begun = time.perf_counter()
        job()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
