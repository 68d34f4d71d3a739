"""The figures of an executed analysis as files of the site, with the words that stand for them."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

from nbformat import NotebookNode

FIRST = ("shots-", "in_against_out-", "cost-")  # of the front page; the analysis page has all


def figures_shown(analysis: NotebookNode, figures: Path, site: Path) -> list[dict[str, str]]:
    """The front page's figures as the analysis shows them now, copied into the site's folder: address and alternative text.

    A file in the study's folder of `figures` counts if the notebook shows the very same picture: others are an earlier analysis's.
    """
    files = {path.read_bytes(): path for path in sorted(figures.glob("*.png"))}
    found = []
    for cell in analysis.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            path = files.get(base64.b64decode(picture)) if picture else None
            if path is None or not path.name.startswith(FIRST):
                continue
            drawn = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
            (site / "figures").mkdir(exist_ok=True)
            shutil.copyfile(drawn, site / "figures" / drawn.name)
            found.append({"address": f"figures/{drawn.name}", "alt": output.get("metadata", {}).get("image/png", {}).get("alt", path.stem)})
    return found
