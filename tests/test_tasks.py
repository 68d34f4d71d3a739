"""A task file becomes clean examples, or a sentence saying why not."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from toys import ENTAILMENT, GRAMMAR

from lowres.files import BadInput
from lowres.parameters import Vanilla
from lowres.runs.records import fingerprint
from lowres.tasks.load import capped, data_checksums, load_task
from lowres.tasks.task_file import extended_task, read_task

TRAIN = "text\tlabel\tsource\nfine day\tgood\ta\nbad day\tbad\ta\nfine day\tgood\tb\nodd day\tgood\tb\n" \
        "odd day\tbad\tb\nrainy day\tbad\tb\nNA\tgood\ta\n\"quoted\tbad\ta\n"
TEST = "text\tlabel\tsource\nrainy day\tbad\ta\nsunny day\tgood\tb\n"


@pytest.fixture
def make_task(tmp_path):
    """Writes a small task and its data; keyword arguments change the task file, `train` and `test` the data."""
    def make(train: str = TRAIN, test: str = TEST, **changes) -> tuple[str, str]:
        (tmp_path / "train.tsv").write_text(train)
        (tmp_path / "test.tsv").write_text(test)
        content = {
            "name": "days", "version": 1, "description": "good and bad days", "text": ["text"], "labels": ["bad", "good"],
            "pool": {"file": "train"}, "evaluation": {"test": {"domain": "in", "file": "test"}},
            "patterns": {"was": "{text} It was", "plain": "{text}"}, "label_words": {"words": {"bad": " bad", "good": " good"}},
        }
        (tmp_path / "days.yaml").write_text(yaml.safe_dump(content | changes))
        read_task.cache_clear()
        extended_task.cache_clear()
        return str(tmp_path / "days.yaml"), str(tmp_path)
    return make


def test_the_pool_drops_rows_of_evaluation_sets_and_repeats_and_says_how_many(make_task):
    task = load_task(*make_task())
    assert list(task.pool["text"]) == ["fine day", "bad day", "NA", '"quoted']
    assert "dropped 1 that also stand in an evaluation set, 2 repeats whose labels disagree, 1 other repeats" in task.notes[-1]


def test_a_task_may_say_where_its_files_lie_and_is_the_same_task(make_task):
    name, folder = make_task()
    elsewhere, marks = load_task(name, folder), data_checksums(read_task(name), folder)
    mark = fingerprint("vanilla", Vanilla(), 0, read_task(name), marks, "b")
    make_task(folder=".")
    assert load_task(name).pool.equals(elsewhere.pool) and load_task(name, "nowhere").pool.equals(elsewhere.pool)
    assert data_checksums(read_task(name), "") == marks
    assert fingerprint("vanilla", Vanilla(), 0, read_task(name), marks, "b") == mark


def test_words_like_na_and_single_quotation_marks_are_text(make_task):
    pool = load_task(*make_task()).pool
    assert {"NA", '"quoted'} <= set(pool["text"])


def test_a_row_number_is_the_rows_place_in_its_file(make_task):
    assert list(load_task(*make_task()).pool.index) == [0, 1, 6, 7]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_other_formats_read_the_same(make_task, tmp_path, ending):
    name, folder = make_task()
    expected = load_task(name, folder).pool
    frame = pd.read_csv(tmp_path / "train.tsv", sep="\t", quoting=3, keep_default_na=False)
    (tmp_path / "train.tsv").unlink()
    {"csv": lambda p: frame.to_csv(p, index=False), "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
     "parquet": lambda p: frame.to_parquet(p)}[ending](tmp_path / f"train.{ending}")
    pd.testing.assert_frame_equal(load_task(name, folder).pool, expected)


@pytest.mark.parametrize(("changes", "message"), [
    ({"evaluaton": {}}, 'evaluaton: unknown key .did you mean "evaluation"'),
    ({"version": "1"}, "version: '1' is not accepted"),
    ({"patterns": {"was": "{txt} It was", "plain": "{text}"}}, 
     r"patterns.was: '\{txt\} It was' asks for 'txt', which is no text column .did you mean \"text\""),
    ({"patterns": {"was": "It was", "plain": "{text}"}}, "patterns.was: 'It was' has no place for the text column 'text'"),
    ({"patterns": {"was": "{text} It was"}}, "one must be called plain"),
    ({"label_words": {"words": {"bad": " bad"}}}, "label_words.words: a word for each of"),
    ({"relabel": {"0": "god"}}, "relabel: '0' becomes 'god', which is no label .did you mean \"good\""),
    ({"pool": {"file": "train", "relabel": {"0": "god"}}}, "pool.relabel: '0' becomes 'god', which is no label .did you mean \"good\""),
    ({"evaluation": {"test": {"domain": "in", "file": "test", "relabel": {"0": "god"}}}}, "evaluation.test.relabel: '0' becomes 'god'"),
    ({"label": "lable"}, "train.tsv|test.tsv: column 'lable' is missing .did you mean \"label\""),
    ({"text": ["title"], "patterns": {"plain": "{title}"}}, "column 'title' is missing"),
    ({"labels": ["bad", "great"], "label_words": {"words": {"bad": " bad", "great": " good"}}}, r"label: 'good' in row 1 \(line 3\) is no label"),
    ({"pool": {"file": "trian"}}, "data_dir: .* has no trian"),
    ({"pool": {"file": "../train"}}, "a path inside the data folder is wanted"),
    ({"checksums": {"train": "0" * 64}}, "train.tsv: checksums: the file's is .*, the task 'days' declares 0000"),
    ({"pool": {}}, "pool: the task file names no file"),
])
def test_a_faulty_task_is_told_by_file_key_and_value(make_task, changes, message):
    with pytest.raises(BadInput, match=message):
        load_task(*make_task(**changes))


@pytest.mark.parametrize(("ending", "content", "reason"), [
    ("tsv", b"", "No columns"), ("jsonl", b'{"text": "fine day", "lab', "(Unterminated|Unmatched|Unexpected)"),
    ("parquet", b"no parquet", "[Pp]arquet"),
])
def test_a_damaged_file_is_told_by_its_name(make_task, tmp_path, ending, content, reason):
    name, folder = make_task()
    (tmp_path / "train.tsv").unlink()
    (tmp_path / f"train.{ending}").write_bytes(content)
    with pytest.raises(BadInput, match=rf"train\.{ending}: not readable as {ending}: .*{reason}"):
        load_task(name, folder)


def test_a_label_that_is_not_there_is_told_by_its_row(make_task, tmp_path):
    name, folder = make_task()
    (tmp_path / "train.tsv").unlink()
    lines = ['{"text": "fine day", "label": "good"}', '{"text": "odd day", "label": null}', '{"text": "a", "label": "goood"}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match="train.jsonl: label: is empty in row 1"):
        load_task(name, folder)


def test_an_empty_text_is_told_by_file_column_and_row(make_task):
    with pytest.raises(BadInput, match="train.tsv: text: is empty in row 1"):
        load_task(*make_task(train="text\tlabel\nfine day\tgood\n \tbad\n"))


def test_a_label_or_a_set_without_rows_is_told(make_task):
    with pytest.raises(BadInput, match=r"days: pool: no row of the label 'good' is there \(2 rows; dropped 0"):
        load_task(*make_task(train="text\tlabel\nwet day\tbad\ndull day\tbad\n"))
    with pytest.raises(BadInput, match="days: pool: no row of the label 'bad' is there .*2 repeats whose labels disagree"):
        load_task(*make_task(train="text\tlabel\nwet day\tbad\nwet day\tgood\n"))
    with pytest.raises(BadInput, match="days: test: has no row"):
        load_task(*make_task(test="text\tlabel\n"))


def test_cola_from_the_hub_is_read_though_the_hub_knows_no_sources(monkeypatch):
    """GLUE's CoLA: a sentence, a label by its name, an index; a stand-in, since no test reaches the hub."""
    def split(hub):
        rows = range(8) if hub.split == "train" else range(100, 108) if hub.split == "validation[:527]" else range(200, 208)
        return pd.DataFrame({"sentence": [f"Sentence {i}." for i in rows], "label": ["acceptable", "unacceptable"] * 4, "idx": list(rows)})

    monkeypatch.setattr("lowres.tasks.load.from_hub", split)
    task = load_task("cola", evaluation_rows=4)
    assert len(task.pool) == 8 and [len(rows) for rows in task.evaluation.values()] == [4, 4]


