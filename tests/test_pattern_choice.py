"""Choosing the pattern and the label words: scores held against transformers' own; what a choice sees, and when the default stays."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import backbone_of
from toys import GRAMMAR
from transformers import AutoModelForCausalLM

from lowres.files import BadInput
from lowres.methods.choose import pattern as choose
from lowres.methods.choose import search, settings, stratified_folds
from lowres.methods.evaluation import predict
from lowres.methods.training import Diverged, Outcome, train
from lowres.models.batches import encode
from lowres.models.heads import Classifier
from lowres.parameters import validated
from lowres.runs.notebook import start
from lowres.tasks.shots import Streams, draw


def parameters(model="smollm2-135m", **given):
    return validated("adaptive", {"model": str(model), **given}, "test")


def independent_score(folder, backbone, rows, labels, pattern, words):
    """The calibrated log-probability of gold labels, one text at a time through transformers' own forward pass and softmax."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [backbone.tokenize([word])[0][0] for word in words]

    def probabilities(text):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([backbone.prefix + backbone.tokenize([text])[0]])).logits[0, -1]
        return logits.softmax(0)[ids]

    free = probabilities(pattern.format(sentence="N/A"))
    scores = []
    for sentence, label in zip(rows, labels):
        share = probabilities(pattern.format(sentence=sentence)) / free
        scores.append((share / share.sum())[label].log().item())
    return np.array(scores)


def test_scores_are_the_calibrated_likelihood(tiny_llama, task):
    backbone = backbone_of(tiny_llama)
    shots = draw(task.pool, 4, 0)
    choice = choose(backbone, task.file, shots, parameters(tiny_llama), Streams(0))
    for candidate in (choice.ranking[0], choice.ranking[-1], choice.default):
        if candidate.label_words == "searched":  # scored with other words on each fold
            continue
        expected = independent_score(
            tiny_llama, backbone, shots["sentence"], shots["label"], task.file.patterns[candidate.pattern], candidate.words
        )
        np.testing.assert_allclose(candidate.scores, expected, atol=1e-4)
    assert [candidate.score for candidate in choice.ranking] == sorted((c.score for c in choice.ranking), reverse=True)


def test_candidates_are_the_task_files_patterns_and_words(tiny_opt, task):
    backbone = backbone_of(tiny_opt)
    shots = draw(task.pool, 2, 0)
    choice = choose(backbone, task.file, shots, parameters(tiny_opt, search_words=0), Streams(0))
    patterns = [name for name in task.file.patterns if name not in ("plain", "as_coded")]
    assert {(c.pattern, c.label_words) for c in choice.ranking} == {(a, b) for a in patterns for b in task.file.label_words}
    assert len(patterns) >= 6 and len(task.file.label_words) >= 4
    assert (choice.default.pattern, choice.default.label_words) == ("question_mark", "yes_no")
    searched = choose(backbone, task.file, shots, parameters(tiny_opt, search_words=5), Streams(0))
    assert len(searched.ranking) == len(choice.ranking) + len(patterns)


def test_one_forward_pass_a_pattern(tiny_opt, task, monkeypatch):
    backbone = backbone_of(tiny_opt)
    passes = []
    hidden = type(backbone).hidden
    monkeypatch.setattr(type(backbone), "hidden", lambda self, *args: passes.append(1) or hidden(self, *args))
    choose(backbone, task.file, draw(task.pool, 8, 0), parameters(tiny_opt), Streams(0))
    assert len(passes) == 6


