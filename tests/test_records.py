"""What is kept is whole, known by what made it, and disbelieved when it is not."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import yaml
from toys import ENTAILMENT, GRAMMAR

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
    given = {"method": "vanilla", "parameters": Vanilla(), "seed": 0, "task": read_task(GRAMMAR), "data": {}, "backbone": "b"}
    return records.fingerprint(**(given | changes))


def test_a_fingerprint_changes_with_whatever_changes_results(monkeypatch):
    changed = [
        mark(method="pbft"), mark(parameters=Vanilla(shots=2)), mark(parameters=Vanilla(learning_rate=2e-5)), mark(seed=1),
        mark(task=read_task(ENTAILMENT)), mark(data={"train": "0"}), mark(backbone="c"), mark(parameters=Vanilla(evaluation_rows=0)),
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


def test_the_parameters_that_repeat_a_run_do_not_lead_back_to_its_finished_trials():
    kept = yaml.safe_load(records.as_yaml(Vanilla(shots=2, output_dir="outputs/a/run")))
    assert "output_dir" not in kept and Vanilla(**kept) == Vanilla(shots=2)


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
    with pytest.raises(BadInput, match="record.json: schema_version: 0, not 2"):
        records.read_record(tmp_path)


def predicted(seed: int, rows: int = 3) -> pd.DataFrame:
    """Another trial's predictions, as notebooks make them."""
    columns = {"trial": seed, "set": ["a"] * (rows - 1) + ["b"], "row": np.arange(rows), "label": 1, "prediction": 0,
               "logit_x": seed + np.arange(rows)}
    return pd.DataFrame(columns).astype({"row": "int32", "label": "int16", "prediction": "int16", "logit_x": "float32"})


def finished(folder, seeds=(0, 1, 2)) -> dict:
    """The journal of a run, and the record that would be made of it."""
    kept = [records.write_trial(folder, {**TRIAL, "seed": seed, "fingerprint": f"mark {seed}"}, predicted(seed)) for seed in seeds]
    return {"schema_version": records.SCHEMA_VERSION, "trials": kept}


