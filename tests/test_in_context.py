"""Prompts, calibration and likelihood, against transformers' own forward pass and formulas by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_model, word_ids
from transformers import Gemma3TextConfig

from lowres.files import BadInput
from lowres.methods.evaluation import predict
from lowres.methods.in_context import (
    CONTENT_FREE,
    SEPARATOR,
    Context,
    calibrated,
    check_likelihood,
    content_free,
    demonstrated,
    fit_threshold,
    instructed,
    instruction,
    predict_after,
    token_log_probability,
    without_prefix,
)
from lowres.models.backbone import Backbone, load_backbone
from lowres.models.batches import Inputs, encode, pack
from lowres.models.heads import Verbalizer
from lowres.parameters import validated
from lowres.tasks.shots import Streams
from lowres.tasks.task_file import TaskFile, read_task

WORDS = [" No", " Yes"]
PATTERN = "{sentence} ?"
SENTENCES = ["The nurse slept .", "The children were playing .", "The doctor praised the pilot , and slept .", "No .", "The garden ran .", "Yes ."]


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory) -> str:
    """Gemma 3's form: scaled tied embeddings, norms of queries and keys, sliding-window layers among full ones."""
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=96,
        max_position_embeddings=256, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )
    return save_model(tmp_path_factory.mktemp("gemma"), config, prefix=True)


@pytest.fixture(params=["tiny_opt", "tiny_opt_post_norm", "tiny_llama", "tiny_gemma"])
def backbone(request) -> Backbone:
    return load_backbone(request.getfixturevalue(request.param), "cpu", "float32")


@pytest.fixture
def opt(tiny_opt) -> Backbone:
    return load_backbone(tiny_opt, "cpu", "float32")


def frame(shots: int = 3) -> pd.DataFrame:
    """Six rows, labels in turn, as `shots.draw` gives them."""
    return pd.DataFrame({"sentence": SENTENCES[: 2 * shots], "label": [0, 1] * shots}, index=[11, 3, 7, 20, 5, 9][: 2 * shots])


def prompt(backbone, shots=None, most="all", room=20) -> Context:
    shots = frame() if shots is None else shots
    return demonstrated(backbone, shots, np.random.default_rng(0).permutation(len(shots)), PATTERN, WORDS, most, 64, room)


