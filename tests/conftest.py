"""Tiny random models and a tokenizer, made on the spot: no test needs a network."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import faults
import pytest
from stand_ins import short_folder
from toys import GRAMMAR

from lowres.files import ROOT, BadInput
from lowres.runs.execute import Options, pinned
from lowres.runs.process import forks
from lowres.tasks.task_file import read_task

if TYPE_CHECKING:  # else each where it is wanted: who hands the tests out to other processes reads this file, too, and they begin after it
    from transformers import PreTrainedTokenizerFast

# For this process, and for those that it starts. A new .venv has nothing compiled: where no bytecode may be kept, each of them compiles torch and
# all else anew, in three times the time of its imports. And two processes of two threads each on two cores wait for one another.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LOWRES_STORE_GB"] = "0"  # what a test asks for is computed, not read from an earlier test's

CORPUS = [
    "The children were playing in the garden .", "The nurse has written a letter ?", "No . Yes .", "Yes Yes Yes No No No",
    "The doctor praised the pilot , and the pilot slept .", "This is correct . This is incorrect .", "True False true false good bad",
    "right wrong Maybe Question : Answer : Sentence : Acceptable :", "Does it follow that the artist ran ?", "N/A",
] * 20
WORDS = [" No", " Yes", " correct", " incorrect", " good", " bad", " true", " false", " True", " False", " right", " wrong", " Maybe"]


def make_tokenizer(prefix: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose label words are one token each; with `prefix` it puts </s> in front, as OPT's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS + WORDS * 200, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    if prefix:
        tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="</s>")


def save_model(folder: Path, config, prefix: bool = True) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer(prefix)
    config.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger than a real model's start, so that differences between texts show in the logits
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.12)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def backbone_of(folder):
    """A model as the tests compare it: on the processor, in full precision."""
    from lowres.models.backbone import load_backbone

    return load_backbone(str(folder), device="cpu", precision="float32")


def word_ids(tokenizer, words: list[str]) -> list[int]:
    """Each label word's one token, for words that are one."""
    from lowres.models.heads import word_tokens

    tokens = word_tokens(tokenizer, words)
    assert all(len(ids) == 1 for ids in tokens), tokens
    return [ids[0] for ids in tokens]


def can_compile() -> None:
    """Skips a test, saying why, where layers cannot be compiled."""
    from lowres.models.backbone import check_compiler

    try:
        check_compiler("cpu")
    except BadInput as reason:
        pytest.skip(str(reason))


LLAMA_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
               "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
OPT_SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 256, "pad_token_id": 1}


# What the slow tests guard: compiled layers, adapters, the statistics' simulation, a whole site. They run when one of these has
# changed since all of them passed; what passed is noted in SLOW_PASSED.
GUARDED = ("lowres/models", "lowres/methods/training.py", "lowres/methods/evaluation.py", "lowres/methods/search.py",
           "lowres/methods/layers_and_corpus.py", "lowres/analysis/statistics.py", "lowres/analysis/claims.py", "lowres/site", "requirements.lock")
SLOW_PASSED = ROOT / "tests" / "slow_passed.txt"


def guarded() -> str:
    """A checksum of what the slow tests guard, and of themselves."""
    digest = hashlib.sha256()
    tests = [path for path in (ROOT / "tests").glob("test_*.py") if "mark.slow" in path.read_text(encoding="utf-8")]
    for path in sorted([*tests, *(file for name in GUARDED for file in ((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name]))]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pytest_collection_modifyitems(config, items) -> None:
    passed = SLOW_PASSED.is_file() and SLOW_PASSED.read_text().strip() == guarded()
    if passed and config.option.markexpr != "slow":
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_sessionfinish(session, exitstatus) -> None:
    asked = session.config.option
    if exitstatus == 0 and asked.markexpr == "slow" and not (asked.keyword or asked.file_or_dir):  # all of them, and nothing else
        SLOW_PASSED.write_text(guarded() + "\n")


def pytest_terminal_summary(terminalreporter) -> None:
    """What faults came to, where chaos was asked for."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    if tolls := [value for report in reports if report.when == "call" for key, value in report.user_properties if key == "toll"]:
        terminalreporter.section("faults and what came of them")
        for line in faults.table(tolls):
            terminalreporter.write_line(line)


@pytest.fixture
def toll(record_property) -> faults.Toll:
    """Of the test's fault: what it did to its studies, told in the table at the end."""
    record_property("toll", found := faults.Toll(""))
    return found


@pytest.fixture(scope="session")
def tiny_opt(tmp_path_factory) -> str:
    """OPT-125M's form: pre-norm, embeddings as wide as the layers. Dropout as in the real one."""
    from transformers import OPTConfig

    return save_model(tmp_path_factory.mktemp("opt"), OPTConfig(hidden_size=32, word_embed_proj_dim=32, **OPT_SHAPE))


@pytest.fixture(scope="session")
def tiny_opt_post_norm(tmp_path_factory) -> str:
    """OPT-350M's form: post-norm, embeddings half as wide as the layers, projected in and out."""
    from transformers import OPTConfig

    config = OPTConfig(hidden_size=32, word_embed_proj_dim=16, do_layer_norm_before=False, **OPT_SHAPE)
    return save_model(tmp_path_factory.mktemp("opt350"), config)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    """Llama's form, with grouped keys and values and tied embeddings, as SmolLM2 has; its tokenizer adds nothing."""
    from transformers import LlamaConfig

    return save_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**LLAMA_SHAPE, max_position_embeddings=256), prefix=False)


@pytest.fixture(scope="session", params=["tiny_opt", "tiny_opt_post_norm", "tiny_llama"])
def tiny_model(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def task():
    from lowres.tasks.load import load_task

    return load_task(GRAMMAR, "", 20)


@pytest.fixture
def forking() -> str:
    """The process that forks kernels for all of this worker's tests, begun anew if one has ended it: 10 s less a kernel."""
    return forks.wanted(pinned(Options()), start=True)


@pytest.fixture
def temporary(monkeypatch):
    """A folder of its own for temporary files, with a short path (a socket's has at most 107 characters)."""
    with short_folder() as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        yield folder


@pytest.fixture
def real_data() -> str:
    """The folder with the real CoLA, MNLI and HANS; the test is skipped where it is not at hand."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not all((folder / file).with_suffix(".tsv").is_file() for file in read_task("cola").checksums):
        pytest.skip("the real data sets are not at hand")
    return str(folder)
