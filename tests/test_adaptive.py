"""Training the top layers, reading the corpus: each held against something computed another way."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import backbone_of, save_model
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from lowres.files import BadInput
from lowres.methods import layers_and_corpus
from lowres.methods.choose import pattern as choose
from lowres.methods.layers_and_corpus import above_layers, frozen, layer_groups, text_loss, top_layers, train_on_corpus
from lowres.methods.training import linear_schedule, steps, train, warmup_steps
from lowres.models.adapters import layer_stack
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Verbalizer
from lowres.parameters import validated
from lowres.runs.checks import check_method
from lowres.tasks.load import Task
from lowres.tasks.shots import Streams, draw

CODED = {"fidelity": "as_coded", "adapt": "layers", "head": "classifier", "layer_decay": 1.0, "learning_rate": 1e-5}


def parameters(model="smollm2-135m", **given):
    return validated("adaptive", {"model": str(model), **given}, "test")


def weights_of(backbone):
    return {name: weight.detach().clone() for name, weight in backbone.model.named_parameters()}


def inputs_of(backbone, task, shots=4, seed=0):
    return encode(backbone, draw(task.pool, shots, seed), task.file.pattern(""), 64)


# --- layers ------------------------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}


@pytest.mark.parametrize(("config", "kind", "count"), [
    (GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50), "GPT2Block", 3),
    (GPTNeoXConfig(**SMALL), "GPTNeoXLayer", 3),
    (GemmaConfig(**SMALL, num_key_value_heads=4, head_dim=8), "GemmaDecoderLayer", 3),
    (MixtralConfig(**SMALL, num_key_value_heads=4, num_local_experts=8), "MixtralDecoderLayer", 3),  # more experts than layers
])
def test_layers_are_found_by_structure(config, kind, count):
    layers = layer_stack(AutoModelForCausalLM.from_config(config).base_model)
    assert len(layers) == count and {type(layer).__name__ for layer in layers} == {kind}


def test_a_model_without_layers_is_told():
    with pytest.raises(BadInput, match="Linear has no stack of layers"):
        layer_stack(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("layers", "default"), [(1, 1), (3, 1), (6, 1), (12, 2), (24, 4), (30, 5)])
def test_the_top_sixth_trains_by_default(layers, default):
    assert top_layers(layers, 0) == default and top_layers(layers, 1) == 1


@pytest.mark.parametrize(("fixture", "above"), [("tiny_opt", "LayerNorm"), ("tiny_opt_post_norm", "Linear"), ("tiny_llama", "LlamaRMSNorm")])
def test_what_stands_above_the_layers_is_found(request, fixture, above):
    assert [type(module).__name__ for module in above_layers(backbone_of(request.getfixturevalue(fixture)))] == [above]


def test_rates_follow_the_formula_and_reach_the_optimizer(tiny_model, task):
    """Read off the weights: where the gradient stays the same, AdamW's first real step moves a weight by its learning rate."""
    backbone = backbone_of(tiny_model)
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "dropout"):
            module.p = module.dropout = 0.0
    p = parameters(tiny_model, adapt="layers", train_layers=3, layer_decay=0.5, learning_rate=1e-3, epochs=2, warmup_ratio=0.5)
    head = Classifier(backbone, 2, 0)
    groups = layer_groups(backbone, head, p)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("layer 1", 2.5e-4), ("layer 2", 5e-4), ("layer 3", 1e-3), ("above the layers", 1e-3)
    ]
    before = weights_of(backbone)
    start = head.weight.detach().clone()
    training = train(backbone, head, inputs_of(backbone, task), p, Streams(0), groups)  # a step at rate 0, then one at full rate
    assert training.learning_rates == [0.0, 1e-3]
    for depth, layer in enumerate(reversed(layer_stack(backbone.model.base_model))):
        names = [name for name, weight in backbone.model.named_parameters() if any(weight is own for own in layer.parameters())]
        moved = max((backbone.model.get_parameter(name) - before[name]).abs().max().item() for name in names)
        assert moved == pytest.approx(1e-3 * 0.5**depth, rel=0.02)
    assert (head.weight - start).abs().max().item() == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("head_type", ["classifier", "verbalizer"])
def test_only_the_top_moves_and_nothing_is_computed_below(tiny_model, task, head_type):
    backbone = backbone_of(tiny_model)
    p = parameters(tiny_model, adapt="layers", head=head_type, learning_rate=1e-2, epochs=3)
    head = Classifier(backbone, 2, 0) if head_type == "classifier" else Verbalizer(backbone, [" No", " Yes"])
    groups = layer_groups(backbone, head, p)
    before, layers = weights_of(backbone), layer_stack(backbone.model.base_model)
    reached = [set() for _ in layers]  # whether the output of a layer asks for a gradient, that is, for one to be computed through it
    hooks = [layer.register_forward_hook(lambda _, __, out, seen=seen: seen.add((out[0] if isinstance(out, tuple) else out).requires_grad))
             for layer, seen in zip(layers, reached)]
    training = train(backbone, head, inputs_of(backbone, task), p, Streams(0), groups)
    for hook in hooks:
        hook.remove()
    assert reached == [{False}, {False}, {True}]
    top = [weight for module in (layers[-1], *above_layers(backbone)) for weight in module.parameters()]
    for name, weight in backbone.model.named_parameters():
        assert torch.equal(weight, before[name]) != any(weight is own for own in top) or "k_proj.bias" in name, name
    own = sum(weight.numel() for weight in head.parameters())
    assert training.trainable == sum(weight.numel() for weight in top) + own
    assert frozen(backbone) == backbone.parameters() - sum(weight.numel() for weight in top)
    backbone.restore()
    assert frozen(backbone) == 0 and all(torch.equal(weight, before[name]) for name, weight in backbone.model.named_parameters())


