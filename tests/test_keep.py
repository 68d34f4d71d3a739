"""A trained model that leaves the house: plain transformers loads it, without lowres, and it answers as its trial did."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from stand_ins import by_papermill
from toys import GRAMMAR, REQUESTS

import lowres
from lowres.files import BadInput
from lowres.runs import keep
from lowres.runs.keep import predict_file
from lowres.runs.study import read_study, select
from lowres.tasks.load import load_task
from lowres.tasks.shots import draw
from lowres.tasks.table import read_table

pytestmark = pytest.mark.usefixtures("forking")

METHODS = [
    {"method": "vanilla"}, {"method": "pbft"}, {"method": "lora", "set": {"learning_rate": 0.01}}, {"method": "adaptive"},
    {"method": "adaptive", "set": {"adapt": "layers"}}, {"method": "distillation"}, {"method": "in_context"},
    {"method": "lora", "set": {"peft_type": "PROMPT_TUNING", "peft_options": {"num_virtual_tokens": 4}}},
    {"method": "baselines"}, {"method": "baselines", "set": {"classifier": "tfidf"}},
]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_llama):
    """A study of every method: two seeds on a tiny model."""
    methods = [{**entry, "set": {**entry.get("set", {})}} for entry in METHODS]
    for entry in methods:
        if entry["method"] == "in_context":
            entry["set"] |= {"demonstrations": 1}
    return executed(tmp_path_factory.mktemp("keep"), tiny_llama, GRAMMAR, methods)


def executed(folder, model, task, methods):
    """In this process."""
    from lowres.runs.execute import Options, execute

    asked = {"model": model, "task": task, "shots": 4, "seeds": [3, 4], "epochs": 4, "evaluation_rows": 20, "learning_rate": 0.01,
             "max_length": 48}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"description": "d", "set": asked, "methods": methods}))
    read = read_study(str(folder / "tiny.yaml"), outputs=str(folder / "outputs"))
    for run in read.runs:
        result = execute(run, Options())
        assert result.state == "done", result.message
    return read


def run_of(study, only: str):
    return select(study, only).runs[0]


@pytest.fixture(scope="module")
def kept(study, tmp_path_factory):
    """The kept folder of PBFT's second seed."""
    folder = tmp_path_factory.mktemp("kept") / "pbft"
    place, said = keep.keep(study, run_of(study, "method=pbft"), 4, str(folder))
    assert place == folder and "gave 40 evaluation rows the labels that the trial gave them" in said
    assert "They are those of the study's records" in said
    return folder


@pytest.mark.parametrize("only", ["method=vanilla", "method=lora,peft_type=LORA", "method=adaptive,adapt=pattern", "method=adaptive,adapt=layers",
                                  "method=distillation"])
def test_what_any_method_trained_answers_as_its_trial_did(study, tmp_path, only):
    place, said = keep.keep(study, run_of(study, only), None, str(tmp_path / "kept"))
    assert "gave 40 evaluation rows the labels" in said and "They are those of the study's records" in said
    if "lora" in only:
        config = json.loads((place / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] and config["peft_type"] == "LORA"


@pytest.mark.parametrize("classifier", ["probe", "tfidf"])
def test_a_baseline_is_kept_as_plain_arrays_and_answers_as_its_trial_did(study, tmp_path, classifier):
    place, said = keep.keep(study, run_of(study, f"method=baselines,classifier={classifier}"), None, str(tmp_path / "kept"))
    assert "Loaded anew by lowres" in said and "gave 40 evaluation rows the labels" in said and "They are those of the study's records" in said
    assert {path.name for path in place.iterdir()} == {"classifier.safetensors", "lowres.json", "README.md", "SHA256SUMS"}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}
    told = lowres.load(str(place)).predict(["The nurse has written a letter.", " "])
    assert told["p(acceptable)"][0] + told["p(unacceptable)"][0] == pytest.approx(1) and told["note"][1] == "empty text"


