"""The hub: what it refuses as a sentence, and a data set at the revision that a task file names."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowres.files import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.task_file import Hub


def split_revision(name: str) -> tuple[str, str | None]:
    """'facebook/opt-125m@27dcfa7' -> ('facebook/opt-125m', '27dcfa7')."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def without_bars() -> None:
    """Downloads draw bars on a terminal alone: a notebook that is executed would keep them."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def unfetched(what: str, kind: str, name: str, error: Exception) -> BadInput:
    """Why the hub's `kind` ('model', 'dataset') was not fetched, as one sentence. Its clients wrap and drop the cause, so the hub itself is asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    repository, revision = split_revision(name)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    try:
        HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=10)
    except RevisionNotFoundError:
        reason = "the hub has no such revision of it (404)"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set, and there is no copy of it here"
    except ValueError as told:  # no hub's name
        reason = " ".join(str(told).split())
    except Exception as told:
        status = getattr(getattr(told, "response", None), "status_code", None)
        reason = _said(status) if status else f"the hub cannot be reached ({type(told).__name__}), and there is no copy of it here"
    return BadInput(f"{what}: {name!r} could not be fetched from the hub: {reason}")


def _said(status: int) -> str:
    """What an answer of the hub's means to a reader."""
    known = {401: "asks for a login (401): nothing of that name is there, or it is private", 403: "gives no access (403): its page says how to ask",
             404: "does not have it (404)", 429: "has been asked too often (429): try again in some minutes"}
    return f"the hub {known.get(status, f'is out of order ({status}): try again later' if status >= 500 else f'refuses ({status})')}"


def from_hub(hub: Hub) -> pd.DataFrame:
    """A split of a data set on the hub, its labels by their names. Raises BadInput for what cannot be had at this revision."""
    from datasets import ClassLabel

    builder = _fetched(hub)
    try:
        data = builder.as_dataset(split=hub.split)
    except ValueError as error:
        raise BadInput(f"data set: {hub.id!r}: split: {' '.join(str(error).split())}") from None
    frame = data.to_pandas()
    for column, feature in data.features.items():
        if isinstance(feature, ClassLabel):  # numbers on the hub: their names are what a task file speaks of
            frame[column] = frame[column].map(lambda i, feature=feature: feature.names[i] if i >= 0 else "unlabelled")
    return frame


def _fetched(hub: Hub):
    """What reads a data set, all of which is at hand. A copy of this revision is read without the hub, which is asked where a branch stands alone:
    `datasets` would try for 23 seconds to reach one that does not answer, and then take the copy that it used last, of whatever revision."""
    from datasets import disable_progress_bars, load_dataset_builder
    from datasets.config import HF_DATASETS_CACHE
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    without_bars()
    if not sys.stderr.isatty():
        disable_progress_bars()
    owner, _, name = hub.id.rpartition("/")
    place = Path(HF_DATASETS_CACHE, "___".join(filter(None, (owner, camelcase_to_snakecase(name)))))
    try:
        copies = [file.parent for file in place.glob(f"{hub.config or 'default'}/*/{_commit(hub)}/dataset_info.json")]
        if len(copies) == 1:
            *_, config, version, commit = copies[0].parts
            return Cache(repo_id=hub.id, dataset_name=name, config_name=config, version=version, hash=commit)
        builder = load_dataset_builder(hub.id, hub.config, revision=hub.revision)
        if isinstance(builder, Cache):
            raise LookupError(f"the copy here is of another revision, {builder.hash}")
        builder.download_and_prepare()
        return builder
    except Exception as error:  # of a dozen kinds
        raise unfetched("data set", "dataset", f"{hub.id}@{hub.revision}", error) from None


def _commit(hub: Hub) -> str:
    """The commit that a revision names; of a branch, where the hub does not answer, the one that it stood at when it was last fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    if re.fullmatch("[0-9a-f]{40}", hub.revision):
        return hub.revision
    try:
        return HfApi().dataset_info(hub.id, revision=hub.revision, timeout=10).sha
    except Exception:  # what is wrong is told if there is no copy either
        branch = Path(HF_HUB_CACHE, f"datasets--{hub.id.replace('/', '--')}", "refs", hub.revision)
        return branch.read_text() if branch.is_file() else hub.revision
