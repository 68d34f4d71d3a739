"""An answer is a span of a passage: how rows are read, which spans there are, how one is found, trained and scored, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from conftest import backbone_of
from toys import REQUESTS, STORIES, trained_on, up_projection
from transformers import AutoModelForQuestionAnswering

from lowres.files import ROOT, BadInput
from lowres.methods.evaluation import evaluated, predict, predictions
from lowres.methods.kept import check_can_be_kept
from lowres.methods.layers_and_corpus import layer_groups
from lowres.methods.search import Behind, likeliest, together
from lowres.methods.training import train
from lowres.models.batches import encode, lay, read
from lowres.models.heads import Classifier, Written, word_head
from lowres.parameters import Adaptive, Vanilla, validated
from lowres.runs import mistakes
from lowres.runs.checks import check_file, check_parameters
from lowres.runs.notebook import start
from lowres.runs.summary import headline, results
from lowres.tasks.kinds import KINDS
from lowres.tasks.load import load_task
from lowres.tasks.shots import Streams, draw
from lowres.tasks.spans import Answer, Passage, is_span, normalized, spans, token_f1

pytestmark = pytest.mark.usefixtures("forking")
KIND = KINDS["extraction"]
TEXT = "In 1901, Anna (the baker's wife) paid $2.50."


@pytest.fixture(scope="module")
def stories():
    return load_task(STORIES, "", 24)


@pytest.fixture
def make_task(tmp_path):
    """The made-up task with changes to its file and, if given, other rows of its pool, or rows of which a share is `without` an answer."""
    def make(rows: str = "", without: float = 0.0, **changes) -> str:
        pool = {"pool": f"question\tstory\tanswer\tbegins\n{rows}"} if rows else {}
        return toys.remade(tmp_path, STORIES, toys.tables_of_stories(without) | pool, **changes)
    return make


def test_the_made_up_rows_are_those_of_their_seeds():
    for name, table in toys.tables_of_stories().items():
        assert (ROOT / "tests/tasks/stories" / f"{name}.tsv").read_text() == table


def test_a_row_has_its_answers_place_in_its_passage(make_task):
    task = load_task(make_task("Who?\tAnna saw Anna.\tAnna\t9\nWhat?\tA lamp.\tlamp\t2\n"))
    assert [(label.start, label.end, label.text) for label in task.pool["label"]] == [(9, 13, "Anna"), (2, 6, "lamp")]
    task = load_task(make_task("Who?\tAnna saw Anna.\tAnna\t9\n", start=None))
    assert task.pool["label"].iloc[0].start == 0, "where nothing says where it stands, the first place counts"


def test_a_row_without_an_answer_is_read_where_the_task_has_such(make_task):
    task = load_task(make_task("Who?\tAnna saw Anna.\tAnna\t9\nWhere?\tA lamp.\t\t\n", unanswerable=" nowhere"))
    assert task.labels == ["answered", "unanswerable"] and KIND.counts(task.pool, 2).tolist() == [1, 1]
    assert task.pool["label"].iloc[1][:2] == (0, 0) and task.pool["label"].iloc[1].passage.none == " nowhere"


@pytest.mark.parametrize(("changes", "message"), [
    ({"rows": "Who?\tAnna saw Ida.\tIda\t8\n"}, r"stories.pool.tsv: answer: 'Ida' in row 0 \(line 2\) does not stand at begins 8 of its story"),
    ({"rows": "Who?\tAnna.\tAnna\t0\nWho?\tAnna.\tEve\t0\n"}, r"'Eve' in row 1 \(line 3\) does not stand at begins 0 of its story"),
    ({"rows": "Who?\tAnna saw Ida.\tEve\t\n", "start": None}, r"answer: 'Eve' in row 0 \(line 2\) does not stand in its story"),
    ({"rows": "Who?\tAnna saw Ida.\tIda\tnine\n"}, r"pool.tsv: begins: 'nine' in row 0 \(line 2\) is no number of a character"),
    ({"rows": "Who?\tAnna saw Ida.\t\t\n"}, r"pool.tsv: answer: is empty in row 0 \(line 2\): a task .* has the key unanswerable"),
    ({"rows": "\tAnna saw Ida.\tIda\t9\n"}, r"pool.tsv: question: is empty in row 0 \(line 2\)"),
    ({"rows": "Who?\tAnna saw Ida.\tIda\n"}, r"pool.tsv: line 2 has 3 fields, the header has 4"),
    ({"start": "begin"}, "column 'begin' is missing .did you mean \"begins\""),
    ({"label": "answers"}, "column 'answers' is missing"),
    ({"passage": None}, "passage: '' is no text column"),
    ({"passage": "storey"}, "passage: 'storey' is no text column .did you mean \"story\""),
    ({"labels": ["a", "b"]}, "labels: there are none of spans"),
    ({"label_words": {"a": {}}}, "label_words: there are none of spans"),
    ({"longest": 0}, "longest"), ({"relabel": {"a red lamp": None}}, "relabel: spans stand for themselves"),
    ({"rows": f"Who?\tAnna saw Ida.\tIda\t{'9' * 5000}\n"}, "is no number of a character"),
    ({"patterns": {"plain": "{story} {question} {story}"}}, "patterns.plain: .* has the passage twice"),
    ({"patterns": {"plain": "{story}"}}, "patterns.plain: .* has no place for the text column 'question'"),
    ({"kind": "classification", "labels": ["a", "b"], "label_words": {"x": {"a": " a", "b": " b"}}}, "passage: goes with kind: extraction"),
])
def test_a_faulty_task_is_told_by_file_row_and_what_is_wrong(make_task, changes, message):
    with pytest.raises(BadInput, match=message) as found:
        load_task(make_task(**changes))
    assert "\n" not in str(found.value)


def test_a_classification_still_wants_two_labels(tmp_path):
    with pytest.raises(BadInput, match="labels: two at least are wanted, not .'refund'."):
        load_task(toys.remade(tmp_path, REQUESTS, toys.tables(), labels=["refund"], questions={"refund": " Money?"}))


def test_spans_begin_and_end_with_words_or_runs_of_letters_and_digits():
    found = [TEXT[start:end] for start, end in spans(TEXT, 3)]
    assert {"1901", "1901,", "(the", "the", "the baker", "(the baker's wife)", "baker's wife", "$2.50", "2.50", "paid $2", "50."} <= set(found)
    assert not {"In 1901, Anna (the", "901", "s wife) paid $2.50. "} & set(found) and max(len(span.split()) for span in found) == 3
    assert len(set(spans(TEXT, 3))) == len(spans(TEXT, 3)) and spans(TEXT, 3) == sorted(spans(TEXT, 3), key=lambda span: span[0])
    assert spans("", 3) == spans("  ", 3) == [] and spans("–", 3) == [(0, 1)]


def test_answers_that_cannot_be_given_are_counted(make_task):
    rows = "Who?\tAnna saw her old red lamp.\ther old red lamp\t9\nWho?\tAnna saw.\tnna\t1\nWho?\tAnna went.\tAnna\t0\n"
    task = load_task(make_task(rows, longest=3))
    assert "pool: 2 of 3 answers have more than 3 words, or end within one, and cannot be given" in task.warnings
    for text in (TEXT, "x-ray of 3.5 mm", "–a –"):
        found = spans(text, 9)
        assert [span for span in itertools.combinations(range(len(text) + 1), 2) if is_span(text, *span, 9)] == sorted(found)


@pytest.mark.parametrize(("said", "gold", "f1", "exact"), [  # by hand, after SQuAD 1.1's evaluation script
    ("1901", "1901", 1, True),
    ("The baker's wife", "baker's  wife.", 1, True),  # articles, marks, case and spaces do not count
    ("the old red lamp", "red lamp", 2 * (2 / 3) * 1 / (2 / 3 + 1), False),
    ("red lamp", "the old red lamp", 2 * 1 * (2 / 3) / (1 + 2 / 3), False),
    ("lamp lamp", "lamp", 2 * 0.5 * 1 / 1.5, False),  # a word counts as often as both have it
    ("an attic", "the attic", 1, True),
    ("$2.50", "250", 1, True),
    ("attic", "market", 0, False),
    ("the", "an", 1, True),  # nothing is left of either
    ("the", "lamp", 0, False), ("", "lamp", 0, False), ("", "", 1, True),
])
def test_f1_and_exact_match_are_squads(said, gold, f1, exact):
    assert token_f1(said, gold) == pytest.approx(f1) and (normalized(said) == normalized(gold)) is exact


def test_scores_are_means_beside_the_best_fixed_rule():
    passages = [Passage(text, 5) for text in ("Anna saw Ida.", "Tom met Eve today.", "A red lamp fell.")]
    gold = np.empty(3, object)
    gold[:] = [Answer(0, 4, passages[0]), Answer(0, 7, passages[1]), Answer(2, 10, passages[2])]
    logits = np.array([[0, 4, -1.0], [8, 11, -2.0], [0, 10, -0.5]])
    found = KIND.metrics(gold, logits)
    assert found["metric"] == "f1" and found["f1"] == pytest.approx((1 + 0 + 1) / 3) and found["exact_match"] == pytest.approx(2 / 3)
    rules = [np.mean([token_f1(" ".join(one.passage.text.split()[:count]), one.text) for one in gold]) for count in range(9)]
    shots = pd.DataFrame({"label": [Answer(0, end, passages[1]) for end in (7, 3, 7, 3, 0)]})  # two words, one, two, one, none
    assert KIND.ruled(gold, shots) == {"from_shots": pytest.approx(rules[1])}
    assert found["constant"] == pytest.approx(max(rules)) and found["n"] == 3 and found["commonest_prediction"] == pytest.approx(1 / 3)


def test_draws_have_as_many_with_as_without_an_answer_and_are_nested(make_task):
    task = load_task(make_task(without=0.3, unanswerable=" nothing"))
    for seed in range(3):
        few, many = draw(task.pool, 2, seed), draw(task.pool, 16, seed)
        assert KIND.counts(few, 2).tolist() == [2, 2] and KIND.counts(many, 2).tolist() == [16, 16]
        assert list(many.index[:4]) == list(few.index) and many.index.is_unique
    with pytest.raises(BadInput, match="shots: 150 is more than the .* rows that the pool has with an answer, or without one"):
        draw(task.pool, 150, 0)
    assert len(draw(load_task(STORIES).pool, 16, 0)) == 16


def asked(backbone, pattern: str, row) -> list[int]:
    """By hand: a row's whole input."""
    return backbone.prefix + backbone.tokenize([pattern.replace("{story}", row["story"]).replace("{question}", row["question"])])[0]


