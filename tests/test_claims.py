"""The claims' statistics against independent references, and the verdicts on made-up studies whose truth is known."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired
from synthetic import METHODS, fill, make_study
from toys import GRAMMAR

from lowres.analysis import statistics, tables, verdicts
from lowres.analysis.claims import CLAIMS, PBFT, VANILLA, Contrast, difference, paired, published, relevant
from lowres.analysis.collect import collect
from lowres.analysis.statistics import Part
from lowres.runs.study import read_study

# Student's sleep data (1908): hours of extra sleep on two drugs, ten patients; t = 4.0621, df 9, p = 0.00283; interval 0.70 to 2.46.
SLEEP = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]) - np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])


def judged(tmp_path, effect, name="made_up", margin=2.0, spread=1.0, **options):
    path = make_study(tmp_path, name=name, shots=(2, 16), **options)
    fill(read_study(path, outputs=str(tmp_path / "outputs")), effect, spread, predictions=False)
    return verdicts.judge(collect(path, str(tmp_path / "outputs")).trials, margin)


def test_paired_t_and_its_interval_are_students_own():
    assert statistics.two_sided(SLEEP) == pytest.approx(0.002833, abs=1e-6)
    assert statistics.t_interval(SLEEP) == pytest.approx((0.7001, 2.4599), abs=1e-4)


def test_sign_flips_are_counted_one_by_one():
    d = np.array([1.0, -2.0, 3.0, 4.0, 0.5, 2.0])
    sums = [np.dot(signs, d) for signs in itertools.product((1, -1), repeat=6)]
    assert statistics.flip_above(d, 0) == pytest.approx(np.mean(np.array(sums) >= d.sum() - 1e-9))


def test_two_one_sided_tests_are_those_of_statsmodels():
    d = np.random.default_rng(1).normal(0.3, 1.5, 12)
    expected = ttost_paired(d, np.zeros(12), -2, 2)[0]
    assert statistics.equivalent([Part(d, 0, np.inf)], 2.0) == pytest.approx(expected)


def test_holm_is_the_worked_example():
    # Four p values of Holm's step-down: 4 x 0.005, 3 x 0.01, then 2 x 0.03 and, as it may not fall, the same again.
    assert statistics.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_seeds_needed_are_cohens():
    # Cohen (1988) and G*Power: a paired difference of half its spread at 5 %, 80 % power: 34 pairs.
    assert statistics.seeds_needed(spread=4.0, margin=2.0, claims=1, comparable=False) == 34
    assert statistics.seeds_needed(spread=4.0, margin=2.0, claims=7, comparable=False) > 34
    needed = int(statistics.seeds_needed(spread=2.0, margin=2.0, claims=7, comparable=True))
    d = np.random.default_rng(0).normal(0, 2.0, (4000, needed))
    assert (statistics.supports([Part(d, -2, 2)]) < 0.025 / 7).mean() == pytest.approx(0.8, abs=0.04)


def test_bootstrap_is_scipys_and_waits_for_twenty_seeds():
    d = np.random.default_rng(2).gamma(2, 1, 24)
    expected = stats.bootstrap((d,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert statistics.bootstrap_interval(d) == pytest.approx(tuple(expected))
    assert np.isnan(statistics.bootstrap_interval(d[:19])[0])


def test_identical_differences_are_no_certainty_where_there_is_none():
    none = np.zeros(8)
    assert statistics.two_sided(none) == 1 and statistics.equivalent([Part(none, 0, np.inf)], 2.0) == 0


def test_rows_widen_the_interval():
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 50, (1, 200)) + rng.normal(1, 1, (10, 1))  # the rows differ, the seeds hardly
    low, high = statistics.crossed_interval([(1.0, matrix)])
    by_seed = np.diff(statistics.t_interval(matrix.mean(axis=1)))
    assert high - low > 3 * by_seed and high - low == pytest.approx(2 * 1.96 * matrix.mean(axis=0).std() / np.sqrt(200), rel=0.15)


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_interval_over_seeds_and_rows_holds_the_truth_as_often_as_it_says(seeds):
    rng, held = np.random.default_rng(1), 0
    for _ in range(500):
        hard, luck = rng.normal(0, 0.4, (1, 100)), rng.normal(0, 0.08, (seeds, 1))
        low, high = statistics.crossed_interval([(1.0, 0.6 + hard + luck + rng.normal(0, 0.2, (seeds, 100)))])
        held += low < 0.6 < high
    assert held >= 0.93 * 500
    assert np.isnan(statistics.crossed_interval([(1.0, np.ones((1, 50)))])).all(), "one seed knows of no other"


def test_no_winner_needs_every_method_beaten_somewhere():
    noise = np.random.default_rng(0).normal(0, 0.5, (4, 10))
    split = [("a", "b", 5 + noise[0]), ("a", "b", -5 + noise[1])]
    one = [("a", "b", 5 + noise[2]), ("a", "b", 5 + noise[3])]
    assert verdicts.no_winner(split)[0] < 0.001 and verdicts.no_winner(split)[1]
    assert verdicts.no_winner(one)[0] < 0.001 and not verdicts.no_winner(one)[1]


def test_verdicts_find_the_truth(tmp_path):
    def effect(run, domain):
        good = {"vanilla": 8, "pbft": 2, "adaptive": 8, "lora": 7, "distillation": 3, "in_context": 1}[run.method]
        return good + (4 if domain == "out" and run.method == "distillation" else 0)

    found = {one.claim.number: one for one in judged(tmp_path, effect)}
    assert found[1].verdict == "supported" and found[2].verdict == "supported"
    assert found[4].verdict == "supported"  # the made-up LoRA takes less of both
    assert found[5].verdict == "contradicted" and found[6].verdict == "contradicted"
    assert found[7].verdict == "supported"
    assert {len(one.seeds) for one in found.values()} == {10}


def test_equal_methods_are_equivalent(tmp_path):
    found = judged(tmp_path, lambda run, domain: 5.0, spread=0.5)
    assert [one.verdict for one in found][:3] == ["equivalent", "equivalent", "supported"]


def test_few_seeds_and_missing_methods_leave_claims_open(tmp_path):
    few = judged(tmp_path, None, name="few", seeds=range(5))
    assert {one.verdict for one in few} == {"undecided"}
    some = judged(tmp_path, None, name="some", methods=METHODS[:2])
    assert [one.verdict == "undecided" for one in some][1:] == [True] * 6 and "no LoRA" in some[2].missing


def test_copies_are_counted_once(tmp_path):
    path = make_study(tmp_path, shots=(2,), methods=METHODS[:2])
    study = read_study(path, outputs=str(tmp_path / "outputs"))
    fill(study, predictions=False)
    for run in study.runs:
        record = json.loads((run.folder / "record.json").read_text())
        for trial in record["trials"][2:]:
            trial.update({key: record["trials"][1][key] for key in ("outcome_sha256", "sets")})
        (run.folder / "record.json").write_text(json.dumps(record))
    pair = paired(relevant(collect(path, str(tmp_path / "outputs")).trials), Contrast(VANILLA, PBFT, "in"))
    assert len(pair.seeds) == 2 and pair.copies == 8


def test_a_study_that_grew_after_its_verdicts_is_marked(tmp_path):
    first = judged(tmp_path, None, seeds=range(6))
    verdicts.log_look(tmp_path / "outputs" / "made_up", first, 2.0)
    assert not any(one.marks for one in first)
    grown = judged(tmp_path, None, seeds=range(10))
    verdicts.log_look(tmp_path / "outputs" / "made_up", grown, 1.0)
    assert "extended" in grown[0].marks[0] and "margin was 2" in grown[0].marks[1]


def test_learning_rates_move_verdicts(tmp_path):
    effect = lambda run, domain: 6.0 if run.method == "vanilla" and run.parameters.learning_rate < 5e-5 else 3.0  # noqa: E731
    methods = [{"method": "vanilla", "vary": {"learning_rate": [1.0e-5, 1.0e-4]}}, {"method": "pbft"}]
    path = make_study(tmp_path, shots=(2,), methods=methods)
    fill(read_study(path, outputs=str(tmp_path / "outputs")), effect, 0.5, predictions=False)
    found = verdicts.by_learning_rate(collect(path, str(tmp_path / "outputs")).trials, 2.0)
    assert found[1e-5][0].verdict == "supported" and found[1e-4][0].verdict == "equivalent"


def test_the_published_numbers_are_what_they_are():
    table = published()
    assert table["copies"].sum() == 668 and len(table) == 119 and not table.duplicated(list(table.columns[:9])).any()
    gap, count = difference(CLAIMS[0].contrasts[0])
    assert abs(gap) < 20 and count > 10


def test_ablations_neither_shorten_nor_mix_into_a_claim(tmp_path):
    lora = [{"method": "lora"}, {"method": "lora", "ablation": True, "set": {"head": "classifier", "seeds": [0, 1, 2, 3]}},
            {"method": "lora", "ablation": True, "set": {"seeds": [0, 1, 2, 3]}, "vary": {"rank": [1, 64]}}]
    methods = [method for method in METHODS if method["method"] != "lora"] + lora
    found = judged(tmp_path, lambda run, domain: 9.0 if getattr(run.parameters, "rank", 8) != 8 else 3.0, seeds=range(8), methods=methods)
    assert [len(one.seeds) for one in found] == [8] * 7 and not any(one.missing for one in found)
    against_vanilla = next(pair for pair in found[5].pairs if pair.contrast.left.name == "LoRA" and pair.contrast.right.name == "vanilla")
    assert abs(against_vanilla.d.mean()) < 2, "of the ranks, the one that is no ablation counts alone"


def test_a_side_clause_keeps_a_claim_from_support_and_does_not_contradict_it():
    rng = np.random.default_rng(0)
    main, side = Part(rng.normal(5, 1, 10), 0, np.inf), Part(rng.normal(-5, 1, 10), 0, np.inf, side=True)
    p, towards = statistics.decided([main, side])
    assert p > 0.9 or not towards
    assert statistics.contradicts([main, side]) == statistics.contradicts([main])
    assert statistics.supports([main, side]) > 0.9 and statistics.supports([main]) < 0.001


def test_a_claim_about_cola_waits_for_cola(tmp_path):
    found = judged(tmp_path, None, tasks=("mnli",), methods=METHODS[:2])
    assert found[0].missing and found[0].verdict == "undecided"
    other = judged(tmp_path, None, name="other", tasks=(GRAMMAR,), methods=METHODS[:2])
    assert not other[0].missing, "a study of other tasks alone is asked of those"


def remarks(found, number):
    return tables.verdict_table(found, 2.0).set_index("claim").loc[number, "remarks"]


def test_a_verdict_says_where_neither_side_has_learnt_anything(tmp_path):
    # Far below the constant answer on both sides, and answers that have nothing to do with the labels.
    path = make_study(tmp_path, shots=(16,), methods=METHODS[:2])
    study = read_study(path, outputs=str(tmp_path / "outputs"))
    fill(study, lambda run, domain: {"vanilla": -10.0, "pbft": -30.0}[run.method], 1.0, predictions=False)
    trials = collect(path, str(tmp_path / "outputs")).trials
    rng = np.random.default_rng(1)
    blind = verdicts.judge(trials.assign(mcc=rng.normal(0, 0.02, len(trials))), 2.0)
    assert blind[0].verdict == "supported" and "in 2 of 2 comparisons of accuracy neither side" in remarks(blind, 1)
    knowing = verdicts.judge(trials.assign(mcc=rng.normal(0.2, 0.02, len(trials))), 2.0)
    assert "neither side" not in remarks(knowing, 1)
    above = verdicts.judge(trials.assign(accuracy=trials["constant"] + 0.1 + rng.normal(0, 0.01, len(trials)), mcc=0.0), 2.0)
    assert "neither side" not in remarks(above, 1)


def test_a_yardstick_is_each_tasks_own_and_not_the_means(tmp_path):
    # A constant answer on CoLA, the untrained model's on MNLI: nothing learnt, though the mean is above either yardstick's mean.
    path = make_study(tmp_path, tasks=("cola", "mnli"), shots=(16,), methods=METHODS[:2])
    fill(read_study(path, outputs=str(tmp_path / "outputs")), predictions=False)
    trials = collect(path, str(tmp_path / "outputs")).trials
    cola, small = trials["task"] == "cola", np.random.default_rng(0).normal(0, 0.001, len(trials))
    trials = trials.assign(mcc=small, untrained=np.where(cola, 0.4, trials["constant"] + 0.1), untrained_mcc=0.0)
    trials["accuracy"] = np.fmax(trials["constant"], trials["untrained"]) + small
    pairs = [pair for one in verdicts.judge(trials, 2.0) for pair in one.pairs if pair.contrast.name == "vanilla − PBFT, out of domain"]
    assert len(pairs[0].cells) == 2 and not pairs[0].learnt
    more = verdicts.judge(trials.assign(accuracy=trials["accuracy"] + 0.01), 2.0)
    assert more[0].pairs[1].learnt


def test_pairs_of_one_and_the_same_trial_are_told(tmp_path):
    path = make_study(tmp_path, shots=(16,), methods=[METHODS[1], {"method": "adaptive", "vary": {"adapt": ["pattern"]}}])
    fill(read_study(path, outputs=str(tmp_path / "outputs")), predictions=False)
    trials = collect(path, str(tmp_path / "outputs")).trials
    kept = trials[trials["method"] == "pbft"].set_index(["seed", "set"])
    same = (trials["method"] == "adaptive") & (trials["seed"] < 4)
    for column in ("outcome", "accuracy", "mcc"):
        trials.loc[same, column] = [kept.loc[key, column] for key in trials.loc[same, ["seed", "set"]].itertuples(index=False, name=None)]
    found = verdicts.judge(trials, 2.0)
    assert found[1].pairs[0].identical == pytest.approx(0.4) and "40% of the pairs are one trial" in remarks(found, 2)


def test_more_cells_are_an_extension_too(tmp_path):
    first = judged(tmp_path, None, seeds=range(6), tasks=("cola",))
    verdicts.log_look(tmp_path / "outputs" / "made_up", first, 2.0)
    grown = judged(tmp_path, None, seeds=range(6), tasks=("cola", "mnli"))
    kept = (tmp_path / "outputs" / "made_up" / "verdicts.json").read_bytes()
    assert "extended" in verdicts.marked(tmp_path / "outputs" / "made_up", grown, 2.0)[1].marks[0]
    assert (tmp_path / "outputs" / "made_up" / "verdicts.json").read_bytes() == kept, "marking writes nothing"
