"""What is compared while a study is still running, or ran on several machines, or holds copies: like with like, and the rest is told."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import METHODS, fill, make_study
from toys import ENTAILMENT, GRAMMAR

from lowres.analysis import tables, verdicts
from lowres.analysis.answer import Budget, advise, candidates
from lowres.analysis.claims import ADAPTIVE, LORA, PATTERN, PBFT, VANILLA, Contrast, paired, relevant
from lowres.analysis.collect import collect
from lowres.runs.study import read_study


def made(tmp_path, effect=lambda run, domain: 0.0, spread=1.0, only=None, **options) -> pd.DataFrame:
    path = make_study(tmp_path, **options)
    fill(read_study(path, outputs=str(tmp_path / "outputs")), effect, spread, only=only, predictions=False)
    return collect(path, str(tmp_path / "outputs")).trials


def shots_of(pair) -> set[int]:
    return {cell[2] for cell in pair.cells}


def test_seconds_are_compared_where_both_sides_ran_on_one_machine(tmp_path):
    trials = made(tmp_path, shots=(2, 16))
    moved = (trials["method"] == "vanilla") & (trials["shots"] == 16) & (trials["seed"] > 0)
    trials = trials.assign(machine=np.where(moved, "another", "one"), train_seconds=np.where(moved, 100.0, 1.0))
    seconds, accuracy = (paired(relevant(trials), Contrast(VANILLA, PBFT, measure)) for measure in ("train_seconds", "in"))
    assert shots_of(accuracy) == {2, 16} and shots_of(seconds) == {2} and not seconds.d.any()
    remarks = tables.verdict_table(verdicts.judge(trials, 2.0), 2.0)["remarks"]
    assert "seconds: cells left out, since their trials ran on different machines: 1" in remarks[6] and "machines" not in remarks[0]
    apart = paired(relevant(trials.assign(machine=trials["method"])), Contrast(VANILLA, PBFT, "train_seconds"))
    assert apart.missing == "vanilla − PBFT, training seconds: no seed that both have on one machine"


def test_a_machine_is_its_processor_threads_and_precision(tmp_path):
    path = make_study(tmp_path, shots=(2,), methods=METHODS[:1], seeds=range(4))
    study = read_study(path, outputs=str(tmp_path / "outputs"))
    fill(study, predictions=False)
    record = json.loads((study.runs[0].folder / "record.json").read_text())
    for trial, other in zip(record["trials"], ({}, {"threads": 2}, {"precision": "bfloat16"}, {"device": "B"})):
        trial["environment"] = {"device": "A", "threads": 1, "precision": "float32", "compiled": False} | other
    (study.runs[0].folder / "record.json").write_text(json.dumps(record))
    assert collect(path, str(tmp_path / "outputs")).trials["machine"].nunique() == 4


def test_a_cell_waits_for_all_runs_of_a_side(tmp_path):
    """Adaptive has two readings here. Where one of them is still missing, the mean would be over another side than elsewhere."""
    whole = lambda run, seed: run.parameters.shots == 2 or getattr(run.parameters, "adapt", "") != "layers"  # noqa: E731
    lines = relevant(made(tmp_path, only=whole, shots=(2, 16), methods=METHODS[:3]))
    assert shots_of(paired(lines, Contrast(ADAPTIVE, PBFT, "out"))) == {2}
    assert shots_of(paired(lines, Contrast(PATTERN, PBFT, "out"))) == {2, 16}, "one reading does not wait for another"


def test_a_task_with_more_evaluation_sets_has_no_more_runs(tmp_path):
    trials = made(tmp_path, tasks=("cola", "mnli"), shots=(2,), methods=METHODS[:2])
    more = trials[(trials["task"] == "mnli") & (trials["domain"] == "out")].assign(set="another")
    pair = paired(relevant(pd.concat([trials, more])), Contrast(VANILLA, PBFT, "out"))
    assert {cell[0] for cell in pair.cells} == {"cola", "mnli"}


def test_where_each_cell_lacks_a_run_of_another_side_something_is_compared_all_the_same(tmp_path):
    methods = [METHODS[2], {"method": "lora", "set": {"head": "classifier"}, "vary": {"rank": [1, 8]}}]
    lacks = {2: "layers", 16: 8}
    there = lambda run, seed: lacks[run.parameters.shots] not in (getattr(run.parameters, "adapt", ""), getattr(run.parameters, "rank", ""))  # noqa: E731
    pair = paired(relevant(made(tmp_path, only=there, shots=(2, 16), methods=methods)), Contrast(ADAPTIVE, LORA, "in"))
    assert len(pair.d) == 10 and pair.cells


def test_in_a_study_of_other_tasks_each_task_is_an_arena_of_its_own(tmp_path):
    good = lambda run, domain: 10.0 if (run.method == "vanilla") == (run.parameters.task == GRAMMAR) else 0.0  # noqa: E731
    lines = relevant(made(tmp_path, good, tasks=(GRAMMAR, ENTAILMENT), shots=(2,), methods=METHODS[:2]))
    duels = [paired(lines, duel) for duel in verdicts.duels(lines) if {duel.left, duel.right} == {VANILLA, PBFT} and duel.measure == "in"]
    assert [bool(duel.d.mean() > 5) for duel in duels] == [True, False] and [bool(duel.d.mean() < -5) for duel in duels] == [False, True]


def test_copies_on_one_side_alone_are_counted_once_too(tmp_path):
    trials = made(tmp_path, shots=(2,), methods=METHODS[:2])
    copied = (trials["method"] == "pbft") & (trials["seed"] > 1)
    pair = paired(relevant(trials.assign(outcome=trials["outcome"].mask(copied, "one outcome"))), Contrast(VANILLA, PBFT, "in"))
    assert pair.seeds == [0, 1, 2] and pair.copies == 7


def test_an_ablation_at_another_rate_is_not_what_a_claim_is_asked_of(tmp_path):
    rates = [{"method": "vanilla", "vary": {"learning_rate": [1.0e-5, 1.0e-4]}}, {"method": "pbft"},
             {"method": "lora", "set": {"head": "classifier"}},
             {"method": "lora", "ablation": True, "set": {"head": "classifier", "learning_rate": 1.0e-4, "seeds": [0, 1, 2]}}]
    found = verdicts.by_learning_rate(made(tmp_path, shots=(2,), seeds=range(6), methods=rates), 2.0)
    assert found[1e-4][3].verdict == "supported" and not found[1e-4][3].missing, "LoRA keeps the rate that it has with all seeds"


def test_ablations_have_no_say_in_the_shots_that_advice_is_given_for(tmp_path):
    ablations = [{"method": "lora", "ablation": True, "set": {"seeds": [0, 1]}, "vary": {"shots": [2], "rank": [1, 2, 4]}}]
    trials = made(tmp_path, shots=(2, 64), methods=[*METHODS[:2], {"method": "lora"}, *ablations])
    table, out = candidates(trials, Budget())
    assert len(table.columns) == 3 and all(name.endswith("64-shot") for name in table)
    assert "ablations: lora (rank=1) with 2 seeds, lora (rank=2) with 2 seeds, lora (rank=4) with 2 seeds" in out


def test_advice_from_ablations_alone_names_no_one(tmp_path):
    lora = [{"method": "lora"}, {"method": "lora", "ablation": True, "set": {"rank": 1, "seeds": [0, 1]}}]
    trials = made(tmp_path, shots=(2,), methods=lora, only=lambda run, seed: run.parameters.rank == 1)
    assert "nothing in this study fits the budget. Left out: ablations: lora (rank=1) with 2 seeds" in advise(trials, Budget())


def test_advice_without_a_common_seed_names_no_winner(tmp_path):
    trials = made(tmp_path, shots=(2,), methods=[{"method": "vanilla", "set": {"seeds": [0, 1]}}, {"method": "pbft", "set": {"seeds": [2, 3]}}])
    said = advise(trials, Budget())
    assert "**no clear winner**: the methods have no seed in common yet" in said and "nan" not in said


@pytest.mark.parametrize(("domains", "score"), [(("in", "out"), "mean of in-domain and out-of-domain accuracy"), (("in",), "in-domain accuracy")])
def test_advice_says_which_accuracy_it_ranks_by(tmp_path, domains, score):
    trials = made(tmp_path, shots=(2,), methods=METHODS[:2])
    assert f"Best means the highest {score}." in advise(trials[trials["domain"].isin(domains)], Budget())


@pytest.mark.parametrize(("budget", "reason"), [(Budget(seconds=30), "s, more than 30"), (Budget(memory_gb=2.5), "GB, more than 2.5")])
def test_what_is_over_the_budget_is_left_out_and_told(tmp_path, budget, reason):
    table, out = candidates(made(tmp_path, shots=(2,), methods=[{"method": "vanilla"}, {"method": "lora"}]), budget)
    assert [name.split(",")[0] for name in table] == ["lora"] and "vanilla" in out[0] and reason in out[0]
