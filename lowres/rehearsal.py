"""A method's prompts made once without any weights: what cannot be drawn, or does not fit, is told before a model loads."""

from __future__ import annotations

from lowres.backbones import Backbone, without_weights
from lowres.batches import encode
from lowres.distillation import drawn_from_pool, prepare
from lowres.heads import behind_text
from lowres.prompts import SEPARATOR, bare, demonstrated, instruction, longest
from lowres.shots import Streams, draw
from lowres.tasks import Task, TaskFile, load_task, read_task


def rehearse(p) -> None:
    """Raises BadInput for an unlabelled pool that is too small, or a context that leaves no room for an input.

    Reads the task's rows only where the task file and `max_length` do not settle it.
    """
    from_pool = getattr(p, "inputs", "") == "pool"
    reader = without_weights(getattr(p, "teacher", "") or p.model)
    fits = p.demonstrations == 0 or _surely_fits(reader, read_task(p.task), p)
    if fits and not from_pool:
        return
    task = load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate)
    if from_pool:  # whether the pool is large enough does not depend on the draw
        drawn_from_pool(task.pool, draw(task.pool, p.shots, p.seeds[0]), p.unlabelled, Streams(p.seeds[0]))
    if not fits:
        _make_prompts(reader, task, p)


def _surely_fits(reader: Backbone, spec: TaskFile, p) -> bool:
    """Whether the context fits even if every text is `max_length` long: one demonstration of each label, or the instruction."""
    if getattr(p, "context", "") == "instruction":
        context = len(reader.tokenize([instruction(spec, spec.words(p.label_words)) + SEPARATOR])[0])
    else:
        context = len(spec.labels) * (p.max_length + 1 + len(behind_text(reader.tokenizer, SEPARATOR)))
    return len(reader.prefix) + context + p.max_length <= reader.context_length


def _make_prompts(reader: Backbone, task: Task, p) -> None:
    """What each trial would make, by the same functions."""
    pattern, words = task.file.pattern(p.pattern), task.file.words(p.label_words)
    room = longest({name: bare(reader, encode(reader, rows, pattern, p.max_length)) for name, rows in task.evaluation.items()})
    for seed in p.seeds:
        shots, streams = draw(task.pool, p.shots, seed), Streams(seed)
        if hasattr(p, "inputs"):
            prepare(reader, without_weights(p.model), task, p, shots, streams, pattern, words, room)
        else:
            demonstrated(reader, shots, streams.demonstrations.permutation(len(shots)), pattern, words, p.demonstrations, p.max_length, room)