def test_the_default_stays_unless_the_gain_exceeds_its_error(tiny_opt, task):
    backbone = backbone_of(tiny_opt)
    changed = 0
    for seed in range(6):
        shots = draw(task.pool, 16, seed)
        choice = choose(backbone, task.file, shots, parameters(tiny_opt), Streams(seed))
        better = []
        for candidate in choice.ranking:
            gains = candidate.scores - choice.default.scores
            error = gains.std(ddof=1) / np.sqrt(32)
            assert candidate.gain == pytest.approx(gains.mean()) and candidate.error == pytest.approx(error)
            better += [candidate] if gains.mean() > error else []
        assert choice.chosen is (better[0] if better else choice.default)
        changed += choice.chosen is not choice.default
        few = choose(backbone, task.file, draw(task.pool, 8, seed), parameters(tiny_opt), Streams(seed))
        assert few.chosen is few.default and "fewer than 16" in few.reason
    assert changed  # else this test has tried only one branch
    always = [choose(backbone, task.file, draw(task.pool, 8, s), parameters(tiny_opt, choose_always=True), Streams(s)) for s in range(6)]
    assert any(choice.chosen is not choice.default for choice in always)


def test_the_choice_sees_the_shots_and_nothing_else(tiny_opt, task):
    backbone = backbone_of(tiny_opt)
    p = parameters(tiny_opt, choose_always=True)
    shots = draw(task.pool, 16, 3)
    first = choose(backbone, task.file, shots, p, Streams(3)).record()
    rest = ~task.pool.index.isin(shots.index)
    spoilt = task.pool.copy()
    spoilt.loc[rest, "label"] = np.random.default_rng(0).permutation(spoilt.loc[rest, "label"].to_numpy())
    spoilt.loc[rest, "sentence"] = "Something else altogether."
    assert choose(backbone, task.file, spoilt.loc[shots.index], p, Streams(3)).record() == first
    turned = shots.assign(label=1 - shots["label"])  # whereas the shots' own labels matter
    assert choose(backbone, task.file, turned, p, Streams(3)).record() != first


def test_words_are_searched_without_the_fold_they_are_scored_on(tiny_opt, task, monkeypatch):
    backbone = backbone_of(tiny_opt)
    shots, seen = draw(task.pool, 8, 0), []
    monkeypatch.setattr("lowres.methods.choose.search",
                        lambda log_probs, labels, *rest: seen.append(len(labels)) or search(log_probs, labels, *rest))
    choose(backbone, task.file, shots, parameters(tiny_opt), Streams(0))
    assert seen == [12, 12, 12, 12, 16] * 6  # four folds of 4 held out, then, for use, all; for each pattern
    folds = stratified_folds(shots["label"].to_numpy(), Streams(0).folds)
    assert pd.crosstab(folds, shots["label"].to_numpy()).to_numpy().tolist() == [[2, 2]] * 4


def test_a_word_that_tells_the_labels_apart_is_found(tiny_opt):
    tokenizer = backbone_of(tiny_opt).tokenizer
    no, yes, good = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" No", " Yes", " good"))
    logits = torch.zeros(6, len(tokenizer))
    labels = np.array([0, 1, 0, 1, 0, 1])
    logits[:, good] = 5.0  # likely everywhere, so it says nothing
    logits[labels == 0, no], logits[labels == 1, no] = 4.0, 1.0
    logits[labels == 1, yes], logits[labels == 0, yes] = 4.0, 1.0
    assert search(logits.log_softmax(1), labels, tokenizer, 3) == [no, yes]
    assert search(logits.log_softmax(1), labels, tokenizer, 1) == [good, yes]  # only the likeliest is looked at, and serves one label


def test_equal_candidates_are_chosen_in_the_files_order(tiny_opt, task):
    backbone = backbone_of(tiny_opt)
    twin = task.file.model_copy(update={"label_words": {"a": task.file.label_words["good"], "b": task.file.label_words["good"]}})
    choice = choose(backbone, twin, draw(task.pool, 16, 0), parameters(tiny_opt, search_words=0, choose_always=True), Streams(0))
    assert [c.label_words for c in choice.ranking] == ["a", "b"] * 6


