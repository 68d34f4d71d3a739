"""What a study of many runs costs grows as their number, and what a person reads does not. Work is counted, not timed."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from site_study import write_notebooks
from synthetic import METHODS, fill, make_study

from lowres import files
from lowres.analysis import collect, tables
from lowres.runs import command, progress, records
from lowres.runs.command import run_command
from lowres.runs.execute import Options
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study
from lowres.runs.summary import accuracy_interval, interval, summary


def done(folder, shots: int):
    """Two methods, so many numbers of shots."""
    folder.mkdir()
    study = read_study(make_study(folder, shots=range(2, 2 + shots), seeds=range(2), methods=METHODS[:2]), outputs=str(folder / "outputs"))
    fill(study)
    write_notebooks(study)
    return study


@pytest.fixture
def read(monkeypatch) -> Counter:
    """How often files of each name were read."""
    count = Counter()

    def counting(function):
        def call(path):
            count[str(path).rpartition("/")[2]] += 1
            return function(path)
        return call

    monkeypatch.setattr(records, "read_json", counting(files.read_json))
    monkeypatch.setattr(records, "file_checksum", counting(records.file_checksum))
    return count


def test_status_and_analysis_read_each_record_and_hash_its_predictions_once(tmp_path, read):
    for shots in (3, 12):
        study = done(tmp_path / str(shots), shots)
        for look in (all_statuses, collect.collect_study):
            read.clear()
            look(study)
            assert (read["record.json"], read["predictions.parquet"]) == (2 * shots, 2 * shots)


def test_a_study_with_nothing_to_do_is_looked_at_once(tmp_path, read, monkeypatch, capsys):
    study = done(tmp_path / "study", 3)
    monkeypatch.setattr(command, "_analysed", lambda study: None)
    read.clear()
    assert run_command(str(study.path), Options(), outputs=str(study.folder.parent)) == command.ALL_DONE
    assert read["record.json"] == 6 and "6 done; 0 to execute" in capsys.readouterr().out


def test_the_status_of_more_runs_than_anybody_reads_is_one_table(tmp_path, monkeypatch, capsys):
    study = read_study(make_study(tmp_path, models=("a/one", "a/two"), shots=(2, 4), methods=METHODS[:2]), outputs=str(tmp_path / "outputs"))
    statuses = all_statuses(study)
    progress.print_status(study, statuses, 1)
    assert "cola, a/one" in capsys.readouterr().out
    monkeypatch.setattr(progress, "MOST_CELLS", 7)
    progress.print_status(study, statuses, 1)
    said = capsys.readouterr().out
    assert "2 tasks and models together; --only task=…,model=… shows one" in said and "a/one" not in said
    assert said.count("0/20 missing") == 4, "each cell is of both models' ten seeds"


def test_of_a_large_study_the_first_models_and_tasks_are_drawn_and_the_opening_says_so(tmp_path, monkeypatch):
    study = read_study(make_study(tmp_path, models=("a/one", "a/two", "a/three"), shots=(2, 4), seeds=range(2), methods=METHODS[:2]),
                       outputs=str(tmp_path / "outputs"))
    fill(study)
    found = collect.collect_study(study)
    assert collect.shown(found) is found and "Figures" not in collect.opening(found)
    for most, models in ((8, ["a/one", "a/two"]), (7, ["a/one"]), (1, ["a/one"])):
        monkeypatch.setattr(collect, "MOST_RUNS", most)
        some = collect.shown(found)
        assert list(some.trials["model"].unique()) == models and {run.parameters.model for run, _ in some.runs} == set(models)
        assert f"are of {4 * len(models)} of these runs, those of the first {len(models)} models and tasks" in collect.opening(found)
    assert found.trials["model"].nunique() == 3, "all of it counts in answer and claims"


def test_a_long_table_of_results_is_cut_in_the_notebook_and_whole_in_its_file(tmp_path, monkeypatch):
    results = tables.result_table(collect.collect_study(done(tmp_path / "study", 3)).trials)
    assert tables.title_of_results(results) == "All 12 results, a line a run and evaluation set"
    monkeypatch.setattr(tables, "MOST_RUNS", 5)
    assert tables.title_of_results(results) == "The first 5 of 12 results, a line a run and evaluation set"
    assert tables.shown_results(results).to_html().count("<tr>") == 1 + 5
    assert tables.save(results, tmp_path, "results", True) == "All of them as `results.csv`, beside this notebook."
    assert len(pd.read_csv(tmp_path / "results.csv")) == 12 and not (tmp_path / "results.tex").exists()


def test_all_groups_of_a_summary_have_the_very_intervals_that_each_has_alone():
    rng = np.random.default_rng(0)
    lines = pd.DataFrame([{"run": run, "accuracy": value, "mcc": value - 0.5, "n": 10, "constant": 0.5, "outcome": str(value), "seconds": 1.0,
                           "commonest_prediction": 0.5} for run in range(40) for value in rng.uniform(0, 1, 1 + run % 7).round(2)])
    lines.loc[lines["run"] == 6, "accuracy"] = 0.25  # all equal: no interval
    lines.loc[lines[lines["run"] == 5].index[0], "mcc"] = np.nan
    found = summary(lines.sample(frac=1, random_state=0).sort_index(), ["run"]).set_index("run")
    for run, group in lines.groupby("run"):
        line, alone = found.loc[run], accuracy_interval(group["accuracy"])
        np.testing.assert_array_equal([line["accuracy"], line["low"], line["high"]], [group["accuracy"].mean(), *alone])
        np.testing.assert_array_equal([line["mcc low"], line["mcc high"]], np.clip(interval(group["mcc"]), -1, 1))
        assert (line["trials"], line["distinct"]) == (len(group), group["outcome"].nunique())
