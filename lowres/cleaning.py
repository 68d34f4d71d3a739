"""An executed notebook as it is kept: small, and with nothing of this machine or its owner in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat

from lowres.files import ROOT

MOST = 200_000  # characters of one output's text, and
MOST_IMAGE = 2_000_000  # of one image; what is larger gives way to a line that says so
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.I)


def cleaned(notebook: Path, **marks: str) -> str:
    """Without papermill's metadata (it breaks diff tools), outputs that are too long, paths, and secrets; `marks` go into its metadata."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    if marks:
        content.metadata["lowres"] = marks
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _shorten(output)
    return without_secrets(nbformat.writes(content, indent=1)) + "\n"


def _shorten(output) -> None:
    if output.output_type == "stream" and len(output.text) > MOST:
        output.text = output.text[:MOST] + f"\n[lowres: {len(output.text) - MOST:,} more characters are not kept]\n"
    for form, content in output.get("data", {}).items():
        length = len(content) if isinstance(content, str) else len(str(content))
        if length > (MOST_IMAGE if form.startswith("image/") else MOST):
            output.data[form] = f"[lowres: {length:,} characters of {form} are not kept]"


def without_secrets(text: str) -> str:
    """No folder of this machine, and no value of an environment variable whose name says that it is a secret."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6 and not value.isdigit():
            text = text.replace(value, f"<{name}>")
    for folder, name in ((ROOT, "."), (Path.home(), "~")):
        if len(folder.parts) > 1:  # a home folder may be /
            text = text.replace(str(folder), name)
    return text
