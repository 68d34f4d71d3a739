"""What a trial computes, counted: seconds differ from machine to machine, counts do not."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from lowres.files import ROOT
from lowres.methods.evaluation import BUDGET as EVALUATION_BUDGET
from lowres.methods.evaluation import predict
from lowres.methods.training import train
from lowres.models.backbone import load_backbone
from lowres.models.batches import BUDGET
from lowres.models.heads import Classifier
from lowres.parameters import Vanilla
from lowres.tasks.shots import Streams
from tests.benchmarks import workloads
from tests.benchmarks.limit import products_of

MOST = 1.15  # tokens computed for each that is needed


def counted(model) -> Counter:
    """Forward passes and tokens from now on, by whether the model trains."""
    counts = Counter()

    def count(module, given) -> None:
        phase = "training" if module.training else "evaluation"
        counts[f"{phase} passes"] += 1
        counts[f"{phase} tokens"] += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    return counts


@pytest.fixture
def loads(monkeypatch) -> list:
    """What is loaded by transformers from now on."""
    loaded, load = [], transformers.AutoModelForCausalLM.from_pretrained

    def loading(folder, *given, **named):
        loaded.append(folder)
        return load(folder, *given, **named)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loading)
    return loaded


def trials_of(method: str, **given) -> SimpleNamespace:
    """A method's notebook up to its trials, run in this process: what its trials computed, and the matrix products among it."""
    cells = [cell for cell in json.loads(Path(ROOT / f"notebooks/{method}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        source = "".join(cell["source"])
        if "run.each_seed(" in source:
            counts = counted(names["backbone"].model)
            return SimpleNamespace(products=products_of(partial(exec, source, names)), counts=counts, **names)
        exec(source, names)
        if "parameters" in cell["metadata"].get("tags", []):
            names |= given


@pytest.mark.parametrize("kind", ["cola", "mnli"])
@pytest.mark.parametrize("shots", [16, 128])
def test_next_to_no_token_is_computed_in_vain(tiny_llama, kind, shots):
    backbone = load_backbone(tiny_llama, precision="float32")
    head, top = Classifier(backbone, 2, 0), workloads.vocabulary(backbone)
    examples, rows = (workloads.inputs(workloads.texts(kind, count, top)) for count in (2 * shots, 1000))
    counts = counted(backbone.model)
    training = train(backbone, head, examples, Vanilla(epochs=2), Streams(0))
    predict(backbone, head, {"set": rows})
    assert training.tokens <= counts["training tokens"] <= MOST * training.tokens
    needed = sum(map(len, rows.ids))
    assert needed <= counts["evaluation tokens"] <= MOST * needed
    assert counts["evaluation passes"] <= np.ceil(MOST * needed / EVALUATION_BUDGET)


@pytest.mark.parametrize("method", ["vanilla", "pbft", "lora"])
def test_a_run_loads_its_model_once_and_takes_a_forward_pass_a_step(tiny_llama, loads, method):
    seeds, epochs = [0, 1, 2], 2
    found = trials_of(method, model=tiny_llama, shots=8, seeds=seeds, epochs=epochs, evaluation_rows=40)
    assert len(loads) == 1
    assert all(trial["tokens"]["training"] / epochs < BUDGET for trial in found.trials), "16 texts fit one pass"
    assert found.counts["training passes"] == epochs * len(seeds)
    needed = sum(trial["tokens"]["evaluation"] for trial in found.trials)
    assert found.counts["evaluation passes"] <= np.ceil(MOST * needed / EVALUATION_BUDGET) + len(seeds)


def test_label_words_cost_one_row_a_label_and_text_never_the_vocabulary(tiny_llama):
    found = trials_of("pbft", model=tiny_llama, shots=8, seeds=[0], epochs=2, evaluation_rows=40)
    vocabulary, width = found.backbone.output.shape
    sizes = [(a, b, count) for ((a, _, _), (b, _, _)), count in found.products.items()]
    assert not any(vocabulary in (*a, *b) for a, b, _ in sizes)
    rows = sum(a[0] * b[1] * count for a, b, count in sizes if a[-1] == width and b == (width, 2))
    evaluated = sum(len(inputs) for inputs in found.evaluation.values())
    assert rows == 2 * (16 * 2 + evaluated), "labels x (texts x epochs + rows)"


def test_a_trial_computes_as_many_tokens_whichever_seed_draws_them(tiny_llama):
    """Nothing is left over from the trial before: no second model, no longer row, no pass more."""
    backbone = load_backbone(tiny_llama, precision="float32")
    inputs = workloads.inputs(workloads.texts("cola", 32, workloads.vocabulary(backbone)))
    seen = []
    for seed in (0, 1):
        backbone.restore()
        counts = counted(backbone.model)
        train(backbone, Classifier(backbone, 2, seed), inputs, Vanilla(epochs=2), Streams(seed))
        seen.append(dict(counts))
    assert seen[0] == seen[1]
    assert torch.is_grad_enabled()
