"""Compiled layers do what the layers do, in every way of training; where they cannot be built, that is said before a model loads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import can_compile
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from torch._dynamo.utils import counters

from lowres.files import ROOT, BadInput
from lowres.methods.cost import Meter
from lowres.methods.evaluation import predict
from lowres.methods.layers_and_corpus import layer_groups
from lowres.methods.training import train
from lowres.models.adapters import attach
from lowres.models.backbone import load_backbone
from lowres.models.heads import Classifier
from lowres.parameters import Adaptive, Vanilla
from lowres.runs.checks import check_method
from lowres.tasks.shots import Streams
from tests.benchmarks.workloads import inputs, texts

P = Vanilla(epochs=3, batch_size=8, learning_rate=1e-3)
ADAPTERS = {
    "LoRA": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04}  # of losses and logits near 1


@pytest.fixture(scope="module", autouse=True)
def compiler():
    can_compile()
    torch._dynamo.reset()


def graphs() -> int:
    """How many have been built so far."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def pair(tiny_opt):
    """Plain and compiled; OPT drops out."""
    return [load_backbone(tiny_opt, "cpu", "float32", compiled) for compiled in (False, True)]


def a_trial(backbone, way: str, seed: int = 0) -> tuple[list[float], np.ndarray]:
    """Losses and predictions, from the pretrained weights."""
    backbone.restore()
    if way in ADAPTERS:
        attach(backbone, ADAPTERS[way], seed)
    shots, unseen = (inputs(texts("cola", count, 300, seed)) for seed, count in ((0, 16), (1, 40)))
    head = Classifier(backbone, 2, seed)
    groups = layer_groups(backbone, head, Adaptive(adapt="layers", train_layers=1)) if way == "top layers" else None
    losses = train(backbone, head, shots, P, Streams(seed), groups).losses
    return losses, predict(backbone, head, {"unseen": unseen})["unseen"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["all weights", "top layers", *ADAPTERS])
def test_losses_and_predictions_are_those_of_layers_that_are_not_compiled(pair, way):
    before = graphs()
    (losses, logits), (compiled_losses, compiled_logits) = (a_trial(backbone, way) for backbone in pair)
    assert (graphs() > before) == (way != "prefix tuning"), "which has keys and values of its own in every layer"
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(compiled_losses, losses, atol=TOLERANCE["float32"])
    np.testing.assert_allclose(compiled_logits, logits, atol=TOLERANCE["float32"])


@pytest.mark.slow
def test_a_second_trial_builds_nothing_anew_and_repeats_to_the_last_digit(pair):
    (losses, logits), before = a_trial(pair[1], "all weights"), graphs()
    again, anew = a_trial(pair[1], "all weights")
    assert graphs() == before
    assert losses == again and np.array_equal(logits, anew)


@pytest.mark.slow
def test_under_autocast_they_agree_within_its_rounding_and_compiling_is_told_apart(tiny_llama):
    (losses, logits), meter = a_trial(load_backbone(tiny_llama, "cpu", "bfloat16"), "all weights"), Meter()
    with meter.phase("train"):
        compiled_losses, compiled_logits = a_trial(load_backbone(tiny_llama, "cpu", "bfloat16", True), "all weights")
    assert meter.compiling() > meter.seconds["train"] > 0, "it is no part of what a phase costs"
    np.testing.assert_allclose(compiled_losses, losses, atol=TOLERANCE["bfloat16"])
    np.testing.assert_allclose(compiled_logits, logits, atol=TOLERANCE["bfloat16"])


@pytest.mark.slow
def test_behind_a_context_nothing_is_compiled_and_all_is_the_same(pair):
    context, ids, before = list(range(20, 60)), texts("cola", 10, 300), graphs()
    found = [predict(backbone, Classifier(backbone, 2, 0), {"all": inputs(ids)}, backbone.encode_context(context))["all"]
             for backbone in pair if backbone.restore() is None]
    assert graphs() == before
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_lengths_that_were_never_seen_build_nothing_anew(pair):
    pair[1].restore()
    head, before = Classifier(pair[1], 2, 0), None
    for kind, count in (("mnli", 30), ("mnli", 1), ("hans", 50), ("hans", 1)):
        predict(pair[1], head, {"all": inputs(texts(kind, count, 300))})
        before = before or (graphs() if count == 1 else None)  # one row and several are two variants
    assert graphs() == before


@pytest.mark.slow
def test_a_trial_is_the_same_whichever_trials_its_process_has_compiled_for(tiny_llama, tmp_path):
    """Two processes, each with an empty cache: one begins with another seed."""
    started = []
    for seeds in ("1", "01"):
        call = [sys.executable, "-c", f"from tests import test_compiling as t; t.tell({tiny_llama!r}, {seeds!r})"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / seeds)}
        started.append(subprocess.Popen(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    alone, second = [process.communicate()[0] for process in started]
    assert alone == second and len(alone) > 500


def tell(model: str, seeds: str) -> None:
    """Prints all digits of the last seed's trial."""
    backbone = load_backbone(model, "cpu", "bfloat16", True)
    losses, logits = [a_trial(backbone, "all weights", int(seed)) for seed in seeds][-1]
    print(*map(float.hex, losses), logits.tobytes().hex())


def test_a_missing_compiler_is_told_before_a_model_loads(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"compiled: true needs the compiler no-such-compiler"):
        check_method(Vanilla(compiled=True, device="cpu"))
