"""A file of rows, as people have them -> a table with exactly as many rows as the file has, or a sentence with file, line and what to do.

Text files may be comma-, semicolon-, bar- or tab-separated, in UTF-8 (with or without a mark), UTF-16 or Windows-1252; quoted as spreadsheets
quote, or not at all where they are tab-separated. What was guessed is among the notes. A file of any length can be read piece by piece.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowres.files import BadInput, near, shown

if TYPE_CHECKING:
    import pandas as pd


DELIMITED = (".tsv", ".csv", ".txt")
FORMATS = (*DELIMITED, ".jsonl", ".json", ".parquet", ".xlsx")
DELIMITERS = ("\t", ",", ";", "|")
NO_OBJECT = 'no JSON object: {"text": …, "label": …} is wanted'
csv.field_size_limit(2**24)  # characters of a cell


@dataclass
class Table:
    """Rows as they stand in a file; `lines` says where each begins, as an editor counts, in a file that has lines."""

    where: str
    frame: pd.DataFrame
    lines: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)
    of_text: bool = False  # every cell is text, as it is in a file that knows nothing else
    start: int = 0  # rows of the file before these
    odd: dict[int, str] = field(default_factory=dict)  # rows that do not fit, by their place in the frame, and why
    marks: bool = False  # such rows are marked in `odd` instead of being refused

    def place(self, row: int) -> str:
        return f"row {row + self.start} (line {self.lines[row]})" if len(self.lines) else f"row {row + self.start}"

    def text(self, column: str, between: str = "") -> pd.Series:
        """A column as text, None where a cell is empty; lists of texts are joined by `between`, if that is given.

        Raises BadInput for a column that is not there, or a cell that holds several things besides.
        """
        if column not in self.frame:
            raise BadInput(f"{self.where}: column {column!r} is missing{near(column, self.frame.columns)}")
        values = self.frame[column]
        if self.of_text or all(type(value) is str for value in values):
            return values
        if between:
            values = values.map(lambda value: _joined(value, between))
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
            self.odd[i] = f"{column}: {self.place(i)} holds a {type(value).__name__}: one text or number is wanted"
            self.refuse_odd()
            return None
        return str(value)

    def refuse_odd(self) -> None:
        if self.odd and not self.marks:
            raise BadInput(f"{self.where}: {next(iter(self.odd.values()))}")


def _joined(value: Any, between: str) -> Any:
    """A list of texts, none of which has `between` in it, as one; whatever else as it is."""
    parts = value.tolist() if hasattr(value, "tolist") else value
    return between.join(parts) if isinstance(parts, list) and all(isinstance(part, str) and between not in part for part in parts) else value


def read_table(path: Path, wanted: Sequence[str] = ()) -> Table:
    """A file as a table. `wanted`: columns that are looked for, which tell delimiters apart. Raises BadInput for one that is damaged."""
    return next(_pieces(path, wanted, 0))


def pieces(path: Path, wanted: Sequence[str], size: int) -> Iterator[Table]:
    """A file as tables of `size` rows, in constant memory (but for .xlsx, lists in .json and the line ends of old Macs). A row that does not fit is
    marked, not refused; a file that cannot be parted into rows raises BadInput."""
    start = 0
    for table in _pieces(path, wanted, size):
        table.start, start = start, start + len(table.frame)
        yield table


def _pieces(path: Path, wanted: Sequence[str], size: int) -> Iterator[Table]:
    kind = path.suffix.lower()
    try:
        tables = _delimited(path, wanted, size) if kind in DELIMITED else _json(path, size) if "json" in kind else _binary(path, kind, size)
        for table in tables:
            table.marks = bool(size)
            table.refuse_odd()
            yield table
    except (ValueError, OSError) as error:  # whatever readers raise
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{shown(path)}: not readable as {kind[1:]}: {' '.join(str(error).split())}") from None


def _encoding(path: Path) -> tuple[str, list[str]]:
    """A file's encoding and, where that is not UTF-8, a note on it."""
    with path.open("rb") as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16", [f"{path.name}: read as UTF-16"]
    if not (line := _first_line_not_in("utf-8", path)):
        return "utf-8-sig", []
    if _first_line_not_in("cp1252", path):
        raise BadInput(f"{shown(path)}: line {line} is neither UTF-8 nor Windows-1252: save the file as UTF-8")
    return "cp1252", [f"{path.name}: read as Windows-1252, since line {line} is not UTF-8"]


