"""The words of a text are tagged: how rows are read and drawn, what the heads and losses are, how entities are found and scored."""

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from conftest import backbone_of
from test_extraction import behind, written
from toys import FINDS, trained_on, up_projection
from transformers import AutoModelForTokenClassification

from lowres.files import ROOT, BadInput
from lowres.methods.evaluation import evaluated, predict, predictions
from lowres.methods.training import train
from lowres.models.batches import encode, lay, read
from lowres.models.heads import Classifier, word_head
from lowres.parameters import Vanilla, validated
from lowres.runs import mistakes
from lowres.runs.checks import check_parameters
from lowres.runs.summary import headline, results, verdict
from lowres.tasks.kinds import KINDS
from lowres.tasks.load import load_task
from lowres.tasks.shots import Streams, draw
from lowres.tasks.spans import Passage
from lowres.tasks.tags import Tagged, entities

pytestmark = pytest.mark.usefixtures("forking")
KIND = KINDS["tagging"]


@pytest.fixture
def make_task(tmp_path):
    """The made-up task with changes to its file and, if given, other rows of its pool."""
    def make(rows: str = "", **changes) -> str:
        pool = {"pool": f"words\ttags\n{rows}"} if rows else {}
        return toys.remade(tmp_path, FINDS, toys.tables_of_tags() | pool, **changes)
    return make


@pytest.fixture
def finds(make_task):
    return load_task(make_task(), "", 20)


def test_a_row_has_the_entities_of_the_types_that_are_asked_for(make_task):
    task = load_task(make_task("In 1901 Anna Lund met Ida in Old Riga .\tO B-year B-human I-human O B-human O B-spot I-spot O\n"
                               "Anna Ida .\tB-human B-human O\nNobody .\tO O\n"))
    assert [label.entities for label in task.pool["label"]] == [((2, 4, 0), (5, 6, 0), (7, 9, 1)), ((0, 1, 0), (1, 2, 0)), ()]
    first, second, _ = task.pool["label"]
    assert first.texts(0) == ["Anna Lund", "Ida"] and first.texts(1) == ["Old Riga"] and KIND.counts(task.pool, 2).tolist() == [4, 1]
    assert first.tags() == [0, 0, 1, 2, 0, 1, 0, 3, 4, 0] and second.tags() == [1, 1, 0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"rows": "Anna met Ida .\tB-human O B-human\n"}, r"finds.pool.tsv: tags: 3 tags for 4 words in row 0 \(line 2\)$"),
    ({"rows": "Anna .\tB-human O\nAnna .\tI-human O\n"}, r"pool.tsv: tags: 'I-human' of word 0 breaks BIO: it follows 'O' in row 1 \(line 3\)$"),
    ({"rows": "Anna Riga\tB-human I-spot\n"}, "'I-spot' of word 1 breaks BIO: it follows 'B-human' in row 0"),
    ({"rows": "Anna .\tB-persn O\n"}, "'B-persn' of word 0 is no tag: O, or B- or I- and one of human, spot is wanted in row 0"),
    ({"rows": "Anna .\thuman O\n"}, "'human' of word 0 is no tag"),
    ({"rows": "Anna  met .\tB-human O O O\n"}, "words are not parted by single spaces in row 0"),
    ({"rows": "Anna met\u00a0Ida .\tB-human O O\n"}, "words are not parted by single spaces in row 0"),
    ({"rows": "Anna .\tB-human O\n"}, "finds: pool: no row of the label 'spot' is there"),
    ({"label": "tag"}, "column 'tag' is missing .did you mean \"tags\""),
    ({"questions": {"human": "?"}}, "questions: there is none for the label 'spot'"),
    ({"unanswerable": None}, "unanswerable: is wanted"), ({"start": "x"}, "start: goes with kind: extraction"),
    ({"label_words": {"x": {"human": " a", "spot": " b"}}}, "label_words: there are none of spans"),
])
def test_a_faulty_task_is_told_by_file_row_and_what_is_wrong(make_task, changes, message):
    with pytest.raises(BadInput, match=message) as found:
        load_task(make_task(**changes))
    assert "\n" not in str(found.value)


