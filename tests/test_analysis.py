"""A study's records gathered and told: tables, advice, the notebook, and bad input that ends in a sentence."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from stand_ins import by_papermill
from synthetic import METHODS, fill, filled, make_study
from toys import GRAMMAR

from lowres import locks
from lowres.analysis import answer, collect, tables, verdicts
from lowres.analysis.answer import Budget, advise, candidates, probability_best
from lowres.analysis.claims import paper_task
from lowres.files import ROOT
from lowres.runs import records, summary
from lowres.runs.execute import analysis_mark
from lowres.runs.process import run_notebook
from lowres.runs.study import read_study

pytestmark = pytest.mark.usefixtures("forking")


def text_of(notebook) -> str:
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output
            data = output.get("data", {})
            parts += [data[kind] if isinstance(data[kind], str) else "".join(data[kind]) for kind in ("text/markdown", "text/html") if kind in data]
            parts.append(output.get("text", ""))
    return "\n".join(parts)


@pytest.fixture
def executed(tmp_path):
    def run(study, outputs, **parameters):
        return by_papermill("analysis", tmp_path / "out.ipynb", {"study": study, "outputs": outputs, **parameters})
    return run


def test_interval_is_students():
    low, high = summary.interval([4.0, 5.0, 6.0, 7.0])  # mean 5.5, standard error 0.6455, t(3) 3.1824
    assert (low, high) == pytest.approx((5.5 - 2.0543, 5.5 + 2.0543), abs=1e-3)
    assert np.isnan(summary.interval([1.0])).all()


def test_a_whole_study_in_the_notebook(tmp_path, executed):
    path, outputs = filled(tmp_path, shots=(2, 16), seeds=range(6), tasks=("cola", "mnli"))
    notebook = executed(path, outputs, labels_per_class=2, write=True)
    said = text_of(notebook)
    assert "36 of 36 runs" in said and "supported" in said and "no clear winner" in said
    folder = tmp_path / "outputs" / "made_up"
    assert len(pd.read_csv(folder / "results.csv")) == 72 and "\\begin{tabular}" in (folder / "claims.tex").read_text()
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"} and (folder / "claims.csv").is_file()
    assert [look["margin"] for look in json.loads((folder / "verdicts.json").read_text())["looks"]] == [2.0]
    alts = [output["metadata"]["image/png"]["alt"] for cell in notebook.cells for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})]
    assert alts and all("trial" in alt for alt in alts)


def test_an_empty_study(tmp_path, executed):
    said = text_of(executed(make_study(tmp_path), str(tmp_path / "outputs")))
    assert "There is nothing to analyse yet" in said and "no results to give advice from" in said


def test_no_study(tmp_path, executed):
    assert "could not be read" in text_of(executed("no_such_study", str(tmp_path)))


def test_one_run_and_one_seed_and_an_analysis_that_is_only_read_writes_nothing(tmp_path):
    """Changing the margin in JupyterLab is no look at the verdicts (as one with `write` is, above), and the study's own tables stay."""
    path, outputs = filled(tmp_path, shots=(2,), methods=METHODS[:2], seeds=[3])
    before = sorted(Path(outputs).rglob("*"))
    with locks.scratch_folder() as folder:
        asked = {"study": path, "outputs": outputs, "margin": 5.0}
        assert not run_notebook(ROOT / "notebooks" / "analysis.ipynb", folder / "run.ipynb", asked, folder, {}).kind
        said = text_of(nbformat.read(folder / "run.ipynb", 4))
    assert "one seed only" in said and "no LoRA" in said and "one trial" in said
    assert sorted(Path(outputs).rglob("*")) == before


