"""What every method takes: one schema a method, with types, ranges and one line of help a parameter.

A method's parameters stand in three places that a test holds together: its schema here, its notebook's parameters
cell, and its file in `parameters/methods/`. All are flat, so that papermill and a person can set them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lowres.errors import BadInput, near

ROOT = Path(__file__).resolve().parent.parent  # the project: lowres is used from its clone

Fidelity = Literal["as_described", "as_coded"]
Words = Literal["label_words", "vocabulary"]


class Parameters(BaseModel):
    """What every method has. Defaults are for a first look: a small model, task and evaluation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

    model: str = Field("smollm2-135m", min_length=1, description="backbone: smollm2-135m, a folder, or a hub id[@revision]")
    task: str = Field("grammar", min_length=1, description="a file of parameters/tasks by its name, or by its path")
    data_dir: str = Field("", description="folder with the task's files; empty: the task's hub or embedded source")
    shots: int = Field(16, ge=1, description="labelled examples per class")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1], min_length=1, description="one trial each")
    max_length: int = Field(128, ge=8, description="tokens of an input; the longest text column of a longer one is cut")
    evaluation_rows: int = Field(200, ge=0, description="rows per evaluation set, one fixed stratified choice; 0: all")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 autocast where it is native")
    device: str = Field("auto", description="auto: the first GPU, else the CPU")
    output_dir: str = Field("", description="where trials and the record go; empty: nothing is kept")

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed stands twice: a copy is not a trial")
        return seeds

    @field_validator("output_dir")
    @classmethod
    def _papermill_can_write_there(cls, path: str) -> str:
        if "{" in path or "}" in path:
            raise ValueError("braces are not allowed: papermill would fill them in")
        return path


class Trained(Parameters):
    """What every method that trains has besides. Defaults are the paper's (arXiv 2405.13181)."""

    epochs: int = Field(40, ge=1, description="passes over the shots")
    batch_size: int = Field(32, ge=1, description="examples per optimizer step")
    learning_rate: float = Field(1.0e-5, gt=0, description="peak of the schedule")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="part of the steps that warms up, linearly; at least 1 step")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")


class Vanilla(Trained):
    """A new linear head on the last token; every weight trains."""

    fidelity: Fidelity = Field("as_described", description="as_coded: the authors' schedule, quirk by quirk")


class PBFT(Trained):
    """A pattern and label words, scored by the language-model head; no new weights."""

    pattern: str = Field("", description="a pattern of the task file by its name; empty: its first")
    label_words: str = Field("", description="label words of the task file by their name; empty: its first")
    loss: Words = Field("label_words", description="the softmax is over the label words, or the whole vocabulary")
    fidelity: Fidelity = Field("as_described", description="as_coded: a new random head on the authors' prompted input")


METHODS: dict[str, type[Parameters]] = {"vanilla": Vanilla, "pbft": PBFT}

# Parameters that say where and on what to compute, not what: they change no result that is compared.
WHEREABOUTS = {"data_dir", "output_dir", "device", "seeds", "precision"}


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML mapping by the safe loader. Raises BadInput if it is missing, malformed, or no mapping."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{shown(path)}: there is no such file{near(path.stem, [p.stem for p in path.parent.glob('*.yaml')])}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{shown(path)}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{shown(path)}: a mapping of keys to values is wanted, not {type(content).__name__}")
    return content


def validated(method: str, values: dict[str, Any], where: str) -> Parameters:
    """A method's parameters, checked. Raises BadInput naming `where`, the key and the value."""
    if method not in METHODS:
        raise BadInput(f"{where}: method: {method!r} is not a method{near(method, METHODS)}")
    return checked(METHODS[method], values, where)


def checked(schema: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """`values` as a `schema`; the first fault becomes one readable sentence."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {_sentence(error.errors()[0], schema)}") from None


def _sentence(fault: dict[str, Any], schema: type[BaseModel]) -> str:
    key = ".".join(map(str, fault["loc"])) or "file"
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{near(fault['loc'][-1], schema.model_fields)}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    if isinstance(value, str) and fault["type"].startswith(("float", "int")):
        reason += "; YAML reads this as text" + (": write 1.0e-5, not 1e-5" if "e" in value.lower() else "")
    return f"{key}: {value!r} is not accepted: {reason[0].lower()}{reason[1:]}"


def shown(path: Path | str) -> str:
    """A path as it may be printed or stored: inside the project relative to it, in the home folder with `~`."""
    path = Path(path).expanduser().absolute()
    for base, name in ((ROOT, ""), (ROOT.parent, "../"), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return name + path.relative_to(base).as_posix()
    return path.as_posix()


def located(path: str) -> Path:
    """The other way round: a stored path, relative to the project unless it is absolute."""
    return (ROOT / Path(path).expanduser()).resolve()


def defaults(method: str) -> dict[str, Any]:
    """The method's parameter file, checked against its schema."""
    path = ROOT / "parameters" / "methods" / f"{method}.yaml"
    return validated(method, read_yaml(path), shown(path)).model_dump()