def test_draws_have_enough_entities_of_each_type_the_rarest_first_and_are_nested(finds, make_task):
    for seed in range(4):
        few, many = draw(finds.pool, 2, seed), draw(finds.pool, 16, seed)
        assert list(many.index[: len(few)]) == list(few.index) and many.index.is_unique
        for shots, drawn in ((2, few), (16, many)):
            assert KIND.counts(drawn, 2).min() >= shots and all(label.entities for label in drawn["label"])
            without_last = KIND.counts(drawn.iloc[:-1], 2)
            assert without_last.min() < shots, "no row more than is wanted"
    with pytest.raises(BadInput, match="shots: 500 is more than the .* examples that the pool has of label"):
        draw(finds.pool, 500, 0)


@pytest.mark.parametrize(("tags", "found"), [  # by hand, as seqeval's strict mode reads BIO
    ([1, 2, 0], ((0, 2, 0),)), ([1, 1, 2], ((0, 1, 0), (1, 3, 0))), ([0, 2, 2], ()), ([1, 4, 2], ((0, 1, 0),)), ([3, 4, 4], ((0, 3, 1),)),
    ([1, 2, 3, 4], ((0, 2, 0), (2, 4, 1))), ([1], ((0, 1, 0),)), ([0], ()), ([1, 0, 2], ((0, 1, 0),)),
])
def test_tags_are_read_strictly(tags, found):
    assert entities(tags) == found


def test_entity_f1_counts_whole_entities_of_the_right_type():
    passage = Passage("a b c d e", 4, " none", False)
    gold = np.empty(2, object)
    gold[:] = [Tagged(((0, 2, 0), (3, 4, 1)), passage, ("p", "q")), Tagged(((1, 2, 0),), passage, ("p", "q"))]
    said = np.array([[-1.0, 1, 2, 0, 1, 0], [-2.0, 0, 1, 2, 0, 0]])  # right; of another type; one word too long
    found = KIND.metrics(gold, said)
    assert found["entity_f1"] == pytest.approx(2 * 1 / (3 + 3)) and found["metric"] == "entity_f1" and found["exact_match"] == 0
    assert found["macro_f1"] == pytest.approx((2 * 1 / (2 + 3) + 0) / 2) and found["constant"] == 0 and found["n"] == 2
    assert KIND.metrics(gold, np.array([[0, 1, 2, 0, 3, 0], [0, 0, 1, 0, 0, 0]]))["entity_f1"] == 1


def test_a_dictionary_of_the_shots_entities_is_a_yardstick(finds):
    def labelled(text: str, *entities) -> Tagged:
        return Tagged(entities, Passage(text, 4, " none", False), ("p", "q"))

    shots = pd.DataFrame({"label": [labelled("Old Riga met Ida", (0, 2, 1), (3, 4, 0)),
                                    labelled("Riga saw Riga and Riga", (0, 1, 0), (2, 3, 1), (4, 5, 1))]})
    gold = np.empty(3, object)
    gold[:] = [labelled("Ida left Old Riga", (0, 1, 0), (2, 4, 1)), labelled("Riga , Old Ida", (0, 1, 0), (2, 4, 0)), labelled("ida slept")]
    # by hand: Ida, Old Riga as one; then Riga as a place, which it is more often, and Ida alone: 2 of 4 said are right, of 4 that are there
    assert KIND.ruled(gold, shots) == {"from_shots": pytest.approx(2 * 2 / (4 + 4))}
    assert KIND.ruled(gold, shots.head(0)) == {"from_shots": 0}


def test_a_trials_record_and_table_have_the_yardstick_of_its_shots(finds):
    shots, told = draw(finds.pool, 4, 0), {name: np.zeros((len(rows), 20), np.float32) for name, rows in finds.evaluation.items()}
    found = evaluated(finds, told, shots)
    assert {name: found[name]["from_shots"] for name in found} == {
        name: KIND.ruled(KIND.gold(rows), shots)["from_shots"] for name, rows in finds.evaluation.items()} and found["town"]["from_shots"] > 0
    common = {"seconds": {"train": 1.0}, "memory": {"resident": 1.0}, "trainable": 1, "losses": []}
    table = results([{"seed": seed, "sets": found, "outcome_sha256": str(seed), **common} for seed in range(2)])
    assert table["rule from the shots, %"].tolist() == [f"{100 * found[name]['from_shots']:.1f}" for name in table["set"]]
    row = pd.Series({"low": 0.2, "high": 0.4, "constant": 0, "mcc low": np.nan, "trials": 3})
    assert verdict(row) == verdict(pd.concat([row, pd.Series({"from_shots": 0.1})])) == "above constant"
    assert verdict(pd.concat([row, pd.Series({"from_shots": 0.3})])) == "above constant, not above the rule from the shots"


