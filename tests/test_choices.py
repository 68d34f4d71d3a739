"""One of a row's choices is right: how rows are read, how a choice is scored and trained, what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from conftest import backbone_of
from toys import REQUESTS, USES, trained_on, up_projection

from lowres.files import ROOT, BadInput
from lowres.methods.evaluation import evaluated, predict, predictions
from lowres.methods.kept import check_can_be_kept
from lowres.methods.layers_and_corpus import layer_groups
from lowres.methods.training import train
from lowres.models.batches import encode, pack, read
from lowres.models.heads import Classifier, Likelihood, word_head
from lowres.parameters import Adaptive, InContext, Vanilla, validated
from lowres.runs import mistakes
from lowres.runs.checks import check_file, check_parameters
from lowres.runs.notebook import start
from lowres.tasks.choices import in_order
from lowres.tasks.kinds import KINDS, refuse
from lowres.tasks.load import load_task
from lowres.tasks.shots import Streams, draw
from lowres.tasks.task_file import choice_columns, read_task

pytestmark = pytest.mark.usefixtures("forking")
KIND = KINDS["multiple_choice"]
PAIRS = {"name": "pairs", "text": None, "label": None, "labels": None, "choices": ["good", "bad"], "right": "good",
         "patterns": {"plain": "{choice}", "said": "They said: {choice}"},
         "evaluation": {"kitchen": {"domain": "in", "file": "kitchen", "break_down_by": ["about"]}}}


@pytest.fixture(scope="module")
def uses():
    return load_task(USES, "", 24)


@pytest.fixture
def make_task(tmp_path):
    """The made-up task with changes to its file and, if given, other rows, which are made unlike in its three files by `rows(name)`."""
    def make(rows=None, **changes) -> str:
        tables = {name: rows(name) if rows and rows(name) else table for name, table in toys.tables_of_choices().items()}
        return toys.remade(tmp_path, USES, tables, **changes)
    return make


def pairs(name: str) -> str:
    seed = ["pool", "kitchen", "garden"].index(name)
    return "\n".join(["good\tbad\tabout", *map("\t".join, toys.pairs(150, seed))]) + "\n"


def answers(rows: str):
    return lambda name: f"question\tfirst\tsecond\tthird\tanswer\n{rows}" if name == "pool" else ""


def test_the_made_up_rows_are_those_of_their_seeds():
    for name, table in toys.tables_of_choices().items():
        assert (ROOT / "tests/tasks/uses" / f"{name}.tsv").read_text() == table


def test_a_row_has_its_choices_and_the_place_of_the_right_one(make_task):
    task = load_task(make_task(answers("Cut?\ta knife\ta cup\ta fan\tA\nBoil?\ta cup\ta knife\ta kettle\tC\nEat?\ta fan\ta spoon\ta cup\tB\n")))
    assert task.file.text == ["question", "choice 1 of 3", "choice 2 of 3", "choice 3 of 3"]
    assert task.pool["label"].tolist() == [0, 2, 1] and task.pool["choice 3 of 3"].tolist() == ["a fan", "a kettle", "a cup"]


def test_the_right_choice_is_named_by_its_column_where_nothing_else_is_said_or_by_a_number(make_task):
    rows = "Cut?\tx\ty\tz\tfirst\nBoil?\tx\ty\tz\tthird\nEat?\tx\ty\tz\tsecond\n"
    named = lambda rows: lambda name: rows if name == "pool" else (ROOT / f"tests/tasks/uses/{name}.tsv").read_text().replace(
        "\tA\n", "\tfirst\n").replace("\tB\n", "\tsecond\n").replace("\tC\n", "\tthird\n")
    task = load_task(make_task(named("question\tfirst\tsecond\tthird\tanswer\n" + rows), labels=None))
    assert task.labels == ["first", "second", "third"] and task.pool["label"].tolist() == [0, 2, 1]
    numbers = {"relabel": {"0": "A", "1": "B", "2": "C"}}
    assert load_task(make_task(answers("Cut?\tx\ty\tz\t0\nBoil?\tx\ty\tz\t2\nEat?\tx\ty\tz\t1\n"), **numbers)).pool["label"].tolist() == [0, 2, 1]


def test_where_one_column_is_always_right_the_order_says_nothing(make_task):
    task = load_task(make_task(pairs, **PAIRS))
    good = {row[0] for row in toys.pairs(150, 0)}
    names = choice_columns(task.pool)
    assert names == ["choice 1 of 2", "choice 2 of 2"] and task.labels == ["choice 1", "choice 2"]
    assert all(row[names[label]] in good for (_, row), label in zip(task.pool.iterrows(), task.pool["label"]))
    assert 0.4 < task.pool["label"].mean() < 0.6, "a constant answer is at chance"
    assert task.pool.equals(load_task(make_task(pairs, **PAIRS)).pool)
    for one, other in [("It rains.", "It rain."), ("a", "b"), ("b", "c")]:
        order, turned = in_order([], [one, other]), in_order([], [other, one])
        assert order == turned[::-1], "the same texts stand first, whichever column they come from"


def test_a_row_whose_right_choice_stands_there_twice_is_dropped_and_counted(make_task):
    task = load_task(make_task(answers("Cut?\tx\ty\tx \tA\nBoil?\tx\tx\tz\tC\nEat?\tx\ty\tz\tB\nOpen?\tx\ty\tz\tA\n")))
    assert list(task.pool["question"]) == ["Boil?", "Eat?", "Open?"]
    assert "pool: 1 of 4 rows dropped, in which another choice is the same as the right one" in task.notes


@pytest.mark.parametrize(("changes", "message"), [
    ({"choices": None}, "uses.yaml: .*choices: two columns at least are wanted"),
    ({"choices": ["first"], "labels": ["A", "B"]}, "choices: two columns at least are wanted, each once"),
    ({"choices": ["first", "second"]}, "labels: a name for each of 2 choices is wanted, not .'A', 'B', 'C'."),
    ({"choices": ["first", "second", "fourth"]}, "(kitchen|garden).tsv: column 'fourth' is missing"),
    ({"right": "first"}, "right: goes without `label`"),
    ({"right": "forst", "label": None}, "right: 'forst' is none of the choices .did you mean \"first\""),
    ({"label_words": {"a": {"A": " A", "B": " B", "C": " C"}}}, "label_words: there are none of choices"),
    ({"patterns": {"plain": "{choice} {question}"}}, "patterns.plain: .* does not end with {choice}"),
    ({"patterns": {"plain": "{question}"}}, "patterns.plain: .* has no place for the text column 'choice'"),
    ({"patterns": {"plain": "{question} {first}"}}, "asks for 'first', which is no text column"),
    ({"kind": "classification"}, "(choices: goes with kind: multiple_choice|label_words)"),
    ({"questions": {"A": "?"}}, "questions: goes with kind: multi_label"),
    ({"rows": "Cut?\ta knife\t\ta fan\tA\n"}, r"uses.pool.tsv: second: is empty in row 0 \(line 2\)$"),
    ({"rows": "Cut?\ta knife\ta cup\n"}, r"uses.pool.tsv: line 2 has 3 fields, the header has 5"),
    ({"rows": "Cut?\tx\ty\tz\tA\nBoil?\tx\ty\tz\tD\n"}, r"uses.pool.tsv: answer: 'D' in row 1 \(line 3\) is no label"),
    ({"rows": "Cut?\tx\ty\tz\t\n"}, r"uses.pool.tsv: answer: is empty in row 0 \(line 2\)$"),
])
def test_a_faulty_task_is_told_by_file_row_and_what_is_wrong(make_task, changes, message):
    rows = changes.pop("rows", "")
    with pytest.raises(BadInput, match=message) as found:
        load_task(make_task(answers(rows) if rows else None, **changes))
    assert "\n" not in str(found.value)


def told(backbone, pattern: str, row, begin: str) -> list[tuple[list[int], int]]:
    """By hand: each choice's whole input, and where in it the choice's tokens begin."""
    plain = lambda text: backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    about = plain(pattern.replace("{question}", row["question"]).replace(begin + "{choice}", ""))
    texts = [plain(pattern.replace("{question}", row["question"]).replace("{choice}", row[name])) for name in choice_columns(row.index)]
    assert all(text[: len(about)] == about for text in texts)
    return [(backbone.prefix + text, len(backbone.prefix) + len(about)) for text in texts]


def log_probabilities(backbone, ids: list[int], begin: int) -> torch.Tensor:
    """transformers' own of each token from `begin` on, one plain pass over one string."""
    logits = backbone.model.eval()(input_ids=torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)[range(begin - 1, len(ids) - 1), ids[begin:]]


