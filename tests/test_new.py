"""One file of rows becomes a task and a study; what is found and guessed is said, and the file stays as it is."""

import json

import pandas as pd
import pytest

from lowres.files import ROOT, BadInput
from lowres.runs.checks import check_file, forget_files
from lowres.runs.study import read_study
from lowres.tasks import load
from lowres.tasks import new as module
from lowres.tasks.load import load_task
from lowres.tasks.new import new

ROWS = pd.DataFrame([(f"The {what} was {how} on day {day}.", label, place) for day in range(10) for what in ("soup", "room", "guide")
                     for how, label in (("lovely", "praise"), ("cold", "complaint")) for place in ("north", "south")],
                    columns=["note", "label", "hotel"]).assign(note=lambda rows: rows["note"] + " " + rows["hotel"])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's parameters folder, empty but for what methods want."""
    (tmp_path / "parameters" / "tasks").mkdir(parents=True)
    (tmp_path / "parameters" / "studies").mkdir()
    (tmp_path / "parameters" / "methods").symlink_to(ROOT / "parameters" / "methods")
    for place in ("lowres.tasks.new.ROOT", "lowres.tasks.task_file.ROOT", "lowres.files.ROOT", "lowres.runs.study.ROOT"):
        monkeypatch.setattr(place, tmp_path)
    monkeypatch.chdir(tmp_path)
    forget_files()
    yield tmp_path
    forget_files()


def made(project, frame=ROWS, name="guests", **asked):
    frame.to_csv(project / "rows.csv", index=False)
    return new(name, str(project / "rows.csv"), **asked)


def test_a_file_becomes_a_task_whose_rows_are_parted_once_and_the_file_stays(project):
    before = (ROWS.to_csv(index=False)).encode()
    places, said = made(project)
    assert (project / "rows.csv").read_bytes() == before
    assert [place.name for place in places] == ["guests.yaml", "guests.split.csv", "guests.yaml"]
    text = "\n".join(said)
    assert "120 rows; text: note; label: label, 2 of them" in text and "test 36, pool 84" in text and "16 examples of each label" in text
    task = load_task("guests")
    assert len(task.pool) == 84 and len(task.evaluation["test"]) == 36 and not set(task.pool.index) & set(task.evaluation["test"].index)
    assert task.pool["label"].value_counts().nunique() == 1, "stratified"
    for index, row in task.pool.iterrows():
        assert row["note"] == ROWS["note"][index] and task.labels[row["label"]] == ROWS["label"][index]


def test_the_study_that_is_written_can_be_checked_and_has_every_method(project):
    made(project)
    study = read_study(str(project / "parameters" / "studies" / "guests.yaml"))
    assert {run.method for run in study.runs} == {"pbft", "in_context", "distillation", "vanilla", "lora", "adaptive", "baselines"}
    assert "nothing is wrong with it" in check_file(str(project / "parameters" / "tasks" / "guests.yaml"), None)


def test_the_same_text_never_stands_on_two_sides(project):
    twice = pd.concat([ROWS, ROWS.assign(note=ROWS["note"].str.upper())], ignore_index=True)
    _, said = made(project, twice)
    assert any("120 rows repeat another's text" in line for line in said)
    task = load_task("guests")
    assert not {text.casefold() for text in task.pool["note"]} & {text.casefold() for text in task.evaluation["test"]["note"]}
    assert not any("dropped" in note and "dropped 0 that also stand" not in note for note in task.notes)


def test_a_source_may_be_held_out(project):
    _, said = made(project, source="hotel", held_out=["south"])
    task = load_task("guests")
    assert set(task.evaluation) == {"test", "south"} and task.file.evaluation["south"].domain == "out" and len(task.evaluation["south"]) == 60
    assert all("north" in text for text in task.pool["note"])
    with pytest.raises(BadInput, match="hotel: no row has 'west' .there are: north, south"):
        made(project, name="other", source="hotel", held_out=["west"])


def test_rows_from_elsewhere_are_a_file_of_their_own(project):
    (project / "far").mkdir()
    ROWS.assign(note="Far away: " + ROWS["note"]).to_json(project / "far" / "rows.jsonl", orient="records", lines=True)
    made(project, elsewhere=str(project / "far" / "rows.jsonl"))
    task = load_task("guests")
    assert len(task.evaluation["elsewhere"]) == 120 and task.file.evaluation["elsewhere"].domain == "out"


def test_a_file_of_several_parts_is_read_once_and_what_was_guessed_of_it_is_said_once(project, monkeypatch):
    (project / "rows.csv").write_bytes(ROWS.assign(note="Café: " + ROWS["note"]).to_csv(index=False).encode("cp1252"))
    new("guests", str(project / "rows.csv"), source="hotel", held_out=["south"])
    read, seen = load.read_table, []
    monkeypatch.setattr(load, "read_table", lambda path, wanted: seen.append(path.name) or read(path, wanted))
    assert [note for note in load_task("guests").warnings if "Windows-1252" in note] == ["rows.csv: read as Windows-1252, since line 2 is not UTF-8"]
    assert sorted(seen) == ["guests.split.csv", "rows.csv"]