@pytest.mark.parametrize("fixture", ["tiny_llama"])
def test_the_new_heads_loss_is_transformers_own_at_each_words_last_token(fixture, finds, request):
    folder = request.getfixturevalue(fixture)
    backbone, rows = backbone_of(folder), finds.pool.head(6)
    head, inputs = Classifier(backbone, 2, 0, KIND.loss), encode(backbone, rows, "{words}", 128)
    theirs = AutoModelForTokenClassification.from_pretrained(folder, num_labels=5).eval()
    theirs.base_model.load_state_dict(backbone.model.base_model.state_dict())
    theirs.score.weight.data, theirs.score.bias.data = head.weight.data, torch.zeros(5)
    backbone.model.eval()
    ours = sum(head.loss(read(backbone, part), inputs.labels[part.texts]).item() for part in lay(head, inputs, budget=150))
    found, expected = predict(backbone, head, {"set": inputs})["set"], 0.0
    for i, (ids, labels) in enumerate(zip(inputs.ids, inputs.labels)):
        label, words = rows["label"].iloc[i], rows["words"].iloc[i].split()
        labels = labels[: len(ids)]
        ends = (labels != -100).nonzero().flatten().tolist()
        starts = [len(backbone.prefix), *(end + 1 for end in ends[:-1])]
        assert [backbone.tokenizer.decode(ids[start : end + 1]).strip() for start, end in zip(starts, ends)] == words
        assert labels[ends].tolist() == label.tags()
        out = theirs(input_ids=torch.tensor([ids]), labels=labels[None])
        expected += out.loss.item() * len(words)
        assert found[i, 1 : 1 + len(words)].tolist() == out.logits[0, ends].argmax(1).tolist()
        assert found[i, 0] == pytest.approx(out.logits[0, ends].log_softmax(1).max(1).values.sum().item(), abs=2e-3)
    assert ours == pytest.approx(expected, rel=1e-4)


def lists(label: Tagged, kind: int) -> list[str]:
    """By hand: what is written behind a type's question, piece by piece."""
    said = label.texts(kind)
    return [f" {text}{',' if i < len(said) - 1 else chr(10)}" for i, text in enumerate(said)] or [" none\n"]


def test_entities_train_as_if_each_types_list_stood_alone_behind_its_question(tiny_llama, finds):
    backbone, shots, pattern = backbone_of(tiny_llama), finds.pool.head(4), finds.file.pattern("")
    inputs, head = encode(backbone, shots, pattern, 128), word_head(backbone, finds.file, [])
    ours, gradient = trained_on(backbone, head, inputs, lay(head, inputs, budget=200))
    theirs = 0.0
    for ids, label in zip(inputs.ids, shots["label"]):
        for kind, question in enumerate(label.questions):
            asked = ids + behind(backbone, question)
            tokens = [token for text in lists(label, kind) for token in behind(backbone, text)]
            labels = torch.tensor([[-100] * len(asked) + tokens])
            loss = backbone.model(input_ids=torch.tensor([asked + tokens]), labels=labels).loss * len(tokens)
            loss.backward()
            theirs += loss.item()
    assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(gradient, up_projection(backbone).grad, atol=2e-5, rtol=1e-3)


def test_each_listed_entity_is_the_likeliest_by_plain_passes_and_types_do_not_overlap(tiny_llama, finds):
    backbone, rows, pattern = backbone_of(tiny_llama), finds.evaluation["ship"].head(2), finds.file.pattern("")
    inputs = encode(backbone, rows, pattern, 128)
    found = predict(backbone, word_head(backbone, finds.file, []), {"set": inputs})["set"]
    for ids, label, row in zip(inputs.ids, rows["label"], found):
        words, total, wanted = label.words, 0.0, []
        for kind, question in enumerate(label.questions):
            asked, begin = ids + behind(backbone, question), 0
            while True:
                options = {f" {label.passage.text[words[a][0]:words[b - 1][1]]}{end}": (a, b) for a in reversed(range(begin, len(words)))
                           for b in range(a + 1, min(a + 4, len(words)) + 1) for end in "\n,"}
                options |= {} if begin else {" none\n": (0, 0)}
                if not options:
                    break
                scores = {text: written(backbone, asked, text, "").item() for text in options}
                best = max(scores, key=scores.get)
                total, asked, (a, begin) = total + scores[best], asked + behind(backbone, best), options[best]
                wanted += [(scores[best], a, begin, kind)] if begin else []
                if best.endswith("\n"):
                    break
        assert row[0] == pytest.approx(total, abs=2e-3)
        kept = []
        for _, a, b, kind in sorted(wanted, reverse=True):
            kept += [(a, b, kind)] if all(b <= c or d <= a for c, d, _ in kept) else []
        assert entities(row[1:].astype(int).tolist()) == tuple(sorted(kept))