@pytest.mark.parametrize("score", ["sum", "mean", "character", "unconditional"])
def test_a_choices_score_is_a_plain_pass_over_its_string(tiny_model, uses, score):
    backbone, rows, pattern = backbone_of(tiny_model), uses.evaluation["garden"], uses.file.pattern("")
    inputs, head = encode(backbone, rows, pattern, 96), word_head(backbone, uses.file, [], score=score)
    found = predict(backbone, head, {"one": inputs.take(range(7)), "more": inputs.take(range(7, 24))})
    shared = 0
    for i, (_, row) in enumerate(rows.iterrows()):
        for k, (ids, begin) in enumerate(told(backbone, pattern, row, " ")):
            each = log_probabilities(backbone, ids, begin)
            length = {"mean": len(ids) - begin, "character": len(row[f"choice {k + 1} of 3"])}.get(score, 1)
            expected = each.sum().item() / length
            if score == "unconditional":
                expected -= log_probabilities(backbone, backbone.prefix + ids[begin:], len(backbone.prefix)).sum().item()
            assert np.concatenate([found["one"], found["more"]])[i, k] == pytest.approx(expected, abs=3e-4)
        shared += inputs.choices[i].shared
    assert shared, "some choices begin alike"


def test_pairs_without_anything_in_front_are_scored_from_their_first_token(tiny_llama, make_task):
    task, backbone = load_task(make_task(pairs, **PAIRS)), backbone_of(tiny_llama)
    rows = task.evaluation["kitchen"].head(12)
    for front in (backbone.prefix, []):  # where nothing is put in front of a text, the token that ends one is
        backbone.prefix = front
        found = predict(backbone, word_head(backbone, task.file, []), {"set": encode(backbone, rows, "{choice}", 96)})["set"]
        for i, (_, row) in enumerate(rows.iterrows()):
            for k, name in enumerate(choice_columns(row.index)):
                ids = (front or [backbone.tokenizer.eos_token_id]) + backbone.tokenize([row[name]])[0]
                assert found[i, k] == pytest.approx(log_probabilities(backbone, ids, 1).sum().item(), abs=3e-4)