def test_words_that_the_tokenizer_cannot_say_are_left_out_and_told(tiny_opt, task):
    backbone = backbone_of(tiny_opt)
    words = {**task.file.label_words, "long": {"unacceptable": " Yes yes", "acceptable": " Yes"}}
    choice = choose(backbone, task.file.model_copy(update={"label_words": words}), draw(task.pool, 2, 0), parameters(tiny_opt), Streams(0))
    assert "long" not in {c.label_words for c in choice.ranking} and "cannot be told apart" in choice.skipped[0]


def fit_of(backbone, quality):
    """A method whose training is told: a head that gives gold labels the log-odds `quality(p, shots)`."""
    calls = []

    class Told:
        branches = ()

        def __init__(self, odds):
            self.odds = odds

    def fit(shots, p, streams):
        calls.append((p.learning_rate, tuple(shots.index)))
        backbone.trained = Told(quality(p)), "{sentence} ?"
        return backbone.trained[0], SimpleNamespace(tokens=10)

    return fit, calls


@pytest.fixture
def told(monkeypatch, tiny_llama, task):
    """Predictions that give the gold label what the head says, plus noise that all candidates share."""
    noise = np.random.default_rng(0).normal(0, 0.05, len(task.pool))

    def predict(backbone, head, sets):
        labels = sets["held"].labels.numpy()
        odds = head.odds + noise[: len(labels)]
        return {"held": np.stack([np.where(labels == 0, odds, 0), np.where(labels == 1, odds, 0)], axis=1).astype(np.float32)}

    monkeypatch.setattr("lowres.methods.choose.predict", predict)
    return backbone_of(tiny_llama), task


def asked(**given):
    return validated("vanilla", {"learning_rate": 1e-5, "choose": {"learning_rate": [1e-4, 1e-3]}, **given}, "test")


def test_a_setting_that_the_held_out_halves_prefer_takes_the_defaults_place(told):
    backbone, task = told
    fit, calls = fit_of(backbone, lambda p: {1e-5: 0.5, 1e-4: 0.6, 1e-3: 2.0}[p.learning_rate])
    choice, tokens = settings(backbone, fit, draw(task.pool, 8, 0), asked(), 0)
    assert choice.chosen.settings == {"learning_rate": 1e-3} and choice.default.settings == {"learning_rate": 1e-5}
    assert choice.table()["learning_rate"].tolist() == [1e-3, 1e-4, 1e-5] and tokens == 10 * len(calls) == 10 * 4 * 3
    assert all(len(halves) == 3 for halves in {rows: [c for c in calls if c[1] == rows] for _, rows in calls}.values()), "the same halves for all"


def test_every_shot_is_held_out_twice_and_every_half_has_as_many_of_each_label(told):
    backbone, task = told
    fit, calls = fit_of(backbone, lambda p: 1.0)
    shots = draw(task.pool, 8, 0)
    settings(backbone, fit, shots, asked(), 0)
    trained = [rows for rate, rows in calls if rate == 1e-5]
    assert sorted(row for rows in trained for row in rows) == sorted([*shots.index] * 2)
    assert all(shots.loc[list(rows), "label"].value_counts().tolist() == [4, 4] for rows in trained)
    assert len({frozenset(rows) for rows in trained}) == 4
    assert all(shots.loc[list(rows), "label"].tolist() == [0, 1] * 4 for rows in trained), "in turn, as a draw: distillation's folds go by it"


def test_a_setting_with_which_training_diverges_loses_and_fails_nothing(told):
    backbone, task = told
    fit, _ = fit_of(backbone, lambda p: 1.0)

    def diverging(shots, p, streams):
        if p.learning_rate == 1e-3:
            raise Diverged("learning_rate: 0.001: the training has diverged")
        return fit(shots, p, streams)

    choice, tokens = settings(backbone, diverging, draw(task.pool, 8, 0), asked(), 0)
    assert choice.chosen is choice.default and choice.ranking[-1].settings == {"learning_rate": 1e-3} and tokens == 10 * 4 * 2