def test_a_task_that_is_not_there_is_told_with_near_names():
    with pytest.raises(BadInput, match="there is no task 'sentimant' .did you mean \"sentiment\""):
        read_task("sentimant")


def test_without_a_hub_source_a_data_folder_is_asked_for(make_task):
    with pytest.raises(BadInput, match="names no hub source: give data_dir"):
        load_task(make_task()[0])


def test_an_extending_file_is_the_other_with_its_own_keys():
    cola, union = read_task("cola"), read_task("cola_union")
    assert union.patterns == cola.patterns and union.name == "cola_union" and set(union.evaluation) == {"union", "out_of_domain"}


def test_a_cap_is_one_fixed_choice_in_proportion_to_labels_and_parts():
    rows = pd.DataFrame({"label": [0] * 600 + [1] * 200, "heuristic": (["a"] * 300 + ["b"] * 300) + (["a"] * 100 + ["b"] * 100)})
    chosen = capped(rows, 80, ["heuristic"])
    assert chosen.groupby(["label", "heuristic"]).size().to_dict() == {(0, "a"): 30, (0, "b"): 30, (1, "a"): 10, (1, "b"): 10}
    assert list(capped(rows, 80, ["heuristic"]).index) == list(chosen.index) == sorted(chosen.index)
    assert len(capped(rows, 0, [])) == 800 and len(capped(rows, 900, [])) == 800


