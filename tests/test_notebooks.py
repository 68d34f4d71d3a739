"""Every notebook runs top to bottom by plain papermill, keeps what it promises, and repeats exactly."""

import json
import os
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from stand_ins import by_papermill
from toys import GRAMMAR

from lowres.files import ROOT, BadInput
from lowres.parameters import METHODS, Trained, Vanilla
from lowres.runs import records
from lowres.tasks.load import load_task

pytestmark = pytest.mark.usefixtures("forking")

GOLDEN = Path(__file__).parent / "golden.json"


def execute(method: str, output: Path, parameters: dict) -> nbformat.NotebookNode:
    return by_papermill(method, output, {"task": GRAMMAR, **parameters})


@pytest.fixture(scope="session")
def executed(tmp_path_factory, tiny_llama):
    """Each method's notebook, executed once on a tiny model: its folder, by method."""
    folders: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in folders:
            folder = folders[method] = tmp_path_factory.mktemp(method)
            asked = {"model": tiny_llama, "shots": 4, "evaluation_rows": 24, "seeds": [0, 1], "precision": "float32", "output_dir": str(folder)}
            training = {"epochs": 8, "batch_size": 4, "learning_rate": 2.0e-3} if issubclass(METHODS[method], Trained) else {}
            execute(method, folder / "run.ipynb", asked | training)
        return folders[method]
    return get


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_notebook_runs_and_leaves_a_whole_record(executed, method):
    folder = executed(method)
    record = records.read_record(folder)
    assert record["method"] == method and [trial["seed"] for trial in record["trials"]] == [0, 1]
    assert record["distinct_trials"] == 2, "two seeds, two trials"
    for trial in record["trials"]:
        assert records.read_trial(folder, trial["seed"], trial["fingerprint"])
        assert set(trial["sets"]) == {"in_domain", "out_of_domain"}
        assert {"accuracy", "mcc", "macro_f1", "n", "constant", "by", "domain"} <= set(trial["sets"]["in_domain"])
        assert trial["memory"]["resident"] > 0 and trial["parameters"] > 0 and trial["flops"] > 0
    predictions = records.read_predictions(folder)
    assert len(predictions) == 2 * 2 * 24 and "sentence" not in predictions