def test_a_gain_within_its_error_or_fewer_than_eight_of_a_class_leave_the_default(told):
    backbone, task = told
    fit, calls = fit_of(backbone, lambda p: 1.0)
    choice, _ = settings(backbone, fit, draw(task.pool, 8, 0), asked(), 0)
    assert choice.chosen is choice.default and "no candidate's gain exceeds its standard error" in choice.reason
    calls.clear()
    choice, tokens = settings(backbone, fit, draw(task.pool, 7, 0), asked(), 0)
    assert choice.chosen is choice.default and "7 shots per class are fewer than 8" in choice.reason and not calls and tokens == 0


@pytest.mark.parametrize(("values", "message"), [
    ({"rank": [1, 8]}, "'rank' cannot be chosen"), ({"learning_rte": [0.1]}, 'cannot be chosen .did you mean "learning_rate"'),
    ({"learning_rate": []}, "at least one value"), ({"learning_rate": ["1e-5"]}, "'1e-5' is no value of it"), ({"epochs": [1.5]}, "1.5 is no value"),
    ({"pattern": ["x"]}, "'pattern' cannot be chosen"), ({"learning_rate": [-1.0]}, "-1.0 is no value"), ({"epochs": [0]}, "0 is no value"),
    ({"learning_rate": [float("nan")]}, "nan is no value"),
])
def test_what_cannot_be_chosen_is_one_sentence(values, message):
    with pytest.raises(BadInput, match=message):
        asked(choose=values)


@pytest.mark.parametrize(("values", "message"), [
    ({"choose": {"pattern": ["it_was"]}}, "'pattern' cannot be chosen"),
    ({"choose": {"epochs": [3]}, "fidelity": "as_coded"}, "the authors chose nothing"),
])
def test_a_student_chooses_rates_and_epochs_and_the_authors_nothing(values, message):
    with pytest.raises(BadInput, match=message):
        validated("distillation", values, "test")


@pytest.mark.parametrize("method", ["vanilla", "pbft"])
def test_as_coded_trains_at_the_authors_rate_alone(method):
    coded = {"fidelity": "as_coded", "learning_rate": 1e-5}
    assert validated(method, coded, "test").learning_rate == 1e-5
    for more, message in (({"choose": {"epochs": [3]}}, "the authors chose nothing"), ({"learning_rate": 2e-4}, "the authors ran learning_rate")):
        with pytest.raises(BadInput, match=message):
            validated(method, coded | more, "test")


def test_a_run_chooses_anew_for_each_seed_and_counts_what_that_cost(tiny_llama, tmp_path):
    given = {"model": str(tiny_llama), "task": GRAMMAR, "shots": 8, "seeds": [0, 1], "epochs": 2, "evaluation_rows": 8, "max_length": 48}
    run = start("vanilla", {**given, "choose": {"learning_rate": [1e-4, 1e-2]}})
    plain = start("vanilla", given)
    pattern = run.task.file.patterns["plain"]

    def trial_of(run):
        def fit(shots, p, streams):
            run.backbone.restore()
            head = Classifier(run.backbone, 2, streams.weights)
            with run.meter.phase("train"):
                return head, train(run.backbone, head, encode(run.backbone, shots, pattern, p.max_length), p, streams)

        def trial(seed):
            shots = draw(run.task.pool, 8, seed)
            head, training, found = run.fitted(fit, shots, seed)
            return Outcome(shots, training, predict(run.backbone, head, run.encode(pattern)), found)

        return trial

    chosen, usual = run.each_seed(trial_of(run)), plain.each_seed(trial_of(plain))
    assert [len(trial["settings"]["ranking"]) for trial in chosen] == [3, 3] and "settings" not in usual[0]
    for one, other in zip(chosen, usual):
        assert one["seconds"]["choose"] > 0 and one["tokens"]["training"] > 6 * other["tokens"]["training"]
        if one["settings"]["chosen"]["learning_rate"] == 2e-4:
            assert one["outcome_sha256"] == other["outcome_sha256"]
    assert chosen[0]["settings"]["ranking"] != chosen[1]["settings"]["ranking"]
