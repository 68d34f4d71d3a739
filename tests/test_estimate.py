"""What a study will take is told before it begins: operations as records count them, over a rate measured here."""

import pytest
import torch
import toys
from toys import GRAMMAR
from transformers import Gemma3TextConfig

from lowres.methods.cost import flops
from lowres.parameters import validated
from lowres.runs import estimate
from lowres.runs.estimate import Rate, Sizes, foretold, seconds, work
from lowres.runs.notebook import start
from lowres.runs.progress import TimeLeft
from lowres.runs.study import read_study
from lowres.tasks.task_file import read_task

SIZES = Sizes(weights=1000, all_weights=1500, layers=6, hidden=10, reads=2048, labels=2, pool=500, text=20.0, evaluation=4000.0)
EVEN = Rate(1.0, 1.0, 0.0)  # one operation a second: seconds are operations


class Stub:
    """A run, as far as its time goes."""

    def __init__(self, name):
        self.name, self.method, self.parameters = name, name, type("P", (), {"task": "t"})


def asked(method: str, **more):
    return validated(method, {"task": GRAMMAR, "shots": 8, **more}, "test")


@pytest.mark.parametrize(("method", "more", "trainable"), [
    ("vanilla", {}, 1000), ("pbft", {}, 1000), ("lora", {}, 0),
])
def test_operations_are_those_that_a_record_counts(method, more, trainable):
    p = asked(method, epochs=5, **more)
    found = seconds(work(p, SIZES), SIZES, EVEN)
    assert found == pytest.approx(flops(1000, trainable, 16 * 20 * 5, 4000))


def test_layers_that_do_not_train_are_read_once_a_text_by_all_epochs_and_trials():
    p = asked("adaptive", adapt="layers", train_layers=3, epochs=5)
    once = 2 * 500 * (16 * 20 + 4000)
    assert seconds(work(p, SIZES), SIZES, EVEN) == pytest.approx(once + flops(500, 500, 16 * 20 * 5, 4000))


def test_what_all_trials_share_is_in_each_record_and_spent_once():
    p = asked("baselines", classifier="probe")
    assert seconds(work(p, SIZES), SIZES, EVEN) == pytest.approx(2 * 1000 * (16 * 20 + 4000))
    assert seconds(work(asked("baselines", classifier="tfidf"), SIZES), SIZES, EVEN) == 0


    left = TimeLeft([], {"a": (50.0, 40.0)})
    run = Stub("a")
    assert left.of({run: 4}, 1) == 40 + 4 * 10 + 8
    left.add(run, 100.0)
    assert left.of({run: 4}, 1) == 80 + 4 * 20 + 8, "twice as slow in all its parts"


def test_a_context_costs_what_looks_back_at_it():
    few, many = (seconds(work(asked("in_context", shots=shots), SIZES), SIZES, EVEN) for shots in (2, 64))
    behind = lambda shots: 4 * 6 * 10 * ((n := min(2 * shots * 22, 2048 - 40)) * 4000 + n * n / 2) + 2000 * n  # noqa: E731
    assert many - few == pytest.approx(behind(64) - behind(2))


def test_a_step_costs_its_weights_whatever_its_tokens():
    p = asked("vanilla", epochs=5, batch_size=4)
    assert seconds(work(p, SIZES), SIZES, Rate(1e30, 1e30, 0.5)) == pytest.approx(4 * 5 * 1500 * 0.5)


def test_the_tokens_expected_are_those_of_a_real_trial(tiny_llama):
    p = asked("pbft", model=tiny_llama, evaluation_rows=0)
    run = start("pbft", p.model_dump())
    run.encode(run.task.file.pattern(""))
    found = estimate.sizes_for(p)
    assert found.evaluation == pytest.approx(sum(len(ids) for inputs in run.evaluation.values() for ids in inputs.ids), rel=0.05)
    assert found.weights == run.backbone.parameters() - run.backbone.embeddings() and found.all_weights == run.backbone.parameters()


@pytest.mark.parametrize(("task", "types"), [(toys.STORIES, 1), (toys.FINDS, 2)])
def test_a_search_for_spans_is_expected_where_they_are_written_and_nowhere_else(tiny_llama, tmp_path, task, types):
    path = task if task == toys.STORIES else toys.remade(tmp_path, task, toys.tables_of_tags())
    given = {"task": path, "model": tiny_llama, "shots": 2, "evaluation_rows": 9, "pattern": "plain"}
    written, head = (estimate.sizes_for(validated("lora", given | {"head": head}, "test")) for head in ("verbalizer", "classifier"))
    assert written.evaluation - head.evaluation == pytest.approx(2 * 9 * types * estimate.SEARCHED[read_task(path).kind])
    assert written.text == head.text


def test_a_rate_is_measured_once_and_kept(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "user_cache_path", lambda name: tmp_path / name)
    rate = estimate.rate_of.__wrapped__(tiny_llama, "cpu", "float32", 1, 2)
    assert rate.reading > 0 and rate.training > 0 and rate.step >= 0
    monkeypatch.setattr(estimate, "_measured", lambda *_: pytest.fail("it is known"))
    assert estimate.rate_of.__wrapped__(tiny_llama, "cpu", "float32", 1, 2) == rate


def test_a_long_study_says_what_would_make_it_shorter(tiny_llama, tmp_path, monkeypatch):
    asked = f"set: {{model: {tiny_llama}, task: {GRAMMAR}, seeds: [0, 1]}}"
    (tmp_path / "long.yaml").write_text(f"description: d\n{asked}\nmethods: [{{method: vanilla}}]\n")
    [run] = read_study(str(tmp_path / "long.yaml"), outputs=str(tmp_path)).runs
    monkeypatch.setattr(estimate, "rate_of", lambda *_: Rate(1e12, 1e12, 0.0))
    assert len(foretold({run: 2}, 1)[1]) == 1
    monkeypatch.setattr(estimate, "rate_of", lambda *_: Rate(1e5, 1e5, 0.0))
    expected, said = foretold({run: 2}, 1)
    assert len(said) == 4 and "half the epochs" in said[2] and expected[run.name][0] > 1800


def test_what_was_expected_is_corrected_by_trials_of_its_method_then_by_all(tmp_path):
    asked = f"set: {{task: {GRAMMAR}}}\nvary: {{shots: [2, 4]}}"
    (tmp_path / "s.yaml").write_text(f"description: d\n{asked}\nmethods: [{{method: vanilla}}, {{method: pbft}}]\n")
    few, more, other, _ = read_study(str(tmp_path / "s.yaml"), outputs=str(tmp_path)).runs
    left = TimeLeft([], {few.name: (10.0, 0.0), more.name: (20.0, 0.0), other.name: (5.0, 0.0)})
    alone = lambda run: left.of({run: 1}, 1) - left.of({run: 0}, 1) - 8  # noqa: E731
    assert alone(more) == 20
    left.add(few, 15.0)
    assert alone(few) == 15 and alone(more) == 30 and alone(other) == 7.5
    left.add(other, 50.0)
    assert alone(more) == 30 and alone(other) == 50


def test_runs_are_handed_out_so_that_workers_end_together():
    runs = [Stub(name) for name in "abc"]
    left = TimeLeft([], {"a": (100.0, 0.0), "b": (60.0, 0.0), "c": (40.0, 0.0)})
    assert left.of(dict.fromkeys(runs, 1), 2) == 100 + 2 * 8


def test_one_layer_is_measured_of_a_model_whose_layers_differ():
    config = Gemma3TextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                              sliding_window=96, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    model = estimate._layer(config, torch.device("cpu"))
    assert len(model.layers) == 1 and config.num_hidden_layers == 3
