"""The sentences with ratings: which rows count, how they are parted, and what happens when they cannot be had."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from lowres.files import BadInput
from lowres.tasks import sentiment
from lowres.tasks.load import load_task


def archive(tables: dict[str, str], inner: str = sentiment.INNER) -> bytes:
    """An archive of the same form, with other rows."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member, text in tables.items():
            entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{member}_GroundTruth.txt")
            content = text.encode()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr(inner, packed.getvalue())
    return outer.getvalue()


def table(name: str, rows: int) -> str:
    """Ratings -2, 0 and 2 by turns; Windows line ends, as two of the real tables have."""
    return "".join(f"{i}\t{(i % 3 - 1) * 2}\tSentence {i} of {name}, caf\u00e9\u2028 \r\n" for i in range(rows))


MADE_UP = {member: table(name, 3300 if name == "films" else 30) for name, member in sentiment.MEMBERS.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a package index that has the made-up archive."""
    content = archive(MADE_UP)
    monkeypatch.setattr(sentiment, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(sentiment, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(sentiment, "fetched", lambda: content)
    sentiment.sets.cache_clear()
    yield tmp_path / "lowres"
    sentiment.sets.cache_clear()


def test_clear_ratings_count_and_films_are_parted_into_a_pool_and_a_test_set(cache):
    sentiment.prepare()
    task = load_task("sentiment")
    assert {name: len(rows) for name, rows in task.evaluation.items()} == {"films": 2000, "products": 20, "tweets": 20, "news": 20}
    assert len(task.pool) == 200, "2,200 of 3,300 films have a rating that is not 0"
    texts = [set(rows["sentence"]) for rows in (task.pool, *task.evaluation.values())]
    assert sum(map(len, texts)) == len(set.union(*texts)), "no sentence stands in two sets"
    praised = task.pool["sentence"].str.extract(r"Sentence (\d+)")[0].astype(int) % 3 == 2
    assert np.array_equal(praised.to_numpy(), task.pool["label"].to_numpy() == task.labels.index("good"))
    assert task.pool["sentence"].str.contains("caf\u00e9").all() and not task.pool["sentence"].str.contains("\r").any()


def test_a_sentence_that_stands_there_twice_counts_once_with_its_first_rating():
    rows = [("1", 2.0, "Fine."), ("2", -2.0, "Fine."), ("3", 0.5, "Meh."), ("4", -1.0, "Bad.")]
    found = sentiment.split({"films": rows, "news": rows})
    assert found["news"] == [("1", "2.0", "Fine.", "good"), ("4", "-1.0", "Bad.", "bad")]


@pytest.mark.parametrize(("content", "told"), [
    (archive(MADE_UP)[:-30], "cut or lacks a member"),
    (b"", "cut or lacks a member"),
    (archive({member: text for member, text in MADE_UP.items() if member != "tweets"}), "cut or lacks a member.*tweets_GroundTruth"),
    (archive(MADE_UP, inner="elsewhere.tar.gz"), "cut or lacks a member.*hutto_ICWSM_2014.tar.gz"),
    (archive({**MADE_UP, "tweets": "1\tnot a number\tSentence"}), "cut or lacks a member.*not a number"),
])
def test_an_archive_that_is_cut_or_lacks_a_member_is_one_sentence_and_leaves_nothing(cache, monkeypatch, content, told):
    monkeypatch.setattr(sentiment, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(sentiment, "fetched", lambda: content)
    with pytest.raises(BadInput, match=told) as error:
        sentiment.prepare()
    assert "\n" not in str(error.value) and not cache.exists()


def test_an_archive_with_another_checksum_is_refused(cache, monkeypatch):
    monkeypatch.setattr(sentiment, "SHA256", "0" * 64)
    with pytest.raises(BadInput, match="is not the one this project was made with: SHA-256 [0-9a-f]{64}"):
        sentiment.prepare()
    assert not cache.exists()


def test_rows_that_are_not_prepared_are_told_with_the_command_that_gets_them(cache):
    with pytest.raises(BadInput, match="`lowres prepare` gets them"):
        load_task("sentiment")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_that_cannot_be_written_is_one_sentence(cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(BadInput, match="cannot be kept there: Permission denied"):
        sentiment.prepare()


def test_a_cache_folder_that_is_a_file_is_one_sentence(cache):
    cache.write_text("")
    with pytest.raises(BadInput, match="cannot be kept there"):
        sentiment.prepare()


def test_a_package_index_out_of_reach_is_one_sentence():
    """By pip itself, with an index that is an empty folder."""
    code = "from lowres.tasks import sentiment; sentiment.fetched()"
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = ended.stderr.splitlines()[-1]
    assert "could not be had; everything else works: No matching distribution found" in last, ended.stderr
