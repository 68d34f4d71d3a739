"""A study's states as a person reads them: method by shots, for each model and task."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lowres.status import STATES, Status, TimeLeft, counts, remaining, time_text
from lowres.study import Study

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stale": "magenta", "partial": "yellow", "missing": "dim"}
MOST_FAULTS = 20


def print_status(study: Study, statuses: list[Status], workers: int) -> None:
    """The grid, what is wrong, and the time left. A cell: finished trials of those wanted, and the state unless it is done."""
    console = Console(highlight=False, soft_wrap=True)
    places: dict[tuple[str, str], list[Status]] = {}
    for status in statuses:
        places.setdefault((status.run.parameters.model, status.run.parameters.task), []).append(status)
    for (model, task), here in places.items():
        console.print(_table(f"{task}, {model}", here))
    for line in problems(statuses):
        console.print(line, markup=False)
    console.print(summary(study, statuses, workers), markup=False)


def problems(statuses: list[Status]) -> list[str]:
    """A line for each failure, damaged file and run at work elsewhere."""
    lines = []
    for status in statuses:
        if status.failure:
            lines.append(f"failed: {status.run.name}: {(status.failure['message'].splitlines() or [''])[0]}")
        elif status.owner:
            lines.append(f"running: {status.run.name}: {status.owner}")
        elif status.state != "stale" and status.faults:
            lines.append(f"damaged, will be redone: {status.run.name}: {'; '.join(status.faults)}")
    return lines[:MOST_FAULTS] + ([f"… and {len(lines) - MOST_FAULTS} more"] if len(lines) > MOST_FAULTS else [])


def summary(study: Study, statuses: list[Status], workers: int) -> str:
    found = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    finished = sum(status.finished for status in statuses)
    wanted = sum(status.wanted for status in statuses)
    text = f"{study.name}: {len(statuses)} runs: {found}; {finished} of {wanted} trials"
    if left := remaining(statuses):
        text += f"; time left with {workers} workers: {time_text(TimeLeft(statuses).of(left, workers))}"
    return text


def _table(title: str, statuses: list[Status]) -> Table:
    table = Table(title=title, title_justify="left")
    shots = sorted({status.run.parameters.shots for status in statuses}, key=lambda count: (isinstance(count, str), count))
    rows: dict[str, dict[object, list[Status]]] = {}
    for status in statuses:
        rows.setdefault(f"{status.run.method} {status.run.variant}".strip(), {}).setdefault(status.run.parameters.shots, []).append(status)
    table.add_column("shots", overflow="fold")
    for count in shots:
        table.add_column(str(count), justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *(_cell(cells.get(count, [])) for count in shots))
    return table


def _cell(statuses: list[Status]) -> str:
    if not statuses:
        return ""
    worst = max((status.state for status in statuses), key=STATES.index)
    text = f"{sum(s.finished for s in statuses)}/{sum(s.wanted for s in statuses)}" + ("" if worst == "done" else f" {worst}")
    return f"[{COLOURS[worst]}]{text}[/]"
