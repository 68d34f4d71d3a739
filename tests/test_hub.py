"""The hub, end to end against a stand-in on 127.0.0.1: what `parameters/` names is fetched, kept for the next time, and missed in one sentence."""

import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPT_SHAPE, save_model
from hub_contents import GLUE, HANS, OPT_125M, OPT_350M, ask, cola, environment, fill, lowres, rows
from hub_stand_in import File, Hub, Repository
from safetensors.torch import load, save
from transformers import OPTConfig

from lowres.files import ROOT, read_json
from lowres.runs.study import read_study, select
from lowres.tasks.hub import split_revision

COMMANDS = """
import contextlib, io, json, sys
from lowres.__main__ import main

for line in sys.stdin:
    sys.argv, code, said = ["lowres", *json.loads(line)], 0, io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[dict[str, bytes]]:
    """OPT-125M's form and OPT-350M's (conftest.tiny_opt, tiny_opt_post_norm), as files."""
    shapes = [{"word_embed_proj_dim": 32}, {"word_embed_proj_dim": 16, "do_layer_norm_before": False}]
    folders = [save_model(tmp_path_factory.mktemp("opt"), OPTConfig(hidden_size=32, **shape, **OPT_SHAPE)) for shape in shapes]
    return [{path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in folders]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> str:
    """The paper's models, tasks and methods, each run a few steps."""
    path = tmp_path_factory.mktemp("study") / "paper.yaml"
    path.write_text(yaml.safe_dump({
        "description": "a part of the paper's", "set": {"seeds": [0], "evaluation_rows": 12, "epochs": 1, "precision": "float32"},
        "vary": {"model": [OPT_125M, OPT_350M], "task": ["cola", "mnli"], "shots": [2, 4]}, "methods": [{"method": "vanilla"}, {"method": "pbft"}]}))
    return str(path)


@pytest.fixture(scope="module")
def hub(models):
    with Hub() as hub:
        fill(hub, models)
        yield hub


@pytest.fixture(scope="module")
def first(models, study, tmp_path_factory):
    """A study's part that was run while its hub answered: the hub, which has ended since, what was said, and the home folder."""
    home = tmp_path_factory.mktemp("home")
    with Hub() as hub:
        fill(hub, models)
        place = environment(hub.endpoint, home)
        ended = lowres("run", study, "--only", "method=vanilla,shots=2", "--outputs", str(home / "outputs"), "--workers", "2", **place)
    return hub, ended, home, place


def test_a_part_of_the_papers_study_runs_over_the_hub(first, study):
    hub, ended, home, _ = first
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = select(read_study(study, outputs=str(home / "outputs")), "method=vanilla,shots=2").runs
    assert not [run.name for run in runs if "it/s" in (run.folder / "run.ipynb").read_text()], "a notebook keeps a download's bar"
    sets = [set(read_json(run.folder / "record.json")["trials"][0]["sets"]) for run in runs]
    assert sets == [{"in_domain", "out_of_domain"}, {"matched", "hans"}] * 2


def test_what_parameters_name_is_what_the_hub_is_asked_for_and_nothing_that_could_be_run(first):
    hub, _, home, _ = first
    assert hub.strange == []
    got = {path for method, path in hub.asked if method == "GET"}
    for name in (OPT_125M, OPT_350M):
        repository, revision = split_revision(name)
        assert {f"/{repository}/resolve/{revision}/{file}" for file in ("config.json", "tokenizer.json")} <= got
    assert f"/datasets/{GLUE['id']}/resolve/{GLUE['revision']}/README.md" in got
    assert f"/api/datasets/{HANS['id']}/revision/refs%2Fconvert%2Fparquet" in got
    assert not [path for path in got if path.endswith((".py", ".bin"))]
    kept = [path.name for path in (home / "hf" / "hub").iterdir() if "--" in path.name]
    assert sorted(kept) == ["datasets--jhu-cogsci--hans", "datasets--nyu-mll--glue", "models--facebook--opt-125m", "models--facebook--opt-350m"]


def test_once_all_is_here_a_study_goes_on_without_the_hub(first, study):
    _, _, home, place = first
    only = f"method=vanilla,shots=4,task=mnli,model={OPT_350M}"
    ended = lowres("run", study, "--only", only, "--outputs", str(home / "outputs"), **place)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(("offline", "reason"), [({}, "the hub cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")])
