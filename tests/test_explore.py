"""The explore notebook: what it says of a pattern is what a run would compute, and its controls change what is shown."""

import math

import nbformat
import numpy as np
import pytest
from ipywidgets import HTML, Text
from stand_ins import by_papermill
from toys import GRAMMAR

from lowres.files import ROOT, BadInput
from lowres.methods import show
from lowres.methods.evaluation import predict
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode
from lowres.models.heads import Verbalizer
from lowres.tasks.load import load_task
from lowres.tasks.shots import draw

pytestmark = pytest.mark.usefixtures("forking")

PATTERN, EXAMPLE = "{sentence} ?", {"sentence": "The nurse has written a letter."}


@pytest.fixture(scope="module")
def looked_at(tiny_llama):
    backbone, task = load_backbone(tiny_llama, precision="float32"), load_task(GRAMMAR)
    return backbone, task, draw(task.pool, 4, 0), dict(zip(task.labels, task.file.words("")))


def test_tokens_are_the_whole_text_behind_the_prefix(looked_at):
    backbone = looked_at[0]
    assert "".join(show.tokens(backbone, "A letter ?")) == "<|endoftext|>A letter ?"


def test_an_opinion_is_the_models_own_next_word_probability(looked_at):
    backbone, task, _, words = looked_at
    found = show.label_probabilities(backbone, task.file, PATTERN, words, EXAMPLE)
    logits = predict(backbone, Verbalizer(backbone, list(words.values())), {"x": encode(backbone, task.pool.head(1).assign(**EXAMPLE), PATTERN, 64)})
    odds = np.exp(logits["x"][0])
    assert found["probability"].tolist() == pytest.approx(list(odds / odds.sum()), abs=6e-4)
    assert found["calibrated"].sum() == pytest.approx(1, abs=2e-3)


def test_a_content_free_text_is_calibrated_to_an_even_opinion(looked_at):
    backbone, task, _, words = looked_at
    found = show.label_probabilities(backbone, task.file, PATTERN, words, {"sentence": "N/A"})
    assert found["calibrated"].tolist() == [0.5, 0.5]


def test_shots_are_held_against_the_constant_answer(looked_at):
    backbone, task, shots, words = looked_at
    found = show.score_shots(backbone, task, shots, PATTERN, words)
    assert found.loc["constant"].tolist() == [50.0, round(math.log(0.5), 3)]
    assert (found["mean log p"] < 0).all() and found["right, %"].between(0, 100).all()


@pytest.mark.parametrize("pattern, said", [("no place", "wants a place for each of {sentence}, once"), ("{sentence} {sentence}", "once"),
                                           ("{sentence", "a brace is left open"), ("{other} ?", "{sentence}")])
def test_a_pattern_without_its_text_is_refused_in_a_sentence(looked_at, pattern, said):
    backbone, task, _, words = looked_at
    with pytest.raises(BadInput, match="pattern: ") as caught:
        show.label_probabilities(backbone, task.file, pattern, words, EXAMPLE)
    assert said in str(caught.value)


def test_a_control_changes_what_is_shown_and_a_bad_value_is_told_in_its_place(looked_at):
    backbone, task, shots, words = looked_at
    board = show.controls(backbone, task, shots, PATTERN, words, EXAMPLE)
    shown = next(part for part in board.children if isinstance(part, HTML))
    boxes = {part.description: part for part in board.children if isinstance(part, Text)}
    before = shown.value
    boxes["sentence"].value = "<script>alert(1)</script>"
    assert shown.value != before and "<script>" not in shown.value and "&lt;script&gt;" in shown.value
    boxes["pattern"].value = "{sentence} Correct?"
    assert "text_pattern = &#x27;{sentence} Correct?&#x27;" in shown.value
    boxes["word: acceptable"].value = " unheard-of"
    assert 'role="alert"' not in shown.value and "unheard-of" in shown.value, "a word of several tokens is one, too"
    boxes["word: acceptable"].value = words["unacceptable"]
    assert 'role="alert"' in shown.value and "cannot be told apart" in shown.value and "<table" not in shown.value
    boxes["word: acceptable"].value = words["acceptable"]
    assert "<table" in shown.value


def test_its_cells_can_be_run_again_and_a_fault_is_told_by_its_own_name(tiny_llama):
    sources = [cell.source for cell in nbformat.read(ROOT / "notebooks" / "explore.ipynb", as_version=4).cells[2:4]]
    values = {"In": []}

    def run(shots: int) -> None:
        """The cells as a kernel executes them, which keeps what it was given."""
        for source in sources:
            cell = source.replace("smollm2-135m", tiny_llama).replace("shots: int = 16", f"shots: int = {shots}")
            values["In"].append(cell)
            exec(cell, values)

    for shots in (4, 5):
        run(shots)
        assert values["p"].shots == shots
    with pytest.raises(BadInput, match="notebooks/explore.ipynb: shots: 0 is not accepted"):
        run(0)


def test_the_notebook_runs_top_to_bottom(tiny_llama, tmp_path):
    out = tmp_path / "explore.ipynb"
    by_papermill("explore", out, {"model": tiny_llama, "shots": 2})
    outputs = [output for cell in nbformat.read(out, as_version=4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
