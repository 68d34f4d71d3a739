"""What is predicted wrongly is told row by row, the rows that most trials get wrong first."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import METHODS, filled
from toys import GRAMMAR

from lowres.analysis.collect import collect
from lowres.methods.evaluation import predictions
from lowres.runs import mistakes, records
from lowres.runs.notebook import Run
from lowres.tasks.load import load_task
from lowres.tasks.task_file import read_task

ROWS = list(load_task(GRAMMAR, "", 200).evaluation["in_domain"].index[:3])


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Three trials that have predicted three rows: the first wrongly by all, the others by one each, always three to one."""
    rows = pd.DataFrame({"set": "in_domain", "row": ROWS * 3, "label": 1, "trial": np.repeat([0, 1, 2], 3)})
    rows["prediction"] = [0, 1, 0, 0, 1, 1, 0, 0, 1]
    rows["logit_unacceptable"] = np.where(rows["prediction"] == 0, np.log(3), 0.0)
    rows["logit_acceptable"] = np.where(rows["prediction"] == 0, 0.0, np.log(3))
    study = collect(*filled(tmp_path, tasks=(GRAMMAR,), shots=(2,), seeds=range(3), methods=METHODS[:1]))
    monkeypatch.setattr(records, "read_predictions", lambda folder: rows)
    return study


def test_each_wrong_row_is_counted_over_trials_and_the_surest_come_first(found):
    lines = mistakes.mistakes(found.runs)
    assert lines[["row", "wrong", "trials"]].to_numpy().tolist() == [[ROWS[0], 3, 3], [ROWS[2], 1, 3], [ROWS[1], 1, 3]]
    assert set(lines["label"]) == {"acceptable"} and set(lines["predicted"]) == {"unacceptable"} and set(lines["confidence"]) == {0.75}
    text = load_task(GRAMMAR).evaluation["in_domain"]["sentence"]
    assert list(lines["sentence"]) == [text[ROWS[0]], text[ROWS[2]], text[ROWS[1]]]


def test_texts_of_a_task_that_may_not_show_its_rows_are_left_out(found, monkeypatch):
    monkeypatch.setattr(mistakes, "read_task", lambda name: read_task(name).model_copy(update={"show_rows": False}))
    assert "sentence" not in mistakes.mistakes(found.runs)


def test_a_study_without_results_has_no_mistakes():
    assert mistakes.mistakes([]).empty


def test_confusions_name_the_label_that_is_taken_for_another_and_how_often_the_commonest_first():
    rows = pd.DataFrame({"set": "a", "row": range(8), "label": [0, 0, 0, 0, 1, 1, 2, 2], "prediction": [1, 1, 1, 0, 2, 1, 2, 2], "trial": 0})
    found = mistakes.confusions(rows, ["x", "y", "z"])
    assert found.to_numpy().tolist() == [["a", "x", "y", 3, 75.0], ["a", "y", "z", 1, 50.0]]


def test_the_hardest_rows_are_counted_over_all_runs(found):
    lines = mistakes.mistakes(found.runs)
    twice = pd.concat([lines, lines.head(1).assign(method="pbft")])
    hardest = mistakes.hardest(twice, [*found.runs, *found.runs])
    assert hardest[["row", "wrong", "trials"]].to_numpy().tolist() == [[ROWS[0], 6, 6], [ROWS[2], 1, 6], [ROWS[1], 1, 6]]
    assert "sentence" in hardest and set(hardest["confidence"]) == {0.75}


@pytest.mark.parametrize("show_rows", [True, False])
def test_a_notebook_shows_whole_texts_and_nothing_in_them_is_markup(show_rows):
    task = load_task(GRAMMAR, "", 20)
    spec = task.file.model_copy(update={"show_rows": show_rows})
    texts = "<b>bold</b> " + "word " * 30
    task = replace(task, file=spec, evaluation={"in_domain": task.evaluation["in_domain"].assign(sentence=texts)})
    run = Run.__new__(Run)
    run.folder, run.trials, run.task = None, [{"seed": 0}], task
    gold = task.evaluation["in_domain"]["label"].to_numpy()
    run.predicted = {0: predictions(task, {"in_domain": np.eye(2)[1 - gold]}, 0)}
    html = run.mistakes().to_html()
    assert ("&lt;b&gt;bold&lt;/b&gt; word word" in html) == show_rows and "<b>" not in html and html == run.mistakes().to_html()
    assert html.count("<tr>") == 11 and run.confusions()["answers"].sum() == 20
