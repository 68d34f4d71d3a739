"""Texts laid end to end without padding give what transformers gives for each text alone."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import word_ids
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lowres.files import BadInput
from lowres.methods import choose
from lowres.methods.evaluation import predict
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Verbalizer, word_tokens

LONG = "The children were playing in the garden, and the pilot has written a long letter to the doctor."
SENTENCES = ["The nurse slept.", "Yes", LONG, "No. No no."]
WORDS = [" No", " Yes"]


@pytest.fixture
def backbone(tiny_model):
    return load_backbone(tiny_model, precision="float32")


@pytest.fixture
def inputs(backbone):
    frame = pd.DataFrame({"sentence": SENTENCES * 9, "label": [0, 1, 1, 0] * 9})
    return encode(backbone, frame, "{sentence} ?", 128)


@torch.no_grad()
def reference_logits(backbone, ids: list[int]) -> np.ndarray:
    """transformers' own full logits of one text, at its last token."""
    return backbone.model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].numpy()


def test_label_logits_are_the_label_words_rows_of_transformers_full_logits(backbone, inputs):
    words = word_ids(backbone.tokenizer, WORDS)
    expected = np.stack([reference_logits(backbone, ids)[words] for ids in inputs.ids])
    found = predict(backbone, Verbalizer(backbone, WORDS), {"set": inputs})["set"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_padded_batch_of_either_side_gives_the_same_logits(backbone, inputs, side):
    tokenizer = backbone.tokenizer
    padded = tokenizer.pad({"input_ids": inputs.ids[:4]}, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        logits = backbone.model.eval()(**padded).logits
    last = padded["attention_mask"].sum(1) - 1 if side == "right" else torch.full((4,), logits.shape[1] - 1)
    expected = logits[torch.arange(4), last][:, word_ids(tokenizer, WORDS)].numpy()
    found = predict(backbone, Verbalizer(backbone, WORDS), {"set": inputs.take(range(4))})["set"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_a_texts_logits_do_not_depend_on_its_batch(backbone, inputs, batch):
    head = Classifier(backbone, 2, seed=3)
    together = predict(backbone, head, {"set": inputs})["set"]
    parts = [predict(backbone, head, {"set": inputs.take(range(i, min(i + batch, 36)))})["set"] for i in range(0, 36, batch)]
    np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-5)


def test_bfloat16_changes_the_logits_only_a_little(tiny_llama, inputs):
    full = load_backbone(tiny_llama, precision="float32")
    half = load_backbone(tiny_llama, precision="bfloat16")
    frame = pd.DataFrame({"sentence": SENTENCES, "label": [0, 1, 1, 0]})
    a, b = (predict(x, Verbalizer(x, WORDS), {"set": encode(x, frame, "{sentence} ?", 128)})["set"] for x in (full, half))
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_every_text_is_in_the_rows_once_and_next_to_nothing_is_padding(inputs):
    seen, computed = [], 0
    for rows in pack(inputs.ids * 10):
        seen += rows.texts
        computed += rows.ids.numel()
    assert sorted(seen) == list(range(360))
    assert computed / sum(map(len, inputs.ids * 10)) < 1.15


def test_the_vocabulary_loss_is_cross_entropy_over_transformers_full_logits(backbone, inputs):
    head = Verbalizer(backbone, WORDS, "vocabulary")
    rows = next(pack(inputs.ids[:4]))
    labels = inputs.labels[rows.texts]
    full = torch.tensor(np.stack([reference_logits(backbone, inputs.ids[i]) for i in rows.texts]))
    expected = torch.nn.functional.cross_entropy(full, head.ids[labels], reduction="sum")
    backbone.model.eval()
    torch.testing.assert_close(head.loss(backbone.hidden(rows), labels), expected, atol=1e-4, rtol=1e-4)


def test_a_verbalizer_has_no_weights_of_its_own_and_a_classifiers_come_from_its_seed(backbone):
    assert not list(Verbalizer(backbone, WORDS).parameters())
    torch.manual_seed(1)
    first = Classifier(backbone, 3, seed=7).weight
    torch.manual_seed(2)
    assert torch.equal(first, Classifier(backbone, 3, seed=7).weight) and first.shape == (3, backbone.width)
    assert not torch.equal(first, Classifier(backbone, 3, seed=8).weight)


@pytest.mark.parametrize(("words", "message"), [
    ([" Yes", " Yes"], "share their first token"), ([" Yes", ""], "'' is 0 tokens"), ([" Yes", " Yesyes"], "share their first token"),
])
def test_label_words_that_cannot_be_told_apart_are_refused(tiny_llama, words, message):
    with pytest.raises(BadInput, match=message):
        word_tokens(load_backbone(tiny_llama).tokenizer, words)


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama's and Mistral's first form: spaces are ▁, and one stands in front of every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], initial_alphabet=list("\nYesNox ▁"), show_progress=False)
    tokenizer.train_from_iterator(["Yes No Yes No"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_label_words_are_one_token_each_in_a_vocabulary_that_puts_a_space_in_front_itself(sentencepiece):
    assert len(sentencepiece(" Yes", add_special_tokens=False)["input_ids"]) == 2, "alone, the word would be refused"
    behind = sentencepiece("x ? Yes", add_special_tokens=False)["input_ids"]
    assert word_ids(sentencepiece, [" Yes", " No"]) == [behind[-1], sentencepiece.convert_tokens_to_ids("▁No")]


def test_a_searched_word_is_written_so_that_it_means_its_token_in_either_kind_of_vocabulary(sentencepiece, tiny_llama):
    for tokenizer in (sentencepiece, load_backbone(tiny_llama).tokenizer):
        token = word_ids(tokenizer, [" Yes"])[0]
        assert choose._is_word(tokenizer, token) and choose._word(tokenizer, token) == " Yes"


def test_a_text_that_is_too_long_is_cut_in_its_longest_column_and_counted(backbone):
    frame = pd.DataFrame({"a": ["The nurse slept. " * 40, "Yes"], "b": ["No.", "No."], "label": [0, 1]})
    cut = encode(backbone, frame, "{a} Question: {b} ?", 32)
    assert cut.cut == 1 and max(map(len, cut.ids)) <= 32
    text = backbone.tokenizer.decode(cut.ids[0][len(backbone.prefix):])
    assert text.startswith("The nurse slept.") and text.endswith(" Question: No. ?")


def test_a_pattern_may_say_a_text_twice_and_warns_of_nothing(backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = encode(backbone, pd.DataFrame({"text": ["Go"], "label": [0]}), "{text}, {text}", 64)
    assert twice.ids == encode(backbone, pd.DataFrame({"text": ["Go, Go"], "label": [0]}), "{text}", 64).ids


def test_two_long_columns_are_cut_in_turn(backbone):
    frame = pd.DataFrame({"a": ["The nurse slept. " * 40], "b": ["No pilot saw the doctor. " * 40], "label": [0]})
    cut = encode(backbone, frame, "{a} Question: {b} ?", 48)
    text = backbone.tokenizer.decode(cut.ids[0])
    assert cut.cut == 1 and len(cut.ids[0]) <= 48 and "nurse" in text and "pilot" in text and text.endswith(" ?")


def test_a_pattern_that_leaves_no_room_for_the_text_is_refused(backbone):
    frame = pd.DataFrame({"a": ["The nurse slept. "], "label": [0]})
    with pytest.raises(BadInput, match="max_length: 8 leaves no room"):
        encode(backbone, frame, "Question: Answer: Question: Answer: Question: Answer: Question: Answer: {a} ?", 8)
