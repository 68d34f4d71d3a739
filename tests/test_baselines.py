"""The baselines: against scikit-learn used by hand, and answers brought from elsewhere, checked row by row."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import backbone_of
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from toys import GRAMMAR

from lowres.files import BadInput
from lowres.methods import baselines
from lowres.models.batches import encode
from lowres.models.identity import weights
from lowres.parameters import Baselines, validated
from lowres.runs.checks import check_method
from lowres.tasks.shots import draw


def test_the_probe_is_logistic_regression_on_the_scaled_last_hidden_states(tiny_opt, task):
    backbone, shots = backbone_of(tiny_opt), draw(task.pool, 8, 0)
    pattern = task.file.pattern("")
    inputs = {"shots": encode(backbone, shots, pattern, 64), **{name: encode(backbone, rows, pattern, 64) for name, rows in task.evaluation.items()}}
    states = {name: baselines.states(backbone, part) for name, part in inputs.items()}
    own = backbone.model.eval()(input_ids=torch.tensor([inputs["shots"].ids[0]]), output_hidden_states=True)
    assert np.allclose(states["shots"][0], own.hidden_states[-1][0, -1].detach(), atol=1e-4), "transformers' own last state"
    answers = baselines.answers(classifier := baselines.classifier(Baselines()).fit(states.pop("shots"), shots["label"]), states)
    scale = StandardScaler().fit(baselines.states(backbone, inputs["shots"]))
    by_hand = LogisticRegression(max_iter=1000).fit(scale.transform(baselines.states(backbone, inputs["shots"])), shots["label"])
    for name, part in states.items():
        assert np.allclose(answers[name], by_hand.predict_log_proba(scale.transform(part)), atol=1e-5)
        assert answers[name].shape == (len(task.evaluation[name]), 2) and np.allclose(np.exp(answers[name]).sum(axis=1), 1, atol=1e-5)
    assert baselines.weights(classifier) == backbone.width + 1


def test_tfidf_counts_words_and_pairs_of_words(task):
    shots = draw(task.pool, 8, 0)
    texts = baselines.joined(shots, task.file.text)
    found = baselines.classifier(Baselines(classifier="tfidf")).fit(texts, shots["label"])
    vectors = TfidfVectorizer(ngram_range=(1, 2)).fit(texts)
    by_hand = LogisticRegression(max_iter=1000).fit(vectors.transform(texts), shots["label"])
    rows = baselines.joined(task.evaluation["in_domain"], task.file.text)
    assert np.allclose(baselines.answers(found, {"in_domain": rows})["in_domain"], by_hand.predict_log_proba(vectors.transform(rows)), atol=1e-6)
    assert " ".join(texts[0].lower().split()[:2]) in vectors.vocabulary_ or len(texts[0].split()[0]) == 1


def answered(task, **columns) -> pd.DataFrame:
    """A right answer to every row, in another order than the task's."""
    parts = [pd.DataFrame({"set": name, "row": rows.index, "label": [task.labels[i] for i in rows["label"]]})
             for name, rows in task.evaluation.items()]
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0).assign(**columns)


def told(task, table: pd.DataFrame, tmp_path, seed: int = 0, **asked) -> dict[str, np.ndarray]:
    path = tmp_path / "answers.csv"
    table.to_csv(path, index=False)
    p = validated("baselines", {"task": GRAMMAR, "classifier": "brought", "predictions": str(path), **asked}, "test")
    return baselines.brought(p, task, seed)


def test_brought_labels_are_found_by_set_and_row_whatever_their_order(task, tmp_path):
    logits = told(task, answered(task), tmp_path)
    for name, rows in task.evaluation.items():
        assert (logits[name].argmax(axis=1) == rows["label"]).all()


def test_brought_probabilities_become_their_logarithms(task, tmp_path):
    bad, good = task.labels
    logits = told(task, answered(task, **{bad: 0.25, good: 0.75}), tmp_path)
    assert np.allclose(logits["in_domain"], np.log([0.25, 0.75]))


