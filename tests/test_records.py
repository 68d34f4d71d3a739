"""What is kept is whole, known by what made it, and disbelieved when it is not."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from lowres import files
from lowres.files import BadInput
from lowres.models.identity import weights
from lowres.parameters import METHODS, WHEREABOUTS, Vanilla
from lowres.runs import records
from lowres.runs.records import stored
from lowres.tasks.task_file import read_task

PREDICTIONS = pd.DataFrame({"trial": [0], "set": ["a"], "row": [3], "label": [1], "prediction": [0], "logit_x": np.float32([0.5])})
TRIAL = {"seed": 0, "fingerprint": "abc", "outcome_sha256": "x"}


def mark(**changes) -> str:
    given = {"method": "vanilla", "parameters": Vanilla(), "seed": 0, "task": read_task("grammar"), "data": {}, "backbone": "b"}
    return records.fingerprint(**(given | changes))


def test_a_fingerprint_changes_with_whatever_changes_results(monkeypatch):
    changed = [
        mark(method="pbft"), mark(parameters=Vanilla(shots=2)), mark(parameters=Vanilla(learning_rate=2e-5)), mark(seed=1),
        mark(task=read_task("entailment")), mark(data={"train": "0"}), mark(backbone="c"), mark(parameters=Vanilla(evaluation_rows=0)),
    ]
    monkeypatch.setattr(records, "RESULTS_VERSION", records.RESULTS_VERSION + 1)
    assert len({mark(), *changed}) == len(changed) + 1


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_in_the_fingerprint_itself_or_through_what_it_names(method):
    """But for where and on what it is computed; a model's, a teacher's and a task's name stand for their contents."""
    default = METHODS[method]()
    for key, value in default.model_dump().items():
        if key in WHEREABOUTS | {"model", "task", "teacher", "also_evaluate"}:
            continue
        other = default.model_copy(update={key: "another value" if value != "another value" else 0})
        assert mark(method=method, parameters=other) != mark(method=method, parameters=default), key


def test_the_way_a_path_is_written_does_not_change_a_fingerprint(tiny_llama):
    asked = METHODS["distillation"](model=tiny_llama, teacher=tiny_llama)
    kept = METHODS["distillation"](**stored(asked))
    assert mark(method="distillation", parameters=asked) == mark(method="distillation", parameters=kept)


def test_a_larger_teachers_weights_are_part_of_what_a_trial_is_known_by(tiny_llama, tiny_opt):
    alone, taught = (weights(METHODS["distillation"](model=tiny_llama, teacher=teacher)) for teacher in ("", tiny_opt))
    assert taught.startswith(alone) and taught != alone


def test_a_fingerprint_does_not_change_with_where_or_on_what_it_is_computed():
    assert mark() == mark(parameters=Vanilla(seeds=[5, 6], data_dir="x", output_dir="y", device="cuda:1", precision="float32"))


def test_a_trial_is_read_back_as_it_was_written(tmp_path):
    records.write_trial(tmp_path, TRIAL, PREDICTIONS)
    assert records.read_trial(tmp_path, 0, "abc").items() >= TRIAL.items()
    pd.testing.assert_frame_equal(records.read_predictions(tmp_path), PREDICTIONS)


@pytest.mark.parametrize("harm", ["cut", "empty", "other predictions", "no predictions", "other fingerprint", "other seed"])
def test_a_damaged_trial_is_never_believed(tmp_path, harm):
    records.write_trial(tmp_path, TRIAL, PREDICTIONS)
    place = tmp_path / "trials" / "seed-0.json"
    if harm in ("cut", "empty"):
        place.write_text(place.read_text()[: 20 if harm == "cut" else 0])
    elif harm == "other predictions":
        PREDICTIONS.assign(prediction=1).to_parquet(place.with_suffix(".parquet"))
    elif harm == "no predictions":
        place.with_suffix(".parquet").unlink()
    elif harm == "other fingerprint":
        place.write_text(json.dumps(json.loads(place.read_text()) | {"fingerprint": "def"}))
    else:
        place.write_text(json.dumps(json.loads(place.read_text()) | {"seed": 1}))
    assert records.read_trial(tmp_path, 0, "abc") is None


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "file", "old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_record_of_another_schema_is_told_by_file_and_version(tmp_path):
    files.write_json(tmp_path / "record.json", {"schema_version": 0})
    with pytest.raises(BadInput, match="record.json: schema_version: 0, not 1"):
        records.read_record(tmp_path)


def test_a_trial_that_does_not_count_is_put_aside_not_overwritten(tmp_path):
    records.write_trial(tmp_path, TRIAL, PREDICTIONS)
    for seed in (0, 1):
        files.write_whole(tmp_path / "adapters" / f"seed-{seed}" / "adapter_model.safetensors", b"weights")
    records.put_trial_aside(tmp_path, 0)
    assert not list((tmp_path / "trials").iterdir())
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "aside").iterdir()) == ["adapter-seed-0", "seed-0", "seed-0"]
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["seed-1"]


def test_copies_are_counted_as_copies():
    assert records.distinct([{"outcome_sha256": "a"}, {"outcome_sha256": "a"}, {"outcome_sha256": "b"}]) == 2
