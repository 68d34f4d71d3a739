"""Everything about a study, task or method file that can be told before a model loads. Writes nothing."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lowres.files import ROOT, BadInput, located, read_yaml, shown
from lowres.methods.distillation import drawn_from_pool, prepare
from lowres.methods.in_context import SEPARATOR, demonstrated, instruction, longest, without_prefix
from lowres.models import identity
from lowres.models.backbone import Backbone, without_weights
from lowres.models.batches import encode
from lowres.models.heads import behind, word_tokens
from lowres.models.inputs import tokens_after_text
from lowres.parameters import Adaptive, Baselines, Distillation, InContext, LoRA, Parameters, validated
from lowres.runs.study import Study, read_study
from lowres.tasks import load, task_file
from lowres.tasks.kinds import refuse
from lowres.tasks.load import Task, load_task
from lowres.tasks.shots import Streams, close_draws, draw, in_common
from lowres.tasks.task_file import TaskFile, read_task

# By a method's parameters the module whose `check` says what else it asks.
OWN_CHECKS = {LoRA: "lowres.models.adapters", InContext: "lowres.methods.in_context", Distillation: "lowres.methods.distillation",
              Adaptive: "lowres.methods.layers_and_corpus", Baselines: "lowres.methods.baselines"}


def rehearse(p: Parameters) -> list[str]:
    """Makes the prompts of a method that has any, once, without weights. Returns what is to be said of labels that are not shown. Raises BadInput for
    an unlabelled pool that is too small, or a context that leaves no room for an input.

    Reads the task's rows only where the task file and `max_length` do not settle it. Of spans it looks whether answers are cut off.
    """
    if read_task(p.task).passage:
        return _cut_answers(p)
    prompted = getattr(p, "fidelity", "") != "as_coded" and getattr(p, "scoring", "") != "likelihood"
    if not (prompted and hasattr(p, "demonstrations")):
        return []
    from_pool = getattr(p, "inputs", "") == "pool"
    reader = without_weights(getattr(p, "teacher", "") or p.model)
    fits = p.demonstrations == 0 or _surely_fits(reader, read_task(p.task), p)
    if fits and not from_pool:
        return []
    task = load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate)
    if from_pool:  # whether the pool is large enough does not depend on the draw
        drawn_from_pool(task.texts, draw(task.pool, p.shots, p.seeds[0], p.uneven), p.unlabelled, Streams(p.seeds[0]))
    return [] if fits else _make_prompts(reader, task, p)


def _surely_fits(reader: Backbone, spec: TaskFile, p) -> bool:
    """Whether the context fits even if every text is `max_length` long: one demonstration of each label, or the instruction."""
    if getattr(p, "context", "") == "instruction":
        context = len(reader.tokenize([instruction(spec, spec.words(p.label_words)) + SEPARATOR])[0])
    else:
        context = len(spec.labels) * (p.max_length + 1 + len(tokens_after_text(reader.tokenizer, SEPARATOR)))
    return len(reader.prefix) + context + p.max_length <= reader.context_length


def _make_prompts(reader: Backbone, task: Task, p) -> list[str]:
    """What each trial would make, by the same functions; says where a context has no room for all labels."""
    pattern, words = task.file.pattern(p.pattern), task.file.words(p.label_words)
    room = longest({name: without_prefix(reader, encode(reader, rows, pattern, p.max_length)) for name, rows in task.evaluation.items()})
    contexts = []
    for seed in p.seeds:
        shots, streams = draw(task.pool, p.shots, seed, p.uneven), Streams(seed)
        if hasattr(p, "inputs"):
            contexts += prepare(reader, without_weights(p.model), task, p, shots, streams, pattern, words, room).contexts
        else:
            order = streams.demonstrations.permutation(len(shots))
            contexts.append(demonstrated(reader, shots, order, pattern, words, p.demonstrations, p.max_length, room))
    fewest = max(contexts, key=lambda context: context.without)
    return [f"{p.task}: demonstrations: {fewest.sentence()}"] if fewest.without else []


def _cut_answers(p: Parameters) -> list[str]:
    """Says how many answers `max_length` cuts off in the evaluation sets. Raises BadInput where one of an example is: it could not be learnt."""
    task, reader = load_task(p.task, p.data_dir, p.evaluation_rows, p.also_evaluate), without_weights(p.model)
    plain = not hasattr(p, "pattern") or getattr(p, "head", "") == "classifier"
    pattern = task.file.pattern(getattr(p, "pattern", "") or ("plain" if plain else ""))
    lost = lambda rows: [row for row, one in zip(rows.index, encode(reader, rows, pattern, p.max_length).answers) if one.lost]  # noqa: E731
    for seed in p.seeds if hasattr(p, "epochs") else ():
        if rows := lost(draw(task.pool, p.shots, seed, p.uneven)):
            raise BadInput(f"{p.task}: max_length: {p.max_length} cuts off the answer of row {rows[0]} of the pool, an example of seed {seed}")
    cut = {name: (len(lost(rows)), len(rows)) for name, rows in task.evaluation.items()}
    return [f"{p.task}: {name}: max_length: {p.max_length} cuts off {count} of {rows:,} answers: they cannot be given"
            for name, (count, rows) in cut.items() if count]


def check_study(study: Study) -> list[str]:
    """Reads each task's data and each model's tokenizer once, and holds every run against them. Returns warnings; raises BadInput."""
    return check_parameters((run.method, run.parameters) for run in study.runs)


def check_parameters(asked: Iterable[tuple[str, Parameters]]) -> list[str]:
    """What is said of a study: warnings, each once; BadInput is raised for what cannot be run."""
    pools: dict[tuple, dict[str, int]] = {}  # rows by label
    seen, close, said = set(), {}, []
    for method, p in asked:
        refuse(read_task(p.task).kind, method, p)
        key = (p.task, p.data_dir, 0, tuple(p.also_evaluate))
        if key not in pools:
            loaded = load_task(*key)
            pools[key] = dict(zip(loaded.labels, loaded.kind.counts(loaded.pool, len(loaded.labels)).tolist()))
            said += [f"{p.task}: {sentence}" for sentence in loaded.warnings]
        said += _few(p, pools[key])
        if len(p.seeds) > 1:
            close[p.task] = max(close.get(p.task, 0), in_common(min(pools[key].values()), p.shots))
        form = repr(p.model_copy(update={"shots": 1, "seeds": [0], "output_dir": "", "learning_rate": 1.0}))
        if form not in seen:
            seen.add(form)
            said += check_words(p)
            check_method(p)
        said += rehearse(p)
    return list(dict.fromkeys(said)) + [f"{task}: {close_draws(share)}" for task, share in close.items() if close_draws(share)]


def fetch_weights(asked: Iterable[Parameters]) -> None:
    """Fetches or prepares what weights are not here yet, once, and not by each run. Raises BadInput for weights that cannot be had."""
    from lowres.models.weights import resolve

    reading = [p for p in asked if getattr(p, "classifier", "probe") == "probe"]  # counted words and brought answers read none
    for name in dict.fromkeys(name for p in reading for name in (p.model, getattr(p, "teacher", "")) if name):
        identity.weights_files(resolve(name))


def _few(p: Parameters, pool: dict[str, int]) -> list[str]:
    """What is to be said of labels that have fewer rows than shots are asked for. Raises BadInput for them, unless that is allowed."""
    few = {label: count for label, count in pool.items() if isinstance(p.shots, int) and count < p.shots}
    if few and min(few.values()) < 2 and getattr(p, "inputs", "") == "few-shot":
        raise BadInput(f"{p.task}: inputs: few-shot shows the demonstrations of one half of the shots to the other: "
                       f"{min(few, key=few.get)!r} has {min(few.values())} row, and 2 are wanted")
    if few and not p.uneven:
        raise BadInput(f"{p.task}: shots: {p.shots} is more than the {min(few.values()):,} examples that the pool has of its rarest label, "
                       f"{min(few, key=few.get)!r}; with uneven: true such a label gives what it has")
    named = ", ".join(f"{label} {count}" for label, count in list(few.items())[:8]) + (" …" if len(few) > 8 else "")
    return [f"{p.task}: {p.shots} shots: {len(few)} of {len(pool)} labels have fewer, and give what they have: {named}"] if few else []


def forget_files() -> None:
    """Lets files that may have been edited be read anew."""

    for cached in (task_file.read_task, task_file.extended_task, load.sha256, identity.folder_checksum):
        cached.cache_clear()


def check_method(p: Parameters) -> None:
    """What a method asks of the task and of the model's form: patterns, ranks, target modules, layers. Builds the model without its weights."""
    if p.compiled:
        from lowres.models.adapters import layer_stack, shape_of
        from lowres.models.backbone import check_compiler

        check_compiler(p.device)
        layer_stack(shape_of(p.model))
    if getattr(p, "fidelity", "") == "as_coded" and hasattr(p, "pattern") and getattr(p, "head", "") != "classifier":
        read_task(p.task).pattern("as_coded")
    if module := OWN_CHECKS.get(type(p)):
        import_module(module).check(p)