def test_rows_without_a_label_are_kept_as_texts_that_only_methods_without_labels_read(project):
    _, said = made(project, ROWS.assign(label=ROWS["label"].mask(ROWS.index < 7, "")))
    assert any("7 rows have no label: their texts may be read" in line for line in said)
    task = load_task("guests")
    assert len(task.pool) + len(task.evaluation["test"]) == 113
    assert list(task.unlabelled["note"]) == list(ROWS["note"][:7]) and list(task.unlabelled) == ["note"]
    assert list(task.texts["note"]) == [*task.pool["note"], *ROWS["note"][:7]] and task.texts.index.is_unique
    assert any("unlabelled: 7 of 7 texts" in note for note in task.notes)


def test_a_text_without_a_label_that_stands_in_the_pool_or_a_test_set_is_not_read_twice(project):
    rows = pd.concat([ROWS, ROWS.head(3).assign(label=""), pd.DataFrame([{"note": "  ", "label": "", "hotel": "north"}])], ignore_index=True)
    made(project, rows)
    assert len(load_task("guests").unlabelled) == 0


def test_labels_of_several_tokens_get_letters_and_methods_that_do_without_words(project):
    rows = ROWS.replace({"praise": "very_good_indeed", "complaint": "no_good"})
    _, said = made(project, rows, tokens_of=lambda word: [word] if len(word) < 4 else [" "] * 22 + [word])
    assert any("arbitrary, since the labels' names are too many tokens" in line for line in said)
    assert load_task("guests").file.words("") == [" A", " B"]
    runs = read_study(str(project / "parameters" / "studies" / "guests.yaml")).runs
    assert {run.method for run in runs} == {"vanilla", "lora", "adaptive", "baselines"}
    assert all(run.parameters.head == "classifier" for run in runs if hasattr(run.parameters, "head"))


def test_labels_of_a_few_tokens_are_said_by_their_own_names(project):
    _, said = made(project, ROWS.replace({"praise": "very_good", "complaint": "Not_good"}), tokens_of=str.split)
    assert sorted(load_task("guests").file.words("")) == [" Not good", " very good"]
    assert not any("arbitrary" in line for line in said) and any("by their first tokens" in line for line in said)
    runs = read_study(str(project / "parameters" / "studies" / "guests.yaml")).runs
    assert {"pbft", "lora"} <= {run.method for run in runs}
    assert {run.parameters.word_score for run in runs if hasattr(run.parameters, "word_score")} == {"first"}, "which costs nothing and can be kept"


def test_names_whose_first_tokens_are_the_same_are_read_whole_and_methods_with_a_new_head_can_be_kept(project):
    made(project, ROWS.replace({"praise": "very_good", "complaint": "very_bad"}), tokens_of=str.split)
    runs = read_study(str(project / "parameters" / "studies" / "guests.yaml")).runs
    assert {run.parameters.word_score for run in runs if hasattr(run.parameters, "word_score")} == {"sum"}
    assert all(run.parameters.head == "classifier" for run in runs if run.method == "lora" or run.variant.startswith("adapt=layers"))


def test_a_file_that_has_changed_since_is_refused(project):
    made(project)
    ROWS.iloc[1:].to_csv(project / "rows.csv", index=False)
    forget_files()
    with pytest.raises(BadInput, match="guests.split.csv: has 120 rows, .*rows.csv has 119: the file has changed"):
        load_task("guests")


