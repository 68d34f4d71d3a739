"""The bench compares what it says it compares, and runs: on a model of a few thousand weights, in seconds."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import can_compile
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from lowres.models.backbone import load_backbone
from lowres.models.batches import encode
from lowres.models.heads import Classifier
from lowres.models.identity import EMBEDDED
from lowres.models.weights import load_tokenizer, resolve
from lowres.tasks.load import load_task
from tests.benchmarks import __main__ as bench
from tests.benchmarks import limit, peers, report, timing, workloads
from tests.benchmarks.stepping import Stepped

TEXTS = [[20] * length for length in (5, 9, 30, 12)]


def types_of(work) -> set[torch.dtype]:
    return {a[2] for a, _ in limit.products_of(work)}


def tokens_of(peer: peers.Peer, work) -> int:
    seen = []
    handle = peer.trainer.model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0].numel()))
    work()
    handle.remove()
    return sum(seen)


def test_the_authors_way_multiplies_padded_texts_in_float32_and_the_tuned_way_in_bfloat16(tiny_llama, tmp_path):
    a, b = peers.pair(tiny_llama, tmp_path)
    for peer, dtype, tokens in ((a, torch.float32, 4 * 128), (b, torch.bfloat16, 4 * 30)):
        assert types_of(lambda peer=peer: peer.step(TEXTS)) == {dtype}
        assert types_of(lambda peer=peer: peer.evaluate([TEXTS])) == {dtype}
        assert tokens_of(peer, lambda peer=peer: peer.step(TEXTS)) == tokens == peer.tokens([TEXTS])


def test_the_peers_share_their_weights_and_one_optimizer(tiny_llama, tmp_path):
    a, b = peers.pair(tiny_llama, tmp_path)
    before = [weight.clone() for weight in a.model.parameters()]
    for peer in (a, b, a, b):  # the first step of a warm-up has rate 0
        peer.step(TEXTS)
    assert not all(torch.equal(old, new) for old, new in zip(before, b.model.parameters()))
    assert [id(weight) for weight in a.model.parameters()] == [id(weight) for weight in b.model.parameters()]


def test_label_words_of_either_peer_are_transformers_logits_of_each_text_alone(tiny_llama, tmp_path):
    words, model = [5, 6], load_backbone(tiny_llama, precision="float32").model.eval()
    with torch.no_grad():
        expected = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1, words] for ids in TEXTS])
        for way in peers.WAYS:
            peer = peers.Peer(way, peers.label_words(way, tiny_llama, words), tmp_path)
            found = peer.trainer.model.eval()(**peer.batch(TEXTS))["logits"]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert types_of(lambda peer=peer: peer.evaluate([TEXTS])) == {torch.bfloat16 if way.bfloat16 else torch.float32}


def test_a_step_asked_for_is_one_step_of_lowres_own_training(tiny_opt):
    backbone = load_backbone(tiny_opt)
    taken: Counter = Counter()
    handle = register_optimizer_step_post_hook(lambda *_: taken.update(["step"]))
    stepped = Stepped(backbone, Classifier(backbone, 2, 0), workloads.inputs(TEXTS))
    for texts in ([0, 1], [3], [2, 1, 0]):
        stepped.step(texts)
    handle.remove()
    assert taken["step"] == 3


def test_a_step_that_fails_says_so_where_it_was_asked_for(tiny_opt):
    backbone = load_backbone(tiny_opt)
    stepped = Stepped(backbone, Classifier(backbone, 2, 0), workloads.inputs(TEXTS))
    with pytest.raises(IndexError):
        stepped.step([99])


def test_the_limits_operations_are_those_that_torch_counts(tiny_model):
    """The reference: torch's own counter of operations, forward and backward."""
    model = load_backbone(tiny_model, precision="float32").model

    def work() -> None:
        model(input_ids=torch.full((4, 32), 20)).logits.sum().backward()

    with FlopCounterMode(display=False) as counter:
        work()
    assert limit.flops(limit.products_of(work)) == counter.get_total_flops()


def test_products_without_gradients_are_seen_too():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    with torch.inference_mode():
        assert limit.flops(limit.products_of(lambda: a @ b)) == 2 * 3 * 4 * 5
    with pytest.raises(ValueError, match="no matrix product was seen"):
        limit.products_of(lambda: a + 1)


def test_a_composed_trial_is_the_sum_of_its_parts_in_every_round():
    assert timing.composed({"set-up": (1, [1.0, 2.0]), "steps": (10, [0.5, 0.25])}) == [6.0, 4.5]


def test_a_ratio_is_of_medians_and_shows_the_rounds_extremes():
    row = timing.ratio("m", "c", [10.0, 30.0, 20.0], [1.0, 2.0, 4.0], target=8)
    assert (row.figure, row.low, row.high, row.repeats, row.met) == (10.0, 5.0, 15.0, 3, True)
    assert timing.ratio("m", "c", [3.0], [4.0], target=0.7, at_most=True).met is False


def test_jobs_take_turns_and_the_first_round_is_not_counted():
    order: list[str] = []
    samples = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 7.0}, repeats=2)
    assert order == ["a", "b"] * 3 and len(samples["a"]) == 2 and samples["b"] == [7.0, 7.0]


def test_a_peer_has_torchs_own_exactness_and_lowres_keeps_its_own():
    before = torch.get_float32_matmul_precision()
    seen = []
    timing.usual(lambda: seen.append(torch.get_float32_matmul_precision()))()
    assert seen == ["highest"] and torch.get_float32_matmul_precision() == before


def test_colas_lengths_are_those_of_the_real_sentences(real_data):
    """The stated percentiles, and what is made of them, against the development files."""
    tokenizer = load_tokenizer(resolve(EMBEDDED))
    fake = SimpleNamespace(tokenizer=tokenizer, prefix=[0], context_length=2048, tokenize=lambda texts: tokenizer(texts)["input_ids"])
    sets = load_task("cola", real_data, 0).evaluation
    real = [len(ids) for ids in encode(fake, pd.concat(sets.values()), "{sentence}", 128).ids]
    assert np.percentile(real, workloads.PERCENTILES, method="nearest").tolist() == list(workloads.LENGTHS["cola"])
    assert np.mean(workloads.lengths("cola", len(real))) == pytest.approx(np.mean(real), rel=0.02)


@pytest.mark.parametrize("name", ["padding", "lora_step", "hans", "teacher", "growth", pytest.param("trials", marks=pytest.mark.slow)])
def test_a_quick_bench_fills_its_table(name, monkeypatch):
    if name == "trials":  # compiling takes longer than all else here: once is enough
        can_compile()
    else:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # in other processes
    with torch._dynamo.config.patch(disable=name != "trials"):
        rows = bench.measured(name, 1, quick=True)
    assert rows and all(np.isfinite(row["figure"]) and row["figure"] > 0 for row in rows)
    page = report.page([{"name": name, "minutes": 0.0, "rows": json.loads(json.dumps(rows)), "machine": report.machine()}])
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) == len(rows) + 2 and f"threads: {torch.get_num_threads()}" in page


def test_a_measure_that_dies_is_told_and_the_others_are_kept():
    page = report.page([{"name": "hans", "minutes": 0.1, "rows": [], "failed": "MemoryError"}])
    assert "What failed" in page and "hans: MemoryError" in page


def test_every_measure_has_its_function():
    for module, function, _ in bench.MEASURES.values():
        assert callable(getattr(bench.importlib.import_module(f"tests.benchmarks.{module}"), function))