@pytest.mark.parametrize("score", ["sum", "mean", "character"])
def test_choices_train_as_if_each_string_stood_alone(tiny_llama, uses, score):
    backbone, shots, pattern = backbone_of(tiny_llama), uses.pool.head(6), uses.file.pattern("")
    inputs, head = encode(backbone, shots, pattern, 96), word_head(backbone, uses.file, [], score=score)
    ours, gradient = trained_on(backbone, head, inputs, pack(inputs.ids, choices=inputs.choices, budget=150))
    theirs = 0.0
    for _, row in shots.iterrows():
        each = [log_probabilities(backbone, ids, begin) for ids, begin in told(backbone, pattern, row, " ")]
        over = {"mean": [len(part) for part in each], "character": [len(row[f"choice {k} of 3"]) for k in (1, 2, 3)]}.get(score, [1, 1, 1])
        scores = torch.stack([part.sum() / length for part, length in zip(each, over)])
        loss = torch.nn.functional.cross_entropy(scores[None], torch.tensor([row["label"]]))
        loss.backward()
        theirs += loss.item()
    assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(gradient, up_projection(backbone).grad, atol=2e-5, rtol=1e-3)


def test_a_new_head_scores_each_choices_last_state_by_one_vector(tiny_model, uses):
    backbone, rows = backbone_of(tiny_model), uses.evaluation["kitchen"].head(8)
    head, pattern = Classifier(backbone, 3, 0, KIND.loss), uses.file.pattern("plain")
    inputs = encode(backbone, rows, pattern, 96)
    found = predict(backbone, head, {"set": inputs})["set"]
    [laid] = pack(inputs.ids, choices=inputs.choices, whole=True)
    loss = head.loss(read(backbone, laid), inputs.labels[laid.texts]).item()
    assert head.weight.shape == (1, backbone.width) and found.shape == (8, 3)
    for i, (_, row) in enumerate(rows.iterrows()):
        for k, (ids, _) in enumerate(told(backbone, pattern, row, " ")):
            state = backbone.model.eval().base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            assert found[i, k] == pytest.approx((head.weight[0] @ state).item(), abs=2e-4)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(torch.tensor(found), inputs.labels, reduction="sum").item(), rel=1e-2)


