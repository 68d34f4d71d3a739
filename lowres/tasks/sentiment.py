"""Sentences with people's ratings (Hutto and Gilbert 2014): films to learn from, products, tweets and newspapers out of domain.

They come with the source archive of a package, which `lowres prepare` gets once from the user's own package index, pinned by SHA-256.
The two archives are read in memory, by their members' names: nothing is unpacked by path, and nothing of the package is imported.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from lowres.files import BadInput, from_package_index, shown, whole_folder

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "vaderSentiment==0.5"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBERS = {"films": "movieReviewSnippets", "products": "amazonReviewSnippets", "tweets": "tweets", "news": "nytEditorialSnippets"}
COLUMNS = ["row", "rating", "sentence", "label"]
CLEAR = 1.0  # mean ratings reach from -4 to 4; nearer to 0 than this, a sentence is neither praise nor complaint
TESTED = 2000  # films that are only ever predicted; the others are the pool


def folder() -> Path:
    """Where the prepared rows lie, for this archive."""
    return user_cache_path("lowres") / f"sentiment-{SHA256[:8]}"


@cache
def sets() -> dict[str, pd.DataFrame]:
    """The prepared sets by name: frames of text. Raises BadInput if they are not there yet."""
    import pandas as pd

    if not folder().is_dir():
        raise BadInput("task: the sentences of 'sentiment' are not here yet: `lowres prepare` gets them (2.4 MB)")
    form = {"sep": "\t", "dtype": str, "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    return {path.stem: pd.read_csv(path, **form) for path in sorted(folder().glob("*.tsv"))}


def prepare() -> Path:
    """Gets the archive and keeps its clear sentences as tab-separated files, whole or not at all. Raises BadInput."""
    from filelock import FileLock

    place = folder()
    if place.is_dir():
        return place
    sets = split(read_archive(fetched()))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.is_dir():  # another process may have been quicker
                with whole_folder(place) as made:
                    for name, rows in sets.items():
                        lines = ["\t".join(COLUMNS), *("\t".join(row) for row in rows)]
                        (made / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{shown(place)}: the sentences of 'sentiment' cannot be kept there: {error.strerror}") from None
    return place


def fetched() -> bytes:
    """The archive, from the package index."""
    with tempfile.TemporaryDirectory() as scratch:
        [archive] = from_package_index({PACKAGE: SHA256}, "task: the sentences of 'sentiment'", Path(scratch), "--no-binary", ":all:",
                                       "--no-build-isolation")
        return archive.read_bytes()


def read_archive(content: bytes) -> dict[str, list[tuple[str, float, str]]]:
    """By set, its (row, mean rating, sentence) as they stand in the archive. Raises BadInput for another archive, or one that is cut."""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise BadInput(f"task: 'sentiment': the archive {PACKAGE} is not the one this project was made with: SHA-256 {found}")
    return read_members(content)


def read_members(content: bytes) -> dict[str, list[tuple[str, float, str]]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as outer, tarfile.open(fileobj=io.BytesIO(outer.read(INNER))) as inner:
            return {name: list(_rows(inner.extractfile(f"hutto_ICWSM_2014/{member}_GroundTruth.txt").read())) for name, member in MEMBERS.items()}
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, EOFError, OSError, ValueError, zlib.error) as error:
        raise BadInput(f"task: 'sentiment': the archive {PACKAGE} is cut or lacks a member: {error}") from None


def _rows(content: bytes) -> Iterator[tuple[str, float, str]]:
    for line in filter(None, content.decode("utf-8").split("\n")):  # the archive's own paper says latin-1; its bytes are UTF-8
        row, rating, sentence = line.removesuffix("\r").split("\t")
        yield row, float(rating), sentence.strip()


def split(sets: dict[str, list[tuple[str, float, str]]]) -> dict[str, list[tuple[str, str, str, str]]]:
    """The clear sentences, each once, labelled; TESTED of the films for prediction, one fixed choice, the others as the pool.

    A sentence that stands in the archive twice keeps its first rating.
    """
    import numpy as np

    clear = {}
    for name, rows in sets.items():
        first = {sentence: (row, rating) for row, rating, sentence in reversed(rows) if abs(rating) >= CLEAR}
        ordered = dict(reversed(first.items()))
        clear[name] = [(row, str(rating), sentence, "good" if rating > 0 else "bad") for sentence, (row, rating) in ordered.items()]
    films = clear.pop("films")
    tested = set(np.random.default_rng(0).permutation(len(films))[:TESTED].tolist())
    return {"pool": [row for i, row in enumerate(films) if i not in tested], "films": [row for i, row in enumerate(films) if i in tested], **clear}