def test_without_the_hub_the_copy_of_the_revision_is_used_and_no_other(first, offline, reason):
    """`datasets` itself would take the copy that it used last, of whatever revision."""
    other = [("resolve", f"{OPT_125M[:-2]}00"), rows(GLUE, revision="0" * 40), rows(HANS, revision="main"), rows(GLUE, config="sst2")]
    model, cola, hans, pauses, *refused = ask(("load", OPT_125M), rows(GLUE), rows(HANS), ("pauses",), *other, **first[3] | offline)
    assert model.isdigit() and (cola, hans, pauses) == ("400", "120", "0")
    for answer in refused:
        assert answer.startswith("BadInput: ") and f"could not be fetched from the hub: {reason}" in answer and "\n" not in answer


@pytest.fixture(scope="module")
def command(hub, tmp_path_factory):
    """`lowres`, one command after another in one process, each with an empty cache: its exit code and what it said."""
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen([sys.executable, "-c", COMMANDS], cwd=ROOT, env=environment(hub.endpoint, home), text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(*arguments: str) -> tuple[int, str]:
        shutil.rmtree(home / "hf", ignore_errors=True)
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        return tuple(json.loads(process.stdout.readline()))

    with process:
        yield run
        process.stdin.close()


def test_a_study_whose_model_or_data_cannot_be_had_is_one_sentence_and_nothing_is_written(hub, command, study, tmp_path, monkeypatch):
    model, data = split_revision(OPT_125M)[0], f"datasets/{GLUE['id']}"

    def said(repository: str) -> str:
        code, text = command("run", study, "--only", f"method=vanilla,shots=2,task=cola,model={OPT_125M}", "--outputs", str(tmp_path / "outputs"))
        assert code == 2 and text.count("\n") == 1 and text.startswith("lowres: ") and repository.removeprefix("datasets/") in text, text
        assert not (tmp_path / "outputs").exists()
        return text

    with monkeypatch.context() as patch:
        patch.setitem(hub.faults, data, 401)
        assert "the hub asks for a login (401)" in said(data)
    with monkeypatch.context() as patch:
        patch.setitem(hub.faults, model, 500)
        assert "the hub is out of order (500): try again later" in said(model)
    for repository in (model, data):
        with monkeypatch.context() as patch:
            patch.setitem(hub.repositories, repository, Repository())
            assert "the hub has no such revision of it (404)" in said(repository)
    with monkeypatch.context() as patch:
        files = hub.repositories[model].commits[split_revision(OPT_125M)[1]]
        patch.delitem(files, "model.safetensors")  # as the real revision is: pickled weights alone
        assert f"convert it once with `lowres convert {OPT_125M} FOLDER`" in said(model)
    with monkeypatch.context() as patch:  # the client gives up after its sixth try
        patch.setitem(hub.cuts, files["model.safetensors"].sha256, [1000] * 6)
        assert f"model: '{OPT_125M}' could not be fetched from the hub" in said(model)


STATUSES = {401: "asks for a login (401)", 403: "gives no access (403)", 404: "does not have it (404)", 429: "has been asked too often (429)",
            500: "is out of order (500): try again later", 503: "is out of order (503): try again later"}


def test_each_status_of_the_hub_is_one_sentence_that_names_what_was_asked_for(hub, tmp_path):
    for status in STATUSES:
        hub.faults |= {f"someone/answers-{status}": status, f"datasets/someone/answers-{status}": status}
    names = {status: f"someone/answers-{status}" for status in STATUSES}
    questions = [question for name in names.values() for question in (("resolve", f"{name}@{'1' * 40}"), ("before", name),
                                                                    ("rows", name, None, "train", "1" * 40), ("rows", name, None, "train", "main"))]
    nobody, wrong = "nobody/nothing", [rows(GLUE, config="colla"), rows(GLUE, split="trainn"), rows(HANS, revision="main")]
    wrong = [("resolve", nobody), rows(GLUE, id=nobody), *wrong]
    answers = ask(*questions, *wrong, **environment(hub.endpoint, tmp_path))
    assert all(answer.startswith("BadInput: ") and "\n" not in answer for answer in answers), answers
    for (status, name), four in zip(names.items(), zip(*[iter(answers)] * 4)):
        assert all(name in answer and f"the hub {STATUSES[status]}" in answer for answer in four), four
    others = answers[-len(wrong):]
    assert "asks for a login (401): nothing of that name is there" in others[0] and "(401)" in others[1]
    assert "'colla' not found. Available: ['cola', 'mnli']" in others[2] and 'Unknown split "trainn"' in others[3] and "scripts" in others[4]


@pytest.fixture(scope="module")
def answers(hub, models, tmp_path_factory) -> dict[str, str]:
    """Of downloads that are cut, and of weights that are not as they should be."""
    home, (weights, _) = tmp_path_factory.mktemp("home"), models
    large, small = random.Random(1).randbytes(12_000_000), random.Random(2).randbytes(12_000)
    tensors = load(weights["model.safetensors"])
    pickled = io.BytesIO()
    torch.save(tensors, pickled)
    defective = save({key: value for key, value in tensors.items() if "embed_tokens" not in key and "lm_head" not in key}, {"format": "pt"})
    plain = {name: content for name, content in weights.items() if name != "model.safetensors"}
    for name, files in {"cut-once": {"model.safetensors": large}, "cut": {"model.safetensors": small}, "defective": {"model.safetensors": defective},
                        "pickled": {"pytorch_model.bin": pickled.getvalue()}}.items():
        hub.put("models", f"someone/{name}", "5" * 40, {**plain, **files})
    table = cola(60, 11)
    hub.put("datasets", "someone/cut", "5" * 40, {"train.parquet": table})
    # The client gives up after its sixth try; what arrives of a chunk of 10 MiB that does not become whole is lost to it.
    hub.cuts |= {File(large).sha256: [11_000_000], File(small).sha256: [1000] * 6, File(table).sha256: [1000] * 6}
    asked = {
        "cut once": ("resolve", f"someone/cut-once@{'5' * 40}"), "cut": ("resolve", f"someone/cut@{'5' * 40}"),
        "next time": ("resolve", f"someone/cut@{'5' * 40}"), "rows cut": ("rows", "someone/cut", None, "train", "5" * 40),
        "rows next time": ("rows", "someone/cut", None, "train", "5" * 40), "defective": ("load", f"someone/defective@{'5' * 40}"),
        "pickled": ("load", f"someone/pickled@{'5' * 40}"), "before": ("before", f"someone/pickled@{'5' * 40}"),
        "convert": ("convert", f"someone/pickled@{'5' * 40}", str(home / "converted")), "converted": ("load", str(home / "converted")),
        "convert nothing": ("convert", "nobody/nothing", str(home / "nothing")),
    }
    return dict(zip(asked, ask(*asked.values(), **environment(hub.endpoint, home))))


def test_a_download_that_is_cut_goes_on_where_it_was(hub, answers):
    assert hub.ranges == ["bytes=10485760-"]
    assert Path(answers["cut once"], "model.safetensors").read_bytes() == random.Random(1).randbytes(12_000_000)


def test_a_download_that_is_cut_again_and_again_is_one_sentence_and_works_the_next_time(answers):
    for fault, name in ((answers["cut"], "model: 'someone/cut@555"), (answers["rows cut"], "data set: 'someone/cut@555")):
        assert fault.startswith(f"BadInput: {name}") and "could not be fetched from the hub" in fault and "\n" not in fault, fault
    assert Path(answers["next time"], "model.safetensors").read_bytes() == random.Random(2).randbytes(12_000)
    assert answers["rows next time"] == "60"


def test_safetensors_as_defective_as_opt_125ms_are_refused_by_the_tensors_name(answers):
    assert answers["defective"].startswith("BadInput: model: 'someone/defective@555")
    assert "the checkpoint has missing tensors: lm_head.weight, model.decoder.embed_tokens.weight" in answers["defective"]


def test_pickled_weights_are_told_before_they_are_read_and_converted_when_asked_for(answers):
    assert all("has no safetensors at this revision: convert it once with `lowres convert" in answers[key] for key in ("pickled", "before"))
    assert answers["convert"] == "None" and answers["converted"].isdigit()
    assert answers["convert nothing"].startswith("BadInput: model: 'nobody/nothing' could not be fetched")
