"""Label words of several tokens: a word's score is its whole sequence's log-probability, as a plain forward pass over that sequence gives it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lowres.files import BadInput
from lowres.methods import choose
from lowres.methods.distillation import DistilledVerbalizer, prepare, targets
from lowres.methods.evaluation import predict
from lowres.methods.in_context import demonstrated, predict_after, without_prefix
from lowres.methods.kept import check_can_be_kept
from lowres.methods.training import train
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode
from lowres.models.heads import Verbalizer, tokens_after_text, word_tokens
from lowres.parameters import PBFT, Adaptive, Distillation
from lowres.runs.checks import check_words, several_tokens
from lowres.tasks.shots import Streams, draw

ONE = [" No", " Yes", " Maybe"]
SEVERAL = [" correct good", " bad", " wrong true false"]
SENTENCES = ["The nurse slept.", "Yes", "The children were playing in the garden, and the pilot has written a long letter.", "No. No no."]
FRAME = pd.DataFrame({"sentence": [f"{sentence} {i}" for i in range(6) for sentence in SENTENCES], "label": [0, 1, 2] * 8})
PATTERN = "{sentence} It was"


@pytest.fixture
def backbone(tiny_model):
    return load_backbone(tiny_model, precision="float32")


@pytest.fixture
def inputs(backbone):
    return encode(backbone, FRAME, PATTERN, 128)


def by_hand(backbone, ids: list[int], word: str, before: list[int] = ()) -> list[float]:
    """transformers' own log-probability of each token of a word behind a text, from one pass over all of it."""
    tokens = tokens_after_text(backbone.tokenizer, word)
    whole = torch.tensor([[*before, *ids, *tokens]])
    log = backbone.model.eval()(input_ids=whole).logits[0].log_softmax(1)
    start = len(before) + len(ids) - 1
    return [log[start + i, token].item() for i, token in enumerate(tokens)]


@pytest.mark.parametrize(("score", "of"), [("sum", sum), ("mean", np.mean), ("first", lambda logs: logs[0])])
@torch.no_grad()
def test_a_words_logit_is_that_of_a_plain_forward_pass_over_its_whole_sequence(backbone, inputs, score, of):
    expected = np.array([[of(by_hand(backbone, ids, word)) for word in SEVERAL] for ids in inputs.ids])
    found = predict(backbone, Verbalizer(backbone, SEVERAL, score=score), {"a": inputs})["a"]
    if score == "first":  # rows of the language-model head, which are no log-probabilities yet
        found, expected = (part - part[:, :1] for part in (found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@torch.no_grad()
def test_behind_demonstrations_too_whose_answers_are_whole_words(backbone):
    order = np.arange(len(FRAME))
    context = demonstrated(backbone, FRAME, order, PATTERN, SEVERAL, 1, 64, 40)
    said = backbone.tokenizer.decode(context.tokens)
    assert all(f"It was{word}\n\n" in said for word in SEVERAL)
    texts = without_prefix(backbone, encode(backbone, FRAME.head(5), PATTERN, 64))
    found = predict_after(backbone, Verbalizer(backbone, SEVERAL), {"a": texts}, [context])["a"]
    expected = [[sum(by_hand(backbone, ids, word, context.tokens)) for word in SEVERAL] for ids in texts.ids]
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_words_of_one_token_have_the_numbers_that_they_always_had_whatever_the_score(backbone, inputs):
    rows = backbone.output[[word[0] for word in word_tokens(backbone.tokenizer, ONE)]]
    heads = [Verbalizer(backbone, ONE, score=score) for score in ("sum", "mean", "first")]
    found = [predict(backbone, head, {"a": inputs})["a"] for head in heads]
    assert all(np.array_equal(part, found[0]) for part in found) and not any(head.branches for head in heads)
    hidden = torch.randn(4, backbone.width)
    assert torch.equal(heads[1].logits(hidden), hidden @ rows.T)


@pytest.mark.parametrize("over", ["label_words", "vocabulary"])
def test_the_loss_and_its_gradient_are_those_of_the_sequences_written_out(backbone, inputs, over):
    head, part = Verbalizer(backbone, SEVERAL, over), inputs.take(range(5))
    backbone.model.eval()
    log = torch.stack([torch.stack([_sequence(backbone, ids, word) for word in SEVERAL]) for ids in part.ids])
    expected = F.cross_entropy(log, part.labels) if over == "label_words" else -log.gather(1, part.labels[:, None]).mean()
    wanted = torch.autograd.grad(expected, backbone.model.get_input_embeddings().weight)[0]
    from lowres.models.batches import pack

    rows = next(pack(part.ids, branches=head.branches))
    loss = head.loss(backbone.hidden(rows), part.labels[rows.texts]) / len(part)
    found = torch.autograd.grad(loss, backbone.model.get_input_embeddings().weight)[0]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def _sequence(backbone, ids, word):
    tokens = tokens_after_text(backbone.tokenizer, word)
    log = backbone.model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0].log_softmax(1)
    return sum(log[len(ids) - 1 + i, token] for i, token in enumerate(tokens))


def test_training_on_them_lowers_the_loss_and_counts_their_tokens(backbone, inputs):
    head, p = Verbalizer(backbone, SEVERAL), PBFT(epochs=8, learning_rate=3e-3)
    training = train(backbone, head, inputs, p, Streams(0))
    assert training.losses[-1] < training.losses[0] - 0.1
    behind = sum(len(ids) - 1 for ids in word_tokens(backbone.tokenizer, SEVERAL))
    assert training.tokens == 8 * (sum(map(len, inputs.ids)) + behind * len(inputs))


def test_a_teacher_answers_in_whole_words_and_a_student_learns_them(backbone, several_task):
    p = Distillation(shots=4, epochs=3, learning_rate=1e-3, temperature=2.0)
    shots, streams = draw(several_task.pool, 4, 0), Streams(0)
    lesson = prepare(backbone, backbone, several_task, p, shots, streams, PATTERN, SEVERAL)
    taught = targets(backbone, SEVERAL, lesson, p)
    with torch.no_grad():
        bare = without_prefix(backbone, lesson.inputs)
        first = [sum(by_hand(backbone, bare.ids[0], word, lesson.contexts[lesson.which[0]].tokens)) for word in SEVERAL]
    np.testing.assert_allclose(taught.log[0].numpy(), F.log_softmax(torch.tensor(first) / 2, 0).numpy(), atol=1e-4)
    head = DistilledVerbalizer(backbone, SEVERAL, taught)
    assert np.isfinite(train(backbone, head, lesson.inputs, p, streams).losses).all()


def test_patterns_are_chosen_with_them_by_the_same_rule(backbone, several_task):
    p = Adaptive(shots=4, search_words=0)
    shots = draw(several_task.pool, 4, 0)
    choice = choose.pattern(backbone, several_task.file, shots, p, Streams(0))
    assert not choice.skipped and {c.label_words for c in choice.ranking} == {"several", "one"}
    here = next(c for c in choice.ranking if c.label_words == "several" and c.pattern == "it_was")
    free = encode(backbone, pd.DataFrame([{"sentence": "N/A", "label": 0}]), PATTERN, 64)
    head = Verbalizer(backbone, SEVERAL)
    both = predict(backbone, head, {"shots": encode(backbone, shots, PATTERN, 64), "free": free})
    log = torch.tensor(both["shots"] - both["free"]).log_softmax(1).numpy()
    np.testing.assert_allclose(here.scores, log[np.arange(len(shots)), shots["label"]], atol=1e-5)


@pytest.fixture
def several_task(tmp_path):
    from lowres.tasks.load import load_task

    FRAME.assign(label=FRAME["label"].map(lambda i: "abc"[i])).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame({"sentence": ["It rained.", "It snowed.", "It shone."], "label": list("abc")}).to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "several.yaml").write_text("""
name: several
version: 1
description: three labels
folder: .
text: [sentence]
labels: [a, b, c]
pool: {file: rows}
evaluation: {test: {file: test, domain: in}}
patterns: {it_was: "{sentence} It was", plain: "{sentence}"}
label_words:
  several: {a: " correct good", b: " bad", c: " wrong true false"}
  one: {a: " No", b: " Yes", c: " Maybe"}
""")
    return load_task(str(tmp_path / "several.yaml"))


