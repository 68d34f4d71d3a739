"""Bad input ends in one sentence and exit code 2, before a model loads, and nothing on disk changes."""

import re
import subprocess
import sys

import pytest
import yaml
from toys import GRAMMAR

from lowres import files
from lowres.__main__ import main
from lowres.files import ROOT
from lowres.runs.command import command_again
from lowres.runs.execute import Options
from lowres.runs.status import all_statuses
from lowres.runs.study import read_study

GOOD = {
    "description": "a test", "set": {"seeds": [0], "evaluation_rows": 8, "epochs": 1}, "vary": {"task": [GRAMMAR], "shots": [2]},
    "methods": [{"method": "vanilla"}, {"method": "pbft"}],
}


def own_process(*words: str, code: int = 0) -> str:
    ended = subprocess.run([sys.executable, "-m", "lowres", *words], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def lowres(monkeypatch, capsys):
    """The same within this process, which has imported everything already."""
    monkeypatch.setattr("lowres.runs.process.elsewhere", files.called)

    def call(*words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["lowres", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = "".join(capsys.readouterr())
        assert (ended.value.code or 0) == code, said
        return said

    return call


@pytest.fixture
def write_study(tmp_path, tiny_llama):
    def write(**changes) -> str:
        content = yaml.safe_load(yaml.safe_dump(GOOD))
        content["set"]["model"] = tiny_llama
        for key, value in changes.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "tiny.yaml")
    return write


@pytest.mark.parametrize(("changes", "message"), [
    ({"sett": {}}, 'tiny.yaml: sett: unknown key (did you mean "set"?)'),
    ({"methods": [{"method": "vanila"}]}, "tiny.yaml: method: 'vanila' is not a method (did you mean \"vanilla\"?)"),
    ({"methods": [{"method": "vanilla", "set": {"rnk": 8}}]}, "tiny.yaml: vanilla: rnk: unknown key"),
    ({"set": {"epoch": 3}}, 'epoch: unknown key (did you mean "epochs"?)'),
    ({"set": {"learning_rate": "1e-5"}}, "learning_rate: '1e-5' is not accepted"),
    ({"vary": {"shots": ["2"]}}, "shots: '2' is not accepted"),
    ({"vary": {"shots": []}}, "vary.shots: [] is not accepted: list should have at least 1 item"),
    ({"vary": {"shots": [5000]}}, "grammar.yaml: shots: 5000 is more than the 1,200 examples"),
    ({"vary": {"task": ["sentimant"]}}, "there is no task 'sentimant' (did you mean \"sentiment\"?)"),
    ({"vary": {"task": ["cola"]}, "set": {"data_dir": "nowhere"}}, "data_dir: 'nowhere' has no cola/dev_in_domain"),
    ({"set": {"model": "smollm2"}}, "model: 'smollm2' is neither"),
    ({"methods": [{"method": "pbft", "set": {"pattern": "quastion"}}]}, "patterns: there is no 'quastion'"),
    ({"methods": [{"method": "pbft", "set": {"label_words": "yesno"}}]}, "label_words: there is no 'yesno' (did you mean \"yes_no\"?)"),
    ({"methods": [{"method": "vanilla"}, {"method": "vanilla"}]}, "two runs would share the folder"),
])
def test_a_faulty_study_is_told_in_one_sentence_and_nothing_is_written(lowres, write_study, tmp_path, changes, message):
    study = write_study(**changes)
    before = sorted(tmp_path.rglob("*"))
    said = lowres("run", study, "--outputs", str(tmp_path / "outputs"), code=2)
    assert message in said and said.startswith("lowres: ") and said.count("\n") == 1, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fault_is_told_the_same_way_by_a_process_of_its_own(write_study, tmp_path):
    said = own_process("run", write_study(set={"model": "smollm2"}), "--outputs", str(tmp_path / "outputs"), code=2)
    assert said.startswith("lowres: ") and said.count("\n") == 1 and not (tmp_path / "outputs").exists()


def test_label_words_that_are_not_told_apart_are_refused_and_what_several_tokens_cost_is_said(lowres, write_study, tmp_path):
    task = yaml.safe_load((ROOT / GRAMMAR).read_text())
    task["folder"] = str(ROOT / GRAMMAR.removesuffix(".yaml"))
    for words, code, told in ((" unacceptable", 0, "more tokens are read behind each text"), (" acceptable indeed", 2, "cannot be told apart")):
        task["label_words"] = {"long": {"acceptable": " acceptable", "unacceptable": words}}
        (tmp_path / f"mine{code}.yaml").write_text(yaml.safe_dump(task))
        study = write_study(vary={"task": [str(tmp_path / f"mine{code}.yaml")]})
        before = sorted(tmp_path.rglob("*"))
        said = lowres("check", study, code=code)
        assert told in said and "label_words" in said and sorted(tmp_path.rglob("*")) == before


def test_check_says_what_a_good_file_holds(lowres, write_study):
    assert "2 runs, 2 trials: nothing is wrong with it" in lowres("check", write_study())
    assert "the parameters of pbft: nothing is wrong" in lowres("check", "parameters/methods/pbft.yaml")
    assert "pool 2,400" in lowres("check", GRAMMAR)


STUDIES = sorted(path.stem for path in (ROOT / "parameters" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "mine"])  # that one waits for a task of the user's own
def test_every_study_that_comes_with_the_project_is_sound(name):
    study = read_study(name)
    assert study.runs and all(run.folder.is_relative_to(ROOT / "outputs" / name) for run in study.runs)


@pytest.mark.parametrize("value", ["../../escape", "/etc/escape", "a/../../../b", "..", "{HOME}"])
def test_no_value_leads_out_of_the_outputs_folder(write_study, tmp_path, value):
    study = write_study(methods=[{"method": "pbft", "vary": {"pattern": [value]}}], set={"model": value})
    for run in read_study(study, outputs=str(tmp_path / "outputs")).runs:
        assert run.folder.resolve().is_relative_to(tmp_path / "outputs" / "tiny")


def test_status_plans_and_classifies_without_torch(write_study):
    plan = f"from lowres.runs.study import read_study; from lowres.runs.status import all_statuses; all_statuses(read_study({write_study()!r}))"
    code = f"{plan}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_run_of_a_small_study_ends_with_where_to_read_it(lowres, forking, write_study, tmp_path):  # by a process of its own: test_own_task
    study, outputs = write_study(), tmp_path / "outputs"
    said = lowres("run", study, "--outputs", str(outputs))
    assert "analysis.ipynb" in said
    statuses = all_statuses(read_study(study, outputs=str(outputs)))
    assert [status.state for status in statuses] == ["done", "done"]
    for run in (status.run for status in statuses):
        assert {"run.ipynb", "parameters.yaml", "record.json", "predictions.parquet"} == {path.name for path in run.folder.iterdir()}
    assert {"analysis.ipynb", "results.csv"} <= {path.name for path in (outputs / "tiny").iterdir()}, "an analysis keeps its tables"


def test_the_help_names_every_command():
    from typer.testing import CliRunner

    from lowres.__main__ import app

    said = CliRunner().invoke(app, ["--help"]).output
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    opening = " ".join(said.split("Commands")[0].replace("|", " ").split())
    assert commands >= {"run", "status", "check", "analyse", "publish", "prepare", "convert"}
    assert all(re.search(rf"\b{name}\b", opening) for name in commands), opening


def test_what_continues_a_study_has_the_data_the_outputs_and_the_part_that_were_asked_for():
    assert command_again("quickstart", Options(), data_dir=None, outputs="outputs", only="") == "lowres run quickstart"
    asked = {"data_dir": "my folder", "outputs": "elsewhere", "only": "method=pbft"}
    assert command_again("mine", Options(workers=1), **asked) == \
        "lowres run mine --data-dir 'my folder' --outputs elsewhere --only method=pbft --workers 1"


def test_the_version_is_told():
    from importlib.metadata import version

    from typer.testing import CliRunner

    from lowres.__main__ import app

    assert CliRunner().invoke(app, ["--version"]).output == f"lowres {version('lowres')}\n"


def test_status_of_what_is_measured_waits_for_no_jupyter_either():
    code = "import sys; from lowres.runs.command import expected_of_the_unknown as ask; print(ask([], None), 'jupyter_client' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.strip() == "{} False", ended.stderr


def test_status_and_help_wait_for_neither_papermill_nor_jupyter_nor_pandas():
    code = "import sys, lowres.__main__; print({'papermill', 'nbformat', 'jupyter_client', 'pandas', 'torch', 'distributed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout == "set()\n"


def test_no_process_builds_a_grammar_of_addresses_that_no_notebook_has():
    code = "import sys, lowres.site.publish, lowres.runs.scheduling, papermill; print('rfc3987_syntax.syntax_helpers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout == "False\n"


def test_a_path_is_seen_from_the_current_folder_and_a_name_is_the_projects(lowres, write_study, tmp_path, monkeypatch):
    write_study()
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "2 runs, 2 trials: nothing is wrong with it" in lowres("check", "tiny.yaml")
    assert "done" in lowres("status", "real_all"), "the project's outputs, though there is a folder of that name here"
    assert "2 missing" in lowres("status", "tiny.yaml", "--outputs", "outputs") and not list((tmp_path / "outputs").iterdir())
    assert "pool" in lowres("check", "sentiment") or "not here yet" in lowres("check", "sentiment")
    assert "the parameters of pbft: nothing is wrong" in lowres("check", "pbft")


def test_a_folder_that_cannot_be_written_or_read_is_one_sentence(lowres, write_study, tmp_path):
    study = write_study()
    (tmp_path / "outputs").write_text("a file")
    said = lowres("run", study, "--outputs", str(tmp_path / "outputs"), code=2)
    assert said.startswith("lowres: --outputs: ") and "outputs: is a file, and a folder is wanted" in said and said.count("\n") == 1
    (tmp_path / "tiny.yaml").unlink()
    (tmp_path / "tiny.yaml").mkdir()
    assert lowres("run", study, code=2).endswith("tiny.yaml: Is a directory\n")
