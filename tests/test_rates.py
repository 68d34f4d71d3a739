"""Which rate a method is judged at: the rules do what they say, and look at nothing that they may not."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import mannwhitneyu
from synthetic import fill, make_study
from toys import GRAMMAR

from lowres.analysis import plots, rates
from lowres.analysis.collect import collect
from lowres.runs import records
from lowres.runs.study import read_study

RATES = [1.0e-5, 5.0e-5, 2.0e-4]
METHODS = [{"method": "vanilla", "vary": {"learning_rate": RATES}}, {"method": "pbft", "vary": {"learning_rate": RATES}}]
BETTER = {("cola", 1e-5): 1, ("cola", 5e-5): 9, ("cola", 2e-4): 4, ("mnli", 1e-5): 2, ("mnli", 5e-5): 3, ("mnli", 2e-4): 12}


@pytest.fixture
def trials(tmp_path):
    effect = lambda run, domain: float(BETTER[run.parameters.task, run.parameters.learning_rate])  # noqa: E731
    path = make_study(tmp_path, tasks=("cola", "mnli"), shots=(16,), seeds=range(6), methods=METHODS)
    fill(read_study(path, outputs=str(tmp_path / "outputs")), effect, 0.3)
    return collect(path, str(tmp_path / "outputs")).trials


def picked(rules: pd.DataFrame, rule: str) -> dict:
    here = rules[(rules["rule"] == rule) & (rules["method"] == "pbft")]
    return here.groupby("task")["learning_rate"].first().to_dict()


def test_the_rate_of_a_task_is_the_one_that_does_best_on_the_others(trials):
    rules = rates.by_rule(trials)
    assert picked(rules, "first") == {"cola": 1e-5, "mnli": 1e-5}
    assert picked(rules, "other tasks") == {"cola": 2e-4, "mnli": 5e-5}
    assert picked(rules, "hindsight") == {"cola": 5e-5, "mnli": 2e-4}


def test_no_trial_on_the_task_itself_is_looked_at(trials):
    before = rates.from_other_tasks(rates.rated(trials))
    turned = trials["learning_rate"].map({1e-5: 0.9, 5e-5: 0.1, 2e-4: 0.1})
    changed = trials.assign(accuracy=trials["accuracy"].where(trials["task"] != "cola", turned))
    after = rates.from_other_tasks(rates.rated(changed))
    of_cola = lambda table: table[table["task"] == "cola"]["learning_rate"].tolist()  # noqa: E731
    assert of_cola(before) == of_cola(after) and before["learning_rate"].tolist() != after["learning_rate"].tolist()


def test_of_equal_rates_the_smaller_is_taken():
    assert rates.best(pd.Series({2e-4: 50.0, 5e-5: 50.0, 1e-5: 49.9})) == 5e-5


def test_the_mean_rule_averages_label_probabilities_of_all_rates_row_by_row(trials):
    rules = rates.by_rule(trials)
    one = rules[(rules["rule"] == "mean") & (rules["method"] == "vanilla") & (rules["task"] == "cola") & (rules["seed"] == 2)].iloc[0]
    folders = trials[(trials["method"] == "vanilla") & (trials["task"] == "cola")]["folder"].unique()
    from pathlib import Path

    tables = [records.read_predictions(Path(folder)) for folder in folders]
    parts = [table[(table["trial"] == 2) & (table["set"] == one["set"])].sort_values("row") for table in tables]
    columns = [column for column in parts[0] if column.startswith("logit_")]
    mean = np.mean([softmax(part[columns].to_numpy(float), axis=1) for part in parts], axis=0)
    assert one["accuracy"] == pytest.approx((mean.argmax(axis=1) == parts[0]["label"].to_numpy()).mean())


def test_regret_is_what_a_rule_loses_to_the_best_in_hindsight(trials):
    table = rates.regret_table(rates.by_rule(trials)).set_index("method")
    rules = rates.by_rule(trials)
    pbft = rules[rules["method"] == "pbft"]
    score = lambda rule: 100 * pbft[pbft["rule"] == rule].groupby(["task", "domain", "seed"])["accuracy"].mean().mean()  # noqa: E731
    assert table.loc["pbft", "hindsight"] == f"{score('hindsight'):.1f}"
    lost = score("hindsight") - score("first")
    assert table.loc["pbft", "first"].startswith(f"{score('first'):.1f} ({lost:.1f} below [") and lost > 5


def test_verdicts_are_of_the_rates_that_a_rule_gives(trials):
    found = rates.verdicts_by_rule(trials, rates.by_rule(trials), 2.0)
    assert set(found) == {"first", "other tasks", "hindsight"}
    chosen = {pair.cells and next(iter(pair.cells.values()))[0][0]["variant"] for pair in found["hindsight"][0].pairs}
    assert chosen == {"learning_rate=5e-05"}


@pytest.mark.parametrize("method", ["vanilla", "in_context"])
def test_a_study_with_one_rate_or_none_has_no_rules(tmp_path, method):
    path = make_study(tmp_path, shots=(16,), seeds=range(2), methods=[{"method": method}])
    fill(read_study(path, outputs=str(tmp_path / "outputs")), lambda run, domain: 1.0, 0.3)
    trials = collect(path, str(tmp_path / "outputs")).trials
    rules = rates.by_rule(trials)
    assert rules.empty and rates.verdicts_by_rule(trials, rules, 2.0) == {} and rates.regret_table(rules).empty


def test_a_first_rate_without_trials_is_left_out_and_the_other_rules_stay(trials):
    rules = rates.by_rule(trials[~((trials["method"] == "pbft") & (trials["learning_rate"] == 1e-5))])
    assert picked(rules, "first") == {} and picked(rules, "hindsight") == {"cola": 5e-5, "mnli": 2e-4}


def test_what_the_shots_chose_stands_beside_its_own_line(trials):
    chose = trials[(trials["method"] == "pbft") & (trials["learning_rate"] == 1e-5)]
    asked = "{'learning_rate': [1e-05, 0.0002]}"
    settings = {"choose": {"learning_rate": [1e-05, 0.0002]}, "rank": 8}
    named = chose.assign(chosen_from=asked, ablation=True, folder="x", settings=[settings] * len(chose))
    patterns = chose.assign(chosen_from="{'epochs': [1]}", ablation=True, folder="y", settings=[{"choose": {"epochs": [1]}}] * len(chose))
    part = rates.rated(pd.concat([trials, named, patterns], ignore_index=True))
    assert set(part[part["chose"]]["setting"]) == {"rank=8"} and set(part[part["chose"]]["folder"]) == {"x"}


def test_trials_that_chose_are_shown_where_there_is_nothing_to_hold_them_against(trials):
    asked = "{'learning_rate': [0.0002]}"
    alone = trials[(trials["method"] == "pbft") & (trials["learning_rate"] == 1e-5)].assign(chosen_from=asked)
    alone["settings"] = [{"choose": {"learning_rate": [0.0002]}}] * len(alone)
    table = rates.regret_table(rates.by_rule(alone))
    assert list(table.columns) == ["method", "setting", "shots"] and table["shots"].iloc[0] == f"{100 * alone['accuracy'].mean():.1f}"
    assert rates.verdicts_by_rule(alone, rates.by_rule(alone), 2.0) == {}


def test_the_probability_of_improvement_is_the_share_of_pairs_won_a_task_as_much_as_another():
    rng = np.random.default_rng(0)
    units = [rng.normal(size=(n, 2)) + [shift, 0] for n, shift in ((5, 0), (8, 1), (20, 2))]
    share = np.mean([mannwhitneyu(unit[:, 0], unit[:, 1]).statistic / len(unit) ** 2 for unit in units])
    mean, low, high = rates.improvement(units)
    assert mean == pytest.approx(share) and low < mean < high
    assert rates.improvement([np.ones((6, 2))]) == pytest.approx((0.5, 0.5, 0.5)), "equal runs are won by half"
    assert rates.improvement([np.array([[2.0, 1.0]] * 4)]) == (1.0, 1.0, 1.0)


def test_its_interval_holds_the_truth_as_often_as_it_says_when_there_are_many_seeds():
    rng = np.random.default_rng(1)
    found = [rates.improvement([rng.normal(size=(40, 2)) for _ in range(3)], 400)[1:] for _ in range(200)]
    assert np.mean([low <= 0.5 <= high for low, high in found]) > 0.9


THREE = ("cola", "mnli", GRAMMAR)


@pytest.fixture
def over_three(tmp_path):
    better = lambda run, domain: float(THREE.index(run.parameters.task) + 1e5 * getattr(run.parameters, "learning_rate", 0))  # noqa: E731
    methods = [METHODS[0] | {"vary": {"learning_rate": [1e-5, 5e-5]}}, {"method": "baselines", "vary": {"classifier": ["probe", "tfidf"]}}]
    path = make_study(tmp_path, tasks=THREE, shots=(16,), seeds=range(6), methods=methods)
    fill(read_study(path, outputs=str(tmp_path / "outputs")), better, 0.3)
    return collect(path, str(tmp_path / "outputs")).trials


def test_over_three_tasks_methods_stand_at_the_rate_that_the_other_tasks_give(over_three):
    points = rates.by_task(over_three, rates.by_rule(over_three))
    assert list(points) == ["baselines classifier=probe", "baselines classifier=tfidf", "vanilla"] and len(points) == 3 * 6
    at = over_three[(over_three["method"] == "vanilla") & (over_three["learning_rate"] == 5e-5) & (over_three["task"] == "mnli")]
    gained = (at["accuracy"] - at["constant"]).groupby([at["seed"], at["domain"]]).mean().groupby("seed").mean()
    assert points["vanilla"].xs("mnli", level="task").droplevel("shots").to_dict() == pytest.approx((100 * gained).to_dict())
    table = rates.improvement_table(points)
    assert table[""].iloc[0] == "vanilla" and "a run of vanilla is better, %" in table and len(table) == 3
    assert float(table["points above the constant answer"].iloc[0]) == pytest.approx(points["vanilla"].mean(), abs=0.05)


def test_profiles_say_which_share_of_the_runs_gains_so_much(over_three):
    points = rates.by_task(over_three, rates.by_rule(over_three))
    drawn, = plots.profiles(points)
    lines = {line.get_label(): line for line in drawn.figure.axes[0].get_lines()}
    assert {*points, "constant prediction"} == set(lines) == {text.get_text() for text in drawn.figure.legends[0].get_texts()}
    x, y = lines["vanilla"].get_data()
    bar = np.median(points["vanilla"]) + 1e-6
    assert y[np.searchsorted(x, bar) - 1] == pytest.approx((points["vanilla"] >= bar).mean(), abs=1e-9)


def test_below_three_tasks_nothing_is_said_over_tasks_and_a_method_without_one_of_them_is_left_out(trials, over_three):
    points = rates.by_task(trials, rates.by_rule(trials))
    assert points.empty and plots.profiles(points) == [] and rates.improvement_table(points).empty
    without = over_three[~((over_three["variant"] == "classifier=tfidf") & (over_three["task"] == "mnli"))]
    assert list(rates.by_task(without, rates.by_rule(without))) == ["baselines classifier=probe", "vanilla"]
    assert rates.by_task(over_three.head(0), rates.by_rule(over_three.head(0))).empty
    larger = over_three[over_three["task"] == "cola"].assign(model="larger")  # with the most results, of one task alone
    both = pd.concat([over_three, *[larger] * 6], ignore_index=True)
    assert rates.by_task(both, rates.by_rule(both)).empty


def test_accuracy_is_drawn_against_the_rate_a_line_a_method_and_level_where_it_has_none(trials):
    other = trials[(trials["method"] == "pbft") & (trials["learning_rate"] == 1e-5)]
    other = other.assign(method="in_context", learning_rate="", folder="elsewhere", accuracy=0.5, settings=[{}] * len(other))
    whole = pd.concat([trials, other], ignore_index=True)
    drawn = plots.against_settings(whole)
    assert len({one.name for one in drawn}) == 2
    axes = drawn[0].figure.axes[0]
    lines = {tuple(np.round(np.array(line.get_ydata(), float), 6)) for line in axes.get_lines() if len(line.get_xdata()) in (2, 3)}
    cola = trials[(trials["task"] == "cola") & (trials["domain"] == "in") & (trials["method"] == "pbft")]
    expected = 100 * cola.groupby(cola["learning_rate"].astype(float))["accuracy"].mean().sort_index()
    assert tuple(np.round(expected.to_numpy(), 6)) in lines and (50.0, 50.0) in lines
    assert "vanilla; pbft; in_context" in drawn[0].alt and plots.against_settings(trials.head(0)) == []