def test_brought_answers_may_be_a_trial_s_own(task, tmp_path):
    one, two = answered(task, trial=1), answered(task, trial=2)
    two["label"] = task.labels[0]
    both = pd.concat([one, two])
    assert (told(task, both, tmp_path, 2)["in_domain"].argmax(axis=1) == 0).all()
    assert (told(task, both, tmp_path, 1)["in_domain"].argmax(axis=1) == task.evaluation["in_domain"]["label"]).all()
    with pytest.raises(BadInput, match="trial: no row is of the seed 3"):
        told(task, both, tmp_path, 3)


def test_a_row_that_a_cut_evaluation_leaves_out_may_be_there_and_one_that_is_nowhere_may_not(task, tmp_path):
    few = type(task)(task.file, task.pool, {name: rows.iloc[:5] for name, rows in task.evaluation.items()})
    path = tmp_path / "answers.csv"
    answered(task).to_csv(path, index=False)
    p = validated("baselines", {"task": GRAMMAR, "classifier": "brought", "predictions": str(path)}, "test")
    assert baselines.brought(p, few, 0)["in_domain"].shape == (5, 2)
    table = answered(task)
    table.loc[table["set"] == "in_domain", "row"] += 1_000_000
    with pytest.raises(BadInput, match="set in_domain: there is no row 1000"):
        told(task, table, tmp_path)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda t: t.drop(columns="row"), "column 'row' is missing"),
    (lambda t: t.drop(columns="label"), "neither a column 'label' nor one for each of"),
    (lambda t: t.sort_values(["set", "row"]).iloc[1:], r"set in_domain: row \d+ is missing \(1 of 20 are\)"),
    (lambda t: pd.concat([t, t.head(1)]), r"set \w+, row \d+: is there 2 times"),
    (lambda t: t.assign(set="elsewhere"), "set: 'elsewhere' is no evaluation set of grammar"),
    (lambda t: t.assign(label="acceptible"), r"label: 'acceptible' is no label \(did you mean \"acceptable\""),
    (lambda t: t.assign(row="first"), "row: 'first' is no row's number"),
    (lambda t: t.assign(acceptable=0.9, unacceptable=0.3), r"are no probabilities that add up to 1"),
    (lambda t: t.assign(acceptable="high", unacceptable="low"), "not a number"),
])
def test_what_is_missing_doubled_or_unknown_is_one_sentence(task, tmp_path, spoil, said):
    with pytest.raises(BadInput, match=said) as error:
        told(task, spoil(answered(task)), tmp_path)
    assert "answers.csv" in str(error.value) and "\n" not in str(error.value)


def test_answers_that_are_nowhere_are_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(BadInput, match="predictions: there is no file .*nothing.csv"):
        check_method(validated("baselines", {"task": GRAMMAR, "classifier": "brought", "predictions": str(tmp_path / "nothing.csv")}, "test"))


@pytest.mark.parametrize("asked", [{"classifier": "brought"}, {"predictions": "answers.csv"}, {"classifier": "tfidf", "pattern": "plain"}])
def test_a_parameter_that_would_have_no_effect_is_refused(asked):
    with pytest.raises(BadInput, match="baselines"):
        validated("baselines", asked, "baselines.yaml")


def test_other_answers_are_other_trials(tmp_path):
    (path := tmp_path / "answers.csv").write_text("one")
    p = validated("baselines", {"task": GRAMMAR, "classifier": "brought", "predictions": str(path)}, "test")
    before = weights(p)
    path.write_text("another")
    assert weights(p) != before


def test_an_answer_that_is_certain_to_the_last_digit_is_a_number_all_the_same():
    """Eight rows far apart: a label's probability in float32 is 0, whose logarithm is none (seen on CoLA, 64 examples)."""
    states = np.repeat(np.float32([[1.0], [-1.0]]), 4, axis=0)
    classifier = baselines.classifier(Baselines()).fit(states, np.repeat([1, 0], 4))
    logits = baselines.answers(classifier, {"x": np.float32([[1e4], [-1e4]])})["x"]
    assert np.isfinite(logits).all() and logits.argmax(axis=1).tolist() == [1, 0]