@pytest.mark.parametrize("name", ["classifier", "listed"])
def test_shots_are_learnt_by_either_head(tiny_llama, finds, name):
    backbone, shots = backbone_of(tiny_llama), draw(finds.pool, 4, 0)
    head = Classifier(backbone, 2, 0, KIND.loss) if name == "classifier" else word_head(backbone, finds.file, [])
    inputs = encode(backbone, shots, finds.file.pattern("plain"), 128)
    train(backbone, head, inputs, Vanilla(epochs=80, batch_size=3, learning_rate=5e-3), Streams(0))
    assert KIND.metrics(KIND.gold(shots), predict(backbone, head, {"shots": inputs})["shots"])["entity_f1"] > 0.9


def test_results_are_entity_f1_by_its_name_and_predictions_have_places_and_no_text(finds):
    answers = {}
    for name, rows in finds.evaluation.items():
        answers[name] = np.zeros((len(rows), 20), np.float32)
        for i, label in enumerate(rows["label"]):
            answers[name][i, 1 : 1 + len(label.words)] = label.tags() if i % 3 else 0
    trials = [{"seed": seed, "sets": evaluated(finds, answers), "seconds": {"train": 1.0}, "memory": {"resident": 1.0},
               "trainable": 1, "outcome_sha256": str(seed), "losses": []} for seed in range(2)]
    assert {"entity F1, % [95 % interval]", "exact match, %", "macro-F1, %", "constant, %"} <= set(results(trials))
    assert headline(trials)[0].startswith("**entity F1 ")
    kept = predictions(finds, answers, 0)
    assert list(kept)[3:] == ["label", "prediction", "logit_log_probability"]
    assert kept["label"].str.fullmatch(r"(\d+:\d+ (human|spot)(\|(?!$)|$))*").all()
    told = mistakes.confusions(kept, finds.labels, KIND)
    assert set(told["label"]) == {"human", "spot"} and set(told["taken for"]) == {"no entity"}
    assert len(mistakes.wrong_rows(kept, finds.labels, KIND)) == (kept["label"] != kept["prediction"]).sum()


def test_what_has_no_meaning_is_refused_and_cut_entities_are_told(tiny_llama, make_task):
    path = make_task()
    with pytest.raises(BadInput, match="^method baselines: has no meaning yet for tasks of kind tagging$"):
        check_parameters([("baselines", validated("baselines", {"task": path}, "test"))])
    p = {"task": path, "model": tiny_llama, "max_length": 16}
    with pytest.raises(BadInput, match="max_length: 16 cuts off the answer of row .* of the pool"):
        check_parameters([("pbft", validated("pbft", p, "test"))])


def test_another_tasks_rows_are_asked_as_ones_own_are(finds, make_task, tmp_path):
    changes = {"name": "others", "unanswerable": " nobody", "questions": {"human": "?", "spot": "!"}}
    other = toys.remade(tmp_path / "other", FINDS, toys.tables_of_tags(), **changes)
    task = load_task(make_task(), "", 5, [other])
    assert {label.questions for label in task.evaluation["others.ship"]["label"]} == {label.questions for label in task.pool["label"]}
    assert task.evaluation["others.ship"]["label"].iloc[0].passage.none == " none"


def test_crossner_is_read_where_it_is_at_hand():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "crossner" / "politics_train.tsv").is_file():
        pytest.skip("CrossNER is not at hand")
    task = load_task("crossner", str(folder))
    assert KIND.counts(task.pool, 4).min() >= 16 and all(KIND.counts(rows, 4).min() > 0 for rows in task.evaluation.values())
