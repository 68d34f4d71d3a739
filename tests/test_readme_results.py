"""What README.md and outputs/README.md tell are the trials' results: every cell and difference is computed again from the runs that its row names."""

import csv
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from numpy import mean
from scipy import stats

from lowres.analysis import rates
from lowres.analysis.collect import collect
from lowres.files import ROOT
from lowres.parameters import METHODS
from lowres.runs.records import peak_memory, read_predictions, read_record, seconds_of
from lowres.runs.study import read_study, select

FRONT, RESULTS = ((ROOT / page).read_text().replace("\u00a0", " ") for page in ("README.md", "outputs/README.md"))  # a cell breaks at its ends alone
STUDIES = {"real_cpu": 8, "real_cpu_as_coded": 6, "learning_rate": 4}  # its seeds, where a row does not say otherwise
YARDSTICKS = ["*constant answer*", "*untrained model*"]
FRONT_LINES = {
    "in-context learning": "task=sentiment,method=in_context", "vanilla": "task=sentiment,method=vanilla,learning_rate=5e-5",
    "pattern-based (PBFT)": "task=sentiment,method=pbft,learning_rate=5e-5", "LoRA": "task=sentiment,method=lora,learning_rate=1e-3",
    "adaptive: top layers": "task=sentiment,method=adaptive,learning_rate=5e-5", "context distillation": "task=sentiment,method=distillation",
    "linear probe": "task=sentiment,method=baselines,classifier=probe", "TF-IDF": "task=sentiment,method=baselines,classifier=tfidf",
}
SETS = ("films", "products", "tweets", "news")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def lines(study: str) -> list[tuple[list[tuple[str, str]], str]]:
    """The lines of the tables whose last heading is `--only task=…,`: cells as (heading, text), and that heading's beginning of an --only."""
    found, headings, only = [], [], ""
    for line in next((part for part in RESULTS.split("lowres run ") if part.startswith(f"{study} ")), "").splitlines():
        cells = cells_of(line)
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
    return [trial for run in runs if (record := read_record(run.folder)) for trial in record["trials"]]


@cache
def trials_of(study: str, only: str) -> list[dict]:
    return trials(select(read_study(study), only).runs)


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
    """A cell by outputs/README's own words: bold above the constant and, in accuracy or MCC, above the untrained model; † MCC above 0 and it."""
    accuracy, mcc = ([one[name] for one in of_cell] for name in ("accuracy", "mcc"))
    half, mcc_half, constant = half_interval(accuracy), half_interval(mcc), of_cell[0]["constant"]
    low, mcc_low = mean(accuracy) - half, mean(mcc) - mcc_half
    text = f"{100 * mean(accuracy):.1f}" + (f" ± {100 * half:.1f}" if half else "")
    if half and low > constant and (low > before[0] or mcc_low > max(0, before[1])):
        text = f"**{text}**"
    return without_zero(f"{text} ({mean(mcc):.3f}{'†' if mcc_half and mcc_low > max(0, before[1]) else ''})")


def difference(left: str, right: str, domain: str, name: str) -> str:
    """`left` less `right` ('STUDY method=…,task=…,shots=…'), paired by the seeds that both have: mean and 95 % interval, as a cell prints it."""
    sides = [{one["seed"]: of_domain(one["sets"], domain)[name] for one in trials_of(*side.split(" ", 1))} for side in (left, right)]
    differences = [sides[0][seed] - sides[1][seed] for seed in sorted(set(sides[0]) & set(sides[1]))]
    times, digits = (100, 1) if name == "accuracy" else (1, 3)
    middle, half = times * mean(differences), times * half_interval(differences)
    text = "{:+.DIGITSf} [{:.DIGITSf}, {:.DIGITSf}]".replace("DIGITS", str(digits))
    return text.format(*(round(value, 9) for value in (middle, middle - half, middle + half)))  # 5.45 is 5.45, whatever order it was added in


def table_of(heading: str) -> list[dict[str, str]]:
    """The lines of the one table of outputs/README that begins with this heading."""
    [table] = re.findall(rf"^\| {heading} \|.*?(?=\n\n)", RESULTS, re.DOTALL | re.MULTILINE)
    headings, _, *body = (cells_of(line) for line in table.splitlines())
    return [dict(zip(headings, line, strict=True)) for line in body]


