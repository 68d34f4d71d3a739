"""Choosing the pattern and the label words: scores held against transformers' own; what a choice sees, and when the default stays."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import backbone_of
from transformers import AutoModelForCausalLM

from lowres.methods.choose_pattern import choose, search, stratified_folds
from lowres.parameters import validated
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
    monkeypatch.setattr("lowres.methods.choose_pattern.search",
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