def test_a_choice_that_another_begins_with_is_scored_to_its_own_end(tiny_llama):
    backbone = backbone_of(tiny_llama)
    rows = pd.DataFrame([{"question": "The doctor praised", "choice 1 of 2": "the pilot", "choice 2 of 2": "the pilot and the nurse", "label": 0}])
    found = predict(backbone, Likelihood(backbone, 2), {"set": encode(backbone, rows, "{question} {choice}", 64)})["set"][0]
    for k, (ids, begin) in enumerate(told(backbone, "{question} {choice}", rows.iloc[0], " ")):
        assert found[k] == pytest.approx(log_probabilities(backbone, ids, begin).sum().item(), abs=3e-4)


def test_what_is_too_long_loses_of_its_question_and_never_of_a_choice(tiny_llama):
    backbone = backbone_of(tiny_llama)
    rows = pd.DataFrame([{"question": "The doctor praised the pilot " * 20, "choice 1 of 2": "the pilot slept", "choice 2 of 2": "it", "label": 0}])
    inputs = encode(backbone, rows, "{question} {choice}", 40)
    assert inputs.cut == 1 and len(inputs.ids[0]) + max(map(len, inputs.choices[0].own)) <= 40
    assert backbone.tokenizer.decode(inputs.ids[0] + inputs.choices[0].own[0]).endswith(" the pilot slept")
    with pytest.raises(BadInput, match="max_length: 8 leaves no room for the choices of row 0"):
        encode(backbone, rows.assign(**{"choice 1 of 2": "the doctor praised the pilot and slept"}), "{choice}", 8)


@pytest.mark.parametrize("name", ["classifier", "likelihood", "layers"])
def test_shots_are_learnt_by_either_head_and_by_the_top_layers(tiny_llama, uses, name):
    backbone, shots = backbone_of(tiny_llama), draw(uses.pool, 4, 0)
    head = Classifier(backbone, 3, 0, KIND.loss) if name == "classifier" else word_head(backbone, uses.file, [])
    inputs = encode(backbone, shots, uses.file.pattern("plain"), 96)
    p = Adaptive(adapt="layers", epochs=40, batch_size=4, learning_rate=5e-3, train_layers=2)
    groups = layer_groups(backbone, head, p) if name == "layers" else None
    found = train(backbone, head, inputs, p, Streams(0), groups)
    assert found.tokens == 40 * inputs.tokens and found.losses[-1] < 0.3
    assert KIND.metrics(KIND.gold(shots), predict(backbone, head, {"shots": inputs})["shots"])["accuracy"] > 0.9


def test_answers_are_told_by_the_names_of_the_choices(uses):
    logits = {name: np.random.default_rng(0).normal(size=(len(rows), 3)).astype(np.float32) for name, rows in uses.evaluation.items()}
    found, kept = evaluated(uses, logits), predictions(uses, logits, 0)
    assert found["kitchen"]["n"] == 24 and {"accuracy", "constant", "mcc"} <= set(found["kitchen"]) and set(found["kitchen"]["by"]) == set("ABC")
    assert 1 / 3 <= found["garden"]["constant"] < 0.5
    wrong = mistakes.with_texts(mistakes.wrong_rows(kept, uses.labels, KIND), uses)
    assert {"question", "choice 1 of 3", "choice 3 of 3"} <= set(wrong) and set(wrong["label"]) <= set("ABC")
    assert KIND.decisions(kept, uses.labels)["prediction"].isin(list("ABC")).all()