def whole(backbone, tokens: list[int]) -> torch.Tensor:
    """transformers' own logits behind a sequence, without any of our packing: (vocabulary,)."""
    with torch.no_grad():
        return backbone.model.eval()(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def test_cached_demonstrations_give_the_logits_of_the_whole_sequence(backbone, monkeypatch):
    monkeypatch.setattr("lowres.models.backbone.CHUNK", 7)  # the context is computed in several pieces
    context = prompt(backbone)
    texts = without_prefix(backbone, encode(backbone, frame(), PATTERN, 64))
    found = predict_after(backbone, Verbalizer(backbone, WORDS), {"a": texts}, [context])["a"]
    words = word_ids(backbone.tokenizer, WORDS)
    expected = np.stack([whole(backbone, context.tokens + ids)[words].numpy() for ids in texts.ids])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = predict(backbone, Verbalizer(backbone, WORDS), {"a": encode(backbone, frame(), PATTERN, 64)})["a"]
    assert np.abs(found - alone).max() > 1e-2  # the context is seen


def test_the_kept_cache_is_not_changed_by_use(backbone):
    cache = backbone.encode_context(prompt(backbone).tokens)
    before = [(keys.clone(), values.clone()) for keys, values in cache]
    texts = without_prefix(backbone, encode(backbone, frame(), PATTERN, 64))
    head = Verbalizer(backbone, WORDS)
    first = predict(backbone, head, {"a": texts}, cache)["a"]
    assert np.array_equal(first, predict(backbone, head, {"a": texts}, cache)["a"])
    assert all(torch.equal(x, y) for old, new in zip(before, cache) for x, y in zip(old, new))


def test_many_texts_behind_a_context_take_several_rows_and_passes(opt, monkeypatch):
    monkeypatch.setattr("lowres.methods.evaluation.BUDGET", 400)
    many = pd.concat([frame()] * 12)
    context, texts = prompt(opt), without_prefix(opt, encode(opt, many, PATTERN, 64))
    assert len(list(pack(texts.ids, before=len(context.tokens), budget=400))) > 1
    found = predict_after(opt, Verbalizer(opt, WORDS), {"a": texts}, [context])["a"]
    words = word_ids(opt.tokenizer, WORDS)
    expected = np.stack([whole(opt, context.tokens + ids)[words].numpy() for ids in texts.ids[:6]])
    np.testing.assert_allclose(found, np.tile(expected, (12, 1)), atol=1e-4)


def test_a_prompt_reads_as_text_pattern_word_and_empty_line(opt):
    context = prompt(opt)
    order = np.argsort(np.random.default_rng(0).permutation(6))
    rows = [frame().iloc[i] for i in order]
    expected = "".join(f"{row['sentence']} ?{WORDS[row['label']]}{SEPARATOR}" for row in rows)
    assert opt.tokenizer.decode(context.tokens[len(opt.prefix):]) == expected
    assert context.tokens[: len(opt.prefix)] == opt.prefix
    assert context.rows == [row.name for row in rows] and context.per_label == 3


def test_as_many_of_each_label_as_fit_and_the_first_of_the_draw(opt):
    full = prompt(opt)
    tight = opt.context_length - len(full.tokens)
    assert prompt(opt, room=tight).per_label == 3  # exactly fits
    fewer = prompt(opt, room=tight + 1)
    assert fewer.per_label == 2 and set(fewer.rows) == {11, 3, 7, 20}
    assert len(fewer.tokens) + tight + 1 <= opt.context_length
    assert [row for row in full.rows if row in fewer.rows] == fewer.rows  # the same order
    assert prompt(opt, most=1).rows == [row for row in full.rows if row in (11, 3)]


def test_where_not_all_labels_fit_as_many_as_fit_have_a_demonstration_and_the_rest_is_counted(opt):
    words = [f" {word}" for word in ("No", "Yes", "The", "nurse", "doctor", "slept", "garden", "ran")]
    shots = pd.DataFrame({"sentence": [SENTENCES[1]] * 16, "label": list(range(8)) * 2}, index=range(100, 116))
    orders = [np.random.default_rng(seed).permutation(16) for seed in range(2)]
    full = demonstrated(opt, shots, orders[0], PATTERN, words, 1, 64, 0)
    assert full.without == 0 and "without" not in full.described() and full.sentence().startswith("1 demonstrations of each label fit")
    room = opt.context_length - len(full.tokens) + 2 * len(full.tokens) // 8  # of two labels less, at least
    found = [demonstrated(opt, shots, order, PATTERN, words, "all", 64, room) for order in orders]
    for context in found:
        assert 2 <= len(context.rows) <= 6 and context.without == 8 - len(context.rows) and len(context.tokens) + room <= opt.context_length
        assert len({row % 100 % 8 for row in context.rows}) == len(context.rows)  # each of another label
        assert f"({context.without} labels have none)" in context.sentence() and context.described()["without"] == context.without
    assert found[0].rows != found[1].rows  # which ones, the seed says


def test_demonstrations_that_cannot_fit_are_refused_with_the_figures(opt):
    with pytest.raises(BadInput, match="not even one of each label fits.*reads 256"):
        prompt(opt, room=250)
    with pytest.raises(BadInput, match="a label has none"):
        prompt(opt, shots=frame().query("label == 0"))


def test_the_order_comes_from_a_stream_of_its_own():
    one, other = Streams(4), Streams(4)
    one.demonstrations.permutation(9)
    assert np.array_equal(one.order.permutation(9), other.order.permutation(9))
    assert not np.array_equal(Streams(4).demonstrations.permutation(20), Streams(5).demonstrations.permutation(20))


def test_calibration_is_the_formula_by_hand(opt):
    logits, nothing = np.array([[1.0, 3.0], [0.2, 0.1]]), np.array([[0.5, 2.5]])
    softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
    ratio = softmax(logits) / softmax(nothing)
    np.testing.assert_allclose(np.exp(calibrated(logits, nothing)), ratio / ratio.sum(1, keepdims=True), rtol=1e-12)
    blank = content_free(opt, read_task("cola"), PATTERN)
    assert opt.tokenizer.decode(blank.ids[0][len(opt.prefix):]) == f"{CONTENT_FREE} ?"
    same = predict(opt, Verbalizer(opt, WORDS), {"a": blank})["a"]
    np.testing.assert_allclose(np.exp(calibrated(same, same)), 0.5, rtol=1e-6)  # nothing is told from nothing


def test_instructions_hold_the_label_words(opt):
    spec = read_task("cola")
    assert instruction(spec, WORDS) == "Is the sentence correct English? Answer Yes if it is, No if it is not."
    assert opt.tokenizer.decode(instructed(opt, spec, WORDS, 10).tokens[len(opt.prefix):]).endswith("No if it is not." + SEPARATOR)
    with pytest.raises(BadInput, match="reads 256"):
        instructed(opt, spec, WORDS, 250)
    with pytest.raises(BadInput, match="has none"):
        instruction(TaskFile(**{**spec.model_dump(), "instruction": ""}), WORDS)
    with pytest.raises(ValueError, match="which is no label"):
        TaskFile(**{**spec.model_dump(), "instruction": "Answer {acceptible}."})


def test_likelihood_is_transformers_own_loss(backbone):
    inputs = encode(backbone, frame(), "{sentence}", 64)
    for score, ids in zip(token_log_probability(backbone, inputs), inputs.ids):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            assert score == pytest.approx(-backbone.model(input_ids=tokens, labels=tokens).loss.item(), abs=1e-4)


def test_a_text_of_one_token_without_a_prefix_has_no_likelihood(opt):
    assert token_log_probability(opt, Inputs([[5]], torch.tensor([0]))).tolist() == [0.0]


@pytest.mark.parametrize("scores, labels, at, above", [
    ([-4, -3, -2, -1], [0, 0, 1, 1], -2.5, 1),
    ([-4, -3, -2, -1], [1, 1, 0, 0], -2.5, 0),
    ([-4, -3, -2, -1], [0, 1, 0, 1], -3.5, 1),  # -3.5, -2.5 and -1.5 have three, two, three right: the lower of two middle ones
    ([-2, -2], [0, 1], -2, 1),  # all equal
])
def test_thresholds_and_their_ties(scores, labels, at, above):
    found = fit_threshold(np.array(scores, float), np.array(labels))
    assert (found.at, found.above) == (at, above)
    logits = found.logits(np.array([at + 1.0, at - 1.0, at]))
    assert logits.argmax(1).tolist() == [above, 1 - above, 0]
    assert np.array_equal(logits, -logits[:, ::-1])


def test_likelihood_wants_one_text_and_two_labels():
    check_likelihood(read_task("cola"))
    with pytest.raises(BadInput, match="'mnli' has 2"):
        check_likelihood(read_task("mnli"))
    three = read_task("cola").model_dump() | {"labels": ["a", "b", "c"], "relabel": {}, "label_words": {"x": dict(a=" a", b=" b", c=" c")}}
    with pytest.raises(BadInput, match="has 3"):
        check_likelihood(TaskFile(**three | {"instruction": ""}))


@pytest.mark.parametrize("values, words", [
    ({"scoring": "likelihood", "calibrate": True}, "calibrate: True"),
    ({"demonstrations": -1}, "demonstrations: -1"),
    ({"demonstrations": "some"}, "demonstrations: 'some'"),
    ({"learning_rate": 1e-5}, "learning_rate: unknown key"),
    ({"shots": "all"}, "shots: 'all'"),
])
def test_bad_parameters_are_told_in_a_sentence(values, words):
    with pytest.raises(BadInput) as error:
        validated("in_context", values, "here")
    assert words in str(error.value) and "\n" not in str(error.value)