def test_every_task_file_has_the_patterns_and_words_that_the_methods_want():
    for name in ("cola", "cola_union", "mnli", "mnli_three"):
        task = read_task(name)
        assert len(set(task.patterns) - {"plain", "as_coded"}) >= 6 and len(task.label_words) >= 4, name


def test_the_real_data_sets_have_their_published_sizes_and_yardsticks(real_data):
    cola, mnli = load_task("cola", real_data), load_task("mnli", real_data)
    constant = {name: round(rows["label"].value_counts(normalize=True).max(), 3) for name, rows in (cola.evaluation | mnli.evaluation).items()}
    assert constant == {"in_domain": 0.693, "out_of_domain": 0.686, "matched": 0.520, "hans": 0.5}
    assert len(mnli.evaluation["hans"]) == 30_000 and len(mnli.evaluation["matched"]) == 6_692
    assert "dropped 18 that also stand in an evaluation set" in cola.notes[-1]
    assert len(load_task("cola_union", real_data).evaluation["union"]) == 1_043


def test_the_paper_s_in_domain_set_has_the_same_pool_and_so_the_same_shots(real_data):
    assert load_task("cola_union", real_data).pool.equals(load_task("cola", real_data).pool)


def test_hans_is_capped_by_heuristic_and_label(real_data):
    hans = load_task("mnli", real_data, 600).evaluation["hans"]
    assert hans.groupby(["heuristic", "gold"]).size().eq(100).all()


def test_a_set_of_another_task_is_read_with_its_own_labels_in_order(real_data):
    both = load_task(GRAMMAR, real_data, 100, also_evaluate=["cola"])
    assert set(both.evaluation) == {"in_domain", "out_of_domain", "cola.in_domain", "cola.out_of_domain"}
    assert both.file.evaluation["cola.in_domain"].domain == "out"
    alone = load_task("cola", real_data, 100).evaluation["in_domain"]
    assert list(both.evaluation["cola.in_domain"]["label"]) == list(alone["label"])
    assert both.pool.equals(load_task(GRAMMAR).pool)


def test_tasks_of_another_form_cannot_be_evaluated_besides():
    with pytest.raises(BadInput, match="grammar: also_evaluate: 'entailment' has 2 labels and 2 text columns, not 2 and 1"):
        load_task(GRAMMAR, also_evaluate=[ENTAILMENT])


def days(folder, file: str, test: str, **changes) -> str:
    """Another task file in the same folder, with a test set of its own."""
    content = yaml.safe_load((folder / "days.yaml").read_text())
    content["evaluation"]["test"]["file"] = f"{file}-test"
    (folder / f"{file}-test.tsv").write_text(test)
    (folder / f"{file}.yaml").write_text(yaml.safe_dump(content | changes))
    return str(folder / f"{file}.yaml")


def test_a_task_that_is_evaluated_besides_is_the_file_that_was_asked_for_whatever_its_name(make_task, tmp_path):
    name, folder = make_task()
    other = days(tmp_path, "other", "text\tlabel\tsource\nnew day\tgood\ta\n", name="grammar", labels=["good", "bad"])
    both = load_task(name, folder, also_evaluate=[other])
    assert both.evaluation["grammar.test"]["label"].tolist() == [0], "'good' is the other file's first label"


def test_a_name_that_begins_like_another_is_another(make_task, tmp_path):
    name, folder = make_task()
    both = [days(tmp_path, file, TEST, name=called) for file, called in (("one", "a.b"), ("two", "a"))]
    assert {"a.b.test", "a.test"} <= set(load_task(name, folder, also_evaluate=both).evaluation)


def test_a_fingerprint_knows_a_task_evaluated_besides_by_its_content(make_task, tmp_path):
    name, _ = make_task()
    first = days(tmp_path, "first", TEST, name="other")
    moved, changed = days(tmp_path, "moved", TEST, name="other"), days(tmp_path, "changed", TEST, name="other", relabel={"0": "bad"})
    for path in (first, moved, changed):  # one file name for the rows, so that only the task files differ
        Path(path).write_text(Path(path).read_text().replace(f"{Path(path).stem}-test", "first-test"))
    read_task.cache_clear()
    marks = [fingerprint("vanilla", Vanilla(), 0, extended_task(name, (path,)), {}, "backbone") for path in (first, moved, changed)]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(("others", "message"), [
    (["days.yaml"], "days: also_evaluate: '.*days.yaml' is the task itself"),
    (["one.yaml", "two.yaml"], "days: also_evaluate: two tasks are called 'other'"),
    (["inside.yaml"], "days: inside.test: every row also stands in the pool"),
])
def test_what_cannot_be_evaluated_besides_is_refused(make_task, tmp_path, others, message):
    name, folder = make_task()
    for file, called in (("one", "other"), ("two", "other"), ("inside", "inside")):
        days(tmp_path, file, "text\tlabel\tsource\nfine day\tgood\ta\n" if file == "inside" else TEST, name=called)
    with pytest.raises(BadInput, match=message):
        load_task(name, folder, also_evaluate=[str(tmp_path / other) for other in others])
