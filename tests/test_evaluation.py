"""Metrics are the field's, held against their formulas by hand."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import ENTAILMENT

from lowres.methods.cost import Meter, flops
from lowres.methods.evaluation import evaluated, predictions
from lowres.runs.notebook import Run
from lowres.runs.process import KERNEL_ENVIRONMENT
from lowres.runs.summary import headline, interval, results
from lowres.tasks.kinds import KINDS, SCALE
from lowres.tasks.load import load_task
from lowres.tasks.task_file import read_task

metrics = KINDS["classification"].metrics


def test_the_metrics_are_their_formulas():
    gold = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    predicted = np.array([1, 0, 1, 0, 1, 1, 0, 1])
    found = metrics(gold, np.eye(2)[predicted])
    tp, tn, fp, fn = 4, 2, 1, 1
    assert found["accuracy"] == (tp + tn) / 8
    assert found["mcc"] == pytest.approx((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert found["macro_f1"] == pytest.approx((2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2)
    assert (found["n"], found["constant"], found["commonest_prediction"]) == (8, 5 / 8, 5 / 8)


def test_of_a_scale_it_is_told_how_many_steps_answers_are_off_and_a_median_is_the_yardstick():
    gold, predicted = np.array([0, 1, 4, 4, 3]), np.array([0, 3, 4, 2, 3])
    found = SCALE.metrics(gold, np.eye(5)[predicted])
    assert found["mean_error"] == (0 + 2 + 0 + 2 + 0) / 5 and found["accuracy"] == 3 / 5
    assert found["constant_mean_error"] == min(np.abs(gold - step).mean() for step in range(5)) == (3 + 2 + 1 + 1 + 0) / 5
    assert set(found) - set(metrics(gold, np.eye(5)[predicted])) == {"mean_error", "constant_mean_error"}


@pytest.mark.parametrize(("name", "columns", "written"), [("boolq", ["question", "passage", "answer"], "true"), ("ratings", ["text", "label"], "2")])
def test_yes_and_no_and_ratings_are_task_files_alone(tmp_path, name, columns, written):
    (tmp_path / name).mkdir()
    spec, answers = read_task(name), {"true": ("true", "false"), "2": ("0", "1", "2", "3", "4")}[written]
    for number, file in enumerate({file for source in (spec.pool, *spec.evaluation.values()) for file in source.files}):
        stars = file == "ratings/shops"
        told = {answer: f"{int(answer) + 1} star{'s' * (answer > '1')}" if stars else answer for answer in answers}
        lines = [[*(f"{column} {number} {i} of {answer}" for column in columns[:-1]), told[answer]] for i in range(4) for answer in answers]
        pd.DataFrame(lines, columns=columns).to_csv(tmp_path / f"{file}.tsv", sep="\t", index=False)
    task = load_task(name, str(tmp_path))
    assert len(task.pool) == 4 * len(answers) and set(task.pool["label"]) == set(range(len(task.labels)))
    found = evaluated(task, {each: np.eye(len(task.labels))[rows["label"]] for each, rows in task.evaluation.items()})
    assert all(one["accuracy"] == 1 and one.get("mean_error", 0) == 0 and ("mean_error" in one) == (name == "ratings") for one in found.values())
    trial = {"seed": 0, "sets": found, "seconds": {"train": 1.0}, "trainable": 0, "outcome_sha256": "", "losses": [], "memory": {"resident": 1.0}}
    assert ("off by, steps (constant)" in results([trial])) == (name == "ratings")


def test_predictions_hold_any_seed_and_any_number_of_labels():
    rows = pd.DataFrame({"label": [0, 199]}, index=[3, 5])
    task = SimpleNamespace(evaluation={"test": rows}, labels=[str(i) for i in range(200)], kind=KINDS["classification"])
    kept = predictions(task, {"test": np.eye(200)[[150, 199]]}, seed=2**63 - 1)
    assert kept[["trial", "row", "label", "prediction"]].to_numpy().tolist() == [[2**63 - 1, 3, 0, 150], [2**63 - 1, 5, 199, 199]]


def test_a_constant_answer_scores_the_yardstick_and_an_mcc_of_zero():
    found = metrics(np.array([1, 1, 0]), np.eye(2)[[1, 1, 1]])
    assert found["accuracy"] == found["constant"] and found["mcc"] == 0 and found["commonest_prediction"] == 1


def test_the_interval_is_students_and_says_nothing_of_one_trial():
    values = [0.5, 0.6, 0.55, 0.7]
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert interval(values) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert all(np.isnan(interval([0.5])))


def test_flops_are_two_a_weight_forward_and_two_each_for_the_gradients_of_inputs_and_trained_weights():
    assert flops(parameters=10, trainable=10, training_tokens=1, read_tokens=0) == 60
    assert flops(parameters=10, trainable=0, training_tokens=1, read_tokens=3) == 100


def test_a_meter_sees_a_peak_of_its_own():
    meter = Meter()
    if meter.whole_process:
        pytest.skip("this system cannot start a process's peak anew")
    with meter.phase("work"):
        block = np.ones(40_000_000)  # 320 MB
        del block
    peak = meter.memory()["resident"]
    assert meter.seconds["work"] > 0 and peak > 0.32
    assert Meter().memory()["resident"] < peak - 0.2


def test_what_trials_share_is_computed_once_and_costs_each_the_same():
    calls, seconds = [], []
    run = SimpleNamespace()
    shared = Run.once(run, lambda: calls.append(time.sleep(0.1)) or "answer")
    for _ in range(3):
        run.meter = Meter()
        with run.meter.phase("evaluate"):
            assert shared() == "answer"
        with run.meter.phase("compare"):  # asked for again in the same trial
            shared()
        assert run.meter.seconds["compare"] < 0.05
        seconds.append(run.meter.seconds["evaluate"])
    assert len(calls) == 1 and seconds == pytest.approx([seconds[0]] * 3, abs=0.03) and seconds[0] >= 0.1


def test_a_trials_peak_does_not_begin_where_the_last_ones_ended():
    # With a kernel's memory settings what is freed stays with the process, so that a second trial would inherit the first one's peak.
    work = "import numpy as np; from lowres.methods.cost import Meter; meter = Meter(); blocks = [np.ones(12_500) for _ in range(4000)]; " \
           "last = bytearray(9); del blocks; print(meter.memory()['resident'], Meter().memory()['resident'], meter.whole_process)"
    ended = subprocess.run([sys.executable, "-c", work], env={**os.environ, **KERNEL_ENVIRONMENT}, capture_output=True, text=True, check=True)
    first, second, whole_process = ended.stdout.split()
    if whole_process == "True":
        pytest.skip("this system cannot start a process's peak anew")
    assert float(second) < float(first) - 0.3


def test_every_part_of_a_set_has_its_own_yardstick():
    task = load_task(ENTAILMENT, evaluation_rows=60)
    rows = task.evaluation["out_of_domain"]
    by = task.file.evaluation["out_of_domain"].break_down_by
    found = evaluated(task, {name: np.eye(2)[np.zeros(len(part), int)] for name, part in task.evaluation.items()})["out_of_domain"]
    assert by and len(rows) == sum(part["n"] for part in found["by"].values())
    for (name, part), (_, frame) in zip(sorted(found["by"].items()), rows.groupby([{"label": "gold"}.get(column, column) for column in by])):
        gold = frame["label"].to_numpy()
        assert part["accuracy"] == pytest.approx((gold == 0).mean()), name
        assert part["constant"] == pytest.approx(max((gold == 0).mean(), (gold == 1).mean())), name


def test_a_set_whose_labels_are_uneven_is_told_by_its_macro_f1_beside_that_of_a_constant_answer():
    gold = np.array([0] * 9 + [1] * 3)
    found = metrics(gold, np.eye(2)[[0] * 12])
    assert found["uneven"] and not metrics(np.array([0] * 8 + [1] * 3), np.eye(2)[[0] * 11])["uneven"]
    assert found["constant_macro_f1"] == found["macro_f1"] == pytest.approx(2 * 9 / (2 * 9 + 3) / 2)
    trial = {"seed": 0, "sets": {"test": {"domain": "in", **found, "by": {}}}, "seconds": {"train": 1.0}, "memory": {"resident": 1.0},
             "trainable": 1, "outcome_sha256": "x", "losses": []}
    [line] = headline([trial])
    assert line.startswith("**macro-F1 42.9 %** on test (in domain), whose labels are uneven: the constant answer has 42.9; accuracy 75.0 %")
    table = results([trial])
    assert table["macro-F1, % [95 % interval]"].tolist() == ["42.9"] and list(table).index("macro-F1, % [95 % interval]") == 2
