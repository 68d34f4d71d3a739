"""The kinds of tasks: which there are, and which has no meaning with what. Each is a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowres.files import BadInput
from lowres.tasks.choices import MultipleChoice
from lowres.tasks.classification import Classification, Scale
from lowres.tasks.several import MultiLabel
from lowres.tasks.spans import Extraction
from lowres.tasks.tags import Tagging

if TYPE_CHECKING:
    import pandas as pd

    from lowres.tasks.task_file import TaskFile

SCALE = Scale()  # a classification whose file says `scale`
KINDS = {kind.name: kind for kind in (Classification(), MultiLabel(), MultipleChoice(), Extraction(), Tagging())}
FORMS = {kind.form: kind for kind in KINDS.values() if kind.form}  # by a label's type; an index of choices is drawn like any


def kind_of_file(spec: TaskFile) -> Classification | Extraction:
    """The kind that a task's file asks for."""
    return SCALE if spec.scale else KINDS[spec.kind]


def kind_of(rows: pd.DataFrame) -> Classification | Extraction:
    """The kind of a task whose rows these are, told by the form of their labels."""
    return FORMS.get(type(next(iter(rows["label"]), 0)), KINDS["classification"])


def refuse(kind: str, method: str, p) -> None:
    """Raises BadInput for a method, or a parameter's value, that has no meaning for tasks of this kind; of those that list no value, for any."""
    for key, values in KINDS[kind].without.items():
        asked = method if key == "method" else getattr(p, key, None)
        if asked and (not values or asked in values):
            what = f"method {asked}" if key == "method" else f"{key} = {asked}" if values else key
            raise BadInput(f"{what}: has no meaning yet for tasks of kind {kind}")