def behind(backbone, words: str) -> list[int]:
    """By hand: the tokens of words behind a letter."""
    return backbone.tokenize(["x" + words])[0][len(backbone.tokenize(["x"])[0]):]


def written(backbone, ids: list[int], words: str, end: str = "\n") -> torch.Tensor:
    """transformers' own log-probability of words and their end behind a text, one plain pass over one string."""
    tokens = behind(backbone, words + end)
    logits = backbone.model.eval()(input_ids=torch.tensor([ids + tokens])).logits[0]
    return logits.log_softmax(-1)[range(len(ids) - 1, len(ids) + len(tokens) - 1), tokens].sum()


def strings(text: str) -> list[str]:
    return list(dict.fromkeys(text[a:b] for a, b in spans(text, 4)))


def test_the_likeliest_span_is_that_of_plain_passes_over_every_spans_string(tiny_model, stories):
    backbone, pattern = backbone_of(tiny_model), "{story} {question}"
    rows = stories.evaluation["harbour"].head(3)
    found = predict(backbone, word_head(backbone, stories.file, []), {"set": encode(backbone, rows, pattern, 128)})["set"]
    for (_, row), (first, behind_last, score) in zip(rows.iterrows(), found):
        each = {text: written(backbone, asked(backbone, pattern, row), f" {text}").item() for text in strings(row["story"])}
        best = max(each, key=each.get)
        assert row["story"][int(first) : int(behind_last)] == best and score == pytest.approx(each[best], abs=3e-4)
        assert row["story"].find(best) == first, "a string that stands there twice is said to stand where it does first"