@pytest.mark.parametrize("method", METHODS)
def test_an_executed_notebook_shows_no_warning_and_has_a_table_and_the_way_to_its_record(executed, method):
    notebook = nbformat.read(executed(method) / "run.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert any("record.json" in output.get("text", "") for output in outputs)


@pytest.mark.parametrize("method", ["in_context", "distillation"])
def test_what_is_read_besides_counts_among_a_trials_operations(executed, method):
    for trial in records.read_record(executed(method))["trials"]:
        assert trial["tokens"]["read"] >= sum(context["tokens"] for context in trial.get("contexts", [trial.get("demonstrations")])) > 0
        assert trial["flops"] >= 2 * trial["tokens"]["read"]


@pytest.mark.parametrize("method", ["pbft"])
def test_plain_papermill_over_the_kept_parameters_repeats_every_prediction(executed, tmp_path, method, monkeypatch):
    first = executed(method)
    parameters = yaml.safe_load((first / "parameters.yaml").read_text()) | {"output_dir": str(tmp_path)}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    papermill.execute_notebook(ROOT / "notebooks" / f"{method}.ipynb", tmp_path / "run.ipynb", parameters, progress_bar=False,
                               kernel_name="python3", cwd=str(ROOT))
    assert records.read_predictions(tmp_path).equals(records.read_predictions(first))

    def lasting(folder: Path) -> list[dict]:
        return [{key: value for key, value in trial.items() if key not in ("seconds", "memory")} for trial in records.read_record(folder)["trials"]]
    assert lasting(tmp_path) == lasting(first)


def test_finished_trials_are_read_back_and_only_new_seeds_are_trained(tiny_llama, tmp_path):
    asked = {"model": tiny_llama, "shots": 2, "evaluation_rows": 8, "epochs": 2, "output_dir": str(tmp_path)}
    execute("vanilla", tmp_path / "a.ipynb", asked | {"seeds": [0]})
    before = records.read_trial(tmp_path, 0)
    notebook = execute("vanilla", tmp_path / "b.ipynb", asked | {"seeds": [0, 1]})
    assert records.read_trial(tmp_path, 0) == before, "its seconds, too"
    assert "s, read back)" in json.dumps(notebook)
    assert [trial["seed"] for trial in records.read_record(tmp_path)["trials"]] == [0, 1]


def test_a_notebook_refuses_a_misspelt_parameter_in_one_sentence(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match='notebooks/vanilla.ipynb: shot: unknown key .did you mean "shots"'):
        execute("vanilla", tmp_path / "run.ipynb", {"shot": 4, "output_dir": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_as_coded_a_student_learns_on_all_rows(tiny_llama, tmp_path):
    asked = {"model": tiny_llama, "fidelity": "as_coded", "shots": "all", "learning_rate": 1e-5, "epochs": 1, "seeds": [0], "evaluation_rows": 6}
    execute("distillation", tmp_path / "run.ipynb", asked | {"precision": "float32", "output_dir": str(tmp_path)})
    trial = records.read_trial(tmp_path, 0)
    assert trial["in_common"] == 1.0 and len(trial["losses"]) == -(-len(load_task(GRAMMAR, "", 6).pool) // 32)


def test_papermill_shows_types_and_help():
    found = papermill.inspect_notebook(str(ROOT / "notebooks" / "pbft.ipynb"))
    assert found["shots"]["inferred_type_name"] == "int" and found["shots"]["help"] == "labelled examples per class"


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_the_golden_record(executed, method):
    """If this fails, results have changed: raise RESULTS_VERSION, and write the new numbers down with LOWRES_GOLDEN=write."""
    folder = executed(method)
    trials, predictions = records.read_record(folder)["trials"], records.read_predictions(folder)
    logits = predictions.groupby(["trial", "set"])[["logit_unacceptable", "logit_acceptable"]].mean()
    found = {
        "shots": [trial["shots_sha256"] for trial in trials], "losses": [trial["losses"] for trial in trials],
        "mean_logits": [[round(float(value), 6) for value in line] for line in logits.to_numpy()],
    }
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LOWRES_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden | {"results_version": records.RESULTS_VERSION, method: found}, indent=1) + "\n")
        return
    assert golden["results_version"] == records.RESULTS_VERSION
    assert found["shots"] == golden[method]["shots"]
    for ours, theirs in zip(found["losses"] + found["mean_logits"], golden[method]["losses"] + golden[method]["mean_logits"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-4)


def test_the_golden_record_is_of_trainings_that_train():
    golden = json.loads(GOLDEN.read_text())
    for method in METHODS:
        for losses in golden[method]["losses"]:
            assert not losses or sum(losses[-4:]) < 0.9 * sum(losses[:4]), f"{method}: a wrong gradient would go unnoticed"


class Kernel:
    """Executes cells as a notebook's kernel does: names stay, and `In` has every cell's source."""

    def __init__(self, method: str = "vanilla") -> None:
        self.names: dict = {"In": [""]}
        self.starting = f'import lowres\nrun = lowres.start("{method}", globals())'

    def run(self, *cells: str) -> None:
        for cell in cells:
            self.names["In"].append(cell)
            exec(cell, self.names)

    def started(self, *cells: str) -> Vanilla:
        self.run(*cells, self.starting)
        return self.names["run"].parameters


def test_a_notebook_can_be_run_again_in_the_same_kernel_with_another_value(tiny_llama):
    kernel, cell = Kernel(), f"model: str = {tiny_llama!r}  # backbone\nshots = 2"
    assert kernel.started(cell).shots == 2
    kernel.run("p, task, evaluation, trials = 1, 'grammar', {}, []")
    assert kernel.started(cell.replace("2", "4", 1) if "2" not in tiny_llama else cell[:-1] + "4").shots == 4


def test_a_misspelt_parameter_is_refused_the_second_time_too(tiny_llama):
    kernel, cell = Kernel(), f"model = {tiny_llama!r}\nshots = 2"
    kernel.started(cell)
    kernel.run("helper = 3", "print(helper)")
    with pytest.raises(BadInput, match='shot: unknown key .did you mean "shots"'):
        kernel.started(cell + "\nshot = 4")


def test_a_parameter_that_was_deleted_has_its_default_again(tiny_llama):
    kernel, cell = Kernel(), f"model = {tiny_llama!r}\nshots = 2"
    kernel.started(cell + "\nepochs = 3")
    assert kernel.started(cell).epochs == Vanilla().epochs


def test_papermills_injected_cell_overrides_and_the_starting_cell_alone_keeps_what_was_asked(tiny_llama):
    kernel = Kernel()
    found = kernel.started(f"model = {tiny_llama!r}\nshots = 2", "# Parameters\nshots = 8\nepochs = 3\n")
    assert (found.shots, found.epochs) == (8, 3)
    kernel.run("print('something else')")
    again = kernel.started()
    assert (again.shots, again.epochs, again.model) == (8, 3, tiny_llama)


@pytest.mark.parametrize("method", METHODS)
def test_an_executed_notebook_opens_with_its_answer(executed, method):
    notebook = nbformat.read(executed(method) / "run.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(code) if "lowres.start(" in cell.source)
    assert first <= 2, "after the parameters and what papermill injected"
    shown = "".join(output["data"]["text/markdown"] for output in code[first].outputs if "text/markdown" in output.get("data", {}))
    record = records.read_record(executed(method))
    mean = 100 * sum(trial["sets"]["in_domain"]["accuracy"] for trial in record["trials"]) / 2
    assert f"**{mean:.1f} %**" in shown and "the constant answer" in shown and "2 trials" in shown and "will stand here" not in shown


def test_the_injected_cell_holds_only_what_differs(tmp_path, tiny_llama):
    asked = METHODS["vanilla"](model=tiny_llama, shots=2)
    assert asked.model_dump(exclude_defaults=True) == {"model": tiny_llama, "shots": 2}