@pytest.mark.parametrize(("method", "given", "what"), [
    ("distillation", {}, "method distillation"), ("baselines", {}, "method baselines"), ("in_context", {}, "demonstrations"),
    ("in_context", {"demonstrations": 0, "calibrate": True}, "calibrate"),
    ("in_context", {"demonstrations": 0, "scoring": "likelihood"}, "scoring = likelihood"),
    ("adaptive", {}, "adapt = pattern"), ("adaptive", {"adapt": "corpus"}, "adapt = corpus"), ("pbft", {"loss": "vocabulary"}, "loss = vocabulary"),
    ("pbft", {"word_score": "first"}, "word_score = first"), ("pbft", {"label_words": "x"}, "label_words"),
    ("vanilla", {"choose": {"epochs": [2]}}, "choose"), ("vanilla", {"class_weights": "balanced"}, "class_weights = balanced"),
])
def test_what_has_no_meaning_is_refused_before_a_model_loads(method, given, what):
    with pytest.raises(BadInput, match=f"^{what}: has no meaning yet for tasks of kind multiple_choice$"):
        check_parameters([(method, validated(method, {"task": USES, **given}, "test"))])


def test_scores_of_choices_are_refused_for_other_kinds_and_where_nothing_stands_in_front(make_task, tiny_llama):
    for task, kind in ((REQUESTS, "multi_label"), ("sentiment", "classification")):
        with pytest.raises(BadInput, match=f"word_score = character: has no meaning yet for tasks of kind {kind}"):
            refuse(read_task(task).kind, "pbft", validated("pbft", {"task": task, "word_score": "character"}, "test"))
    with pytest.raises(BadInput, match="word_score: 'unconditional' is not accepted"):
        validated("pbft", {"word_score": "unconditional"}, "test")
    p = InContext(task=make_task(pairs, **PAIRS), model=tiny_llama, demonstrations=0, word_score="unconditional")
    with pytest.raises(BadInput, match="word_score: 'unconditional' takes off .* in this pattern it stands alone"):
        check_parameters([("in_context", p)])
    assert check_parameters([("in_context", p.model_copy(update={"pattern": "said", "seeds": [0]}))]) == []
    with pytest.raises(BadInput, match="keep: models of tasks of kind multiple_choice cannot be kept yet"):
        check_can_be_kept("vanilla", Vanilla(task=USES))


@pytest.mark.parametrize(("task", "kind"), [(USES, "multiple_choice"), (REQUESTS, "multi_label")])
def test_what_label_words_get_is_not_explored_where_there_are_none(task, kind):
    with pytest.raises(BadInput, match=f"^explore: shows what a word for each label gets, and tasks of kind {kind} have none$"):
        start("in_context", {"task": task}, "explore", demonstrations=0)


def test_a_task_of_choices_is_checked_and_evaluated_beside_another(make_task):
    assert check_file(USES, None).startswith("uses: pool 235, kitchen 120, garden 120 rows: nothing is wrong with it")
    other = make_task(name="others")
    assert set(load_task(USES, "", 5, [other]).evaluation) == {"kitchen", "garden", "others.kitchen", "others.garden"}


def test_blimp_is_read_where_it_is_at_hand():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "blimp" / "pairs.tsv").is_file():
        pytest.skip("BLiMP is not at hand")
    task = load_task("blimp", str(folder))
    assert {name: len(rows) for name, rows in task.evaluation.items()} == {"in_domain": 1124, "out_of_domain": 550}
    assert not set(task.evaluation["in_domain"]["phenomenon"]) & set(task.evaluation["out_of_domain"]["phenomenon"])
    assert all(0.45 < rows["label"].mean() < 0.55 for rows in (task.pool, *task.evaluation.values()))


def test_places_are_no_classes_that_could_be_uneven():
    gold, logits = np.array([0] * 9 + [1] * 2), np.random.default_rng(0).normal(size=(11, 2))
    assert KINDS["classification"].metrics(gold, logits)["uneven"] and not KINDS["multiple_choice"].metrics(gold, logits)["uneven"]
