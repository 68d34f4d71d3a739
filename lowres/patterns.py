"""Where a pattern or an instruction has its places: `{premise} Question: {hypothesis}` has two."""

from __future__ import annotations

import string


def places(pattern: str) -> list[str]:
    """Their names, in order, each as often as it stands there. Raises ValueError if a brace is left open."""
    return [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