def test_an_older_schema_and_mixed_studies(tmp_path):
    path, outputs = filled(tmp_path, shots=(2, 16), methods=METHODS[:2])
    study = read_study(path, outputs=outputs)
    old = study.runs[0].folder / "record.json"
    old.write_text(json.dumps({**json.loads(old.read_text()), "schema_version": 0}))
    other = read_study(make_study(tmp_path, shots=(2, 16, 32), methods=METHODS[:2], epochs=3), outputs=outputs)  # the file was changed
    fill(read_study(make_study(tmp_path, shots=(32,), methods=METHODS[:1]), outputs=outputs))
    found = collect.collect_study(other)
    said = collect.opening(found)
    assert "schema_version" in said and said.count("Left out") >= 3 and not len(found.trials)
    strangers = collect.collect_study(study)
    assert "belong to runs that the study does not ask for" in collect.opening(strangers) and len(strangers.trials) == 3 * 10 * 2


def test_seconds_that_an_earlier_trial_had_spent_are_told(tmp_path):
    path, outputs = filled(tmp_path, seeds=range(2))
    folder = read_study(path, outputs=outputs).runs[0].folder
    record = records.read_record(folder)
    record["trials"][0]["stored"] = 12.4
    (folder / "record.json").write_text(json.dumps(record))
    said = " ".join(collect.collect(path, outputs).problems)
    assert "1 trials read states of the untrained model that others had computed: 12 of their seconds are what that had taken" in said


def test_a_killed_runs_trials_count(tmp_path):
    path, outputs = filled(tmp_path, shots=(2,), methods=METHODS[:1])
    folder = read_study(path, outputs=outputs).runs[0].folder
    records.put_aside(folder, range(10))  # as it is before the record is made
    assert not (folder / "record.json").exists()
    assert collect.collect(path, outputs).trials["seed"].nunique() == 10


def test_names_with_scripts_are_text(tmp_path):
    nasty = "<script>alert(1)</script>"
    path, outputs = filled(tmp_path, shots=(2,), methods=METHODS[:2], models=(nasty,))
    found = collect.collect(path, outputs)
    for said in (collect.opening(found), tables.shown_results(tables.result_table(found.trials)).to_html(), tables.costs(found.trials).to_html(),
                 advise(found.trials, Budget()), tables.parts_table(tables.parts(found)).to_html(), tables.about_verdicts(found, 2.0),
                 tables.static(pd.DataFrame({nasty: [nasty]})).to_html()):
        assert "<script" not in said


def test_a_verdict_on_other_tasks_than_the_papers_says_so(tmp_path):
    found = collect.collect(*filled(tmp_path, shots=(2,), tasks=(GRAMMAR,), methods=METHODS[:2]))
    assert "so a verdict is about these" in tables.about_verdicts(found, 2.0)


def test_advice(tmp_path):
    effect = lambda run, domain: 12.0 if run.method == "lora" else 5.0  # noqa: E731
    path, outputs = filled(tmp_path, shots=(2, 16), effect=effect, methods=[METHODS[0], {"method": "lora"}])
    trials = collect.collect(path, outputs).trials
    said = advise(trials, Budget())
    assert "**lora" in said and "probability more than 99 %" in said and "(less than 1 %)" in said
    assert "100%" not in said and "(0%)" not in said, "a few seeds drawn anew make nothing certain"
    assert "nothing in this study fits" in advise(trials, Budget(labels_per_class=1))
    twin = trials[trials["method"] == "lora"].assign(method="adaptive", variant="adapt=pattern")
    said = advise(pd.concat([trials, twin]), Budget())
    assert "**lora" in said and "probability more than 99 %" in said
    assert "adaptive (adapt=pattern)" in said.split("Left out:")[1], "copies do not compete"
    assert "**none**" in advise(trials.assign(accuracy=trials["constant"] - 0.01), Budget())


def test_probability_best_is_shared_by_equals():
    scores = np.random.default_rng(0).normal(0, 1, (10, 1))
    assert probability_best(np.hstack([scores, scores])) == pytest.approx([0.5, 0.5])
    assert probability_best(np.hstack([scores, scores + 1]))[1] == 1