def check_words(p: Parameters) -> list[str]:
    """The pattern exists, and the model's tokenizer tells the label words apart. Returns what is to be said of words of several tokens."""
    from lowres.models.weights import load_tokenizer, resolve

    spec = read_task(p.task)
    listed = getattr(p, "choose", {})
    for name in (getattr(p, "pattern", ""), *listed.get("pattern", ())):
        spec.pattern(name)
    tokenizer = load_tokenizer(resolve(p.model, weights=False))
    if not hasattr(p, "label_words") or not spec.label_words:
        return []
    try:
        words = [spec.words(name) for name in (p.label_words, *listed.get("label_words", ()))]
        _fits_behind(p, max(length for some in words for length in behind(tokenizer, spec, some, p.word_score)))
        return [sentence for some in words for sentence in several_tokens(tokenizer, some, p.word_score, f"{spec.name}: label_words: ")]
    except BadInput as error:
        raise BadInput(f"{spec.name}: {error}") from None


def _fits_behind(p: Parameters, length: int) -> None:
    """Raises BadInput where a text of max_length tokens leaves no room for what is read behind it: label words, or questions."""
    virtual = getattr(p, "peft_options", {}).get("num_virtual_tokens", 0)
    if length and virtual + p.max_length + length > (context := without_weights(p.model).context_length):
        raise BadInput(f"max_length: {p.max_length} leaves no room for the {length} tokens that are read behind it: {p.model!r} reads {context}")


