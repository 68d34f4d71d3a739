"""Files as people have them are read whole, row by row, or refused in a sentence with the line and what to do. Nothing is changed in silence."""

import json
import re
import tracemalloc
from itertools import product

import pandas as pd
import pytest
import yaml

from lowres.files import BadInput
from lowres.models.batches import encode
from lowres.runs.checks import check_file, forget_files
from lowres.tasks.load import load_task
from lowres.tasks.table import pieces, read_table

ROWS = [(f"{what} was {how} {when}", label) for when in ("on Monday", "in May", "today") for what in ("The soup", "Our room", "The guide")
        for how, label in (("lovely", "praise"), ("cold", "complaint"))]
TEST = [("The lamp was lovely in June", "praise"), ("The lamp was cold in June", "complaint")]


def delimited(rows, by: str = ",", header=("text", "label"), end: str = "\n") -> str:
    return end.join([by.join(header), *(by.join(row) for row in rows)]) + end


def jsonl(rows, **more) -> str:
    return "".join(json.dumps({"text": text, "label": label, **more}) + "\n" for text, label in rows)


@pytest.fixture
def asked(tmp_path):
    """Writes a pool in some form beside a plain test set, and a task file; keys that are given change the task."""
    def make(name: str, content: str | bytes, **changes) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "test.tsv").write_text(delimited(changes.pop("test", TEST), "\t", changes.pop("header", ("text", "label"))))
        task = {"name": "mine", "version": 1, "description": "a guest's note", "folder": ".", "text": ["text"], "labels": ["complaint", "praise"],
                "pool": {"file": "train"}, "evaluation": {"test": {"domain": "in", "file": "test"}},
                "patterns": {"plain": "{text}", "was": "{text} It was"}, "label_words": {"w": {"complaint": " bad", "praise": " good"}}}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(task | changes))
        forget_files()
        return str(file)
    return make


QUOTED = [(f'"{text.replace("was", chr(34) * 2 + "was" + chr(34) * 2)}"', label) for text, label in ROWS]
FINE = {
    "csv": ("train.csv", delimited(ROWS), ""),
    "csv with a mark": ("train.csv", "\ufeff" + delimited(ROWS), ""),
    "csv as Excel writes it in half of Europe": ("train.csv", "\ufeff" + delimited(ROWS, ";", end="\r\n"), "parted by ';'"),
    "csv of tabs": ("train.csv", delimited(ROWS, "\t"), "parted by tabs"),
    "csv with Windows line ends": ("train.csv", delimited(ROWS, end="\r\n"), ""),
    "csv of an old Mac": ("train.csv", delimited(ROWS, end="\r"), ""),
    "csv in UTF-16": ("train.csv", delimited(ROWS).encode("utf-16"), "read as UTF-16"),
    "csv with quoted cells": ("train.csv", delimited(QUOTED), ""),
    "csv with blank lines at its end": ("train.csv", delimited(ROWS) + "\n\n", ""),
    "csv with empty rows at its end": ("train.csv", delimited(ROWS) + ",\n,\n", "2 rows without anything in them are left out"),
    "csv by an upper-case name": ("train.CSV", delimited(ROWS), ""),
    "bars": ("train.txt", delimited(ROWS, "|"), "parted by '|'"),
    "txt of tabs": ("train.txt", delimited(ROWS, "\t"), "parted by tabs"),
    "tsv": ("train.tsv", delimited(ROWS, "\t"), ""),
    "tsv with a mark": ("train.tsv", "\ufeff" + delimited(ROWS, "\t"), ""),
    "tsv as a spreadsheet quotes it": ("train.tsv", delimited(QUOTED, "\t"), "cells are quoted"),
    "jsonl": ("train.jsonl", jsonl(ROWS), ""),
    "jsonl with a mark": ("train.jsonl", "\ufeff" + jsonl(ROWS), ""),
    "jsonl with lists that are not asked for": ("train.jsonl", jsonl(ROWS, who=["a", {"b": 1}]), ""),
    "one list of objects": ("train.json", "[" + ",\n".join(jsonl(ROWS).splitlines()) + "]", ""),
}