def test_counts_of_seeds_stay_whole_numbers_beside_a_missing_contrast(tmp_path):
    found = collect.collect(*filled(tmp_path, seeds=range(6), methods=[METHODS[0], METHODS[1]]))
    table = tables.contrast_table(verdicts.judge(found.trials, 2.0), 2.0)
    assert set(table["seeds"]) == {6, ""} and "6.0" not in tables.static(table).to_html()


def test_a_difference_of_costs_is_shown_in_percent(tmp_path):
    trials = collect.collect(*filled(tmp_path, seeds=range(6), methods=[{"method": "pbft"}, {"method": "lora"}])).trials
    lora = trials["method"] == "lora"
    trials = trials.assign(train_seconds=np.where(lora, 1.0 + trials["seed"] % 2, 4.0), memory=np.where(lora, 6.0, 4.0))
    table = tables.contrast_table(verdicts.judge(trials, 2.0), 2.0).set_index("contrast")
    shown = table.loc[["LoRA − full fine-tuning, training seconds", "LoRA − full fine-tuning, peak memory"]]
    mean = 100 * (np.sqrt(1 * 2) / 4 - 1)  # three seeds take 1 s, three 2 s: their geometric mean, of 4 s
    assert shown["difference"].tolist() == [f"{mean:.2f}", "+50.00"]
    low, high = (float(end) for end in shown["95 % over seeds"].iloc[0].split(" to "))
    assert low < mean < high and (1 + low / 100) * (1 + high / 100) == pytest.approx((1 + mean / 100) ** 2, rel=1e-3), "even about it as a ratio"


def test_an_accuracys_interval_ends_where_accuracies_end():
    trials = pd.DataFrame({"set": "one", "domain": "in", "accuracy": [0.45, 0.60], "constant": 0.5, "mcc": 0.0, "n": 200, "seed": [0, 1],
                           "commonest_prediction": 0.5, "outcome": ["a", "b"], "seconds": 1.0})
    line = summary.summary(trials, ["set", "domain"]).iloc[0]
    assert (line["low"], line["high"]) == (0, 1), "Student's own would be -0.43 to 1.48"


def test_what_one_kind_of_task_has_and_another_has_not_is_left_empty_beside_it():
    labels = {"set": "labels", "accuracy": [0.7, 0.8], "constant": 0.5, "mcc": [0.2, 0.3], "untrained": 0.6, "untrained_mcc": 0.1,
              "macro_f1": [0.6, 0.7], "uneven": True, "constant_macro_f1": 0.3}
    spans = {"set": "spans", "accuracy": [0.3, 0.4], "constant": 0.1, "mcc": np.nan, "untrained": 0.2, "untrained_mcc": np.nan,
             "exact_match": [0.2, 0.3]}
    common = {"domain": "in", "n": 100, "seed": [0, 1], "commonest_prediction": 0.5, "outcome": ["a", "b"], "seconds": 1.0}
    table = pd.concat([pd.DataFrame({**common, **one}) for one in (labels, spans)], ignore_index=True)
    shown = summary.printable(summary.summary(table, ["set", "domain"]))
    assert not shown.astype(str).apply(lambda column: column.str.contains("nan")).any(axis=None)
    assert shown["untrained, % (MCC)"].tolist() == ["60.0 (0.100)", "20.0"] and shown["exact match, %"].tolist() == ["", "25.0"]
    assert shown["MCC [95 %]"].tolist()[1] == "" and shown["macro-F1, %"].tolist() == ["65.0", ""]


