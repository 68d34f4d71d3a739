"""Compiled layers do what the layers do, for every way of training; where they cannot be built, that is said before a model loads."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig

from lowres import compiling
from lowres.adapters import attach
from lowres.backbones import load_backbone
from lowres.checks import check_method
from lowres.errors import BadInput
from lowres.evaluation import predict
from lowres.heads import Classifier
from lowres.parameters import Vanilla
from lowres.shots import Streams
from lowres.training import train
from tests.benchmarks.workloads import inputs, texts

P = Vanilla(epochs=3, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module", autouse=True)
def can_compile():
    try:
        compiling.check_compiler("cpu")
    except BadInput as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def pair(tiny_llama):
    return [load_backbone(tiny_llama, "cpu", "float32", compiled) for compiled in (False, True)]


def a_trial(backbone, adapter) -> tuple[list[float], np.ndarray]:
    """Losses and predictions, from the pretrained weights."""
    backbone.restore()
    if adapter:
        attach(backbone, adapter, 0)
    shots, unseen = (inputs(texts("cola", count, 300, seed)) for seed, count in ((0, 16), (1, 40)))
    head = Classifier(backbone, 2, 0)
    losses = train(backbone, head, shots, P, Streams(0)).losses
    return losses, predict(backbone, head, {"unseen": unseen})["unseen"]


ADAPTERS = {"all weights": None, "LoRA": LoraConfig(r=2, target_modules=["q_proj"]),
            "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_losses_and_predictions_are_those_of_layers_that_are_not_compiled(pair, adapter):
    (losses, logits), (compiled_losses, compiled_logits) = (a_trial(backbone, adapter) for backbone in pair)
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(compiled_losses, losses, atol=1e-5)
    np.testing.assert_allclose(compiled_logits, logits, atol=1e-4)


def test_a_trial_repeats_to_the_last_digit(pair):
    (losses, logits), (again, anew) = (a_trial(pair[1], None) for _ in range(2))
    assert losses == again
    assert np.array_equal(logits, anew)


def test_what_is_behind_a_context_is_the_same(pair):
    context, ids = list(range(20, 60)), texts("cola", 10, 300)
    found = [predict(backbone, Classifier(backbone, 2, 0), {"all": inputs(ids)}, backbone.remember(context))["all"]
             for backbone in pair if backbone.restore() is None]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_lengths_that_were_never_seen_build_nothing_anew(pair):
    compiled = pair[1]
    compiled.restore()
    head, sets = Classifier(compiled, 2, 0), {"all": inputs(texts("mnli", 30, 300))}
    predict(compiled, head, sets)
    with torch.compiler.set_stance("fail_on_recompile"):
        predict(compiled, head, {"all": inputs(texts("hans", 50, 300, seed=3))})


def test_a_missing_compiler_is_told_before_a_model_loads(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"compiled: true needs the C\+\+ compiler no-such-compiler"):
        check_method(Vanilla(compiled=True, device="cpu"))
