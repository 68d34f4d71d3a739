"""States of an untrained model are computed once, kept on disk, and charged as if computed."""

import os
import shutil

import pytest
import torch
from conftest import backbone_of
from stand_ins import by_papermill
from toys import GRAMMAR

from lowres.files import BadInput
from lowres.methods.cost import Meter
from lowres.methods.evaluation import last_states, predict
from lowres.models import store
from lowres.models.adapters import attach, configuration
from lowres.models.batches import encode
from lowres.models.heads import Verbalizer
from lowres.parameters import validated
from lowres.runs import records


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(store.LIMIT, "1")
    return store.folder()


@pytest.fixture
def backbone(tiny_llama, place):
    one = backbone_of(tiny_llama)
    one.meter = Meter()
    return one


def texts(count: int = 80) -> list[list[int]]:
    return [[5 + i % 40, 6, 7 + i // 40] for i in range(count)]


def fail(*_):
    raise AssertionError("this was computed, though it was kept")


def never_computed(monkeypatch):
    monkeypatch.setattr("lowres.methods.evaluation._read_all", fail)


def test_what_was_computed_once_is_read_the_next_time_to_the_last_bit_and_charged(backbone, tiny_llama, monkeypatch):
    first = last_states(backbone, texts())
    other = backbone_of(tiny_llama)
    other.meter, spent = Meter(), store.found(store.folder().iterdir().__next__().name).seconds
    never_computed(monkeypatch)
    before = other.meter.clock()
    assert torch.equal(last_states(other, texts()), first)
    assert other.meter.stored == spent > 0
    assert other.meter.clock() - before >= spent
    assert other.meter.memory()["resident"] * 1e9 >= other.meter.least > 0


def test_a_head_reads_the_same_answers_off_them(backbone, task, monkeypatch):
    inputs = {name: encode(backbone, rows, "{sentence} Right?", 64) for name, rows in task.evaluation.items()}
    monkeypatch.setattr(store, "FEWEST", 1)
    head = Verbalizer(backbone, [" No", " Yes"])
    first = predict(backbone, head, inputs)
    never_computed(monkeypatch)
    for name, part in predict(backbone, head, inputs).items():
        assert (part == first[name]).all()


def test_behind_another_context_of_other_texts_and_in_other_forms_they_are_other_states(backbone, monkeypatch):
    names = {store.key(backbone, texts(), None), store.key(backbone, texts()[::-1], None), store.key(backbone, texts(), None, "budget")}
    names |= {store.key(backbone, texts(), backbone.encode_context(tokens)) for tokens in ([5, 6], [6, 5])}
    for name, value in {"precision": "bfloat16", "compiled": True, "name": "smollm2-135m"}.items():
        monkeypatch.setattr(backbone, name, value)
        names.add(store.key(backbone, texts(), None))
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    names.add(store.key(backbone, texts(), None))
    assert len(names) == 9


def test_another_models_weights_are_other_states(backbone, tiny_llama, tmp_path):
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert store.key(backbone_of(other), texts(), None) != store.key(backbone, texts(), None)


@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"])
def test_a_trained_models_are_computed_and_not_kept(backbone, place, way):
    optimizer = torch.optim.AdamW(backbone.model.parameters(), 0.1, **way)
    last_states(backbone, texts())
    assert backbone.as_it_came
    backbone.model.get_output_embeddings().weight.sum().backward()
    optimizer.step()
    assert not backbone.as_it_came
    kept = list(place.iterdir())
    assert not torch.equal(last_states(backbone, texts()), store.found(kept[0].name).states)
    assert list(place.iterdir()) == kept
    backbone.restore()
    assert backbone.as_it_came and torch.equal(last_states(backbone, texts()), store.found(kept[0].name).states)


@pytest.mark.parametrize("more", [{"peft_type": "LORA"}, {"peft_type": "BOTTLENECK", "peft_options": {"width": 4}}], ids=["LORA", "BOTTLENECK"])
def test_a_model_with_an_adapter_is_not_as_it_came(backbone, more):
    p = validated("lora", {"task": "sentiment", "shots": 2, "seeds": [0], **more}, "here")
    attach(backbone, configuration(p), 0)
    assert not backbone.as_it_came
    backbone.restore()
    assert backbone.as_it_came


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "charged otherwise"])
def test_what_is_damaged_is_computed_anew_and_replaced(backbone, place, damage):
    first = last_states(backbone, texts())
    file = next(place.iterdir())
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-9], "changed": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b"",
                      "charged otherwise": whole.replace(b'"seconds":"', b'"seconds":"9', 1)}[damage])
    assert file.read_bytes() != whole and store.found(file.name) is None
    assert torch.equal(last_states(backbone, texts()), first)
    assert torch.equal(store.found(file.name).states, first)


def test_beyond_the_limit_what_was_used_longest_ago_goes_first(place, monkeypatch):
    one = store.Kept(torch.zeros(100, 250), 1.0, 0)  # 100 kB
    monkeypatch.setenv(store.LIMIT, "0.00035")
    for nth, name in enumerate("abc"):
        store.keep(name, one)
        os.utime(place / name, (nth, nth))
    assert store.found("a")
    store.keep("d", one)
    assert sorted(path.name for path in place.iterdir()) == ["a", "c", "d"]


def test_where_nothing_may_be_kept_nothing_is(backbone, place, monkeypatch):
    monkeypatch.setenv(store.LIMIT, "0")
    last_states(backbone, texts())
    assert not place.exists()
    monkeypatch.setenv(store.LIMIT, "much")
    with pytest.raises(BadInput, match="LOWRES_STORE_GB: 'much' is no number of gigabytes"):
        store.limit()


def test_a_place_that_cannot_be_written_costs_no_result(backbone, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file stands where the folder would")
    assert len(last_states(backbone, texts())) == 80
    assert not backbone.meter.stored


def test_a_trial_says_how_many_of_its_seconds_were_spent_by_an_earlier_one(place, forking, tmp_path, tiny_llama):
    def trial(name: str) -> dict:
        given = {"task": GRAMMAR, "model": tiny_llama, "shots": 2, "seeds": [0], "evaluation_rows": 64, "demonstrations": 0}
        by_papermill("in_context", tmp_path / f"{name}.ipynb", given | {"output_dir": str(tmp_path / name)})
        return records.read_trial(tmp_path / name, 0)

    first, second = trial("first"), trial("second")
    assert "stored" not in first and second["stored"] > 0
    assert sum(second["seconds"].values()) >= second["stored"]
    assert "of these spent by others, s" in (tmp_path / "second.ipynb").read_text()
    assert first["outcome_sha256"] == second["outcome_sha256"] and first["sets"] == second["sets"]