def test_no_answer_is_an_answer_by_the_words_that_say_so(tiny_llama, make_task):
    task, backbone = load_task(make_task(without=0.5, unanswerable=" nothing")), backbone_of(tiny_llama)
    rows, pattern = task.evaluation["market"].head(4), task.file.pattern("")
    inputs, chosen = encode(backbone, rows, pattern, 200), 0
    for own, answer in zip(inputs.choices, rows["label"]):
        assert own.own == [behind(backbone, (f" {answer.text}" if answer.text else " nothing") + "\n")]
    for none in (" nothing", "\n"):
        told = [answer._replace(passage=answer.passage._replace(none=none)) for answer in rows["label"]]
        found = predict(backbone, Written(backbone), {"set": encode(backbone, rows.assign(label=told), pattern, 200)})["set"]
        for ids, answer, (first, behind_last, score) in zip(inputs.ids, told, found):
            span = f" {answer.passage.text[int(first) : int(behind_last)]}" if behind_last else none
            assert score == pytest.approx(written(backbone, ids, span).item(), abs=3e-4)
            assert score >= written(backbone, ids, none).item() - 3e-4
            chosen += behind_last == 0
    assert chosen, "what is short is often likeliest for a model that knows nothing"


def test_a_search_that_stops_early_finds_what_a_whole_one_does(tiny_llama, stories, monkeypatch):
    backbone = backbone_of(tiny_llama)
    row = stories.evaluation["market"].iloc[0]
    ids = asked(backbone, "{story} {question}", row)
    answers = [behind(backbone, f" {row['story'][a:b]}\n") for a, b in spans(row["story"], 4)]
    beginnings = {tuple(answer[:length]) for answer in answers for length in range(1, len(answer))}

    def found(at_once: int):
        monkeypatch.setattr("lowres.methods.search.AT_ONCE", at_once)
        behind = Behind(backbone, ids)
        return *together(behind, [likeliest(behind, backbone.output, behind.text, answers)])[0][:2], len(behind.path) - len(ids)

    with torch.inference_mode():
        (which, score, read), (other, close, fewer) = found(10**6), found(1)
    assert which == other and score == pytest.approx(close, abs=1e-4)
    assert read == len(beginnings) and 0 < fewer < read, "each beginning is read once, and not all of them"