def test_a_merged_run_is_a_record_and_its_predictions_and_nothing_else(tmp_path):
    record = finished(tmp_path)
    before = records.read_trials(tmp_path)[0], records.read_predictions(tmp_path)
    records.merge(tmp_path, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.parquet", "record.json"]
    assert records.read_trials(tmp_path) == (before[0], {}) and list(before[0]) == [0, 1, 2]
    pd.testing.assert_frame_equal(records.read_predictions(tmp_path), before[1])
    assert records.read_record(tmp_path)["trials"] == record["trials"], "every trial once, as it was kept"


def test_a_trial_that_is_made_later_joins_the_record(tmp_path):
    records.merge(tmp_path, finished(tmp_path, [0, 2]))
    late = records.write_trial(tmp_path, {**TRIAL, "seed": 1, "fingerprint": "mark 1"}, predicted(1))
    assert list(records.read_trials(tmp_path)[0]) == [0, 2, 1] and len(records.read_predictions(tmp_path)) == 9
    record = records.read_record(tmp_path)
    records.merge(tmp_path, {**record, "trials": [late]})
    assert [trial["seed"] for trial in records.read_record(tmp_path)["trials"]] == [1, 0, 2], "those asked for first; none is lost"
    assert sorted(records.read_predictions(tmp_path)["trial"].unique()) == [0, 1, 2]


def test_a_trial_s_record_does_not_depend_on_interruptions(tmp_path):
    records.merge(tmp_path / "at once", finished(tmp_path / "at once"))
    for seeds in ([0], [1, 2]):
        record = finished(tmp_path / "in parts", seeds)
        records.merge(tmp_path / "in parts", record)
    one, two = (records.read_trials(tmp_path / name)[0] for name in ("at once", "in parts"))
    assert one == two
    assert (tmp_path / "at once" / "predictions.parquet").read_bytes() == (tmp_path / "in parts" / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("seen", [lambda folder: list(records.read_trials(folder)[0]),
                                  lambda folder: records.read_predictions(folder)["trial"].unique().tolist()])
def test_a_reader_sees_every_trial_though_a_run_is_merged_while_it_reads(tmp_path, monkeypatch, seen):
    record, once = finished(tmp_path), []

    def merged_after(read):
        def part(folder):
            found = read(folder)
            if not once:
                once.append(True)
                records.merge(folder, record)
            return found

        return part

    for part in (records._recorded, records._journal):
        monkeypatch.setattr(records, part.__name__, merged_after(part))
    assert seen(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("step", range(8))
def test_a_merge_that_is_killed_at_any_point_loses_nothing(tmp_path, monkeypatch, step):
    """Killed before its file operation number `step`; then whoever comes next merges what there is."""
    records.merge(tmp_path, finished(tmp_path, [0]))
    record = {**finished(tmp_path, [1, 2]), "more": "than before"}
    record["trials"] = [records.read_trials(tmp_path)[0][seed] for seed in (0, 1, 2)]
    before, done = (records.read_trials(tmp_path)[0], records.read_predictions(tmp_path)), []

    class Killed(BaseException):
        pass

    def dying(operation):
        def call(*words, **more):
            done.append(operation)
            if len(done) > step:
                raise Killed
            return operation(*words, **more)
        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "unlink", dying(os.unlink))
        patch.setattr(os, "rmdir", dying(os.rmdir))
        try:
            records.merge(tmp_path, record)
        except Killed:
            pass
    trials, faults = records.read_trials(tmp_path)
    assert (trials, faults) == (before[0], {})
    pd.testing.assert_frame_equal(records.read_predictions(tmp_path), before[1])
    records.merge(tmp_path, record)
    assert records.read_trials(tmp_path) == (before[0], {}) and not (tmp_path / "trials").exists()
    assert records.read_record(tmp_path)["more"] == "than before"


def test_a_merged_trial_with_other_predictions_is_never_believed(tmp_path):
    records.merge(tmp_path, finished(tmp_path))
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    table.loc[(table["trial"] == 1) & (table["row"] == 0), "logit_x"] = 9
    table.to_parquet(tmp_path / "predictions.parquet")
    trials, faults = records.read_trials(tmp_path)
    assert list(trials) == [0, 2] and faults == {1: "the predictions are not this trial's"}
    assert sorted(records.read_predictions(tmp_path)["trial"].unique()) == [0, 2]
    (tmp_path / "predictions.parquet").write_bytes(b"cut")
    assert records.read_trials(tmp_path) == ({}, dict.fromkeys((0, 1, 2), "the predictions are not this trial's"))
    (tmp_path / "predictions.parquet").unlink()
    assert records.read_trials(tmp_path) == ({}, dict.fromkeys((0, 1, 2), "the predictions are missing"))


@pytest.mark.parametrize("merged", [False, True])
def test_what_does_not_count_is_put_aside_whole_and_what_counts_stays(tmp_path, merged):
    record = finished(tmp_path)
    if merged:
        records.merge(tmp_path, record)
        files.write_whole(tmp_path / "run.ipynb", "{}")
    for seed in (0, 1):
        files.write_whole(tmp_path / "adapters" / f"seed-{seed}" / "adapter_model.safetensors", b"weights")
    before = records.read_trials(tmp_path)[0], records.read_predictions(tmp_path)
    aside = records.put_aside(tmp_path, [1, 2])
    trials = records.read_trials(tmp_path)[0]
    assert trials == {seed: before[0][seed] for seed in (1, 2)} and records.journalled(tmp_path) == [1, 2]
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["seed-1"]
    assert records.read_trials(aside)[0][0] == before[0][0], "the old one can still be read where it was put"
    assert (aside / "adapters" / "seed-0").is_dir() and (aside / "run.ipynb").exists() == merged
    assert records.put_aside(tmp_path, [1, 2]) is None, "nothing is left to move"


def test_copies_are_counted_as_copies():
    assert records.distinct([{"outcome_sha256": "a"}, {"outcome_sha256": "a"}, {"outcome_sha256": "b"}]) == 2


def test_a_folder_takes_its_name_once_all_in_it_is_there(tmp_path):
    target = tmp_path / "new" / "model"
    with pytest.raises(KeyboardInterrupt), files.whole_folder(target) as made:
        (made / "half").write_text("half")
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())
    for content in ("one", "two"):  # the second takes an older one's place
        with files.whole_folder(target) as made:
            (made / "weights").write_text(content)
            assert content == "two" or not target.exists()
        assert (target / "weights").read_text() == content and target.stat().st_mode & 0o777 == 0o755
    assert list((tmp_path / "new").iterdir()) == [target]