@pytest.mark.parametrize("study", STUDIES)
def test_every_cell_of_the_results_is_what_its_commands_trials_give(study):
    planned, tables = read_study(study), numbered(study)
    assert tables
    for cells, only in tables:
        task, runs = re.search(r"task=(\w+)", only)[1], select(planned, only).runs
        for domain, shots, text in results(cells):
            these = trials(run for run in runs if run.parameters.shots == shots)
            now = printed([of_domain(one["sets"], domain) for one in these], untrained(study, task, domain, shots)) if these else "–"
            assert text == now, f"{only}, {domain}, {shots} shots"


@pytest.mark.parametrize("study", STUDIES)
def test_the_yardsticks_of_the_results_are_those_of_the_same_rows(study):
    told = [(dict(cells), results(cells), re.search(r"task=(\w+)", only)[1]) for cells, only in lines(study) if cells[1][1] in YARDSTICKS]
    assert len(told) == len(YARDSTICKS) * len({task for _, _, task in told})
    for cells, texts, task in told:
        some = trials(select(read_study(study), f"method=in_context,task={task}").runs)[0]
        for domain, shots, text in texts:
            constant = of_domain(some["sets"], domain)["constant"], 0
            accuracy, mcc = constant if YARDSTICKS[0] in cells.values() else untrained(study, task, domain, shots)
            assert text == without_zero(f"{100 * accuracy:.1f} ({mcc:.3f})"), f"{study}, {task}, {domain}, {shots} shots"


@pytest.mark.parametrize(("study", "seeds"), STUDIES.items())
def test_the_results_say_the_seconds_and_where_there_are_other_numbers_of_seeds(study, seeds):
    assert f"{seeds} seeds" in RESULTS
    for cells, only in numbered(study):
        runs = select(read_study(study), only).runs
        by_shots = {shots: trials(run for run in runs if run.parameters.shots == shots) for _, shots, _ in results(cells)}
        few = re.findall(r"(\d+) seeds(?: at (\d+(?: and \d+)*))?", cells[1][1])
        told = {int(shots): int(count) for count, places in few for shots in (places or "16").split(" and ")}
        assert told == {shots: len(these) for shots, these in by_shots.items() if these and len(these) != seeds}, only
        assert dict(cells)["s"] == f"{mean([seconds_of(one) for one in by_shots[16]]):.0f}", only


@pytest.mark.parametrize("study", STUDIES)
def test_the_rows_of_the_results_are_the_whole_study_once(study):
    planned = read_study(study)
    named = Counter(run.name for _, only in rows(study) for run in select(planned, only).runs if trials([run]))
    assert named == Counter(run.name for run in planned.runs if trials([run]))


def test_the_studies_are_as_whole_as_is_told():
    counts = [len(trials(read_study(study).runs)) for study in STUDIES]
    assert counts == [read_study(study).trials for study in STUDIES]
    assert "`real_cpu`, `real_cpu_as_coded` and `learning_rate` are whole: {}, {} and {} trials".format(*counts) in RESULTS


def test_every_difference_that_is_told_is_the_trials_paired_by_seed():
    assert len(table_of("what")) > 20
    for line in table_of("what"):
        left, right = re.findall(r"`([^`]+)`", line["which runs"])
        for heading, name in (("accuracy, points", "accuracy"), ("MCC", "mcc")):
            assert line[heading] == difference(left, right, line["domain"], name), (line["what"], heading)


def test_what_is_called_entailed_on_hans_is_what_the_trials_give():
    def called(sets: dict, label: str) -> float:
        parts = [part for name, part in sets["hans"]["by"].items() if name.endswith(f"/{label}")]
        right = sum(part["accuracy"] * part["n"] for part in parts) / sum(part["n"] for part in parts)
        return 100 * (right if label == "entailment" else 1 - right)

    name = "HANS, 64 shots: called entailed"
    assert len(table_of(name)) == 8
    for line in table_of(name):
        frozen = line[name] == YARDSTICKS[1]
        found = trials_of("real_cpu", "task=mnli,shots=64," + line["which runs"].strip("`"))
        for heading, label in (("of the entailed, %", "entailment"), ("of the others, %", "contradiction")):
            values = [called(one["also"]["zero-shot"]["sets"] if frozen else one["sets"], label) for one in found]
            assert line[heading] == f"{round(mean(values), 9):.1f} [{min(values):.0f} to {max(values):.0f}]", line


