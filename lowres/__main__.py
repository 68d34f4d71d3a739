"""The command line: lowres run | status | check | analyse STUDY, and convert."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Optional

import typer

from lowres.errors import BadInput
from lowres.parameters import located, shown

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Study = Annotated[str, typer.Argument(help="a file of parameters/studies by its name, or by its path")]
Outputs = Annotated[str, typer.Option(help="folder for all studies' results")]
DataDir = Annotated[Optional[str], typer.Option(help="folder with the tasks' files, instead of the hub")]  # noqa: UP045


@app.command()
def run(study: Study, data_dir: DataDir = None, outputs: Outputs = "outputs") -> None:
    """Executes every run of a study that is not done, then the analysis."""
    from lowres.checks import check_study
    from lowres.execution import analyse, run_study
    from lowres.study import read_study

    plan = read_study(study, data_dir, outputs)
    check_study(plan)
    results = run_study(plan, print)
    message = analyse(plan)
    if message:
        print(f"analysis: failed: {message}", file=sys.stderr)
    print(f"Read {shown(plan.folder)}/analysis.ipynb first, then any run.ipynb in {shown(plan.folder)}/<method>/ (in JupyterLab: make lab)")
    if message or any(result.state == "failed" for result in results):
        raise typer.Exit(1)


@app.command()
def status(study: Study, data_dir: DataDir = None, outputs: Outputs = "outputs") -> None:
    """Says which runs of a study are done, partial, stale or missing."""
    from lowres.study import read_study

    plan = read_study(study, data_dir, outputs)
    states = [run.state() for run in plan.runs]
    for run, state in zip(plan.runs, states):
        print(f"{state:<9} {run.name}")
    print(f"{plan.name}: " + ", ".join(f"{count} {state}" for state, count in Counter(states).most_common()))


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
def prepare() -> None:
    """Makes the embedded model's weights ready, once per user (20 seconds, 538 MB)."""
    from lowres.backbones import resolve
    from lowres.identity import EMBEDDED

    print(f"{EMBEDDED}: {shown(resolve(EMBEDDED))}")


@app.command()
def convert(model: str, folder: Path) -> None:
    """Turns a hub model's pickled weights into a checked folder of safetensors, once, for a model that has no others."""
    from lowres.backbones import convert

    convert(model, located(str(folder)))


def main() -> None:
    try:
        app()
    except BadInput as error:
        print(f"lowres: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