def test_answers_that_tell_the_labels_apart_are_seen_where_a_constant_is_right_more_often():
    # Right on 62 % of either label of a set of 69 to 31: accuracy 0.62, below the constant's 0.69; MCC 0.22.
    accuracy, mcc = np.array([0.61, 0.62, 0.63]), np.array([0.21, 0.22, 0.23])
    trials = pd.DataFrame({"set": "one", "domain": "in", "accuracy": accuracy, "constant": 0.69, "mcc": mcc, "n": 1000, "seed": [0, 1, 2],
                           "commonest_prediction": 0.55, "outcome": list("abc"), "seconds": 1.0})
    table = summary.summary(trials, ["set", "domain"])
    assert summary.printable(table)["reading"].tolist() == ["below constant, MCC above 0"]
    assert (table.iloc[0]["mcc low"], table.iloc[0]["mcc high"]) == pytest.approx(summary.interval(mcc))
    assert summary.printable(table)["MCC [95 %]"].tolist() == ["0.220 [0.195, 0.245]"]
    assert summary.printable(summary.summary(trials.assign(mcc=mcc - 0.22), ["set", "domain"]))["reading"].tolist() == ["below constant"]


def test_what_the_untrained_model_gives_already_is_not_called_learnt():
    trials = pd.DataFrame({"set": "one", "domain": "in", "accuracy": [0.61, 0.62, 0.63], "constant": 0.5, "mcc": [0.21, 0.22, 0.23], "n": 1000,
                           "seed": [0, 1, 2], "commonest_prediction": 0.55, "outcome": list("abc"), "seconds": 1.0})

    def reading(**more) -> str:
        return summary.printable(summary.summary(trials.assign(**more), ["set", "domain"]))["reading"].item()

    # Student's t: accuracy from 0.595, MCC from 0.195.
    assert reading(untrained=0.60, untrained_mcc=0.20) == "above constant, not above untrained"
    assert reading(untrained=0.59, untrained_mcc=0.20) == reading(untrained=0.60, untrained_mcc=0.19) == "above constant", "one of them is above"
    assert reading(untrained=0.60, untrained_mcc=0.20, constant=0.7) == "below constant, MCC above 0, not above untrained"
    assert reading(untrained=0.60, untrained_mcc=0.20, constant=0.7, mcc=[-0.1, 0.0, 0.1]) == "below constant", "nothing that could be taken back"
    assert reading(untrained=0.50, untrained_mcc=0.20, constant=0.7) == "below constant, MCC above 0, not above untrained", "it only leans otherwise"
    assert reading(untrained=0.90, untrained_mcc=0.9, mcc=0.22) == "above constant, not above untrained", "equal MCCs have no interval"
    assert reading(untrained=np.nan, untrained_mcc=np.nan) == reading() == "above constant", "not measured"


def test_the_untrained_model_stands_beside_every_method_and_advice_asks_for_more(tmp_path):
    path, outputs = filled(tmp_path, shots=(2,), methods=[METHODS[0], METHODS[1], METHODS[-1]], seeds=range(6))
    record = next(Path(outputs).glob("*/in_context/*/cola/*/record.json"))
    before = json.loads(record.read_text())
    for trial in before["trials"]:
        for scores in trial["also"]["zero-shot"]["sets"].values():
            scores.update(accuracy=0.9, mcc=0.7)
    trials = collect.collect(path, outputs).trials
    assert set(trials["untrained"]) == {0.693 - 0.05, 0.686 - 0.05} and "**pbft" in advise(trials, Budget())
    record.write_text(json.dumps(before))
    better = collect.collect(path, outputs).trials
    assert set(better["untrained"]) == {0.9} and set(better["method"]) == {"vanilla", "pbft", "in_context"}
    assert "**none**" in advise(better, Budget()) and "the untrained model, which is right on 90.0 %" in advise(better, Budget())
    assert set(tables.readable_results(tables.result_table(better))["untrained, % (MCC)"]) == {"90.0 (0.700)"}
    assert answer.answer_table(better)[0].iloc[1].tolist()[:3] == ["untrained model", "90.0", "90.0"]
    pairs = [pair for one in verdicts.judge(better, 2.0) for pair in one.pairs if pair.contrast.measure == "in" and len(pair.d)]
    assert pairs and not any(pair.learnt for pair in pairs)
    without = collect.collect(*filled(tmp_path, tmp_path / "other", name="other", shots=(2,), methods=METHODS[:2], seeds=range(6)))
    assert without.trials["untrained"].isna().all() and "**pbft" in advise(without.trials, Budget())
    assert "untrained, % (MCC)" not in tables.readable_results(tables.result_table(without.trials))