@pytest.mark.parametrize("form", FINE)
def test_whatever_the_form_the_rows_are_the_same(asked, form):
    name, content, said = FINE[form]
    task = load_task(asked(name, content))
    assert list(task.pool["text"].str.replace('"', "")) == [text for text, _ in ROWS]
    assert list(task.pool["label"]) == [int(label == "praise") for _, label in ROWS] and list(task.pool.index) == list(range(len(ROWS)))
    assert any(said in sentence for sentence in task.warnings) if said else not task.warnings, task.warnings


def test_parquet_may_have_categories_and_an_index_of_any_order(asked, tmp_path):
    frame = pd.DataFrame(ROWS, columns=["text", "label"]).astype({"label": "category"}).sample(frac=1, random_state=0)
    frame.to_parquet(tmp_path / "train.parquet")
    assert list(load_task(asked("other.txt", "")).pool["text"]) == list(frame["text"])


def test_a_sheet_of_excel_is_read_where_openpyxl_is(asked, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is optional")
    book = openpyxl.Workbook()
    for row in [("text", "label"), *ROWS]:
        book.active.append(row)
    book.save(tmp_path / "train.xlsx")
    assert len(load_task(asked("other.txt", "")).pool) == len(ROWS)


def test_a_file_in_windows_1252_is_read_and_said_so(asked):
    task = load_task(asked("train.csv", delimited([("The café was cold", "complaint"), *ROWS]).encode("cp1252")))
    assert task.pool["text"][0] == "The café was cold" and "read as Windows-1252, since line 2" in task.warnings[0]


REFUSED = {
    "a comma too many": ("train.csv", delimited([*ROWS[:3], ("The, soup", "praise"), *ROWS[3:]]),
                         "line 5 has 3 fields, the header has 2 .*quotation marks"),
    "a comma too many in every row": ("train.csv", delimited([(f"The, {text}", label) for text, label in ROWS]), "line 2 has 3 fields"),
    "a comma at every end": ("train.csv", "text,label\n" + "".join(f"{text},{label},\n" for text, label in ROWS), "line 2 has 3 fields"),
    "a tab within a text": ("train.tsv", delimited([*ROWS[:3], ("The\tsoup", "praise")], "\t"), "line 5 has 3 fields.*a tab in it"),
    "a row that is cut": ("train.tsv", delimited(ROWS, "\t") + "The soup\n", "line 20 has 1 field, the header has 2"),
    "a quotation mark that nothing closes": ("train.csv", delimited([*ROWS[:2], ('"The soup', "praise"), *ROWS[2:]]),
                                             "line 4: a quotation mark is not closed"),
    "a quotation mark within a cell": ("train.csv", delimited([*ROWS[:2], ('"The" soup', "praise"), *ROWS[2:]]), "line 4: a quotation mark"),
    "a column twice": ("train.csv", delimited([(*row, "x") for row in ROWS], header=("text", "label", "text")), "column 'text' stands twice"),
    "no header": ("train.tsv", delimited(ROWS[1:], "\t", header=ROWS[0]), "column 'text' is missing"),
    "another header": ("train.csv", delimited(ROWS, header=("Text", "label")), "column 'text' is missing .did you mean \"Text\""),
    "an empty file": ("train.csv", "", "the file is empty"),
    "an empty label": ("train.csv", delimited([*ROWS, ("The soup", "")]), "label: is empty in row 18 .line 20."),
    "a label with a space": ("train.tsv", delimited([*ROWS, ("The soup", "praise ")], "\t"),
                             "'praise ' in row 18 .line 20. is no label .did you mean \"praise\""),
    "a label in capitals": ("train.tsv", delimited([*ROWS, ("The soup", "Praise")], "\t"), "'Praise' in row 18 .line 20."),
    "two labels in a cell": ("train.csv", delimited([*ROWS, ("The soup", "praise|complaint")]), "'praise.complaint' in row 18"),
    "null for a text": ("train.jsonl", jsonl([*ROWS, (None, "praise")]), "text: is empty in row 18 .line 19."),
    "null for a label": ("train.jsonl", jsonl([("The soup", None), *ROWS]), "label: is empty in row 0 .line 1."),
    "an object for a text": ("train.jsonl", jsonl([({"en": "The soup"}, "praise"), *ROWS]), "text: row 0 .line 1. holds a dict"),
    "a list for a label": ("train.jsonl", jsonl([*ROWS, ("The soup", ["praise"])]), "label: row 18 .line 19. holds a list"),
    "a key twice": ("train.jsonl", '{"text": "a", "text": "b", "label": "praise"}\n' + jsonl(ROWS), "line 1: a key stands twice"),
    "no object": ("train.jsonl", jsonl(ROWS) + "3\n", "line 19 is no JSON object"),
    "a line that is cut": ("train.jsonl", jsonl(ROWS) + '{"text": "a', "not readable as jsonl: line 19: Unterminated"),
    "bytes of no encoding": ("train.csv", delimited(ROWS).encode() + b"\x81\x8d,praise\n", "line 20 is neither UTF-8 nor Windows-1252"),
    "no such file": ("trian.csv", delimited(ROWS), "folder: .* has no train.*there are: mine.yaml, test.tsv, trian.csv"),
    "all of it in the test set": ("train.csv", delimited(TEST),
                                  "no row of the label 'complaint' is there .*dropped 2 that also stand in an evaluation set"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_read_row_by_row_is_one_sentence_with_its_line(asked, form):
    name, content, said = REFUSED[form]
    with pytest.raises(BadInput, match=said) as error:
        load_task(asked(name, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "said"), [
    ({"labels": [0, 1]}, "labels.0: YAML reads 0 as no text: put it in quotation marks"),
    ({"labels": [False, True]}, "labels.0: YAML reads false as no text: put it in quotation marks"),
    ({"text": "text"}, r"text: 'text' is not accepted: .*: write \[text\]"),
    ({"patterns": {"plain": "{txt}"}}, r"mine.yaml: patterns.plain: '\{txt\}' asks for 'txt', which is no text column"),
    ({"patterns": {"plain": "{text:>10}"}}, "asks for 'text:>10', which is no text column"),
    ({"patterns": {"plain": '{"note": {text}}'}}, "patterns.plain: .*a brace is left open"),
    ({"evaluation": {"test": {"domain": "in", "file": "../test"}}}, "evaluation.test.file: '../test' is not accepted: a path inside the data folder"),
    ({"pool": {"file": "tra"}}, "folder: .* has no tra"),
])
def test_a_faulty_task_file_is_told_by_key_and_what_to_write(asked, changes, said):
    with pytest.raises(BadInput, match=said) as error:
        load_task(asked("train.csv", delimited(ROWS), **changes))
    assert "\n" not in str(error.value) and "function" not in str(error.value)


def test_of_two_files_by_one_name_none_is_taken_unasked(asked, tmp_path):
    (tmp_path / "train.tsv").write_text(delimited(ROWS[:4], "\t"))
    with pytest.raises(BadInput, match="has train.csv and train.tsv: the task 'mine' wants one of them, by its full name"):
        load_task(asked("train.csv", delimited(ROWS)))
    assert len(load_task(asked("train.csv", delimited(ROWS), pool={"file": "train.tsv"})).pool) == 4


def test_a_quoted_line_break_is_a_line_break_and_lines_are_counted_as_an_editor_does(asked):
    rows = [('"The soup\nwas fine"', "praise"), *ROWS, ("The soup", "prais")]
    with pytest.raises(BadInput, match="'prais' in row 19 .line 22."):
        load_task(asked("train.csv", delimited(rows)))
    task = load_task(asked("train.csv", delimited(rows[:-1])))
    assert task.pool["text"][0] == "The soup\nwas fine" and not task.warnings


def test_a_quoted_cell_that_holds_what_look_like_rows_is_spoken_of(asked):
    swallowed = f'"The soup\n{",".join(ROWS[0])}\nmore",praise\n'
    task = load_task(asked("train.csv", delimited(ROWS[2:]) + swallowed))
    assert "lines 18 to 20 are one row" in task.warnings[0]


NUMBERS = [(n, label) for n, label in zip(range(40), ["praise", "complaint"] * 20)]


def test_typed_cells_are_text_by_one_rule(asked):
    pool = load_task(asked("train.jsonl", jsonl([*NUMBERS, (1.5, "praise"), (77.0, "praise"), (True, "praise")]))).pool
    assert list(pool["text"])[-4:] == ["39", "1.5", "77", "true"]
    for label, names in product((True, 1, 1.0), (["false", "true"], ["False", "True"], ["0", "1"])):
        rows = [(f"The soup {i}", type(label)(i % 2)) for i in range(8)]
        words = {"w": dict(zip(names, (" bad", " good")))}
        fits = (names[0] == "0") != isinstance(label, bool)
        file = asked("train.jsonl", jsonl(rows), labels=names, label_words=words, test=[("a", names[0]), ("b", names[1])])
        if fits:
            assert list(load_task(file).pool["label"]) == [0, 1] * 4
        else:
            with pytest.raises(BadInput, match="is no label"):
                load_task(file)


@pytest.mark.parametrize("word", ["no", "NA", "None", "null", "nan", "N/A", "off", "1e5", "007"])
def test_words_that_readers_like_to_change_stay_as_they_are(asked, word):
    rows = [(f"{word} {i}", [word, "praise"][i % 2]) for i in range(8)]
    words = {"w": {word: " bad", "praise": " good"}}
    task = load_task(asked("train.csv", delimited(rows), labels=[word, "praise"], label_words=words, test=[("a", word), ("b", "praise")]))
    assert list(task.pool["text"]) == [text for text, _ in rows] and list(task.pool["label"]) == [0, 1] * 4


@pytest.mark.parametrize("text", ["🙂 great", "الغرفة كانت نظيفة", "房间很干净", "a <b>bold</b> {brace}", "tab\\t", "\x07bell", "word " * 5000])
def test_any_text_is_kept_to_the_letter(asked, text):
    assert load_task(asked("train.csv", delimited([(text, "praise"), *ROWS]))).pool["text"][0] == text


@pytest.mark.parametrize("twin", ["THE LAMP WAS LOVELY IN JUNE", "The  lamp was lovely in June", " The lamp was lovely in June\u00a0",
                                  "The lamp\u200b was lovely in June", "\ufeffThe lamp was lovely in June", "Ｔhe lamp was lovely in June"])
def test_what_stands_in_the_test_set_in_another_dress_is_no_example(asked, twin):
    task = load_task(asked("train.tsv", delimited([*ROWS, (twin, "praise")], "\t")))
    assert len(task.pool) == len(ROWS) and "dropped 1 that also stand in an evaluation set" in task.notes[-1]


def test_what_differs_in_its_last_mark_is_kept_and_counted(asked):
    task = load_task(asked("train.tsv", delimited([*ROWS, (TEST[0][0] + ".", "praise")], "\t")))
    assert len(task.pool) == len(ROWS) + 1 and "1 rows stand in an evaluation set but for their last mark" in task.warnings[0]


def test_a_label_that_a_set_lacks_and_one_that_is_rare_are_spoken_of(asked):
    rows = [*ROWS, *((f"The stay was fine {i}", "praise") for i in range(100))]
    said = load_task(asked("train.csv", delimited(rows), test=TEST[:1])).warnings
    assert said == ["pool: 9 rows are of the label 'complaint', 109 of 'praise'",
                    "test: no row is of the label 'complaint': a constant answer is right on 100%"]


def test_check_says_what_run_would_stumble_over(asked):
    file = asked("train.csv", delimited(ROWS), patterns={"plain": "{text}", "was": "{text} It was "})
    assert "patterns.was: ends with a space" in check_file(file, None)


def test_a_column_may_be_called_as_the_label_is_here_or_have_spaces_in_its_name(asked, tiny_llama):
    from conftest import backbone_of

    backbone = backbone_of(tiny_llama)
    for text, label in (("label", "sentiment"), ("gold", "label"), ("what they said", "label"), ("a.b[0]!r", "the label")):
        file = asked("train.tsv", delimited(ROWS, "\t", header=(text, label)), header=(text, label), text=[text], label=label,
                     patterns={"plain": f"{{{text}}}", "was": f"{{{text}}} It was"})
        task = load_task(file)
        inputs = encode(backbone, task.pool, task.file.pattern("was"), 64)
        assert backbone.tokenizer.decode(inputs.ids[0][len(backbone.prefix):]) == f"{ROWS[0][0]} It was"
        assert list(inputs.labels) == [int(label == "praise") for _, label in ROWS]


def test_braces_that_stand_for_themselves_are_written_twice(asked, tiny_llama):
    from conftest import backbone_of

    task, backbone = load_task(asked("train.csv", delimited(ROWS), patterns={"plain": "{{ {text} }}"})), backbone_of(tiny_llama)
    ids = encode(backbone, task.pool, "{{ {text} }}", 64).ids[0]
    assert backbone.tokenizer.decode(ids[len(backbone.prefix):]) == "{ The soup was lovely on Monday }"


def test_a_long_file_of_quoted_cells_is_told_apart_in_one_pass(tmp_path):
    import time

    (tmp_path / "long.tsv").write_text("text\tlabel\n" + "".join(f'"day ""{i}"""\tpraise\n' for i in range(40_000)) + '"two\nlines"\tpraise\n')
    begun = time.perf_counter()
    assert read_table(tmp_path / "long.tsv").frame["text"].iloc[-2:].tolist() == ['day "39999"', "two\nlines"] and time.perf_counter() - begun < 10


def test_a_large_file_is_read_in_seconds_and_in_little_memory(asked, tmp_path):
    import resource
    import time

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "large.csv").write_text("text,label\n" + "".join(f"The soup of day {i} was {'lovely ' * 20},praise\n" for i in range(100_000)))
    begun = time.perf_counter()
    assert len(read_table(tmp_path / "large.csv").frame) == 100_000
    assert time.perf_counter() - begun < 10 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("form", FINE)
def test_a_file_read_piece_by_piece_is_the_whole_file(tmp_path, form):
    name, content, _ = FINE[form]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    whole, found = read_table(path), list(pieces(path, (), 4))
    assert [len(piece.frame) for piece in found] == [4] * 4 + [2] and [piece.start for piece in found] == [0, 4, 8, 12, 16]
    pd.testing.assert_frame_equal(pd.concat([piece.frame for piece in found], ignore_index=True), whole.frame)
    assert [line for piece in found for line in piece.lines] == list(whole.lines)
    assert [note for piece in found for note in piece.notes] == whole.notes and not any(piece.odd for piece in found)


def test_parquet_and_files_without_rows_come_in_pieces_too(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    frame.to_parquet(tmp_path / "rows.parquet")
    found = list(pieces(tmp_path / "rows.parquet", (), 5))
    assert [len(piece.frame) for piece in found] == [5, 5, 5, 3] and list(pd.concat([piece.frame for piece in found])["text"]) == list(frame["text"])
    frame[:0].to_parquet(tmp_path / "none.parquet")
    (tmp_path / "none.csv").write_text("text,label\n")
    assert [list(table.frame) for name in ("none.parquet", "none.csv") for table in pieces(tmp_path / name, (), 5)] == [["text", "label"]] * 2


@pytest.mark.parametrize(("name", "content", "cells"), [
    ("one.csv", 'text\nHello, world\n"a, b"\n', [["Hello, world"], ["a, b"]]),
    ("long.csv", "text,label\n" + "word " * 40_000 + ",b\n", [["word " * 40_000, "b"]])])
def test_rows_that_are_told_without_loss_fit(tmp_path, name, content, cells):
    (tmp_path / name).write_text(content)
    assert read_table(tmp_path / name).frame.values.tolist() == cells


def test_parquet_keeps_an_index_and_whole_numbers_beside_a_missing_one(tmp_path):
    frame = pd.DataFrame({"id": [1, 2, 9007199254740993], "n": pd.array([1, None, 9007199254740993], "Int64"),
                          "text": pd.array(["a", None, "c"], "string")})
    frame.set_index("id").to_parquet(tmp_path / "rows.parquet")
    for table in (read_table(tmp_path / "rows.parquet"), *pieces(tmp_path / "rows.parquet", (), 3)):
        assert table.text("id").tolist() == ["1", "2", "9007199254740993"] and table.text("n").tolist() == ["1", None, "9007199254740993"]
        assert table.text("text").tolist() == ["a", None, "c"]


@pytest.mark.parametrize(("content", "said"), [("", "the file is empty"), ('{\n "text": "a"\n}\n', "not readable as json: line 1"),
                                               ('{"text": "a", "id": "\\ud83d"}\n', "line 1: half a character"), ("[" * 100_000, "line 1")])
def test_json_that_holds_no_rows_or_half_a_character_is_told_in_a_sentence(tmp_path, content, said):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        read_table(tmp_path / "rows.json")


ODD = {
    "csv": ('text,label\na,b\n"c, d",e,f,g\nh\ni,j\n', {1: "line 3 has 4 fields, the header has 2", 2: "line 4 has 1 field, the header has 2"},
            [["a", "b"], ["c, d", "e,f,g"], ["h", ""], ["i", "j"]]),
    "jsonl": ('{"text": "a"}\n{"text": "b"\n{"text": ["c"]}\n[]\n{"text": "d"}\n',
              {1: "line 2: Expecting ',' delimiter: line 2 column 1 (char 13): {\"text\": \"b\"", 3: "line 4 is no JSON object",
               2: "text: row 2 (line 3) holds a list"},
              [["a"], [None], [["c"]], [None], ["d"]])}


@pytest.mark.parametrize("kind", ODD)
def test_a_row_that_does_not_fit_is_refused_in_a_whole_file_and_marked_in_a_piece(tmp_path, kind):
    content, odd, cells = ODD[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_text(content)
    with pytest.raises(BadInput, match=re.escape(next(iter(odd.values())))):
        read_table(path)
    [table] = pieces(path, ("text",), 10)
    table.text("text")
    assert table.frame.values.tolist() == cells and list(table.odd) == list(odd)
    assert all(said in table.odd[i] for i, said in odd.items())


def test_a_piece_of_which_no_line_can_be_read_is_marked_like_any_other(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\nnot json\n[]\n{"text": "c"}\n')
    found = list(pieces(tmp_path / "rows.jsonl", ("text",), 2))
    assert [list(piece.odd) for piece in found] == [[], [0, 1], []]
    assert [piece.frame["text"].tolist() for piece in found] == [["a", "b"], [None, None], ["c"]]


def test_pieces_take_the_memory_of_a_piece_however_long_the_file(tmp_path):
    def peak(rows: int) -> int:
        (tmp_path / "rows.csv").write_text("text,label\n" + "The lamp was lovely in June,praise\n" * rows)
        tracemalloc.start()
        try:
            assert sum(len(piece.frame) for piece in pieces(tmp_path / "rows.csv", (), 500)) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(500)  # what is imported
    assert peak(20_000) < 1.2 * peak(2_000)
