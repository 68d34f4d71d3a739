"""Several labels a row, or none: how rows are read and drawn, what the heads and the loss are, how answers are scored and told."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from conftest import backbone_of, word_ids
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from synthetic import fill, make_study
from toys import GRAMMAR, REQUESTS
from transformers import AutoModelForSequenceClassification

from lowres.analysis import answer
from lowres.analysis.collect import collect, rows_right
from lowres.files import ROOT, BadInput
from lowres.methods import baselines
from lowres.methods.evaluation import evaluated, predict, predictions
from lowres.methods.kept import check_can_be_kept
from lowres.methods.training import balanced, train
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Questions, Verbalizer, tokens_after_text, word_head
from lowres.parameters import PBFT, Adaptive, Baselines, Distillation, InContext, LoRA, Vanilla, validated
from lowres.runs import mistakes, records
from lowres.runs.checks import check_parameters, check_words
from lowres.runs.study import read_study
from lowres.runs.summary import headline, results
from lowres.tasks.kinds import KINDS, refuse
from lowres.tasks.load import load_task
from lowres.tasks.several import micro_f1
from lowres.tasks.shots import Streams, draw, fewest
from lowres.tasks.task_file import extended_task

pytestmark = pytest.mark.usefixtures("forking")
KIND = KINDS["multi_label"]


@pytest.fixture(scope="module")
def requests():
    return load_task(REQUESTS, "", 40)


@pytest.fixture
def make_task(tmp_path):
    """The made-up task with changes to its file and, if given, other rows of the pool."""
    def make(rows: str = "", **changes) -> str:
        return toys.remade(tmp_path, REQUESTS, toys.tables() | ({"pool": rows} if rows else {}), **changes)
    return make


def labels_of(task, rows: pd.DataFrame) -> list[str]:
    return [task.kind.written(label, task.labels) for label in rows["label"]]


def test_the_made_up_rows_are_those_of_their_seeds():
    for name, table in toys.tables().items():
        assert (ROOT / "tests/tasks/requests" / f"{name}.tsv").read_text() == table


def test_a_row_has_several_labels_or_none(make_task):
    pool = "text\tlabels\nOne.\tdelay|refund\nTwo.\t\nThree.\tthanks\nFour.\taddress\n"
    task = load_task(make_task(pool))
    assert task.pool["label"].tolist() == [(1, 1, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0)]
    assert labels_of(task, task.pool) == ["refund|delay", "", "thanks", "address"]


def test_another_separator_and_another_name_of_a_label_are_read(make_task):
    pool = "text\tlabels\nOne.\tlate; refund\nTwo.\tthanks\nThree.\taddress; weather\n"
    task = load_task(make_task(pool, separator="; ", relabel={"late": "delay", "*": None}))
    assert labels_of(task, task.pool) == ["refund|delay", "thanks", "address"]


def test_rows_are_taken_by_the_value_of_another_column(make_task):
    pool = "text\tlabels\tfold\nOne.\trefund|delay|address|thanks\t0\nTwo.\tthanks\t1\nThree.\taddress\t2\n"
    assert list(load_task(make_task(pool, pool={"file": "pool", "where": {"fold": ["0", "2"]}})).pool["text"]) == ["One.", "Three."]
    with pytest.raises(BadInput, match="requests: pool: where: no row of .*pool.tsv has '3' in 'fold'"):
        load_task(make_task(pool, pool={"file": "pool", "where": {"fold": ["0", "3"]}}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "multilabel"}, "requests.yaml: kind: 'multilabel' is not accepted"),
    ({"questions": {}}, "requests.yaml: .*questions: there is none for the label 'refund'"),
    ({"questions": {"refund": " Money?", "delay": " Late?", "address": " ", "thanks": " Thanks?"}}, "there is none for the label 'address'"),
    ({"questions": dict.fromkeys(["refund", "delay", "address", "thanks", "thank"], " Is it?")}, "'thank' is no label .did you mean \"thanks\""),
    ({"kind": None}, "(questions: goes with kind: multi_label|label_words)"),
    ({"kind": None, "label_words": {"a": dict.fromkeys(["refund", "delay", "address", "thanks"], " x")}}, "questions: goes with kind: multi_label"),
    ({"label_words": {"yes_no": {"yes": " Yes"}}}, r"label_words.yes_no: a word for each of \['no', 'yes'\] is wanted"),
    ({"labels": ["refund", "delay", "address", "a|b"]}, "labels: 'a|b' contains what stands between labels"),
    ({"pool": "text\tlabels\nOne.\trefund\nTwo.\tdelay|thank\n"},
     r"pool.tsv: labels: 'thank' in row 1 \(line 3\) is no label .did you mean \"thanks\""),
    ({"pool": "text\tlabels\nOne.\trefund\nTwo.\tdelay|thanks\n"}, "requests: pool: no row of the label 'address' is there"),
])
def test_a_faulty_task_is_told_by_file_key_and_value(make_task, changes, message):
    rows = changes.pop("pool") if isinstance(changes.get("pool"), str) else ""
    with pytest.raises(BadInput, match=message):
        load_task(make_task(rows, **changes))


def test_draws_have_enough_of_each_label_and_none_and_are_nested(requests):
    for seed in range(5):
        few, many = draw(requests.pool, 2, seed), draw(requests.pool, 16, seed)
        assert list(many.index[: len(few)]) == list(few.index) and many.index.is_unique
        for shots, drawn in ((2, few), (16, many)):
            assert KIND.counts(drawn, 4).min() >= shots and len(drawn) <= 5 * shots
            without = labels_of(requests, requests.pool).count("")
            assert labels_of(requests, drawn).count("") == min(shots, without)
    assert set(draw(requests.pool, 4, 0).index) != set(draw(requests.pool, 4, 1).index)


def test_a_draw_takes_the_rarest_label_first_and_only_what_a_label_still_lacks():
    pool = pd.DataFrame({"text": list("abcdef"), "label": [(1, 0), (1, 0), (1, 0), (1, 0), (1, 1), (0, 0)]})
    assert list(draw(pool, 1, 0)["text"]) == ["e", "f"], "the row of the rare label has the common one, too"
    assert fewest(pool) == 1
    with pytest.raises(BadInput, match="shots: 2 is more than the 1 examples that the pool has of label 1"):
        draw(pool, 2, 0)
    assert sorted(draw(pool, 2, 0, uneven=True)["text"])[-2:] == ["e", "f"]


def test_a_capped_set_is_the_same_choice_every_time_and_keeps_the_shares_of_label_sets():
    whole, some = (load_task(REQUESTS, "", rows).evaluation["shop"] for rows in (0, 50))
    assert len(some) == 50 and abs(KIND.counts(some, 4) / 50 - KIND.counts(whole, 4) / len(whole)).max() < 0.05


def test_micro_f1_is_sklearns_and_the_best_constant_is_the_best_of_all_sets():
    stream = np.random.default_rng(0)
    for _ in range(20):
        gold, logits = (stream.random((30, 5)) < stream.random(5)).astype(int), stream.normal(size=(30, 5))
        found = KIND.metrics(gold, logits)
        assert found["micro_f1"] == pytest.approx(f1_score(gold, logits > 0, average="micro"))
        assert found["macro_f1"] == pytest.approx(f1_score(gold, logits > 0, average="macro", zero_division=0))
        assert found["exact_match"] == np.mean([(row == said).all() for row, said in zip(gold, logits > 0)])
        every = [micro_f1(gold, np.tile(one, (30, 1))) for one in itertools.product([0, 1], repeat=5)]
        assert found["constant"] == pytest.approx(max(every))


def test_the_classifiers_loss_is_transformers_own_times_the_labels(tiny_llama, requests):
    backbone = backbone_of(tiny_llama)
    head, inputs = Classifier(backbone, 4, 0, KIND.loss), encode(backbone, requests.pool.head(6), "{text}", 64)
    [rows] = pack(inputs.ids, backbone.device)
    ours = head.loss(backbone.hidden(rows), inputs.labels[rows.texts]) / len(inputs)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=4, problem_type="multi_label_classification").eval()
    theirs.score.weight.data = head.weight.data
    padded = backbone.tokenizer.pad({"input_ids": inputs.ids}, padding_side="right", return_tensors="pt")
    assert ours.item() == pytest.approx(4 * theirs(**padded, labels=inputs.labels.float()).loss.item(), rel=1e-5)


def test_a_question_is_answered_as_if_text_and_question_stood_alone(tiny_model, requests):
    backbone, spec = backbone_of(tiny_model), requests.file
    words = spec.words("")
    rows = requests.evaluation["shop"].head(9)
    inputs, head = encode(backbone, rows, spec.pattern(""), 96), word_head(backbone, spec, words)
    found = predict(backbone, head, {"set": inputs})["set"]
    no, yes = word_ids(backbone.tokenizer, words)
    for i, ids in enumerate(inputs.ids):
        for label, question in enumerate(spec.asked):
            asked = ids + tokens_after_text(backbone.tokenizer, question)
            logits = backbone.model.eval()(input_ids=torch.tensor([asked])).logits[0, -1]
            assert found[i, label] == pytest.approx((logits[yes] - logits[no]).item(), abs=2e-4)


def test_a_question_trains_as_if_text_and_question_stood_alone(tiny_llama, requests):
    backbone, spec, shots = backbone_of(tiny_llama), requests.file, requests.pool.head(5)
    words, weight = spec.words(""), lambda: backbone.model.model.layers[0].mlp.up_proj.weight
    inputs, head = encode(backbone, shots, spec.pattern(""), 96), word_head(backbone, spec, words)
    backbone.model.eval()
    for rows in pack(inputs.ids, backbone.device, branches=head.branches):
        head.loss(backbone.hidden(rows), inputs.labels[rows.texts]).backward()
    ours = weight().grad.clone()
    backbone.model.zero_grad()
    no, yes = word_ids(backbone.tokenizer, words)
    for ids, gold in zip(inputs.ids, inputs.labels.tolist()):
        for question, right in zip(spec.asked, gold):
            logits = backbone.model(input_ids=torch.tensor([ids + tokens_after_text(backbone.tokenizer, question)])).logits[0, -1]
            torch.nn.functional.cross_entropy(logits[[no, yes]][None], torch.tensor([right])).backward()  # two words: a softmax is the sigmoid
    torch.testing.assert_close(ours, weight().grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["classifier", "questions"])
def test_shots_are_learnt_by_either_head(tiny_llama, requests, name):
    backbone, spec, shots = backbone_of(tiny_llama), requests.file, draw(requests.pool, 4, 0)
    head = Classifier(backbone, 4, 0, KIND.loss) if name == "classifier" else word_head(backbone, spec, spec.words(""))
    inputs = encode(backbone, shots, spec.pattern("plain"), 96)
    train(backbone, head, inputs, Vanilla(epochs=40, batch_size=8, learning_rate=5e-3), Streams(0))
    assert KIND.metrics(KIND.gold(shots), predict(backbone, head, {"shots": inputs})["shots"])["micro_f1"] > 0.9


def test_a_head_is_one_of_questions_only_where_there_are_some(tiny_llama, task, requests):
    backbone = backbone_of(tiny_llama)
    assert isinstance(word_head(backbone, task.file, task.file.words("")), Verbalizer)
    assert isinstance(word_head(backbone, requests.file, requests.file.words("")), Questions)
    with pytest.raises(BadInput, match="label_words: ' incorrectly' is . tokens; of an answer to questions one is wanted"):
        word_head(backbone, requests.file, [" No", " incorrectly"])


def test_balanced_weights_make_a_labels_texts_count_as_much_as_the_others():
    assert balanced(torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]])).tolist() == [3, 1]


def test_the_probe_is_a_logistic_regression_a_label(tiny_llama, requests):
    backbone, shots, gold = backbone_of(tiny_llama), draw(requests.pool, 8, 0), KIND.gold(draw(requests.pool, 8, 0))
    states = baselines.states(backbone, encode(backbone, shots, "{text}", 64))
    fitted = baselines.classifier(Baselines(), several=True).fit(states, gold)
    scale = StandardScaler().fit(states)
    scaled = scale.transform(states)
    by_hand = [LogisticRegression(max_iter=1000).fit(scaled, gold[:, i]).decision_function(scaled) for i in range(4)]
    assert np.allclose(baselines.answers(fitted, {"shots": states})["shots"], np.stack(by_hand, 1), atol=1e-4)
    assert baselines.weights(fitted) == 4 * (backbone.width + 1)


def test_predictions_have_the_labels_joined_and_a_logit_a_label(requests):
    logits = {name: np.random.default_rng(0).normal(size=(len(rows), 4)).astype(np.float32) for name, rows in requests.evaluation.items()}
    kept = predictions(requests, logits, 0)
    assert list(kept) == ["trial", "set", "row", "label", "prediction", *(f"logit_{label}" for label in requests.labels)]
    first = kept.iloc[0]
    assert first["prediction"].split("|") == [label for label in requests.labels if first[f"logit_{label}"] > 0] or first["prediction"] == ""
    wrong = mistakes.wrong_rows(kept, requests.labels, KIND)
    assert len(wrong) == (kept["label"] != kept["prediction"]).sum() and wrong["confidence"].between(0, 1).all()
    told = mistakes.confusions(kept, requests.labels, KIND, most=100)
    assert all({f"not {line['label']}"} == {line["taken for"]} or f"not {line['taken for']}" == line["label"] for _, line in told.iterrows())
    assert told["answers"].sum() == sum((KIND.gold(rows) != (logits[name] > 0)).sum() for name, rows in requests.evaluation.items())


def test_results_are_never_called_accuracy(requests):
    stream = np.random.default_rng(0)
    trials = []
    for seed in range(3):
        logits = {name: stream.normal(size=(len(rows), 4)) + 3 * KIND.gold(rows) for name, rows in requests.evaluation.items()}
        trials.append({"seed": seed, "sets": evaluated(requests, logits), "seconds": {"train": 1.0}, "memory": {"resident": 1.0},
                       "trainable": 1, "outcome_sha256": str(seed), "losses": []})
    table = results(trials)
    assert {"micro-F1, % [95 % interval]", "exact match, %"} <= set(table)
    assert not [name for name in table if "accuracy" in name or "MCC" in name]
    assert headline(trials)[0].startswith("**micro-F1 ") and "accuracy" not in " ".join(headline(trials))
    assert set(table["reading"]) == {"above constant"}


def test_a_row_of_several_labels_is_neither_right_nor_wrong_as_a_whole(requests, tmp_path):
    logits = {name: np.ones((len(rows), 4), np.float32) for name, rows in requests.evaluation.items()}
    records.write_trial(tmp_path, {"seed": 0}, predictions(requests, logits, 0))
    assert len(records.read_predictions(tmp_path)) == 80 and rows_right([str(tmp_path)], "shop", [0]) is None


@pytest.mark.parametrize(("method", "p", "what"), [
    ("in_context", InContext(task=REQUESTS), "demonstrations"), ("distillation", Distillation(task=REQUESTS), "method distillation"),
    ("adaptive", Adaptive(task=REQUESTS), "adapt = pattern"),
    ("baselines", Baselines(task=REQUESTS, classifier="brought", predictions="x"), "classifier = brought"),
    ("pbft", validated("pbft", {"task": REQUESTS, "loss": "vocabulary"}, "test"), "loss = vocabulary"),
    ("vanilla", Vanilla(task=REQUESTS, choose={"epochs": [2]}), "choose"),
])
def test_what_has_no_meaning_is_refused_before_a_model_loads(method, p, what):
    with pytest.raises(BadInput, match=f"^{what}.*: has no meaning yet for tasks of kind multi_label$"):
        check_parameters([(method, p)])
    refuse("classification", method, p)


def test_a_model_that_answers_questions_is_not_kept_and_a_classifier_of_several_labels_is():
    for method, p in (("pbft", PBFT(task=REQUESTS)), ("lora", LoRA(task=REQUESTS))):
        with pytest.raises(BadInput, match="keep: of several labels a text, a method with label words asks a question each behind it"):
            check_can_be_kept(method, p)
    check_can_be_kept("vanilla", Vanilla(task=REQUESTS))
    check_can_be_kept("lora", LoRA(task=REQUESTS, head="classifier"))


def test_a_task_of_another_kind_is_not_evaluated_besides():
    with pytest.raises(BadInput, match="also_evaluate: 'requests' is a task of kind multi_label, not classification"):
        extended_task(GRAMMAR, (REQUESTS,))


def test_questions_that_leave_no_room_for_a_text_are_refused(tiny_llama):
    p = validated("pbft", {"task": REQUESTS, "model": tiny_llama, "max_length": 250}, "test")
    with pytest.raises(BadInput, match="requests: max_length: 250 leaves no room for the .* tokens that are read behind it"):
        check_words(p)


def test_nlu_plus_plus_is_read_where_it_is_at_hand():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "nlupp" / "banking.tsv").is_file():
        pytest.skip("NLU++ is not at hand")
    task = load_task("nlupp", str(folder))
    assert {name: len(rows) for name, rows in task.evaluation.items()} == {"banking": 413, "hotels": 1009}
    assert fewest(task.pool) >= 16 and KIND.counts(task.evaluation["hotels"], 12).min() > 0


def test_the_answer_and_the_advice_call_a_score_by_its_name(tmp_path):
    path = make_study(tmp_path, shots=(16,), seeds=range(6), methods=[{"method": "vanilla"}, {"method": "pbft"}])
    fill(read_study(path, outputs=str(tmp_path / "outputs")), lambda run, domain: 10.0, 0.3)
    trials = collect(path, str(tmp_path / "outputs")).trials.assign(metric="micro-F1")
    table, said = answer.answer_table(trials)
    assert list(table)[1:3] == ["cola: in_domain (micro-F1)", "cola: out_of_domain (micro-F1)"] and "Of F1: for new draws alone" in said
    (title, _, _), = answer.at_a_glance(trials)
    assert title.startswith("cola (micro-F1), 16 examples per class")
    assert "in-domain and out-of-domain micro-F1" in answer.advise(trials, answer.Budget())