def test_each_model_is_held_against_itself_and_calibrated_answers_are_no_untrained_models(tmp_path):
    methods = [{"method": "in_context", "set": {"calibrate": True}}, METHODS[1], METHODS[-1]]
    path, outputs = filled(tmp_path, shots=(2,), methods=methods, models=("a/small", "a/large"), seeds=range(6))
    for record in Path(outputs).glob("*/in_context/*/cola/*/record.json"):
        content = json.loads(record.read_text())
        untrained = 0.99 if "calibrate" in record.parent.name else 0.9 if "large" in str(record) else 0.6
        for trial in content["trials"]:
            for scores in trial["also"]["zero-shot"]["sets"].values():
                scores.update(accuracy=untrained)
        record.write_text(json.dumps(content))
    trials = collect.collect(path, outputs).trials
    assert set(zip(trials["model"], trials["untrained"])) == {("a/small", 0.6), ("a/large", 0.9)}
    ahead = trials.assign(accuracy=trials["accuracy"] + 0.02 * (trials["model"] == "a/large"))
    assert "pbft, a/large" in advise(ahead, Budget()) and "untrained model, which is right on 90.0 %" in advise(ahead, Budget())


def test_training_is_all_that_makes_the_model_and_no_comparison_or_compiling_is_a_cost(tmp_path):
    path, outputs = filled(tmp_path, shots=(2,), methods=METHODS[:1], seeds=range(2))
    study = read_study(path, outputs=outputs)
    record = json.loads((study.runs[0].folder / "record.json").read_text())
    for trial in record["trials"]:
        trial["seconds"] = {"adapt": 1.0, "teach": 20.0, "train": 300.0, "evaluate": 4000.0, "other": 50_000.0, "compare": 0.5, "compile": 0.25}
    (study.runs[0].folder / "record.json").write_text(json.dumps(record))
    found = collect.collect(path, outputs)
    assert set(found.trials["train_seconds"]) == {321.0} and set(found.trials["seconds"]) == {54_321.0}
    assert "321.00" in tables.costs(found.trials).to_html() and "54321.00" in tables.costs(found.trials).to_html()


def test_advice_compares_at_one_count_of_shots_and_over_common_seeds(tmp_path):
    methods = [{"method": "vanilla"}, {"method": "pbft"}, {"method": "lora"},
               {"method": "lora", "ablation": True, "set": {"seeds": [0, 1]}, "vary": {"rank": [1]}}]
    path = make_study(tmp_path, shots=(2, 64), methods=methods)
    effect = lambda run, domain: 20.0 if run.parameters.shots == 64 else 10.0 if run.method == "lora" else 5.0  # noqa: E731

    def there(run, seed: int) -> bool:
        return (run.parameters.shots == 2 and seed < 8 + (run.method == "pbft")) or (run.method == "vanilla" and run.parameters.shots == 64)

    fill(read_study(path, outputs=str(tmp_path / "outputs")), effect, only=there)
    trials = collect.collect(path, str(tmp_path / "outputs")).trials
    table, out = candidates(trials, Budget())
    assert all(name.endswith("2-shot") for name in table) and len(table) == 8 and len(table.columns) == 3
    assert "ablations: lora (rank=1) with 2 seeds" in out and "1 of 9 seeds" in out[-1]
    assert "**lora, facebook/opt-125m, 2-shot**" in advise(trials, Budget())


def test_what_is_not_whole_says_so_above_its_verdicts(tmp_path):
    path = make_study(tmp_path, shots=(2, 16), methods=METHODS[:2])
    fill(read_study(path, outputs=str(tmp_path / "outputs")), only=lambda run, seed: run.parameters.shots == 2)
    found = collect.collect(path, str(tmp_path / "outputs"))
    assert "The study is not whole" in tables.about_verdicts(found, 2.0)