TOPICS = pd.DataFrame([(f"Message {i}: {' and '.join(own) or 'nothing'} please.", ";".join(own)) for i in range(60)
                       for own in [[name for nth, name in enumerate(("refund", "late_parcel", "address")) if i // (nth + 2) % 2]]],
                      columns=["text", "tags"])


@pytest.mark.parametrize("form", ["found", "told", "lists"])
def test_several_labels_a_row_are_recognised_or_told_and_none_is_an_answer(project, form):
    frame = TOPICS if form == "found" else TOPICS.assign(tags=TOPICS["tags"].str.replace(";", ", "))
    if form == "lists":
        (project / "rows.jsonl").write_text("".join(json.dumps({"text": text, "tags": [part for part in tags.split(";") if part]}) + "\n"
                                                    for text, tags in TOPICS.itertuples(index=False)))
        _, said = new("topics", str(project / "rows.jsonl"))
    else:
        _, said = made(project, frame, name="topics", separator="," if form == "told" else "")
    text, none = "\n".join(said), int((TOPICS["tags"] == "").sum())
    assert "tags (several a row, or none: kind multi_label" in text and f"{none} rows have no label: none is right" in text and "a question" in text
    task = load_task("topics")
    assert task.kind.name == "multi_label" and set(task.labels) == {"refund", "late_parcel", "address"}
    assert task.file.questions["late_parcel"] == "\nIs it about late parcel?"
    for index, row in pd.concat([task.pool, task.evaluation["test"]]).iterrows():
        assert set(task.kind.written(row["label"], task.labels).split("|")) == set(TOPICS["tags"][index].split(";"))
    assert len(task.pool) + len(task.evaluation["test"]) == 60 and task.kind.counts(task.evaluation["test"], 3).min() >= 3
    study = read_study(str(project / "parameters" / "studies" / "topics.yaml"))
    assert [run.method for run in study.runs] == ["pbft", "in_context", "vanilla", "lora", "adaptive", "baselines", "baselines"]
    assert "nothing is wrong with it" in check_file(str(project / "parameters" / "studies" / "topics.yaml"), None)


def test_a_column_of_labels_is_found_by_its_labels_however_many_ways_they_are_joined(project, monkeypatch):
    monkeypatch.setattr(module, "MOST_LABELS", 4)  # there are seven different cells of three labels
    _, said = made(project, TOPICS.assign(fold=[str(i % 3) for i in range(60)]), name="topics")
    assert "label: tags (several a row" in said[0]


def test_lists_are_several_labels_a_row_though_each_has_one(project):
    (project / "rows.jsonl").write_text("".join(json.dumps({"text": text, "tags": [("x", "y")[i % 2]] if i % 5 else []}) + "\n"
                                                for i, text in enumerate(TOPICS["text"])))
    _, said = new("topics", str(project / "rows.jsonl"))
    assert "several a row, or none" in said[0] and "12 rows have no label: none is right" in said[1]
    assert load_task("topics").kind.name == "multi_label"


def test_a_label_is_counted_once_a_row_and_labels_that_sound_alike_are_asked_for_by_their_names(project):
    cells = ["C++;C++", "C#", "C++;C#", ""] * 15
    _, said = made(project, TOPICS.assign(tags=cells), name="topics")
    assert "C++ 30, C# 30" in said[0]
    questions = load_task("topics").file.questions
    assert questions == {"C++": "\nIs it about C++?", "C#": "\nIs it about C#?"}


def test_a_label_with_a_bar_in_it_is_refused_where_several_stand_in_a_row(project):
    with pytest.raises(BadInput, match=r"tags: 'a\|x' has a bar in it, which is written between labels: ',' was taken"):
        made(project, TOPICS.assign(tags=["a|x,b", "b,c", "a|x"] * 20), name="topics", separator=",")
    assert not [path for path in (project / "parameters").glob("[ts]*/*")]


def test_a_mark_that_stands_in_one_label_joins_no_labels(project):
    made(project, ROWS.replace({"praise": "good; really"}))
    assert load_task("guests").kind.name == "classification" and "good; really" in load_task("guests").labels


FEW = ROWS.groupby("label").head(2)


@pytest.mark.parametrize(("frame", "asked", "said"), [
    (ROWS.rename(columns={"label": "what"}), {}, "which column is the label. Name it by --label .there are: note, what, hotel"),
    (ROWS[["label"]], {}, "has no column beside 'label': name the text by --text"),
    (ROWS, {"label": "lable"}, "column 'lable' is missing .did you mean \"label\""),
    (ROWS, {"text": ["nite"]}, "column 'nite' is missing .did you mean \"note\""),
    (ROWS, {"label": "note", "text": ["hotel"]}, "note: has 120 different values|where 2 to 150 labels|too few to learn from"),
    (ROWS.assign(label="praise"), {"label": "label"}, "label: has 1 different values"),
    (FEW, {"label": "label"}, "'(praise|complaint)' has 2 rows: too few to learn from"),
    (ROWS.assign(note=ROWS["note"].mask(ROWS.index == 3, " ")), {"text": ["note"]}, r"note: is empty in row 3 \(line 5\)"),
    (ROWS, {"name": "my/task"}, "a name of letters, digits"),
    (ROWS, {"elsewhere": "nowhere.csv"}, "nowhere.csv: there is no such file"),
])
def test_what_cannot_be_made_is_one_sentence_and_nothing_is_written(project, frame, asked, said):
    with pytest.raises(BadInput, match=said) as error:
        made(project, frame, **asked)
    assert "\n" not in str(error.value)
    assert not [path for path in (project / "parameters").glob("[ts]*/*")]


def test_a_name_that_is_taken_is_refused_and_the_task_that_has_it_stays(project):
    made(project)
    before = (project / "parameters" / "tasks" / "guests.yaml").read_bytes()
    with pytest.raises(BadInput, match="is there already"):
        made(project, source="hotel", held_out=["south"])
    assert (project / "parameters" / "tasks" / "guests.yaml").read_bytes() == before


def test_numbers_and_words_that_yaml_would_change_stay_labels(project):
    for name, pair in (("digits", ("0", "1")), ("words", ("no", "yes")), ("null", ("None", "NA"))):
        rows = ROWS.replace({"praise": pair[0], "complaint": pair[1]})
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
        new(name, str(project / f"{name}.jsonl"))
        assert sorted(load_task(name).labels) == sorted(pair)
    assert module.SHARE == 0.3