def test_words_that_cannot_be_told_apart_are_refused(tiny_llama):
    tokenizer = load_backbone(tiny_llama).tokenizer
    with pytest.raises(BadInput, match="' correct good true' and ' correct good' begin with the same tokens, and one ends there"):
        word_tokens(tokenizer, [" correct good", " correct good true"])
    assert word_tokens(tokenizer, [" correct good", " correct bad"])
    with pytest.raises(BadInput, match="share their first token"):
        word_tokens(tokenizer, [" correct good", " correct bad"], "first")


def test_what_they_cost_and_what_would_be_cheaper_is_said(tiny_llama):
    tokenizer = load_backbone(tiny_llama).tokenizer
    assert several_tokens(tokenizer, ONE, "sum", "") == []
    [said] = several_tokens(tokenizer, SEVERAL, "sum", "x: ")
    behind = sum(len(ids) - 1 for ids in word_tokens(tokenizer, SEVERAL))
    assert f"{behind} more tokens are read behind each text" in said and "word_score: first compares these alone" in said
    assert several_tokens(tokenizer, SEVERAL, "first", "") == []
    assert "word_score" not in several_tokens(tokenizer, [" correct good", " correct bad"], "sum", "")[0]


def test_words_for_which_a_text_leaves_no_room_are_refused(tiny_opt, several_task, tmp_path):
    asked = {"model": tiny_opt, "task": str(tmp_path / "several.yaml")}
    assert check_words(PBFT(**asked, max_length=250))
    for given in ({"max_length": 256}, {"max_length": 255}):
        with pytest.raises(BadInput, match="leaves no room for the 2 tokens that are read behind it: .* reads 256"):
            check_words(PBFT(**asked, **given))
    check_words(PBFT(**asked, max_length=256, label_words="one"))


def test_a_model_that_answers_in_several_tokens_is_not_kept_as_a_classifier(tiny_llama, several_task, tmp_path):
    asked = {"model": tiny_llama, "task": str(tmp_path / "several.yaml")}
    with pytest.raises(BadInput, match="label words of several tokens cannot become a sequence classifier"):
        check_can_be_kept("pbft", PBFT(**asked))
    check_can_be_kept("pbft", PBFT(**asked, word_score="first"))
    check_can_be_kept("pbft", PBFT(**asked, label_words="one"))