def test_a_trial_without_a_record_and_a_changed_rule_make_an_analysis_anew(tmp_path, monkeypatch):
    path, outputs = filled(tmp_path, shots=(2,), methods=METHODS[:1])
    study, notebook = read_study(path, outputs=outputs), ROOT / "notebooks" / "analysis.ipynb"
    before = analysis_mark(study, notebook)
    assert analysis_mark(study, notebook) == before
    records.put_aside(study.runs[0].folder, range(9))
    fewer = analysis_mark(study, notebook)
    shutil.copytree(ROOT / "lowres", tmp_path / "lowres")
    monkeypatch.setattr("lowres.runs.execute.ROOT", tmp_path)
    assert analysis_mark(study, notebook) == fewer != before
    rules = tmp_path / "lowres" / "analysis" / "claims.py"
    rules.write_text(rules.read_text().replace("FAMILY = 7", "FAMILY = 6"))
    assert analysis_mark(study, notebook) != fewer


def test_a_table_loses_empty_columns_and_keeps_the_headings_of_one_without_lines():
    empty = {"nothing": ["", ""], "unknown": [float("nan")] * 2}
    shown = tables.static(pd.DataFrame({**empty, "number": ["1", "2"], "words": ["short", "a sentence " * 5]})).to_html()
    assert not re.search("nothing|unknown", shown) and re.findall(r"td\.col(\d) {\s*white-space: normal", shown) == ["1"], "sentences alone may wrap"
    assert "number" in tables.static(pd.DataFrame({"number": []})).to_html()


def test_the_answer_has_at_most_ten_lines_the_yardsticks_first_and_an_arrow_for_what_is_above_both(tmp_path):
    ablation = {"method": "lora", "ablation": True, "set": {"rank": 4, "seeds": [0, 1]}}
    path, outputs = filled(tmp_path, shots=(2, 16), methods=[*METHODS, ablation], seeds=range(6),
                           tasks=("cola", "mnli"), effect=lambda run, domain: 9.0 if run.method == "pbft" else -9.0)
    trials = collect.collect(path, outputs).trials
    lines, reading = answer.answer_table(trials)
    assert len(lines) == 10 and list(lines.iloc[:2, 0]) == ["constant answer", "untrained model"] and lines.iloc[2, 0] == "pbft"
    assert all("\u2191" in cell for cell in lines.iloc[2, 1:5]) and not any("\u2191" in cell for cell in lines.iloc[3:, 1:5].to_numpy().ravel())
    assert "16 examples per class" in reading and "rank=4" not in "".join(lines[""]), "ablations are not part of the answer"
    assert answer.answer_table(trials.head(0))[0].empty
    mean = trials[(trials["method"] == "pbft") & (trials["shots"] == 16) & (trials["set"] == "in_domain")]["accuracy"].mean()
    assert lines.iloc[2, 1].startswith(f"{100 * mean:.1f} [")


def test_a_task_is_the_papers_by_what_it_says_not_by_its_name(tmp_path):
    ours = ROOT / "parameters" / "tasks" / "cola.yaml"
    copy, other = tmp_path / "somewhere.yaml", tmp_path / "cola_of_mine.yaml"
    copy.write_text(ours.read_text())
    other.write_text((ROOT / GRAMMAR).read_text().replace("name: grammar", "name: cola_of_mine"))
    changed = tmp_path / "changed.yaml"
    changed.write_text(ours.read_text().replace("version: ", "version: 1"))
    found = [paper_task(name) for name in ("cola", "cola_union", "mnli_three", str(ours), str(copy), str(other), str(changed), GRAMMAR, "nowhere")]
    assert found == ["cola", "cola", "mnli", "cola", "cola", "", "", "", ""]


