"""Everything about a study, task or method file that can be told before a model loads. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lowres.errors import BadInput
from lowres.files import located, read_yaml, shown
from lowres.parameters import Parameters, validated
from lowres.shots import close_draws, fewest, in_common
from lowres.study import Study, read_study
from lowres.tasks import load_task, read_task


def check_study(study: Study) -> list[str]:
    """Reads each task's data and each model's tokenizer once, and holds every run against them. Returns warnings; raises BadInput."""
    return check_parameters((run.method, run.parameters) for run in study.runs)


def check_parameters(asked: Iterable[tuple[str, Parameters]]) -> list[str]:
    """What is said of a study: warnings, each once; BadInput is raised for what cannot be run."""
    smallest_pool: dict[tuple, int] = {}
    seen, close = set(), {}
    for _, p in asked:
        key = (p.task, p.data_dir, 0, tuple(p.also_evaluate))
        if key not in smallest_pool:
            smallest_pool[key] = fewest(load_task(*key).pool)
        if isinstance(p.shots, int) and p.shots > smallest_pool[key]:
            raise BadInput(f"{p.task}: shots: {p.shots} is more than the {smallest_pool[key]:,} examples that the pool has of its rarest label")
        if len(p.seeds) > 1:
            close[p.task] = max(close.get(p.task, 0), in_common(smallest_pool[key], p.shots))
        form = repr(p.model_copy(update={"shots": 1, "seeds": [0], "output_dir": "", "learning_rate": 1.0}))
        if form not in seen:
            seen.add(form)
            check_words(p.model, p.task, getattr(p, "pattern", ""), getattr(p, "label_words", None))
            check_method(p)
        rehearse(p)
    return [f"{task}: {close_draws(share)}" for task, share in close.items() if close_draws(share)]


def rehearse(p: Parameters) -> None:
    """Makes the prompts of a method that has any, once. Raises BadInput for what cannot be drawn or does not fit."""
    prompted = getattr(p, "fidelity", "") != "as_coded" and getattr(p, "scoring", "") != "likelihood"
    if prompted and hasattr(p, "demonstrations"):
        from lowres import rehearsal

        rehearsal.rehearse(p)


def forget_files() -> None:
    """Lets files that may have been edited be read anew."""
    from lowres import identity, sources, tasks

    for cached in (tasks.read_task, tasks.extended_task, sources.sha256, identity.folder_checksum):
        cached.cache_clear()


def check_method(p: Parameters) -> None:
    """What a method asks of the task and of the model's form: patterns, ranks, target modules, layers. Builds the model without its weights."""
    if p.compiled:
        from lowres.adaptation import layer_stack
        from lowres.adapters import shape_of
        from lowres.compiling import check_compiler

        check_compiler(p.device)
        layer_stack(shape_of(p.model))
    if getattr(p, "fidelity", "") == "as_coded" and hasattr(p, "pattern") and getattr(p, "head", "") != "classifier":
        read_task(p.task).pattern("as_coded")
    if hasattr(p, "peft_type"):
        from lowres import adapters

        adapters.check(p)
    if hasattr(p, "scoring") and p.scoring == "likelihood":
        from lowres.likelihood import check_likelihood

        check_likelihood(read_task(p.task))
    if hasattr(p, "temperature"):
        from lowres.distillation import check_distillation

        check_distillation(p, read_task(p.task))
    if hasattr(p, "train_layers"):
        from lowres import adaptation

        adaptation.check(p)


def check_words(model: str, task: str, pattern: str, label_words: str | None) -> None:
    """The pattern exists, and the label words are one token each and told apart by the model's tokenizer."""
    from lowres.pretrained import load_tokenizer, resolve

    spec = read_task(task)
    spec.pattern(pattern)
    tokenizer = load_tokenizer(resolve(model, weights=False))
    if label_words is not None:
        from lowres.heads import word_ids

        try:
            word_ids(tokenizer, spec.words(label_words))
        except BadInput as error:
            raise BadInput(f"{spec.name}: {error}") from None


def check_file(name: str, data_dir: str | None) -> str:
    """Says in a line what a good file holds. Raises BadInput for a bad one."""
    path = located(name)
    content = read_yaml(path) if name.endswith((".yaml", ".yml")) else {"methods": []}
    if "methods" in content:
        study = read_study(name, data_dir)
        warnings = "".join(f"\n{warning}" for warning in check_study(study))
        return f"{study.name}: {len(study.runs)} runs, {study.trials} trials: nothing is wrong with it{warnings}"
    if "evaluation" in content or "extends" in content:
        return _check_task(path, data_dir)
    parameters = validated(path.stem, content, shown(path))
    check_parameters([(path.stem, parameters)])
    return f"{shown(path)}: the parameters of {path.stem}: nothing is wrong with them"


def _check_task(path: Path, data_dir: str | None) -> str:
    task = load_task(str(path), data_dir or "")
    sets = ", ".join(f"{name} {len(rows):,}" for name, rows in task.evaluation.items())
    declare = {file: mark for file, mark in task.checksums.items() if file not in task.file.checksums and mark != "hub"}
    hint = "".join(f"\n  {file}: {mark}" for file, mark in declare.items())
    hint = f"\nTo have results known by their data, add to the file:\nchecksums:{hint}" if hint else ""
    return f"{task.file.name}: pool {len(task.pool):,}, {sets} rows: nothing is wrong with it{hint}"