def test_every_figure_in_the_sentences_of_the_results_stands_in_a_table_that_is_computed_again():
    told = RESULTS[RESULTS.index("## Results"):RESULTS.index("## How to read")]
    with (ROOT / "outputs/real_cpu/contrasts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    printed = [line[key] for line in lines for key in ("difference", "95 % over seeds", "MCC", "95 % of MCC, over seeds")]
    contrasts = {round(float(figure), digits) for cell in printed for figure in re.findall(r"\d+\.\d+", cell) for digits in (1, 3)}
    tables, sentences = (" ".join(line for line in told.splitlines() if line.startswith("|") is of_a_table) for of_a_table in (True, False))
    known = {round(float(figure), 3) for figure in re.findall(r"\d*\.\d+", tables)} | contrasts
    figures = re.findall(r"(?<![\w.])\d*\.\d+", re.sub(r"`[^`]*`", "", sentences))
    assert figures and [figure for figure in figures if float(figure) not in known] == []


def by_hand(correct: list[np.ndarray]) -> tuple[float, float]:
    """An accuracy's interval for new seeds and rows: half-widths by Student's t over seeds and the normal one over rows, their squares added."""
    table = np.array(correct, float)
    rows = 1.959964 * np.sqrt(table.mean(axis=0).var(ddof=1) / table.shape[1])
    half = np.sqrt(half_interval(table.mean(axis=1).round(9)) ** 2 + rows**2)
    return max(0, table.mean() - half), min(1, table.mean() + half)


def test_the_front_pages_table_is_what_the_trials_give():
    body = [cells_of(line) for line in FRONT.split("| 16 examples per class |")[1].splitlines()[2:12]]
    assert [cells[0] for cells in body] == [*YARDSTICKS, *FRONT_LINES]
    study = read_study("rates")
    frozen = trials_of("rates", "task=sentiment,method=in_context")[0]["also"]["zero-shot"]["sets"]
    for name, *told, memory in body:
        for text, place in zip(told, SETS, strict=True):
            constant, before = frozen[place]["constant"], frozen[place]["accuracy"]
            if name in YARDSTICKS:
                assert text == f"{100 * (constant if name == YARDSTICKS[0] else before):.1f}", (name, place)
                continue
            [run] = select(study, FRONT_LINES[name]).runs
            kept = read_predictions(run.folder).query("set == @place").sort_values("row")
            low, high = by_hand([(part["label"] == part["prediction"]).to_numpy() for _, part in kept.groupby("trial")])
            each = [one["sets"][place]["accuracy"] for one in trials([run])]
            assert len(each) == 6
            cell = f"{100 * mean(each):.1f} [{100 * low:.0f}, {100 * high:.0f}]"
            assert text == (f"**{cell}**" if mean(each) - half_interval(each) > max(constant, before) else cell), (name, place)
        if name in FRONT_LINES:
            assert memory == f"{mean([peak_memory(one) for one in trials(select(study, FRONT_LINES[name]).runs)]):.1f}", name


def test_every_figure_in_the_front_pages_answer_stands_in_a_table():
    answer = FRONT[FRONT.index("## The answer so far"):FRONT.index("## Two commands")]
    tables = " ".join(line for line in (RESULTS + answer).splitlines() if line.startswith("|"))
    sentences = " ".join(line for line in answer.splitlines() if not line.startswith("|"))
    assert (figures := re.findall(r"\d+\.\d", sentences)) and all(figure in tables for figure in figures)


def test_the_rates_table_is_what_the_trials_give():
    assert len(table_of("`rates`")) == 4
    for line in table_of("`rates`"):
        found = select(read_study("rates"), line["which runs"].strip("`")).runs
        assert [f"{run.parameters.learning_rate:g}" for run in found] == line["three rates"].split(", ")
        for place, names in (("films", SETS[:1]), ("elsewhere", SETS[1:])):
            for which, run in zip(("lowest", "middle", "highest"), found):
                each = [mean([one["sets"][name]["accuracy"] for name in names]) for one in trials([run])]
                assert len(each) == 6 and line[f"{place}, {which}"] == f"{100 * mean(each):.1f} ± {100 * half_interval(each):.1f}", (line, which)


def test_the_table_of_mnli_is_what_the_trials_give_and_who_learns_there_is_as_told():
    *lines, bars = table_of("of MNLI, in `rates`")
    before = trials_of("rates", "task=mnli,method=in_context")[0]["also"]["zero-shot"]["sets"]
    told = [bars[f"{place}, {which}"] for place in ("in domain", "HANS") for which in ("lowest", "middle")]
    assert told == [f"{100 * before[name][key]:.1f}" for name in ("matched", "hans") for key in ("constant", "accuracy")]
    above = set()
    for line in lines:
        for which, run in zip(("lowest", "middle", "highest"), select(read_study("rates"), line["which runs"].strip("`")).runs, strict=True):
            for place, name in (("in domain", "matched"), ("HANS", "hans")):
                each = [one["sets"][name]["accuracy"] for one in trials([run])]
                assert len(each) == 6 and line[f"{place}, {which}"] == f"{100 * mean(each):.1f} ± {100 * half_interval(each):.1f}", (line, which)
                if mean(each) - half_interval(each) > max(before[name]["constant"], before[name]["accuracy"]):
                    above.add((run.method, run.parameters.learning_rate, place))
    assert above == {("lora", 5e-3, "in domain"), ("pbft", 5e-5, "in domain"), ("pbft", 2e-4, "in domain"), ("adaptive", 2e-4, "in domain")}


def test_the_table_of_sizes_is_what_the_trials_give():
    *lines, bars = table_of("what trains, in `adapters`")
    before = {name: found for task in ("sentiment", "mnli")
              for name, found in trials_of("adapters", f"task={task},method=in_context")[0]["also"]["zero-shot"]["sets"].items()}
    places = {"films": SETS[:1], "elsewhere": SETS[1:], "MNLI": ("matched",), "HANS": ("hans",)}
    for place, names in places.items():
        told = [100 * mean([before[name][key] for name in names]) for key in ("constant", "accuracy")]
        assert bars[place] == " / ".join(f"{value:.1f}" for value in told)
        for line in lines:
            of_task = "sentiment" if set(names) <= set(SETS) else "mnli"
            if line[place] == "–":  # the second rate, of one task
                assert of_task == "mnli" and "2e-4" in line["which runs"]
                continue
            found = trials_of("adapters", f"task={of_task},{line['which runs'].strip('`')}")
            each = [mean([one["sets"][name]["accuracy"] for name in names]) for one in found]
            assert len(each) == 4 and line[place] == f"{100 * mean(each):.1f} ± {100 * half_interval(each):.1f}", (line, place)
            assert line["weights"] == f"{found[0]['trainable']:,}"
    ranks = [{place: float(line[place].split()[0]) for place in places} for line in lines if "rank" in line["which runs"]]
    assert len(ranks) == 4 and max(max(rank[place] for rank in ranks) - min(rank[place] for rank in ranks) for place in places) < 3


def test_the_table_of_teachers_is_what_the_trials_give_and_neither_temperature_nor_teacher_is_shown_to_matter():
    *lines, bars = table_of("learnt on, what the teacher sees, in `temperature`")
    before = trials_of("temperature", "task=sentiment,method=in_context")[0]["also"]["zero-shot"]["sets"]
    for place, names in (("films", SETS[:1]), ("elsewhere", SETS[1:])):
        told = [100 * mean([before[name][key] for name in names]) for key in ("constant", "accuracy")]
        assert [bars[f"{who}, {place}"] for who in ("teacher", "student")] == [f"{value:.1f}" for value in told]
        means: dict[str, list[float]] = {}
        for line in lines:
            found = trials_of("temperature", line["which runs"].strip("`"))
            assert len(found) == 4
            for who, sets in {"teacher": [one["also"]["teacher"]["sets"] for one in found], "student": [one["sets"] for one in found]}.items():
                each = [mean([one[name]["accuracy"] for name in names]) for one in sets]
                assert line[f"{who}, {place}"] == f"{100 * mean(each):.1f} ± {100 * half_interval(each):.1f}", (line, who, place)
                assert 100 * (mean(each) - half_interval(each)) <= told[1] + 1e-9, "neither is shown to be above the untrained model"
                if who == "student" and "inputs=" in line["which runs"]:
                    means.setdefault(re.search(r"inputs=([\w-]+)", line["which runs"])[1], []).append(100 * mean(each))
        assert all(len(part) == 4 and max(part) - min(part) < 2 for part in means.values()) and len(means) == 2


def test_methods_default_rates_are_those_that_do_best_over_the_studys_tasks_and_their_files_say_by_how_much():
    found = rates.from_other_tasks(rates.rated(collect("rates", str(ROOT / "outputs")).trials)).query("task == ''").set_index("method")
    assert set(found.index) == {"vanilla", "pbft", "adaptive", "lora"} and (found["tasks"] == 3).all()
    for method, line in found.iterrows():
        assert METHODS[method].model_fields["learning_rate"].default == line["learning_rate"], method
        assert line["rates"].replace("0.0002", "2e-4").replace("e-0", "e-").replace("0.001", "1e-3").replace("0.005", "5e-3") in " ".join(
            (ROOT / f"parameters/methods/{method}.yaml").read_text().replace("\n#", "").split()), method
    assert METHODS["distillation"].model_fields["learning_rate"].default == METHODS["pbft"].model_fields["learning_rate"].default


@cache
def by_rule():
    found = collect("rates", str(ROOT / "outputs")).trials
    rules = rates.by_rule(found)
    return rates.regret_table(rules).set_index("method"), rates.verdicts_by_rule(found, rules, 2.0)


def test_the_tables_of_rules_are_what_the_analysis_finds():
    regret, verdicts = by_rule()
    table = table_of("rule, mean accuracy over three tasks")
    for line, rule in zip(table, ("first", "other tasks", "mean", "hindsight"), strict=True):
        told = [line[name] for name in ("PBFT", "LoRA", "top layers", "vanilla")]
        assert told == [regret.loc[method, rule].split()[0] for method in ("pbft", "lora", "adaptive", "vanilla")], rule
    lost = {rule: sum(float(regret.loc[method, rule].split()[0]) for method in regret.index) for rule in ("first", "other tasks", "mean")}
    assert max(lost, key=lost.get) == "mean"
    claims = table_of("claim, verdict with each method at the rate of")
    assert len(claims) == 7
    for claim, line in enumerate(claims):
        assert list(line.values())[1:] == [verdicts[rule][claim].verdict for rule in ("first", "other tasks", "hindsight")], claim
    assert sum(len(set(list(line.values())[1:])) == 1 and list(line.values())[1] != "undecided" for line in claims) == 2


def test_from_16_examples_of_cola_no_method_comes_near_the_constant_answer():
    for run in select(read_study("rates"), "task=cola").runs:
        for name in ("in_domain", "out_of_domain"):
            each = [one["sets"][name]["accuracy"] for one in trials([run])]
            assert len(each) == 6 and mean(each) + half_interval(each) < trials([run])[0]["sets"][name]["constant"] == 0.69, (run.name, name)


def test_a_pattern_is_above_every_yardstick_at_each_rate_and_what_trains_well_holds_elsewhere():
    frozen = trials_of("rates", "task=sentiment,method=in_context")[0]["also"]["zero-shot"]["sets"]
    for run in select(read_study("rates"), "task=sentiment,method=pbft").runs:
        for place in SETS:
            each = [one["sets"][place]["accuracy"] for one in trials([run])]
            others = [mean([one["sets"][place]["accuracy"] for one in trials_of("rates", f"task=sentiment,method=baselines,classifier={name}")])
                      for name in ("probe", "tfidf")]
            assert mean(each) > max(frozen[place]["constant"], frozen[place]["accuracy"], *others), (run.name, place)
    for method in ("pbft", "lora", "adaptive"):
        for run in select(read_study("rates"), f"task=sentiment,method={method}").runs:
            found = {name: mean([one["sets"][name]["accuracy"] for one in trials([run])]) for name in SETS}
            assert mean([found[name] for name in SETS[1:]]) > found["films"], run.name


def test_the_verdicts_are_the_analysis():
    with (read_study("real_cpu").folder / "claims.csv").open(newline="") as file:
        claims = list(csv.DictReader(file))
    told = re.findall(r"^(\d)\. (.*?) \*\*(.*?)\*\*", RESULTS, re.MULTILINE)
    assert told == [(claim["claim"], claim["the paper says"], claim["verdict"][0].upper() + claim["verdict"][1:]) for claim in claims]
    assert len(told) == 7