def test_a_head_of_its_own_trains_with_the_verbalizer(tmp_path):
    config = LlamaConfig(**{**SMALL, "num_key_value_heads": 2}, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=1)
    backbone = backbone_of(save_model(tmp_path / "untied", config, prefix=False))
    p = parameters(backbone.name, adapt="layers")
    layer_groups(backbone, Verbalizer(backbone, [" No", " Yes"]), p)
    assert backbone.output.requires_grad and not backbone.model.get_input_embeddings().weight.requires_grad
    layer_groups(backbone, Classifier(backbone, 2, 0), p)
    assert not backbone.output.requires_grad


# --- corpus ------------------------------------------------------------------------------------------------------------------------

def learnable(task, rows=300):
    """A corpus in which every word but one decides the next."""
    sentences = [f"The {noun} praised the {noun} , and the {noun} slept ." for noun in ("doctor", "pilot", "nurse", "artist")]
    pool = pd.DataFrame({"sentence": [sentences[i % 4] for i in range(rows)], "label": [i % 2 for i in range(rows)]})
    return Task(task.file, pool, {})


def test_reading_lowers_the_loss_on_held_out_text(tiny_model, task):
    backbone = backbone_of(tiny_model)
    p = parameters(tiny_model, adapt="corpus", corpus_steps=30, corpus_learning_rate=1e-2, corpus_rows=64, batch_size=8)
    reading = train_on_corpus(backbone, learnable(task), p, Streams(0))
    assert reading.after < 0.6 * reading.before
    assert (reading.texts, reading.held_out, len(reading.losses)) == (64, 60, 30)


def test_no_label_is_read_and_a_reading_repeats(tiny_llama, task):
    backbone = backbone_of(tiny_llama)
    p = parameters(tiny_llama, adapt="corpus", corpus_steps=3, corpus_rows=50)
    corpus, results = learnable(task), []
    for labels in (corpus.pool["label"], np.random.default_rng(1).permutation(corpus.pool["label"]), "never read"):
        backbone.restore()
        torch.manual_seed(len(results))  # what else ran before does not matter
        reading = train_on_corpus(backbone, Task(task.file, corpus.pool.assign(label=labels), {}), p, Streams(0))
        results.append((reading.record(), torch.cat([weight.flatten() for weight in backbone.model.parameters()]).detach().clone()))
    assert results[0][0] == results[1][0] == results[2][0]
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][1], results[2][1])


def test_held_out_texts_are_never_read(tiny_opt, task, monkeypatch):
    seen = {"held out": [], "read": []}
    monkeypatch.setattr(layers_and_corpus, "text_loss", lambda backbone, ids: seen["held out"].append({tuple(text) for text in ids}) or 0.0)
    batches = layers_and_corpus._endless
    monkeypatch.setattr(layers_and_corpus, "_endless", lambda texts, *rest: seen["read"].extend(map(tuple, texts)) or batches(texts, *rest))
    reading = train_on_corpus(backbone_of(tiny_opt), task, parameters(tiny_opt, adapt="corpus", corpus_steps=1, corpus_rows=3000), Streams(0))
    before, after = seen["held out"]
    assert before == after and len(before) == reading.held_out == 200
    assert len(seen["read"]) == len(set(seen["read"])) == reading.texts == len(task.pool) - 200
    assert not before & set(seen["read"])


def test_the_loss_is_transformers_own(tiny_model, task):
    backbone = backbone_of(tiny_model)
    ids = inputs_of(backbone, task).ids
    total, tokens = 0.0, 0
    for text in ids:
        with torch.no_grad():
            total += backbone.model(input_ids=torch.tensor([text]), labels=torch.tensor([text])).loss.item() * (len(text) - 1)
        tokens += len(text) - 1
    assert text_loss(backbone, ids) == pytest.approx(total / tokens, rel=1e-5)


def test_a_loss_in_pieces_has_the_gradients_of_transformers_own(tiny_model, task, monkeypatch):
    monkeypatch.setattr(layers_and_corpus, "LOGITS", 5)
    backbone = backbone_of(tiny_model)
    ids = inputs_of(backbone, task).ids[:4]
    backbone.model.eval()
    expected = sum(backbone.model(input_ids=torch.tensor([text]), labels=torch.tensor([text])).loss * (len(text) - 1) for text in ids)
    expected.backward()
    wanted = {name: weight.grad.clone() for name, weight in backbone.model.named_parameters() if weight.grad is not None}
    backbone.model.zero_grad()
    loss = sum(layers_and_corpus.next_token_loss(backbone, rows) for rows in pack(ids))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in backbone.model.named_parameters():
        assert torch.allclose(weight.grad, wanted[name], rtol=1e-3, atol=1e-4), name