def _first_line_not_in(encoding: str, path: Path) -> int:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 0


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """A file's lines, each with its end, those of Windows and of an old Mac as \\n."""
    with path.open(encoding=encoding, newline="\n") as stream:
        old = not (first := stream.readline()).endswith("\n") and "\r" in first
    with path.open(encoding=encoding, newline="\r" if old else "\n") as stream:
        for line in stream:
            yield line.replace("\r", "\n") if old else line.replace("\r\n", "\n")


def _delimited(path: Path, wanted: Sequence[str], size: int) -> Iterator[Table]:
    encoding, notes = _encoding(path)
    first = next((line for line in _lines(path, encoding) if line.strip()), "")
    if not first:
        raise BadInput(f"{shown(path)}: not readable as {path.suffix[1:]}: No columns: the file is empty")
    delimiter = _delimiter(path, first.removesuffix("\n"), wanted)
    if delimiter != _usual(path):
        notes.append(f"{path.name}: its columns are parted by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    quotes = delimiter != "\t" or _quoted(_lines(path, encoding))
    if quotes and delimiter == "\t":
        notes.append(f"{path.name}: its cells are quoted, as spreadsheets do")
    rows = _rows(path, _lines(path, encoding), delimiter, quotes)
    header = next(rows)[2]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise BadInput(f"{shown(path)}: column {twice!r} stands twice in the header")
    for piece in _parted(rows, size):
        yield _as_table(path, header, piece, notes + _swallowed(path, header, piece, delimiter), delimiter)
        notes = []


def _parted(rows: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` (0: of all), at least one."""
    yield list(islice(rows, size or None))
    while more := list(islice(rows, size or None)):
        yield more


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


def _quoted(lines: Iterator[str]) -> bool:
    """Whether a tab-separated file is a spreadsheet's: every cell with a quotation mark in it is quoted from end to end, or, around a line break in
    it, only opens or only closes, as many the one as the other."""
    found = {"whole": 0, "opens": 0, "closes": 0}
    for line in lines:
        for cell in line.removesuffix("\n").split("\t") if '"' in line else ():
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


def _rows(path: Path, lines: Iterator[str], delimiter: str, quotes: bool) -> Iterator[tuple[int, int, list[str]]]:
    """Each row, behind the first and the last line that it stands in."""
    if not quotes:
        for number, line in enumerate(lines, 1):
            if line := line.removesuffix("\n"):
                yield number, number, line.split(delimiter)
        return
    begun, reader = 1, csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield begun, reader.line_num, row
            begun = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{shown(path)}: line {begun}: a quotation mark is not closed, or stands inside a cell ({error}): one that stands for itself "
                       "is written twice, within a quoted cell") from None


def _swallowed(path: Path, header: list[str], rows: list[tuple[int, int, list[str]]], delimiter: str) -> list[str]:
    """A word on each cell that has swallowed what looks like rows."""
    longer, notes = [row for row in rows if row[1] > row[0]], []
    last = {row[-1] for *_, row in rows} if longer else ()
    for first, end, row in longer:
        inside = [line for cell in row for line in cell.split("\n")[:-1]]
        if any(line.count(delimiter) == len(header) - 1 > 0 and line.rsplit(delimiter, 1)[-1] in last for line in inside):
            notes.append(f"{path.name}: lines {first} to {end} are one row, since a cell is quoted from one to the other, and hold what look "
                         "like rows of their own: is a quotation mark left open?")
    return notes


def _as_table(path: Path, header: list[str], rows: list[tuple[int, int, list[str]]], notes: list[str], delimiter: str) -> Table:
    import pandas as pd

    kept, odd, width = [(line, row) for line, _, row in rows if any(row)], {}, len(header)
    if len(kept) < len(rows):
        notes.append(f"{path.name}: {len(rows) - len(kept)} rows without anything in them are left out")
    cells = [row[:width] + [""] * (width - len(row)) for _, row in kept]
    for i, (line, row) in enumerate(kept):
        if width == 1:  # then no comma parts anything
            cells[i] = [delimiter.join(row)]
        elif len(row) != width:
            name = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}[delimiter]
            fields = f"{len(row)} field" + "s" * (len(row) != 1)
            odd[i] = (f"line {line} has {fields}, the header has {width} ({', '.join(header)[:80]}): a cell with a {name} in it is put in quotation "
                      "marks")
            cells[i] = [*row[: width - 1], delimiter.join(row[width - 1 :])] if any(row[width:]) else cells[i]
    return Table(shown(path), pd.DataFrame(cells, columns=header, dtype=object), [line for line, _ in kept], notes, of_text=True, odd=odd)


def _json(path: Path, size: int) -> Iterator[Table]:
    """A JSON object a line, or one list of objects."""
    import pandas as pd

    encoding, notes = _encoding(path)
    first = next((line for line in _lines(path, encoding) if line.strip()), "")
    records = lambda: ((number, *_object(line)) for number, line in enumerate(_lines(path, encoding), 1) if line.strip())
    if first.lstrip().startswith("["):
        found, why = _parsed("".join(_lines(path, encoding)))
        if not isinstance(found, list):
            raise BadInput(f"{shown(path)}: not readable as {path.suffix[1:]}: line 1: {why}")
        records = lambda: ((number, record, why or NO_OBJECT * (not isinstance(record, dict))) for number, record in enumerate(found, 1))
    columns = list(dict.fromkeys(key for _, record, _ in records() if isinstance(record, dict) for key in record)) if size else []
    for piece in _parted(records(), size):
        odd = {i: f"line {line} is {why}" if why.startswith(NO_OBJECT) else f"not readable as {path.suffix[1:]}: line {line}: {why}"
               for i, (line, _, why) in enumerate(piece) if why}
        objects = [record if isinstance(record, dict) else {} for _, record, _ in piece]
        names = columns or dict.fromkeys(key for record in objects for key in record)
        if not names:
            raise BadInput(f"{shown(path)}: {next(iter(odd.values()), 'the file is empty')}")
        data = {name: pd.Series([record.get(name) for record in objects], dtype=object) for name in names}
        yield Table(shown(path), pd.DataFrame(data, index=range(len(piece))), [line for line, *_ in piece], notes, odd=odd)
        notes = []


def _object(line: str) -> tuple[Any, str]:
    """What a line says, and what is wrong with it: with the line itself, where that is in no column."""
    record, why = _parsed(line)
    if isinstance(record, dict):
        return record, why
    return None, f"{why or NO_OBJECT}: {line.strip()}"


def _parsed(text: str) -> tuple[Any, str]:
    """What a text of JSON says, and what is wrong with it."""
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return None, str(error)
    if "\\ud" in text.lower():
        told = json.dumps(found, ensure_ascii=False)
        if (whole := told.encode("utf-8", "replace").decode()) != told:
            return json.loads(whole), "half a character (an escape from \\ud800 on, alone) is written as a question mark"
    return found, ""


def _binary(path: Path, kind: str, size: int) -> Iterator[Table]:
    import pandas as pd

    if kind == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            for part in file.iter_batches(size) if size and file.metadata.num_rows else [file.read()]:
                frame = part.to_pandas(ignore_metadata=True, integer_object_nulls=True)  # an index is a column, and whole numbers stay whole
                yield Table(shown(path), frame[[name for name in frame if not str(name).startswith("__index_level_")]].astype(object))
        return
    try:
        sheets = pd.read_excel(path, sheet_name=None, dtype=object, keep_default_na=False, na_values=[""])
    except ImportError:
        raise BadInput(f"{shown(path)}: .xlsx wants the package openpyxl: pip install openpyxl, or save it as .csv") from None
    except Exception as error:  # a zip archive has many ways to be damaged
        raise ValueError(error) from None
    (name, frame), *others = sheets.items()
    notes = [f"{path.name}: of {len(sheets)} sheets the first is read, {name!r}"] if others else []
    lines, size = range(2, len(frame) + 2), size or max(len(frame), 1)  # a sheet's header is its first row
    for start in range(0, max(len(frame), 1), size):
        part = slice(start, start + size)
        yield Table(shown(path), frame.iloc[part].reset_index(drop=True).astype(object), lines[part], [] if start else notes)
