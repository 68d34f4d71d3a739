"""What a prompt-based method asks for and cannot have is told from tokenizer, configuration and rows, with no weights at hand."""

import shutil

import pytest
from toys import GRAMMAR

from lowres.files import BadInput
from lowres.parameters import validated
from lowres.runs import checks
from lowres.runs.checks import check_parameters, rehearse
from lowres.tasks.task_file import task_path


@pytest.fixture(scope="module")
def no_weights(tiny_opt, tmp_path_factory) -> str:
    """A model's folder without its weights: reading them would fail."""
    folder = tmp_path_factory.mktemp("no_weights")
    shutil.copytree(tiny_opt, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def asked(method: str, model: str, **settings):
    return validated(method, {"model": model, "shots": 4, "seeds": [0], **settings}, "here")


@pytest.mark.parametrize("method", ["in_context", "distillation"])
def test_demonstrations_that_cannot_fit_are_told_without_weights(no_weights, method, tmp_path):
    words = " ".join(["garden"] * 120)
    task = tmp_path / "long.yaml"
    rows = "\n".join(f"{words} {i} {label}\t{label}" for i in range(20) for label in ("no", "yes"))
    (tmp_path / "all.tsv").write_text(f"text\tlabel\n{rows}\n")
    (tmp_path / "test.tsv").write_text(f"text\tlabel\n{words} a\tno\n{words} b\tyes\n")
    task.write_text("name: long\nversion: 1\ndescription: long texts\ntext: [text]\nlabels: ['no', 'yes']\npool: {file: all}\n"
                    "evaluation: {test: {domain: in, file: test}}\npatterns: {plain: '{text}'}\n"
                    "label_words: {words: {'no': ' No', 'yes': ' Yes'}}\n")
    p = asked(method, no_weights, task=str(task), data_dir=str(tmp_path), max_length=200)
    with pytest.raises(BadInput, match="demonstrations: not even one of each label fits.*reads 256"):
        check_parameters([(method, p)])


def test_an_unlabelled_pool_that_is_too_small_is_told_without_weights(no_weights):
    with pytest.raises(BadInput, match="unlabelled: 2393 is more than the 2392 rows that the pool has beside the shots"):
        check_parameters([("distillation", asked("distillation", no_weights, task=GRAMMAR, inputs="pool", unlabelled=2393))])
    check_parameters([("distillation", asked("distillation", no_weights, task=GRAMMAR, inputs="pool", unlabelled=2392))])


def test_an_instruction_longer_than_the_context_is_told_without_weights(no_weights, tmp_path):
    task = tmp_path / "wordy.yaml"
    text = task_path(GRAMMAR).read_text().replace("folder: ", f"folder: {task_path(GRAMMAR).parent}/")
    task.write_text(text.replace('instruction: "', 'instruction: "' + "Read it well. " * 80))
    with pytest.raises(BadInput, match="context: instruction and longest input take .* tokens; .* reads 256"):
        rehearse(asked("distillation", no_weights, task=str(task), context="instruction"))


def test_where_any_text_would_fit_no_row_is_read(no_weights, monkeypatch):
    monkeypatch.setattr(checks, "load_task", lambda *_: pytest.fail("the rows were read"))
    rehearse(asked("in_context", no_weights, max_length=64))
    rehearse(asked("distillation", no_weights, max_length=64))
    rehearse(asked("in_context", no_weights, max_length=250, demonstrations=0))
