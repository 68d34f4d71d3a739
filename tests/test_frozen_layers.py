"""Layers that do not train are computed once a text: the same numbers, whatever is packed beside it, and whoever computed it pays."""

import numpy as np
import pytest
import torch
from conftest import LLAMA_SHAPE, backbone_of
from toys import GRAMMAR

from lowres.methods import layers_and_corpus
from lowres.methods.cost import Meter
from lowres.methods.evaluation import predict
from lowres.methods.layers_and_corpus import Below, layer_groups, texts_in
from lowres.methods.training import train
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Verbalizer
from lowres.parameters import validated
from lowres.tasks.load import load_task
from lowres.tasks.shots import Streams, draw

LOWER = LLAMA_SHAPE["num_hidden_layers"] - 1  # one trains
LONG = ["sing", " The children were playing in the garden"]  # words of several tokens: branches behind each text


@pytest.fixture(scope="module")
def task():
    return load_task(GRAMMAR, "", 40)


def trial(backbone, task, seed=0, words=None, remembers=True, head="verbalizer"):
    p = validated("adaptive", {"adapt": "layers", "epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "train_layers": 1, "head": head}, "a test")
    backbone.restore()
    streams = Streams(seed)
    made = Verbalizer(backbone, words or task.file.words("")) if head == "verbalizer" else Classifier(backbone, 2, streams.weights)
    groups = layer_groups(backbone, made, p)
    if not remembers:
        backbone.below = None
    pattern = task.file.pattern("")
    training = train(backbone, made, encode(backbone, draw(task.pool, 4, seed), pattern, 128), p, streams, groups)
    logits = predict(backbone, made, {name: encode(backbone, rows, pattern, 128) for name, rows in task.evaluation.items()})
    return training, logits


@pytest.mark.parametrize(("head", "words"), [("verbalizer", None), ("verbalizer", LONG), ("classifier", None)])
def test_a_trial_has_the_numbers_that_it_has_when_everything_is_computed_anew(tiny_llama, task, head, words):
    backbone = backbone_of(tiny_llama)
    plain = [trial(backbone, task, seed, words, remembers=False, head=head) for seed in (0, 1)]
    again = [trial(backbone, task, seed, words, head=head) for seed in (0, 1)]
    assert backbone.known_below[LOWER].states
    for (one, logits), (two, found) in zip(plain, again):
        assert two.losses == pytest.approx(one.losses, abs=1e-5) and two.losses[0] != two.losses[-1]
        for name in logits:
            np.testing.assert_allclose(found[name], logits[name], atol=1e-5)


def test_the_lower_layers_are_called_once_a_text_and_not_again_by_later_epochs_and_trials(tiny_llama, task, monkeypatch):
    backbone = backbone_of(tiny_llama)
    lowest, seen = layers_and_corpus.layer_stack(backbone.model.base_model)[0], []
    true = type(lowest).forward
    monkeypatch.setattr(type(lowest), "forward", lambda self, hidden, *more, **named: (
        seen.append(hidden.shape[:2].numel()) if self is lowest else None, true(self, hidden, *more, **named))[1])
    trial(backbone, task)
    first = sum(seen)
    trial(backbone, task)
    shots, sets = draw(task.pool, 4, 0), task.evaluation.values()
    texts = [ids for rows in (shots, *sets) for ids in encode(backbone, rows, task.file.pattern(""), 128).ids]
    assert sum(seen) == first + 1, "but for the token that is followed to find what lies above the layers"
    assert sum(map(len, texts)) <= first < 1.6 * sum(map(len, texts))


def test_a_text_computed_in_an_earlier_trial_is_charged_to_a_later_one_once(tiny_llama, task):
    backbone = backbone_of(tiny_llama)
    backbone.meter = first = Meter()
    trial(backbone, task)
    trial(backbone, task)  # another fit of the same trial, as the shots' choice makes them
    below = backbone.known_below[LOWER]
    assert first.shared == 0
    backbone.meter = second = Meter()
    trial(backbone, task)
    trial(backbone, task)
    assert second.shared == pytest.approx(sum(below.spent.values())) and second.shared > 0


def test_what_does_not_fit_is_computed_whenever_it_is_wanted(tiny_llama, task, monkeypatch):
    plain = trial(backbone_of(tiny_llama), task, remembers=False)
    monkeypatch.setattr(Below, "MOST", 2000)
    backbone = backbone_of(tiny_llama)
    found = trial(backbone, task)
    assert 0 < backbone.known_below[LOWER].bytes < 2000 + 128 * 32 * 4
    assert found[0].losses == pytest.approx(plain[0].losses, abs=1e-5)


def test_a_model_with_dropout_or_whose_layers_all_train_remembers_nothing(tiny_opt, tiny_llama, task):
    backbone = backbone_of(tiny_opt)
    trial(backbone, task)
    assert backbone.below is None
    backbone = backbone_of(tiny_llama)
    p = validated("adaptive", {"adapt": "layers", "train_layers": LOWER + 1}, "a test")
    layer_groups(backbone, Verbalizer(backbone, task.file.words("")), p)
    assert backbone.below is None
    backbone.restore()
    assert backbone.below is None


def test_texts_are_told_by_their_tokens_and_by_where_the_branches_behind_them_begin():
    ids, branches = [[5, 6, 7], [8, 9], [5, 6, 7, 8, 9, 10]], [[11, 12], [13]]
    for given in ((), branches):
        rows = next(pack(ids, branches=given))
        named = [key for key, _ in texts_in(rows)]
        assert len(set(named)) == 3
        for _, place in texts_in(rows):
            tokens = rows.ids.flatten()[place].tolist()
            assert tokens[: len(tokens) - (3 if given else 0)] in ids and torch.equal(rows.positions.flatten()[place][:2], torch.tensor([0, 1]))
    one, other = (texts_in(next(pack([[5]], branches=given)))[0][0] for given in ([[11, 12], [13]], [[11], [12, 13]]))
    assert one != other