def several_tokens(tokenizer, words: list[str], score: str, where: str) -> list[str]:
    """A sentence where label words have several tokens, and what would make that cheaper. Raises BadInput for words that are not told apart."""
    tokens = word_tokens(tokenizer, words, score)
    longest, word = max((len(ids), word) for ids, word in zip(tokens, words))
    if longest == 1:
        return []
    cut = len({ids[0] for ids in tokens}) == len(tokens)
    return [f"{where}{word!r} is {longest} tokens: {sum(map(len, tokens)) - len(tokens)} more tokens are read behind each text"
            + ("; the first tokens differ already, and word_score: first compares these alone" if cut else "")]


def check_file(name: str, data_dir: str | None) -> str:
    """Says in a line what a good file holds. Raises BadInput for a bad one."""
    path = _of_that_name(name)
    content = read_yaml(path) if path else {"methods": []}
    if "methods" in content:
        study = read_study(name, data_dir)
        warnings = "".join(f"\n{warning}" for warning in check_study(study))
        return f"{study.name}: {len(study.runs)} runs, {study.trials} trials: nothing is wrong with it{warnings}"
    if "evaluation" in content or "extends" in content:
        return _check_task(path, data_dir)
    parameters = validated(path.stem, content, shown(path))
    check_parameters([(path.stem, parameters)])
    return f"{shown(path)}: the parameters of {path.stem}: nothing is wrong with them"


def _of_that_name(name: str) -> Path | None:
    """The file of a study, task or method; None for a name that none has, which is then taken for a study's."""
    if name.endswith((".yaml", ".yml")):
        return located(name)
    places = [ROOT / "parameters" / kind / f"{name}.yaml" for kind in ("studies", "tasks", "methods")]
    return next((place for place in places if place.is_file()), None)


def _of_words(spec: TaskFile) -> list[str]:
    """What will be wrong with label words and patterns for the embedded model, if that is at hand."""
    said = [f"patterns.{name}: ends with a space, and label words begin with one: leave it out" for name, text in spec.patterns.items()
            if text.endswith(" ") and any(word.startswith(" ") for words in spec.label_words.values() for word in words.values())]
    from lowres.models.weights import load_tokenizer, prepared_place

    if (place := prepared_place(identity.EMBEDDED)).is_dir():
        for name in spec.label_words:
            where = f"label_words.{name}, with {identity.EMBEDDED}: "
            try:
                said += several_tokens(load_tokenizer(place), spec.words(name), "sum", where)
            except BadInput as error:
                said.append(where + str(error).removeprefix("label_words: "))
    return said


def tokens_of() -> Callable[[str], list[int]]:
    """What the embedded model reads a word as, behind other text."""
    from lowres.models.weights import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(identity.EMBEDDED, weights=False))
    return lambda word: tokens_after_text(tokenizer, word)


def _check_task(path: Path, data_dir: str | None) -> str:
    task = load_task(str(path), data_dir or "")
    sets = ", ".join(f"{name} {len(rows):,}" for name, rows in task.evaluation.items())
    declare = {file: mark for file, mark in task.checksums.items() if file not in task.file.checksums and mark != "hub"}
    hint = "".join(f"\n  {file}: {mark}" for file, mark in declare.items())
    hint = f"\nTo have results known by their data, add to the file:\nchecksums:{hint}" if hint else ""
    said = "".join(f"\n{sentence}" for sentence in [*task.notes, *task.warnings, *_of_words(task.file)])
    return f"{task.file.name}: pool {len(task.pool):,}, {sets} rows: nothing is wrong with it{said}{hint}"


def parameter_names(values: dict[str, Any]) -> set[str]:
    """The names that a notebook's parameters cell sets, and papermill's injected one, as they were executed last.

    In a kernel these are the cells right before the one at work that hold nothing but assignments (`In` has what was executed), so that a
    line that was deleted is forgotten and a misspelt one is seen, however often the notebook has run. Where only the starting cell is
    run again they are those of last time. Elsewhere: whatever is there.
    """
    if "In" not in values:
        return {key for key, value in values.items() if not (key.startswith("_") or callable(value) or isinstance(value, ModuleType) or key == "run")}
    names: set[str] = set()
    for source in reversed(values["In"][:-1]):
        found = _assigned(source)
        if found is None:
            break
        names |= found
    _asked_last["names"] = names or _asked_last.get("names", set())
    return _asked_last["names"]


_asked_last: dict[str, set[str]] = {}


def _assigned(source: str) -> set[str] | None:
    """The names that a cell sets, if it does nothing else."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    names = set()
    for line in body:
        targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else [None]
        if not all(isinstance(target, ast.Name) for target in targets):
            return None
        names |= {target.id for target in targets}
    return names if body else None