def test_classifiers_of_several_labels_are_kept_and_give_each_text_all_that_are_likelier_than_not(tmp_path, tiny_llama):
    study = executed(tmp_path, tiny_llama, REQUESTS, [{"method": "vanilla"}, {"method": "baselines", "set": {"classifier": "tfidf"}}])
    changed, rows = keep._all_rows(study.runs[0], {"seed": 3, "seconds": {"train": 1.0}}, lambda line: None)
    pool = load_task(REQUESTS).pool
    assert rows == len(pool) == len(draw(pool, changed["shots"], 3, changed["uneven"])), "all rows are all of them"
    for number, run in enumerate(study.runs):
        place, said = keep.keep(study, run, None, str(tmp_path / f"kept{number}"))
        assert "evaluation rows the labels that the trial gave them" in said and "They are those of the study's records" in said
        told = lowres.load(str(place)).predict(["Where is my parcel? I want my money back.", ""])
        chances = told[[f"p({label})" for label in ("refund", "delay", "address", "thanks")]].to_numpy()
        likelier = [label for label, chance in zip(("refund", "delay", "address", "thanks"), chances[0]) if chance > 0.5]
        assert told["predicted"].tolist() == ["|".join(likelier), ""] and told["note"].tolist() == ["", "empty text"]
    assert json.loads((tmp_path / "kept0" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    record = json.loads((study.runs[0].folder / "record.json").read_text())["trials"][0]["sets"]
    own = ", ".join(f"{name} {100 * scores['micro_f1']:.1f} %" for name, scores in record.items())
    assert f"this folder is one of them: {own}." in (tmp_path / "kept0" / "README.md").read_text()
    _, chances = example(tmp_path / "kept0", "text = 'Where is my parcel? I want my money back.'")
    [answer] = lowres.load(str(tmp_path / "kept0")).predict(["Where is my parcel? I want my money back."]).to_dict("records")
    assert json.loads(chances)[0][0] == pytest.approx(answer["p(refund)"], abs=1e-5)


def test_all_labelled_rows_of_the_pool_may_be_learnt_from_and_the_card_says_whose_quality_it_tells(study, tmp_path):
    lines = []
    place, said = keep.keep(study, run_of(study, "method=baselines,classifier=tfidf"), 4, str(tmp_path / "kept"), all_rows=True, tell=lines.append)
    assert "trained on all 2,400 labelled rows of the pool instead of 8" in lines[0] and "study's records" not in said
    card = (place / "README.md").read_text()
    assert "from all 2,400 labelled rows of the pool" in card and "an estimate of it" in card and "Over 2 draws of 4 examples" in card
    assert json.loads((place / "lowres.json").read_text())["parameters"]["shots"] == 1200


def test_the_folder_is_whole_and_says_what_it_is(kept, study):
    names = {path.name for path in kept.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "lowres.json", "README.md", "SHA256SUMS"} <= names
    card = (kept / "README.md").read_text()
    assert "seed 4" in card and "the constant answer" in card and "out of domain" in card and "Not tried" in card and "Over 2 draws" in card
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=kept).returncode == 0
    config = json.loads((kept / "config.json").read_text())
    assert config["label2id"] == {"unacceptable": 0, "acceptable": 1} and config["architectures"] == ["LlamaForSequenceClassification"]


def example(folder, texts: str) -> tuple[str, str]:
    """What the card's example prints of these, in a process without lowres: the answer, and the probabilities."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    code = f"import sys\nsys.modules['lowres'] = None\n{texts}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    answer, chances = done.stdout.strip().splitlines()[-1].split(" [[")
    return answer, f"[[{chances}"


def test_the_example_in_the_card_runs_without_lowres(kept):
    label, chances = example(kept, "sentence = 'The nurse has written a letter.'")
    [answer] = lowres.load(str(kept)).predict(["The nurse has written a letter."]).to_dict("records")
    assert answer["predicted"] == label and json.loads(chances)[0][1] == pytest.approx(answer["p(acceptable)"], abs=1e-5)


def test_what_cannot_be_kept_is_refused_in_a_sentence_and_nothing_is_left(study, tmp_path, kept):
    for only, said in (("method=in_context", "in_context trains nothing"), ("peft_type=PROMPT_TUNING", "virtual tokens"),):
        with pytest.raises(BadInput, match=said):
            keep.keep(study, run_of(study, only), None, str(tmp_path / "kept"))
    with pytest.raises(BadInput, match="--seed: 7 is no seed"):
        keep.keep(study, run_of(study, "method=pbft"), 7, str(tmp_path / "kept"))
    with pytest.raises(BadInput, match="is there already"):
        keep.keep(study, run_of(study, "method=pbft"), 4, str(kept))
    other = read_study(str(study.path), outputs=str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="has no finished trial of seed 3: `lowres run` makes it"):
        keep.keep(other, run_of(other, "method=pbft"), None, str(tmp_path / "kept"))
    assert not list(tmp_path.rglob("*kept*"))


def test_a_folder_that_answers_otherwise_is_not_kept(study, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "PLAIN", keep.PLAIN.replace("numpy.stack(logits)", "-numpy.stack(logits)"))
    with pytest.raises(BadInput, match="answers otherwise than the trial"):
        keep.keep(study, run_of(study, "method=pbft"), 4, str(tmp_path / "kept"))
    assert not list(tmp_path.iterdir())


def test_the_notebook_that_uses_it_runs(kept, tmp_path):
    pd.DataFrame({"sentence": TEXTS}).to_csv(tmp_path / "rows.csv", index=False)
    for given in ({"folder": str(kept), "file": str(tmp_path / "rows.csv")}, {"folder": str(kept), "texts": ["The nurse has slept."]}):
        done = by_papermill("use", tmp_path / "use.ipynb", given)
        shown = json.dumps(done.cells[4:])
        assert "p(acceptable)" in shown and ("read to 48 tokens" in shown) == ("file" in given)


TEXTS = ["The nurse has written a letter.", "", "The doctor praised the pilot.", "   ", "The children were playing in the garden " * 20,
         "a;b \"c\"\td"]


def test_a_file_keeps_its_rows_and_columns_and_says_what_was_not_read(kept, tmp_path):
    pd.DataFrame({"id": range(6), "sentence": TEXTS, "who": list("uvwxyz")}).to_csv(tmp_path / "rows.csv", index=False)
    target = predict_file(str(kept), str(tmp_path / "rows.csv"), tell=lambda line: None)
    found = pd.read_csv(target, dtype=str, keep_default_na=False)
    assert list(found) == ["id", "sentence", "who", "predicted", "p(unacceptable)", "p(acceptable)", "note"]
    assert list(found["sentence"]) == TEXTS and list(found["id"]) == list("012345")
    assert list(found["note"]) == ["", "empty text", "", "empty text", "read to 48 tokens", ""]
    assert [bool(label) for label in found["predicted"]] == [True, False, True, False, True, True]
    chances = found[["p(unacceptable)", "p(acceptable)"]].replace("", "nan").astype(float)
    assert chances.sum(axis=1)[[0, 2, 4, 5]].to_numpy() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_other_forms_come_back_as_they_came(kept, tmp_path, kind):
    frame = pd.DataFrame({"sentence": [text.replace("\t", " ").replace('"', "") for text in TEXTS[:3]], "n": [1, 2, 3]})
    file = tmp_path / f"rows.{kind}"
    frame.to_json(file, orient="records", lines=True) if kind == "jsonl" else frame.to_csv(file, sep="\t", index=False)
    target = predict_file(str(kept), str(file), tell=lambda line: None)
    assert target.name == f"rows.predicted.{kind}"
    found = pd.read_json(target, lines=True) if kind == "jsonl" else pd.read_csv(target, sep="\t", keep_default_na=False)
    assert list(found["sentence"]) == list(frame["sentence"]) and list(found["n"]) == [1, 2, 3]


def test_a_row_that_does_not_fit_is_marked_and_the_others_are_answered(kept, tmp_path):
    (tmp_path / "rows.csv").write_text('id,sentence\n0,The nurse has slept.\n1,The nurse, who has slept.\n2\n3,The pilot has slept.\n')
    said = []
    found = pd.read_csv(predict_file(str(kept), str(tmp_path / "rows.csv"), tell=said.append), dtype=str, keep_default_na=False)
    assert list(found["id"]) == list("0123") and found["sentence"][1] == "The nurse, who has slept." and found["sentence"][2] == ""
    assert [bool(label) for label in found["predicted"]] == [True, False, False, True]
    assert found["note"][1].startswith("line 3 has 3 fields, the header has 2") and found["note"][2].startswith("line 4 has 1 field")
    assert said[-1].startswith("2 rows have a note")


def test_a_file_that_breaks_off_is_refused_before_a_model_is_loaded_and_nothing_is_written(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "load", lambda folder: pytest.fail("a model was loaded"))
    (tmp_path / "rows.csv").write_text("sentence\n" + "The nurse has slept.\n" * 2500 + '"The pilot has')
    with pytest.raises(BadInput, match="line 2502: a quotation mark is not closed"):
        predict_file(str(kept), str(tmp_path / "rows.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_a_model_would_write_over_what_no_row_fits_and_odd_characters(kept, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"sentence": "The nurse has slept.", "p(acceptable)": 0.9}\n')
    (tmp_path / "odd.csv").write_text("id,sentence\n1,2,3\n4,5,6\n")
    for name, said in (("p.jsonl", "column 'p\\(acceptable\\)' would be written twice"), ("odd.csv", "not one row fits: line 2 has 3 fields")):
        with pytest.raises(BadInput, match=said):
            predict_file(str(kept), str(tmp_path / name))
    lines = ('{"sentence": "The nurse has slept.", "id": "\\ud83d"}', '{"sentence": "One\\rtwo.", "id": "\\ud83d\\ude00"}')
    (tmp_path / "half.jsonl").write_text("\n".join(lines))
    found = read_table(predict_file(str(kept), str(tmp_path / "half.jsonl"), str(tmp_path / "half.csv"), tell=lambda line: None)).frame
    assert list(found["id"]) == ["?", "\U0001f600"] and list(found["sentence"]) == ["The nurse has slept.", "One\rtwo."]
    assert "half a character" in found["note"][0] and found["predicted"][0] == "" and found["predicted"][1]


def test_a_broken_prediction_is_gone_on_with_and_ends_the_same(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("lowres.runs.keep.CHUNK", 4)
    rows = pd.DataFrame({"sentence": [f"The nurse has written {i} letters." for i in range(18)]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    whole = predict_file(str(kept), str(tmp_path / "rows.csv"), str(tmp_path / "whole.csv"), tell=lambda line: None).read_text()
    lines = []

    def break_off(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(str(kept), str(tmp_path / "rows.csv"), str(tmp_path / "again.csv"), tell=break_off)
    assert not (tmp_path / "again.csv").exists()
    with (tmp_path / ".again.csv.part").open("a") as part:
        part.write("half a li")
    target = predict_file(str(kept), str(tmp_path / "rows.csv"), str(tmp_path / "again.csv"), tell=lines.append)
    assert target.read_text() == whole and lines[2].startswith("12 of 18 rows") and not list(tmp_path.glob(".again*"))


def test_what_cannot_be_predicted_is_told_in_a_sentence(kept, tmp_path):
    (tmp_path / "rows.csv").write_text("text\nhello\n")
    (tmp_path / "twice.csv").write_text("sentence,predicted\nhello,x\n")
    for file, out, said in (("rows.csv", "", "column 'sentence' is missing"), ("no.csv", "", "there is no such file"),
                            ("twice.csv", "", "column 'predicted' would be written twice"), ("rows.csv", "x.docx", "ends with .csv, .tsv, .jsonl")):
        with pytest.raises(BadInput, match=said):
            predict_file(str(kept), str(tmp_path / file), out and str(tmp_path / out))
    with pytest.raises(BadInput, match="is no folder that `lowres keep` made"):
        predict_file(str(tmp_path), str(tmp_path / "rows.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "twice.csv"]
