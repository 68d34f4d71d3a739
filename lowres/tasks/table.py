"""A file of rows, as people have them -> a table with exactly as many rows as the file has, or a sentence with file, line and what to do.

Text files may be comma-, semicolon-, bar- or tab-separated, in UTF-8 (with or without a mark), UTF-16 or Windows-1252; quoted as spreadsheets
quote, or not at all where they are tab-separated. What was guessed is among the notes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowres.files import BadInput, near, shown

if TYPE_CHECKING:
    import pandas as pd


DELIMITED = (".tsv", ".csv", ".txt")
FORMATS = (*DELIMITED, ".jsonl", ".json", ".parquet", ".xlsx")
DELIMITERS = ("\t", ",", ";", "|")


@dataclass
class Table:
    """Rows as they stand in a file; `lines` says where each begins, as an editor counts, in a file that has lines."""

    where: str
    frame: pd.DataFrame
    lines: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)
    of_text: bool = False  # every cell is text, as it is in a file that knows nothing else

    def place(self, row: int) -> str:
        return f"row {row} (line {self.lines[row]})" if len(self.lines) else f"row {row}"

    def text(self, column: str) -> pd.Series:
        """A column as text, None where a cell is empty. Raises BadInput for a column that is not there, or a cell that holds several things."""
        if column not in self.frame:
            raise BadInput(f"{self.where}: column {column!r} is missing{near(column, self.frame.columns)}")
        values = self.frame[column]
        if self.of_text or all(type(value) is str for value in values):
            return values
        return values.__class__([self._cell(value, i, column) for i, value in enumerate(values)], index=values.index, dtype=object)

    def _cell(self, value: Any, i: int, column: str) -> str | None:
        """One rule for what is no text: booleans as JSON writes them, whole numbers without a point, null as empty."""
        value = value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
        if value is None or value != value:
            return None
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if isinstance(value, (list, dict, tuple, set)) or hasattr(value, "__array__"):
            raise BadInput(f"{self.where}: {column}: {self.place(i)} holds a {type(value).__name__}: one text or number is wanted")
        return str(value)


def read_table(path: Path, wanted: Sequence[str] = ()) -> Table:
    """A file as a table. `wanted`: columns that are looked for, which tell delimiters apart. Raises BadInput for one that is damaged."""
    kind = path.suffix.lower()
    try:
        if kind in DELIMITED:
            return _delimited(path, *_decoded(path), wanted)
        if kind in (".jsonl", ".json"):
            return _json(path, *_decoded(path))
        return _binary(path, kind)
    except (ValueError, OSError) as error:  # whatever readers raise
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{shown(path)}: not readable as {kind[1:]}: {' '.join(str(error).split())}") from None


def _decoded(path: Path) -> tuple[str, list[str]]:
    """A file's text and, where that is not UTF-8, which encoding was taken."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), [f"{path.name}: read as UTF-16"]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        try:
            return content.decode("cp1252"), [f"{path.name}: read as Windows-1252, since line {line} is not UTF-8"]
        except UnicodeDecodeError:
            raise BadInput(f"{shown(path)}: line {line} is neither UTF-8 nor Windows-1252: save the file as UTF-8") from None


def _delimited(path: Path, text: str, notes: list[str], wanted: Sequence[str]) -> Table:
    text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    if not text.strip():
        raise BadInput(f"{shown(path)}: not readable as {path.suffix[1:]}: No columns: the file is empty")
    delimiter = _delimiter(path, text[: text.find("\n")] if "\n" in text else text, wanted)
    if delimiter != _usual(path):
        notes.append(f"{path.name}: its columns are parted by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    if delimiter != "\t" or _quoted(text):
        if delimiter == "\t":
            notes.append(f"{path.name}: its cells are quoted, as spreadsheets do")
        rows, lines = _rows_without_quotes(path, text, delimiter, notes)
    else:
        numbered = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line]
        lines, rows = [number for number, _ in numbered], [row for _, row in numbered]
    return _as_table(path, rows, lines, notes, delimiter)


def _delimiter(path: Path, header: str, wanted: Sequence[str]) -> str:
    """The one by which the header has the most of the columns that are wanted; then what the file's name says; where nothing is wanted, the one
    that makes the most columns."""
    def fits(delimiter: str) -> tuple[int, int, bool]:
        names = [name.strip().strip('"') for name in header.split(delimiter)]
        return len(set(names) & set(wanted)), 0 if wanted else len(names), delimiter == _usual(path)

    return max(DELIMITERS, key=fits)


def _usual(path: Path) -> str:
    """What a file's name says of its delimiter."""
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _quoted(text: str) -> bool:
    """Whether a tab-separated file is a spreadsheet's: every cell with a quotation mark in it is quoted from end to end, or, around a line break in
    it, only opens or only closes, as many the one as the other."""
    found = {"whole": 0, "opens": 0, "closes": 0}
    for line in text.split("\n") if '"' in text else ():
        for cell in line.split("\t") if '"' in line else ():
            if '"' in cell:
                kind = _quoting(cell)
                if not kind:
                    return False
                found[kind] += 1
    return sum(found.values()) > 0 and found["opens"] == found["closes"]