def test_a_terminals_answer_names_who_is_above_every_yardstick_tfidf_among_them(tmp_path):
    gain = {"pbft": (12.0, 12.0), "vanilla": (12.0, 4.0), "lora": (4.0, 4.0), "baselines": (8.0, 8.0)}  # points in and out of domain
    methods = [{"method": "vanilla"}, {"method": "pbft"}, {"method": "lora"}, {"method": "in_context"},
               {"method": "baselines", "vary": {"classifier": ["tfidf"]}}]
    asked = {"tasks": ("mnli",), "shots": (2, 16), "seeds": range(6), "spread": 0.5}
    effect = lambda run, domain: gain.get(run.method, (-9.0, -9.0))[domain == "out"]  # noqa: E731
    trials = collect.collect(*filled(tmp_path, methods=methods, effect=effect, **asked)).trials
    [(title, lines, found)] = answer.at_a_glance(trials)
    assert title == "mnli, 16 examples per class, facebook/opt-125m"
    assert list(lines[""]) == ["constant answer", "untrained model", "pbft", "vanilla", "baselines classifier=tfidf", "lora", "in_context"]
    assert lines["in domain"][0] == "52.0" and lines["out of domain"][0] == "50.0"
    pbft = trials[(trials["method"] == "pbft") & (trials["shots"] == 16) & (trials["domain"] == "in")]["accuracy"]
    low, high = summary.accuracy_interval(pbft)
    mean, lower, upper = map(float, re.findall(r"[\d.]+", lines["in domain"][2]))
    assert mean == pytest.approx(100 * pbft.mean(), abs=0.05) and lower < 100 * low < 100 * high < upper, "rows are drawn anew, too"
    assert found == "Shown to be above the constant answer, the untrained model and TF-IDF, in domain: pbft, vanilla; out of domain: pbft."
    without = answer.at_a_glance(trials[trials["method"] != "baselines"])[0][2]
    assert "TF-IDF" not in without and "out of domain: pbft, vanilla, lora" in without.replace("vanilla, pbft", "pbft, vanilla")
    assert answer.at_a_glance(trials.head(0)) == []


def test_a_set_is_told_by_macro_f1_for_all_seeds_where_any_says_that_its_labels_are_uneven(tmp_path):
    trials = collect.collect(*filled(tmp_path, shots=(2,), seeds=range(4))).trials.assign(macro_f1=0.25)
    says = trials["seed"] > 1
    mixed = trials.assign(uneven=says.where(says), constant_macro_f1=np.where(says, 0.2, np.nan))
    lines = answer.main_lines(mixed)
    assert set(lines["accuracy"]) == {0.25} and set(lines["constant"]) == {0.2} and lines["set"].str.endswith(" (macro-F1)").all()


def test_the_answers_interval_is_over_seeds_and_rows_and_over_seeds_alone_where_no_predictions_are_at_hand(monkeypatch):
    rng = np.random.default_rng(0)
    right = rng.random((200,))[None] < 0.7  # every seed answers the same rows right: seeds alone would know no spread
    names = {"a": np.repeat(right, 8, axis=0), "b": rng.random((8, 200)) < 0.6}
    run = pd.DataFrame([{"folder": "f", "seed": seed, "set": name, "accuracy": correct[seed].mean()}
                        for name, correct in names.items() for seed in range(8)]).sample(frac=1, random_state=0)
    one, other = (run[run["set"] == name] for name in names)
    assert answer.over_seeds_and_rows(other) == summary.accuracy_interval(other["accuracy"])
    monkeypatch.setattr(collect, "read_predicted", lambda folder, seed: {name: collect.Predicted("rows", correct[seed], np.zeros((10, 3)))
                                                                        for name, correct in names.items()})
    low, high = answer.over_seeds_and_rows(one)
    expected = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 200)
    assert [right.mean() - low, high - right.mean()] == pytest.approx([expected] * 2, rel=0.15)
    both = answer.over_seeds_and_rows(run)
    assert both[0] < run["accuracy"].mean() < both[1] and both[1] - both[0] < high - low, "two sets, half the weight each"
