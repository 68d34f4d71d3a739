"""Seeds give different trials, provably; the loop is the textbook's."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from lowres.files import BadInput
from lowres.methods.training import linear_schedule, steps, train, warmup_steps
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Verbalizer
from lowres.parameters import Vanilla
from lowres.tasks.shots import Streams, checksum, close_draws, draw, fewest, in_common

POOL = pd.DataFrame({"sentence": [f"The nurse saw {i} pilots." for i in range(60)], "label": [i % 3 == 0 for i in range(60)]}).astype({"label": int})


def test_draws_are_balanced_and_nested():
    few, many = draw(POOL, 2, seed=5), draw(POOL, 16, seed=5)
    assert list(many.index[:4]) == list(few.index)
    assert many["label"].value_counts().to_dict() == {0: 16, 1: 16} and many.index.is_unique


def test_every_seed_draws_other_examples_and_the_same_seed_the_same():
    marks = {checksum(draw(POOL, 4, seed)) for seed in range(50)}
    assert len(marks) == 50 and checksum(draw(POOL, 4, 0)) in marks


@pytest.mark.parametrize("shots", [2, 5, 20])
def test_draws_have_as_many_examples_in_common_as_is_said(shots):
    rare = [set(found.index[found["label"] == 1]) for seed in range(60) for found in [draw(POOL, shots, seed)]]
    measured = np.mean([len(one & other) / shots for i, one in enumerate(rare) for other in rare[:i]])
    assert measured == pytest.approx(in_common(fewest(POOL), shots), abs=0.01)


def test_only_draws_from_a_small_pool_are_called_close():
    assert close_draws(in_common(25, 16)).startswith("Two draws have on average 64% of their examples in common")
    assert close_draws(in_common(4000, 64)) == ""
    assert in_common(25, "all") == 1, "the seeds of a whole pool have the same examples"


def test_the_draw_listens_to_no_global_generator():
    expected = checksum(draw(POOL, 8, seed=1))
    np.random.seed(42)
    torch.manual_seed(42)
    assert checksum(draw(POOL, 8, seed=1)) == expected


def test_the_streams_of_one_seed_are_independent_of_one_another():
    one, other = Streams(3), Streams(3)
    one.order.permutation(1000)  # using a stream up moves no other
    assert one.shots.integers(1 << 60) == other.shots.integers(1 << 60)
    assert len({one.weights, one.dropout, one.teacher}) == 3


def test_more_shots_than_the_pool_has_are_refused():
    with pytest.raises(BadInput, match="shots: 21 is more than the 20 examples that the pool has of label 1"):
        draw(POOL, 21, seed=0)


def trained(model: str, seed: int, precision: str = "float32", **given):
    p = Vanilla(**{"shots": 4, "epochs": 3, "batch_size": 4, "learning_rate": 1e-3, **given})
    backbone = load_backbone(model, precision=precision)
    head = Classifier(backbone, 2, Streams(seed).weights)
    inputs = encode(backbone, draw(POOL, 4, seed), "{sentence}", 128)
    return train(backbone, head, inputs, p, Streams(seed)), backbone, head


def test_a_trial_repeats_exactly_whatever_the_global_generators_say(tiny_opt):
    """Dropout is on in this model: its masks, too, must come from the seed."""
    first, one, _ = trained(tiny_opt, 0)
    torch.manual_seed(42)
    second, two, _ = trained(tiny_opt, 0)
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_that_diverges_is_an_error_and_no_result(tiny_llama, precision):
    with pytest.raises(BadInput, match=r"learning_rate: 1e\+30: the loss is (nan|inf) at step [2-4] of 6: the training has diverged"):
        trained(tiny_llama, 0, precision, learning_rate=1e30)


def test_two_seeds_are_two_trials_even_where_something_resets_every_generator(tiny_opt):
    """transformers' Trainer seeds everything with 42 when it is built, which made the paper's ten runs one."""
    torch.manual_seed(42)
    first = trained(tiny_opt, 0)[0].losses
    torch.manual_seed(42)
    assert trained(tiny_opt, 1)[0].losses != first


def test_the_loss_falls_and_the_weights_stay_float32_under_bfloat16_autocast(tiny_llama):
    training, backbone, _ = trained(tiny_llama, 0, precision="bfloat16")
    assert training.losses[-1] < training.losses[0]
    assert {weight.dtype for weight in backbone.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("shots", "expected_steps", "expected_warmup"), [(2, 40, 0), (16, 40, 4), (32, 80, 8), (64, 160, 16), (128, 320, 32)])
def test_as_coded_steps_and_warm_up_are_those_of_the_authors(shots, expected_steps, expected_warmup):
    p = Vanilla(shots=shots, fidelity="as_coded", learning_rate=1e-5)
    assert (steps(2 * shots, p), warmup_steps(2 * shots, p)) == (expected_steps, expected_warmup)


def test_as_described_there_is_always_a_warm_up():
    assert warmup_steps(4, Vanilla(epochs=2)) == 1 and warmup_steps(32, Vanilla()) == 4


def test_a_single_step_trains():
    """The first step of a warm-up has rate 0."""
    assert linear_schedule(4, Vanilla(epochs=1))(0) == 1


@pytest.mark.parametrize("examples", [4, 100, 256])
@pytest.mark.parametrize("fidelity", ["as_described", "as_coded"])
def test_the_schedule_is_transformers_linear_one(examples, fidelity):
    p = Vanilla(fidelity=fidelity, learning_rate=1e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup_steps(examples, p), steps(examples, p))
    ours = linear_schedule(examples, p)
    for step in range(steps(examples, p)):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_gradients_of_a_batchs_parts_add_up_to_the_batchs(tiny_llama):
    backbone = load_backbone(tiny_llama, precision="float32")
    head = Verbalizer(backbone, [" No", " Yes"])
    inputs = encode(backbone, draw(POOL, 12, 0), "{sentence} ?", 128)

    def gradient(budget: int) -> list[torch.Tensor]:
        backbone.model.zero_grad()
        for rows in pack(inputs.ids, budget=budget):
            (head.loss(backbone.hidden(rows), inputs.labels[rows.texts]) / len(inputs)).backward()
        return [weight.grad.clone() for weight in backbone.model.parameters()]

    for whole, parts in zip(gradient(10_000), gradient(64)):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_one_step_is_adamw_on_the_mean_cross_entropy_by_hand(tiny_llama):
    """The reference: transformers' full logits, plain torch cross-entropy, unfused AdamW, the gradient's norm clipped at 1."""
    p = SimpleNamespace(epochs=1, batch_size=8, learning_rate=1e-3, warmup_ratio=0.0, weight_decay=0.01, fidelity="as_coded", class_weights="none")
    ours, theirs = (load_backbone(tiny_llama, precision="float32") for _ in range(2))
    head = Verbalizer(ours, [" No", " Yes"])
    inputs = encode(ours, draw(POOL, 4, 0), "{sentence} ?", 128)
    train(ours, head, inputs, p, Streams(0))

    optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=1e-3, weight_decay=0.01, fused=False, foreach=False)
    logits = torch.stack([theirs.model(input_ids=torch.tensor([ids])).logits[0, -1, head.ids] for ids in inputs.ids])
    torch.nn.functional.cross_entropy(logits, inputs.labels).backward()
    torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 1.0)
    optimizer.step()
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters()):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


def test_uneven_draws_take_what_a_label_has_and_stay_nested():
    pool = pd.concat([POOL[POOL["label"] == 0].head(3), POOL[POOL["label"] == 1]])
    with pytest.raises(BadInput, match="8 is more than the 3 examples"):
        draw(pool, 8, 0)
    found = draw(pool, 8, 0, uneven=True)
    assert found["label"].value_counts().to_dict() == {1: 8, 0: 3} and found["label"].tolist()[:6] == [0, 1] * 3
    assert set(draw(pool, 2, 0).index) <= set(found.index)
    even = draw(POOL, 8, 0)
    assert even.equals(draw(POOL, 8, 0, uneven=True))


@pytest.mark.parametrize("over", ["label_words", "vocabulary"])
def test_balanced_weights_make_each_class_count_the_same_whatever_its_share(tiny_llama, over):
    """Against scikit-learn's weights, by hand."""
    from sklearn.utils.class_weight import compute_class_weight

    from lowres.methods.training import balanced

    labels = torch.tensor([0, 0, 0, 0, 1])
    weights = balanced(labels)
    assert weights.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.array([0, 1]), y=labels.numpy()))
    backbone = load_backbone(tiny_llama, precision="float32")
    hidden, head = torch.randn(5, backbone.width), Verbalizer(backbone, [" No", " Yes"], over)
    alone = torch.stack([head.loss(hidden[i : i + 1], labels[i : i + 1]) for i in range(5)])
    head.class_weights = weights
    assert head.loss(hidden, labels).item() == pytest.approx((alone * weights[labels]).sum().item(), rel=1e-5)
