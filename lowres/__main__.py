"""The command line: lowres run | status | check | analyse | publish STUDY, and convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from lowres.errors import BadInput
from lowres.files import located, shown

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Study = Annotated[str, typer.Argument(help="a file of parameters/studies by its name, or by its path")]
Outputs = Annotated[str, typer.Option(help="folder for all studies' results")]
Workers = Annotated[int | None, typer.Option(min=1, help="runs at a time, the cores split evenly (default: one a core, as memory allows)")]
Only = Annotated[str, typer.Option(help="a part of the study: method=lora,task=cola,shots=16")]
DataDir = Annotated[Optional[str], typer.Option(help="folder with the tasks' files, instead of the hub")]  # noqa: UP045


@app.command()
def run(
    study: Study, data_dir: DataDir = None, outputs: Outputs = "outputs",
    workers: Workers = None,
    scheduler: Annotated[str | None, typer.Option(help="a running Dask cluster: tcp://host:port or its scheduler file")] = None,
    only: Only = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be executed, and stop")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="execute failed runs again")] = False,
    rerun_stale: Annotated[bool, typer.Option("--rerun-stale", help="execute stale runs again; the old results are kept under stale/")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="stop at the first failure")] = False,
    timeout: Annotated[int | None, typer.Option(min=1, help="seconds that a cell may take")] = None,
    retries: Annotated[int, typer.Option(min=0, help="of a run whose kernel or worker died; Python errors are never retried")] = 2,
    notebooks: Annotated[str, typer.Option(hidden=True)] = "notebooks",
) -> None:
    """Executes every run of a study that is not done, then the analysis.

    A rerun continues where the last one ended. Failed runs wait for --retry-failed (unless the machine was at fault: a dead kernel, a
    full disk), stale ones for --rerun-stale. Exit code: 0 all done, 1 some failed or wait, 2 bad input, 130 interrupted.
    """
    from lowres.orders import Order, carry_out

    rerun = frozenset(state for state, asked in (("failed", retry_failed), ("stale", rerun_stale)) if asked)
    order = Order(study, data_dir, outputs, only, rerun, workers, scheduler, dry_run, fail_fast, timeout, retries, notebooks)
    try:
        code = carry_out(order)
    except KeyboardInterrupt:  # before the study began, or in its analysis
        code = 130
    if code:
        raise typer.Exit(code)


@app.command()
def status(
    study: Study, data_dir: DataDir = None, outputs: Outputs = "outputs", only: Only = "",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    workers: Workers = None,
) -> None:
    """Shows which runs of a study are done, running, failed, stale, partial or missing, and the time left."""
    import os

    from lowres.grid import print_status
    from lowres.status import as_json as in_json
    from lowres.status import classified
    from lowres.study import narrowed, read_study

    plan = narrowed(read_study(study, data_dir, outputs), only)
    statuses, workers = classified(plan), workers or os.cpu_count() or 1
    if as_json:
        print(in_json(plan, statuses, workers))
    else:
        print_status(plan, statuses, workers)


@app.command()
def check(file: Annotated[str, typer.Argument(help="a study, task or method file, by path or by a study's name")], data_dir: DataDir = None) -> None:
    """Checks a file, and all that it asks for, without loading a model or writing anything."""
    from lowres.checks import check_file

    print(check_file(file, data_dir))


@app.command()
def analyse(study: Study, outputs: Outputs = "outputs") -> None:
    """Executes the analysis notebook over what a study has so far."""
    from lowres.execution import analyse
    from lowres.study import read_study

    if message := analyse(read_study(study, outputs=outputs)):
        print(f"analysis: failed: {message}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def publish(study: Study, outputs: Outputs = "outputs") -> None:
    """Makes a static site of what a study has so far: the answer, every executed notebook and the record behind it."""
    from lowres.publishing import publish

    index, left_out = publish(study, outputs)
    for sentence in left_out:
        print(f"not in the site's answer: {sentence}")
    print(f"read it in a browser: {shown(index)}")


@app.command()
def prepare() -> None:
    """Makes the embedded model's weights ready, once per user (20 seconds, 538 MB)."""
    from lowres.identity import EMBEDDED
    from lowres.pretrained import resolve

    print(f"{EMBEDDED}: {shown(resolve(EMBEDDED))}")


@app.command()
def convert(model: str, folder: Path) -> None:
    """Turns a hub model's pickled weights into a checked folder of safetensors, once, for a model that has no others."""
    from lowres.conversion import convert

    convert(model, located(str(folder)))


def main() -> None:
    try:
        app()
    except BadInput as error:
        print(f"lowres: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