def _quoting(cell: str) -> str:
    """How a cell with a quotation mark is quoted: whole, opens, closes; '' where the mark is a character like others."""
    def plain(inside: str) -> bool:
        return '"' not in inside.replace('""', "")

    if len(cell) > 1 and cell[0] == cell[-1] == '"' and plain(cell[1:-1]):
        return "whole"
    return "opens" if cell[0] == '"' and plain(cell[1:]) else "closes" if cell[-1] == '"' and plain(cell[:-1]) else ""


def _rows_without_quotes(path: Path, text: str, delimiter: str, notes: list[str]) -> tuple[list[list[str]], list[int]]:
    """Rows of a file that quotes, and the line each begins in; `notes` gets a word on a cell that has swallowed what looks like rows."""
    rows, lines, longer, begun = [], [], [], 1
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begun)
                if reader.line_num > begun:
                    longer.append((begun, reader.line_num, [line for cell in row for line in cell.split("\n")[:-1]]))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{shown(path)}: line {begun}: a quotation mark is not closed, or stands inside a cell ({error}): one that stands for itself "
                       "is written twice, within a quoted cell") from None
    last = {row[-1] for row in rows[1:]}
    for first, end, inside in longer:
        if any(line.count(delimiter) == len(rows[0]) - 1 > 0 and line.rsplit(delimiter, 1)[-1] in last for line in inside):
            notes.append(f"{path.name}: lines {first} to {end} are one row, since a cell is quoted from one to the other, and hold what look "
                         "like rows of their own: is a quotation mark left open?")
    return rows, lines


def _lines(text: str) -> Iterator[str]:
    """A text's lines with their ends, one at a time (an io.StringIO takes four bytes a character)."""
    start = 0
    while end := text.find("\n", start) + 1:
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _as_table(path: Path, rows: list[list[str]], lines: list[int], notes: list[str], delimiter: str) -> Table:
    import pandas as pd

    header = rows[0]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise BadInput(f"{shown(path)}: column {twice!r} stands twice in the header")
    kept = [i for i, row in enumerate(rows) if any(row)]
    if len(kept) < len(rows):
        notes.append(f"{path.name}: {len(rows) - len(kept)} rows without anything in them are left out")
        rows, lines = [rows[i] for i in kept], [lines[i] for i in kept]
    for line, row in zip(lines, rows):
        if len(row) != len(header):
            name = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}[delimiter]
            fields = f"{len(row)} field" + "s" * (len(row) != 1)
            raise BadInput(f"{shown(path)}: line {line} has {fields}, the header has {len(header)} ({', '.join(header)[:80]}): "
                           f"a cell with a {name} in it is put in quotation marks")
    return Table(shown(path), pd.DataFrame(rows[1:], columns=header, dtype=object), lines[1:], notes, of_text=True)


def _json(path: Path, text: str, notes: list[str]) -> Table:
    """A JSON object a line, or one list of objects."""
    import pandas as pd

    if text.lstrip().startswith("["):
        found = _parsed(path, text, 1)
        records, lines = found, range(1, len(found) + 1)
    else:
        numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records, lines = [_parsed(path, line, number) for number, line in numbered], [number for number, _ in numbered]
    for line, record in zip(lines, records):
        if not isinstance(record, dict):
            raise BadInput(f"{shown(path)}: line {line} is no JSON object: {{\"text\": …, \"label\": …}} is wanted")
    columns = list(dict.fromkeys(key for record in records for key in record))
    data = {column: pd.Series([record.get(column) for record in records], dtype=object) for column in columns}
    return Table(shown(path), pd.DataFrame(data), lines, notes)


def _parsed(path: Path, text: str, line: int) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise BadInput(f"{shown(path)}: not readable as {path.suffix[1:]}: line {line}: {error}") from None


def _binary(path: Path, kind: str) -> Table:
    import pandas as pd

    notes: list[str] = []
    if kind == ".parquet":
        frame = pd.read_parquet(path)
    else:
        try:
            sheets = pd.read_excel(path, sheet_name=None, dtype=object, keep_default_na=False, na_values=[""])
        except ImportError:
            raise BadInput(f"{shown(path)}: .xlsx wants the package openpyxl: pip install openpyxl, or save it as .csv") from None
        except Exception as error:  # a zip archive has many ways to be damaged
            raise ValueError(error) from None
        (name, frame), *others = sheets.items()
        notes += [f"{path.name}: of {len(sheets)} sheets the first is read, {name!r}"] if others else []
    lines = () if kind == ".parquet" else range(2, len(frame) + 2)  # a sheet's header is its first row
    return Table(shown(path), frame.reset_index(drop=True).astype(object), lines, notes)
