"""The one exception a user is meant to read: bad input, told in a sentence."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """One sentence naming the file, the key and the value at fault. Nothing has been written when it is raised."""


def near(word: str, choices: Iterable[str]) -> str:
    """' (did you mean "shots"?)' for a misspelt word, else the choices there are."""
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(str(word), choices, n=3, cutoff=0.6)
    if close:
        return " (did you mean " + " or ".join(f'"{name}"' for name in close) + "?)"
    return f" (there are: {', '.join(choices)})" if choices else ""
