"""Every kind of task through the methods' notebooks."""

import json

import pytest
import toys
from test_notebooks import execute

from lowres.runs import records
from lowres.tasks.kinds import kind_of_file
from lowres.tasks.task_file import read_task

pytestmark = pytest.mark.usefixtures("forking")
OF_ALL = [("vanilla", {}), ("pbft", {}), ("lora", {"learning_rate": 5e-3}), ("adaptive", {"adapt": "layers"}), ("in_context", {"demonstrations": 0})]
ALSO = {
    toys.REQUESTS: [("adaptive", {"adapt": "corpus", "corpus_steps": 2}), ("baselines", {}), ("baselines", {"classifier": "tfidf"})],
    toys.USES: [("pbft", {"word_score": "mean"}), ("in_context", {"demonstrations": 0, "word_score": "unconditional"})],
    toys.STORIES: [("lora", {"head": "classifier"}), ("adaptive", {"adapt": "corpus", "corpus_steps": 2})],
    toys.FINDS: [],
}


@pytest.mark.parametrize(("task", "method", "given"), [(task, *asked) for task, also in ALSO.items() for asked in OF_ALL + also])
def test_a_methods_notebook_runs_and_leaves_a_whole_record(tiny_llama, tmp_path, task, method, given):
    path = task if task != toys.FINDS else toys.remade(tmp_path / "task", task, toys.tables_of_tags())
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 2e-3} if method not in ("baselines", "in_context") else {}
    asked = {"task": path, "model": tiny_llama, "shots": 2, "evaluation_rows": 6, "seeds": [0, 1], "precision": "float32", "max_length": 200}
    notebook = execute(method, tmp_path / "run.ipynb", asked | training | given | {"output_dir": str(tmp_path)})
    record, metric = records.read_record(tmp_path), kind_of_file(read_task(path)).metric
    assert record["distinct_trials"] == (2 if method != "in_context" else 1), "without examples a seed changes nothing"
    for trial in record["trials"]:
        assert records.read_trial(tmp_path, trial["seed"], trial["fingerprint"])
        for found in trial["sets"].values():
            assert {metric, "n", "constant", "by", "domain"} <= set(found) and ("accuracy" in found) is (metric == "accuracy")
    assert len(records.read_predictions(tmp_path)) == 2 * 2 * 6
    outputs = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert records.METRICS[metric] in outputs and ("accuracy" in outputs) is (metric == "accuracy") and "stderr" not in outputs
