"""Schema, parameter file and notebook say the same; bad input is one sentence."""

import ast
import io
import json
import tokenize
from pathlib import Path

import pytest
import yaml

from lowres import files
from lowres.files import ROOT, BadInput, located, read_yaml, shown
from lowres.parameters import METHODS, defaults, validated

NOTEBOOKS = {name: ROOT / "notebooks" / f"{name}.ipynb" for name in METHODS}


def parameters_cell(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "".join(next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])))


@pytest.mark.parametrize("method", METHODS)
def test_the_notebooks_cell_and_the_file_are_the_schemas_defaults_in_order(method):
    schema = METHODS[method].model_fields
    expected = {name: field.default for name, field in schema.items()}
    cell = ast.parse(parameters_cell(NOTEBOOKS[method])).body
    usual = {"model", "task", "shots", "seeds", "output_dir"}
    shown = [name for name in schema if name in usual | set(METHODS[method].__annotations__)]
    assert [line.target.id for line in cell] == shown, "the method's own and the usual ones"
    assert {line.target.id: ast.literal_eval(line.value) for line in cell} == {name: expected[name] for name in shown}
    assert expected == defaults(method) and list(schema) == list(read_yaml(ROOT / f"parameters/methods/{method}.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_has_a_type_and_one_line_of_help_in_the_notebook_and_the_file(method):
    cell = parameters_cell(NOTEBOOKS[method])
    comments = [token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(cell).readline) if token.type == tokenize.COMMENT]
    helps = [field.description for field in METHODS[method].model_fields.values()]
    names = [line.target.id for line in ast.parse(cell).body]
    assert comments == [METHODS[method].model_fields[name].description for name in names]
    assert all(isinstance(line, ast.AnnAssign) for line in ast.parse(cell).body)
    file = (ROOT / f"parameters/methods/{method}.yaml").read_text()
    assert all(f"# {text}" in file for text in helps)


@pytest.mark.parametrize(("values", "message"), [
    ({"seeds": [2**63]}, "x.yaml: seeds.0: 9223372036854775808 is not accepted: input should be less than"),
    ({"shot": 4}, "x.yaml: shot: unknown key .did you mean \"shots\""),
    ({"shots": "16"}, "x.yaml: shots: '16' is not accepted: .*YAML reads this as text"),
    ({"shots": 0}, "x.yaml: shots: 0 is not accepted: input should be greater than or equal to 1"),
    ({"shots": True}, "x.yaml: shots: True is not accepted"),
    ({"learning_rate": float("inf")}, "x.yaml: learning_rate: inf is not accepted: input should be a finite number"),
    ({"weight_decay": float("nan")}, "x.yaml: weight_decay: nan is not accepted: input should be a finite number"),
    ({"device": "gpu"}, "x.yaml: device: 'gpu' is not accepted"),
    ({"seeds": []}, "x.yaml: seeds: .. is not accepted"),
    ({"seeds": [1, 1]}, "x.yaml: seeds: .1, 1. is not accepted: the same seed stands twice"),
    ({"seeds": 3}, "x.yaml: seeds: 3 is not accepted: input should be a valid list"),
    ({"fidelity": "as_code"}, "x.yaml: fidelity: 'as_code' is not accepted: input should be 'as_described' or 'as_coded'"),
    ({"output_dir": "outputs/{shots}"}, "x.yaml: output_dir: .* braces are not allowed"),
    (yaml.safe_load("learning_rate: 1e-5"), "x.yaml: learning_rate: '1e-5' is not accepted: .*YAML reads this as text: write 1.0e-5, not 1e-5"),
    (yaml.safe_load("epochs: no"), "x.yaml: epochs: False is not accepted"),
])
def test_bad_values_are_told_by_file_key_and_value(values, message):
    with pytest.raises(BadInput, match=message):
        validated("vanilla", values, "x.yaml")


def test_an_unknown_method_is_told_with_near_names():
    with pytest.raises(BadInput, match="'vanila' is not a method .did you mean \"vanilla\""):
        validated("vanila", {}, "x.yaml")


@pytest.mark.parametrize(("text", "message"), [
    ("shots: [", "not readable as YAML"), ("- 1", "a mapping of keys to values is wanted, not list"), ("", "not NoneType"),
    ("x: !!python/object/apply:os.system ['true']", "not readable as YAML"),
])
def test_a_file_that_is_no_plain_mapping_is_refused_and_nothing_in_it_is_run(tmp_path, text, message):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_yaml(tmp_path / "file.yaml")


def test_paths_are_shown_without_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shown(tmp_path / "data") == "~/data"
    assert shown(ROOT / "outputs" / "x") == "outputs/x" and shown(ROOT.parent / "data") == "../data"


def test_a_folder_that_is_a_link_is_stored_by_its_own_name_and_not_by_what_it_leads_to(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "ROOT", tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    assert located("../data") == tmp_path / "data"
    assert shown(located("../data")) == "../data"