# --- parameters, fidelities, bad input ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("given", "said"), [
    ({"head": "classifier"}, "head: 'classifier' is not accepted: adapt = pattern chooses"),
    ({"adapt": "patern"}, "adapt: 'patern'"),
    ({"layer_decay": 0.0}, "layer_decay: 0.0"),
    ({"fidelity": "as_coded"}, "the authors ran learning_rate 1e-05, not 5e-05; adapt 'layers', not 'pattern'; head 'classifier'"),
    ({"fidelity": "as_coded", "adapt": "corpus", "head": "classifier", "learning_rate": 1e-5}, "the authors ran adapt 'layers', not 'corpus'"),
    ({"adapt": "layers", "corpus_steps": 20}, "corpus_steps: 20 is not accepted: it would have no effect: it is for adapt = corpus, not layers"),
    ({"adapt": "corpus", "layer_decay": 1.0}, "it is for adapt = layers, not corpus"),
    ({**CODED, "train_layers": 3}, "train_layers 0, not 3"),
])
def test_bad_input_is_told_by_the_schema(given, said):
    with pytest.raises(BadInput, match=said):
        parameters(**given)


def test_too_many_layers_are_told_before_weights_are_read(tiny_opt):
    check_method(parameters(tiny_opt, adapt="layers", train_layers=3))
    with pytest.raises(BadInput, match="train_layers: 4 is more than the 3 layers"):
        check_method(parameters(tiny_opt, adapt="layers", train_layers=4))


def test_a_pool_too_small_to_hold_any_text_out_is_told(tiny_opt, task):
    with pytest.raises(BadInput, match="the pool has 4 texts"):
        train_on_corpus(backbone_of(tiny_opt), learnable(task, 4), parameters(tiny_opt, adapt="corpus"), Streams(0))


@pytest.mark.parametrize(("shots", "total", "warmup"), [(2, 40, 0), (128, 320, 32)])
def test_the_authors_schedule_by_hand(shots, total, warmup):
    p = parameters(**CODED, shots=shots)
    examples = 2 * shots
    assert steps(examples, p) == total == -(-examples // 32) * 40
    assert warmup_steps(examples, p) == warmup == int(0.1 * (examples // 32) * 40)
    factor = linear_schedule(examples, p)
    for step in range(total):
        expected = step / warmup if step < warmup else (total - step) / (total - warmup)
        assert factor(step) == pytest.approx(expected)


def test_as_coded_is_one_rate_and_as_described_is_not(tiny_opt, task):
    backbone, losses = backbone_of(tiny_opt), {}
    for fidelity in ("as_coded", "as_described"):
        for decay in (1.0, 0.95):
            if (fidelity, decay) == ("as_coded", 0.95):
                continue
            p = parameters(tiny_opt, **{**CODED, "fidelity": fidelity, "layer_decay": decay}, train_layers=0, epochs=4)
            backbone.restore()
            head = Classifier(backbone, 2, Streams(0).weights)
            groups = layer_groups(backbone, head, p)
            assert ({group["lr"] for group in groups} == {1e-5}) == (decay == 1.0 or len(groups) == 2)
            training = train(backbone, head, inputs_of(backbone, task), p, Streams(0), groups)
            losses[fidelity, decay] = (training.losses[0], training.learning_rates, training.trainable)
    coded, described = losses["as_coded", 1.0], losses["as_described", 1.0]
    assert coded[0] == described[0] and coded[2] == described[2]  # the same weights, order, text
    assert coded[1][0] == 1e-5 and described[1][0] == 0.0  # the schedule alone: below one batch the authors had no warm-up


def test_a_kept_default_is_pbft_to_the_last_bit(tiny_opt, task):
    """The choice draws from a stream of its own, so that runs are paired with PBFT's."""
    backbone = backbone_of(tiny_opt)
    p, results = parameters(tiny_opt, epochs=2, batch_size=3), []  # more batches than one, so that their order shows
    for look_first in (False, True):
        backbone.restore()
        streams = Streams(1)
        if look_first:
            assert choose(backbone, task.file, draw(task.pool, 4, 1), p, streams).chosen.pattern == "question_mark"
        head = Verbalizer(backbone, [" No", " Yes"])
        results.append(train(backbone, head, inputs_of(backbone, task, seed=1), p, streams).losses)
    assert results[0] == results[1]


def test_groups_hold_every_trained_weight_once(tiny_model):
    backbone = backbone_of(tiny_model)
    head = Classifier(backbone, 2, 0)
    groups = layer_groups(backbone, head, parameters(tiny_model, adapt="layers", train_layers=2))
    held = [id(weight) for group in groups for weight in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for module in (backbone.model, head) for weight in module.parameters() if weight.requires_grad}
    trained = sum(weight.numel() for group in groups for weight in group["params"])
    assert frozen(backbone) + trained == backbone.parameters() + head.weight.numel()