def test_an_answer_trains_as_if_its_string_stood_alone(tiny_llama, stories):
    backbone, shots, pattern = backbone_of(tiny_llama), stories.pool.head(5), stories.file.pattern("")
    inputs, head = encode(backbone, shots, pattern, 200), word_head(backbone, stories.file, [])
    ours, gradient = trained_on(backbone, head, inputs, lay(head, inputs, budget=250))
    theirs = 0.0
    for _, row in shots.iterrows():
        ids, tokens = asked(backbone, pattern, row), behind(backbone, f" {row['label'].text}\n")
        labels = torch.tensor([[-100] * len(ids) + tokens])
        loss = backbone.model(input_ids=torch.tensor([ids + tokens]), labels=labels).loss * len(tokens)  # transformers' own, a mean
        loss.backward()
        theirs += loss.item()
    assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(gradient, up_projection(backbone).grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_opt"])
def test_the_new_heads_scores_and_loss_are_transformers_own(fixture, stories, request):
    folder = request.getfixturevalue(fixture)
    backbone, rows = backbone_of(folder), stories.pool.head(6)
    head, inputs = Classifier(backbone, 1, 0, KIND.loss), encode(backbone, rows, stories.file.pattern("plain"), 128)
    theirs = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    theirs.base_model.load_state_dict(backbone.model.base_model.state_dict())  # under another name in this class, so that none of it was found
    theirs.qa_outputs.weight.data, theirs.qa_outputs.bias.data = head.weight.data, torch.zeros(2)
    backbone.model.eval()
    ours = sum(head.loss(read(backbone, part), inputs.labels[part.texts]).item() for part in lay(head, inputs, budget=300))
    found, expected = predict(backbone, head, {"set": inputs})["set"], 0.0
    for i, (ids, (first, last, count)) in enumerate(zip(inputs.ids, inputs.labels.tolist())):
        row, label = rows.iloc[i], rows["label"].iloc[i]
        assert count == len(ids) and backbone.tokenizer.decode(ids[first : last + 1]).strip(" ,.()").startswith(label.text.strip("().,")[:4])
        out = theirs(input_ids=torch.tensor([ids]), start_positions=torch.tensor([first]), end_positions=torch.tensor([last]))
        expected += out.loss.item()
        begins, ends = out.start_logits[0].log_softmax(0), out.end_logits[0].log_softmax(0)
        best = max((begins[a] + ends[b]).item() for a, b in (inputs.answers[i].tokens(*span) for span in spans(row["story"], 4)))
        assert found[i, 2] == pytest.approx(best, abs=3e-4)
        a, b = inputs.answers[i].tokens(int(found[i, 0]), int(found[i, 1]))
        assert (begins[a] + ends[b]).item() == pytest.approx(best, abs=3e-4)
    assert ours == pytest.approx(expected, rel=1e-4)


def test_tokens_are_found_by_the_characters_that_they_have(tiny_model, stories):
    backbone, rows = backbone_of(tiny_model), stories.evaluation["market"].head(5)
    for pattern in stories.file.patterns.values():
        for ids, located, label in zip(*(lambda inputs: (inputs.ids, inputs.answers))(encode(backbone, rows, pattern, 200)), rows["label"]):
            first, last = located.tokens(label.start, label.end)
            assert label.text in backbone.tokenizer.decode(ids[first : last + 1])
            assert label.text not in backbone.tokenizer.decode(ids[first + 1 : last + 1]) or first == last
            assert len(located.characters) == len(ids)


def test_a_passage_that_is_cut_loses_its_end_and_that_is_told(tiny_llama, stories, make_task):
    backbone, rows = backbone_of(tiny_llama), stories.pool.head(4)
    inputs = encode(backbone, rows, stories.file.pattern(""), 60)
    assert inputs.cut == 4 and max(map(len, inputs.ids)) <= 60
    assert all(row.passage.text.startswith(one.passage.text) and one.passage.text for row, one in zip(rows["label"], inputs.answers))
    assert [one.lost for one in inputs.answers] == [label.end > len(one.passage.text) for label, one in zip(rows["label"], inputs.answers)]
    p = validated("pbft", {"task": STORIES, "model": tiny_llama, "max_length": 60, "seeds": [0]}, "test")
    with pytest.raises(BadInput, match="max_length: 60 cuts off the answer of row .* of the pool, an example of seed 0$"):
        check_parameters([("pbft", p)])
    p = validated("in_context", {"task": STORIES, "model": tiny_llama, "max_length": 60, "demonstrations": 0}, "test")
    assert any("harbour: max_length: 60 cuts off" in said for said in check_parameters([("in_context", p)]))
    story = rows["story"].iloc[0] * 9
    long = encode(backbone, rows.head(1).assign(story=story, label=[Answer(0, 2, Passage(story, 60))]), "{story}", 999)
    with pytest.raises(BadInput, match="a text and its longest span take .* tokens"):
        predict(backbone, Written(backbone), {"set": long})


@pytest.mark.parametrize("name", ["classifier", "written", "layers"])
def test_shots_are_learnt_by_either_head_and_by_the_top_layers(tiny_llama, stories, name):
    backbone, shots = backbone_of(tiny_llama), draw(stories.pool, 6, 0)
    head = Classifier(backbone, 1, 0, KIND.loss) if name == "classifier" else word_head(backbone, stories.file, [])
    inputs = encode(backbone, shots, stories.file.pattern("plain"), 128)
    p = Adaptive(adapt="layers", epochs=40, batch_size=3, learning_rate=5e-3, train_layers=2)
    found = train(backbone, head, inputs, p, Streams(0), layer_groups(backbone, head, p) if name == "layers" else None)
    if name == "layers":  # beside frozen random embeddings no word becomes likely
        assert found.losses[-1] < found.losses[0] / 2
        return
    assert found.losses[-1] < 0.5
    assert KIND.metrics(KIND.gold(shots), predict(backbone, head, {"shots": inputs})["shots"])["f1"] > 0.9


def test_results_are_f1_by_its_name_and_predictions_have_places_and_no_text(stories):
    stream = np.random.default_rng(0)

    def logits(rows):
        chosen = [spans(text, 4)[stream.integers(20)] for text in rows["story"]]
        right = stream.random(len(rows)) < 0.7
        return np.array([[*(label[:2] if ok else one), -0.5] for label, one, ok in zip(rows["label"], chosen, right)], np.float32)

    trials = []
    for seed in range(3):
        answers = {name: logits(rows) for name, rows in stories.evaluation.items()}
        trials.append({"seed": seed, "sets": evaluated(stories, answers), "seconds": {"train": 1.0}, "memory": {"resident": 1.0},
                       "trainable": 1, "outcome_sha256": str(seed), "losses": []})
    table = results(trials)
    assert {"F1, % [95 % interval]", "exact match, %", "constant, %", "one answer, %"} <= set(table)
    assert not [name for name in table if "accuracy" in name or "MCC" in name or "macro" in name]
    assert headline(trials)[0].startswith("**F1 ") and "accuracy" not in " ".join(headline(trials))
    kept = predictions(stories, answers, 0)
    assert list(kept)[3:] == ["label", "prediction", "logit_start", "logit_end", "logit_log_probability"]
    assert kept["label"].str.fullmatch(r"\d+:\d+").all() and kept["prediction"].str.fullmatch(r"\d+:\d+").all()
    wrong = mistakes.with_texts(mistakes.wrong_rows(kept, stories.labels, KIND), stories)
    assert len(wrong) == (kept["label"] != kept["prediction"]).sum() and wrong["confidence"].between(0, 1).all() and "story" in wrong
    told = mistakes.confusions(kept, stories.labels, KIND)
    assert set(told["label"]) == {"the answer"} and set(told["taken for"]) <= {"a span that overlaps it", "a span elsewhere"}
    assert told["answers"].sum() == len(wrong)


@pytest.mark.parametrize(("method", "given", "what"), [
    ("distillation", {}, "method distillation"), ("baselines", {}, "method baselines"), ("in_context", {}, "demonstrations"),
    ("in_context", {"demonstrations": 0, "calibrate": True}, "calibrate"),
    ("in_context", {"demonstrations": 0, "scoring": "likelihood"}, "scoring = likelihood"), ("adaptive", {}, "adapt = pattern"),
    ("pbft", {"loss": "vocabulary"}, "loss = vocabulary"), ("pbft", {"word_score": "mean"}, "word_score = mean"),
    ("pbft", {"label_words": "x"}, "label_words"), ("pbft", {"fidelity": "as_coded", "learning_rate": 1e-5}, "fidelity = as_coded"),
    ("vanilla", {"choose": {"epochs": [2]}}, "choose"), ("vanilla", {"class_weights": "balanced"}, "class_weights = balanced"),
    ("lora", {"peft_type": "PREFIX_TUNING"}, "peft_type = PREFIX_TUNING"),
])
def test_what_has_no_meaning_is_refused_before_a_model_loads(method, given, what):
    with pytest.raises(BadInput, match=f"^{what}: has no meaning yet for tasks of kind extraction$"):
        check_parameters([(method, validated(method, {"task": STORIES, **given}, "test"))])


def test_a_task_of_spans_is_checked_and_no_model_of_it_is_kept_or_explored(make_task):
    assert check_file(STORIES, None).startswith("stories: pool 1")
    other = make_task(name="others")
    assert set(load_task(STORIES, "", 5, [other]).evaluation) == {"market", "harbour", "others.market", "others.harbour"}
    with pytest.raises(BadInput, match="keep: models of tasks of kind extraction cannot be kept yet"):
        check_can_be_kept("vanilla", Vanilla(task=STORIES))
    with pytest.raises(BadInput, match="^explore: shows what a word for each label gets, and tasks of kind extraction have none$"):
        start("in_context", {"task": STORIES}, "explore", demonstrations=0)


def test_xquad_is_read_where_it_is_at_hand_with_no_paragraph_on_two_sides():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "xquad" / "en.tsv").is_file():
        pytest.skip("XQuAD is not at hand")
    task = load_task("xquad", str(folder))
    assert {name: len(rows) for name, rows in task.evaluation.items()} == {"in_domain": 351, "out_of_domain": 232} and len(task.pool) == 602
    paragraphs = [set(rows["context"]) for rows in (task.pool, *task.evaluation.values())]
    assert list(map(len, paragraphs)) == [114, 76, 50] and sum(map(len, paragraphs)) == len(set.union(*paragraphs))
