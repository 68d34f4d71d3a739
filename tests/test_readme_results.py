"""The README's results are the trials': each accuracy and MCC of a numbered row is computed again from the runs that its command names."""

import csv
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from numpy import mean
from scipy import stats

from lowres.runs import records
from lowres.runs.study import read_study, select

README = (Path(__file__).parent.parent / "README.md").read_text().replace("\u00a0", " ")  # a cell breaks before its MCC alone
STUDIES = {"real_cpu": 8, "real_cpu_as_coded": 6, "learning_rate": 4}  # its seeds, where a row does not say otherwise
YARDSTICKS = ["*constant answer*", "*untrained model*"]


def lines(study: str) -> list[tuple[list[tuple[str, str]], str]]:
    """The lines of the tables whose last heading is `--only task=…,`: cells as (heading, text), and that heading's beginning of an --only."""
    found, headings, only = [], [], ""
    for line in next((part for part in README.split("lowres run ") if part.startswith(f"{study} ")), "").splitlines():
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if match := re.match(r"`--only (.*)`", cells[-1]):
            headings, only = cells, match[1]
        elif only and len(cells) == len(headings) and cells[0] != "---":
            found.append((list(zip(headings, cells, strict=True)), only))
    return found


def rows(study: str) -> list[tuple[list[tuple[str, str]], str]]:
    """Those with a command: its cells, and all that `--only` is given."""
    return [(cells, only + command.strip("`")) for cells, only in lines(study) if (command := cells[-1][1]).startswith("`method=")]


def numbered(study: str) -> list[tuple[list[tuple[str, str]], str]]:
    return [(cells, only) for cells, only in rows(study) if cells[0][1]]  # a yardstick has no number


def results(cells: list[tuple[str, str]]) -> list[tuple[str, int, str]]:
    """A line's results: domain, shots and text."""
    return [(place[1], int(place[2]), text) for heading, text in cells if (place := re.fullmatch(r"(in|out), (\d+) shots", heading))]


def trials(runs) -> list[dict]:
    return [trial for run in runs for _, trial in sorted(records.read_trials(run.folder)[0].items())]


def of_domain(sets: dict, domain: str) -> dict:
    [found] = [one for one in sets.values() if one["domain"] == domain]
    return found


@cache
def untrained(study: str, task: str, domain: str, shots: int) -> tuple[float, float]:
    """Accuracy and MCC of the model with the label words and no example, where in-context learning at so many shots ran."""
    found, here = {}, ""
    for run in select(read_study(study), f"method=in_context,task={task}").runs:
        for one in trials([run]):
            device, scores = one["environment"]["device"], of_domain(one["also"]["zero-shot"]["sets"], domain)
            here = device if run.parameters.shots == shots else here
            assert found.setdefault(device, scores) == scores, "no seed and no number of shots changes it; another processor may, by rounding"
    return found[here]["accuracy"], found[here]["mcc"]


def half_interval(values: list[float]) -> float:
    return stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(set(values)) > 1 else 0.0


def without_zero(cell: str) -> str:
    """An MCC is printed without the zero before its point, and with a minus sign."""
    return cell.replace("(0.", "(.").replace("(-0.", "(−.")


def printed(of_cell: list[dict], before: tuple[float, float]) -> str:
    """A cell by the README's own words: bold above the constant and, in accuracy or MCC, above the untrained model; † MCC above 0 and it."""
    accuracy, mcc = ([one[name] for one in of_cell] for name in ("accuracy", "mcc"))
    half, mcc_half, constant = half_interval(accuracy), half_interval(mcc), of_cell[0]["constant"]
    low, mcc_low = mean(accuracy) - half, mean(mcc) - mcc_half
    text = f"{100 * mean(accuracy):.1f}" + (f" ± {100 * half:.1f}" if half else "")
    if half and low > constant and (low > before[0] or mcc_low > max(0, before[1])):
        text = f"**{text}**"
    return without_zero(f"{text} ({mean(mcc):.3f}{'†' if mcc_half and mcc_low > max(0, before[1]) else ''})")


@pytest.mark.parametrize("study", STUDIES)
def test_every_cell_of_the_readmes_results_is_what_its_commands_trials_give(study):
    planned, tables = read_study(study), numbered(study)
    assert tables
    for cells, only in tables:
        task, runs = re.search(r"task=(\w+)", only)[1], select(planned, only).runs
        for domain, shots, text in results(cells):
            these = trials(run for run in runs if run.parameters.shots == shots)
            now = printed([of_domain(one["sets"], domain) for one in these], untrained(study, task, domain, shots)) if these else "–"
            assert text == now, f"{only}, {domain}, {shots} shots"


@pytest.mark.parametrize("study", STUDIES)
def test_the_yardsticks_of_the_readmes_results_are_those_of_the_same_rows(study):
    told = [(dict(cells), results(cells), re.search(r"task=(\w+)", only)[1]) for cells, only in lines(study) if cells[1][1] in YARDSTICKS]
    assert len(told) == len(YARDSTICKS) * len({task for _, _, task in told})
    for cells, texts, task in told:
        some = trials(select(read_study(study), f"method=in_context,task={task}").runs)[0]
        for domain, shots, text in texts:
            constant = of_domain(some["sets"], domain)["constant"], 0
            accuracy, mcc = constant if YARDSTICKS[0] in cells.values() else untrained(study, task, domain, shots)
            assert text == without_zero(f"{100 * accuracy:.1f} ({mcc:.3f})"), f"{study}, {task}, {domain}, {shots} shots"


@pytest.mark.parametrize(("study", "seeds"), STUDIES.items())
def test_the_readmes_results_say_the_seconds_and_where_there_are_other_numbers_of_seeds(study, seeds):
    assert f"{seeds} seeds" in README
    for cells, only in numbered(study):
        runs = select(read_study(study), only).runs
        by_shots = {shots: trials(run for run in runs if run.parameters.shots == shots) for _, shots, _ in results(cells)}
        few = re.findall(r"(\d+) seeds(?: at (\d+(?: and \d+)*))?", cells[1][1])
        told = {int(shots): int(count) for count, places in few for shots in (places or "16").split(" and ")}
        assert told == {shots: len(these) for shots, these in by_shots.items() if these and len(these) != seeds}, only
        took = [sum(value for phase, value in one["seconds"].items() if phase not in ("compile", "compare")) for one in by_shots[16]]
        assert dict(cells)["s"] == f"{mean(took):.0f}", only


@pytest.mark.parametrize("study", STUDIES)
def test_the_rows_of_the_readmes_results_are_the_whole_study_once(study):
    planned = read_study(study)
    named = Counter(run.name for _, only in rows(study) for run in select(planned, only).runs if trials([run]))
    assert named == Counter(run.name for run in planned.runs if trials([run]))


def test_the_readmes_verdicts_are_the_analysis_word_for_word():
    with (read_study("real_cpu").folder / "claims.csv").open(newline="") as file:
        claims = list(csv.DictReader(file))
    assert [claim["claim"] for claim in claims] == list("1234567")
    for claim in claims:
        assert f"| {claim['claim']} | {claim['the paper says']} | **{claim['verdict']}** | {claim['remarks']} |" in README
