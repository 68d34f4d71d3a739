"""The embedded tasks are what their descriptions say, and are frozen."""
import hashlib
import math
from collections import Counter

import pytest

from lowres.tasks import entailment, grammar
from lowres.tasks.lexicon import FUNCTION_WORDS, IN_DOMAIN, OUT_OF_DOMAIN, POOL, tokens

PARTS = {"pool": POOL, "in_domain": IN_DOMAIN, "out_of_domain": OUT_OF_DOMAIN}
ROWS = {"pool": 2400, "in_domain": 480, "out_of_domain": 480}
TASKS = {"grammar": grammar.generate(), "entailment": entailment.generate()}
KIND = {"grammar": "phenomenon", "entailment": "heuristic"}
TEXTS = {"grammar": ["sentence"], "entailment": ["premise", "hypothesis"]}
ALL_SETS = [(task, name) for task in TASKS for name in ROWS]
CHECKSUMS = {
    ("grammar", "pool"): "19b455e32501f8477bc5b24976b03d20be6c216e35a3f46a3392935d3d4052a5",
    ("grammar", "in_domain"): "399765e2895b3584a40859681d35813701d961e17bd23ef13b66d7ba92807dee",
    ("grammar", "out_of_domain"): "ffbdb65f7b9ea6ab38a9455dbc131752c0e0814d01e12874c26eec6cdf22e929",
    ("entailment", "pool"): "2e6a82501d024d7260607bbb8a15149936bb55a07777062c8d7c16a14be48452",
    ("entailment", "in_domain"): "d52b2d66ea9228f579de28b869ec656aafda6cc8a0986debabdc5fd97c8eadeb",
    ("entailment", "out_of_domain"): "2a133692db2dca6b35c0a1425edb79d6bff3a272c7ff4ec0eef5b317f8108ab9",
}

every_set = pytest.mark.parametrize("task, name", ALL_SETS)
every_task = pytest.mark.parametrize("task", list(TASKS))


def tsv(frame):
    lines = ["\t".join(frame.columns)] + ["\t".join(map(str, row)) for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def words_of(frame, columns):
    return {word for column in columns for text in frame[column] for word in tokens(text)}


def edit_distance(left, right):
    """Fewest insertions, deletions and substitutions of tokens that turn ``left`` into ``right``."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def naive_bayes_accuracy(train, test, features):
    """Accuracy of a naive Bayes classifier on the presence of ``features(row)``, smoothed by one."""
    labels = sorted(train.label.unique())
    rows = {label: [set(features(row)) for row in train[train.label == label].itertuples()] for label in labels}
    seen = {label: Counter(word for row in rows[label] for word in row) for label in labels}

    def score(label, row):
        return sum(math.log((seen[label][word] + 1) / (len(rows[label]) + 2)) for word in set(features(row)))

    guesses = [max(labels, key=lambda label: round(score(label, row), 9)) for row in test.itertuples()]
    return sum(guess == gold for guess, gold in zip(guesses, test.label)) / len(test)


def unigrams(row):
    return tokens(row.sentence)


def hypothesis_words(row):
    return tokens(row.hypothesis)


def premise_and_hypothesis_words(row):
    return [("p", word) for word in tokens(row.premise)] + [("h", word) for word in tokens(row.hypothesis)]


def stretch_starts(stretch, text):
    return [i for i in range(len(text)) if text[i:i + len(stretch)] == stretch]


@every_set
def test_the_text_of_a_set_has_the_pinned_checksum(task, name):
    assert hashlib.sha256(tsv(TASKS[task][name]).encode()).hexdigest() == CHECKSUMS[task, name]


@every_task
def test_generating_twice_gives_the_same_rows(task):
    again = {"grammar": grammar, "entailment": entailment}[task].generate()
    assert all(again[name].equals(TASKS[task][name]) for name in ROWS)


@every_set
def test_a_set_has_its_columns_and_number_of_rows(task, name):
    frame = TASKS[task][name]
    assert list(frame.columns) == [*TEXTS[task], "label", KIND[task], "pair"]
    assert len(frame) == ROWS[name]


@every_set
def test_labels_are_balanced_in_every_set_and_kind(task, name):
    frame = TASKS[task][name]
    counts = frame.groupby([KIND[task], "label"]).size().unstack()
    assert counts.shape[1] == 2 and (counts.iloc[:, 0] == counts.iloc[:, 1]).all()


def test_there_are_enough_phenomena_and_those_out_of_domain_are_others():
    kinds = {name: set(frame.phenomenon) for name, frame in TASKS["grammar"].items()}
    assert kinds["pool"] == kinds["in_domain"] and len(kinds["pool"]) >= 8
    assert len(kinds["out_of_domain"]) >= 4 and not kinds["out_of_domain"] & kinds["pool"]


def test_entailment_has_the_three_heuristics_out_of_domain_only():
    kinds = {name: set(frame.heuristic) for name, frame in TASKS["entailment"].items()}
    assert kinds["out_of_domain"] == {"lexical_overlap", "subsequence", "constituent"}
    assert kinds["pool"] == kinds["in_domain"] and not kinds["pool"] & kinds["out_of_domain"]


@every_task
def test_every_phenomenon_has_two_or_more_templates(task):
    tables = {"grammar": [grammar.PHENOMENA, grammar.UNSEEN_PHENOMENA],
              "entailment": [entailment.CONSTRUCTIONS, entailment.HEURISTICS]}[task]
    assert all(len(templates) >= 2 for table in tables for templates in table.values())


@every_task
def test_a_pair_has_one_row_of_each_label_and_stays_in_one_set(task):
    numbers = [number for name in ROWS for number in TASKS[task][name].pair.unique()]
    assert len(numbers) == len(set(numbers)) == sum(ROWS.values()) // 2
    for frame in TASKS[task].values():
        assert (frame.groupby("pair").label.nunique() == 2).all() and (frame.groupby("pair").size() == 2).all()


@pytest.mark.parametrize("name", list(ROWS))
def test_the_sentences_of_a_grammar_pair_differ_by_few_tokens(name):
    for _, pair in TASKS["grammar"][name].groupby("pair"):
        left, right = map(tokens, pair.sentence)
        assert len(left) == len(right)
        # One token is replaced, or the same words stand in another order.
        assert edit_distance(left, right) == 1 or Counter(left) == Counter(right)


@pytest.mark.parametrize("name", list(ROWS))
def test_the_rows_of_an_entailment_pair_share_their_hypothesis(name):
    assert (TASKS["entailment"][name].groupby("pair").hypothesis.nunique() == 1).all()


@every_set
def test_no_row_occurs_twice(task, name):
    assert not TASKS[task][name].duplicated(TEXTS[task]).any()


@every_task
def test_no_text_occurs_in_two_sets(task):
    texts = [{text for column in TEXTS[task] for text in frame[column]} for frame in TASKS[task].values()]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_the_parts_of_the_lexicon_share_no_word_form():
    forms = [part.forms() for part in PARTS.values()] + [FUNCTION_WORDS]
    assert len(frozenset.union(*forms)) == sum(map(len, forms))


@every_set
def test_every_word_is_a_function_word_or_belongs_to_the_part_of_its_set(task, name):
    assert words_of(TASKS[task][name], TEXTS[task]) <= PARTS[name].forms() | FUNCTION_WORDS


@every_set
def test_texts_have_4_to_14_words_a_capital_and_a_final_mark(task, name):
    for column in TEXTS[task]:
        for text in TASKS[task][name][column]:
            assert 4 <= len(text.split()) <= 14 and text[0].isupper() and text == " ".join(text.split())
            assert "{" not in text and "[" not in text and "|" not in text
            # Only phenomena about questions have a question mark, in either member of a pair.
            assert text.endswith(".") or (task == "grammar" and name == "out_of_domain" and text.endswith("?"))


@pytest.mark.parametrize("name", list(ROWS))
def test_every_word_occurs_as_often_in_acceptable_as_in_unacceptable_sentences(name):
    for _, rows in TASKS["grammar"][name].groupby("phenomenon"):
        good, bad = (Counter(word for text in rows.sentence[rows.label == label] for word in tokens(text))
                     for label in (grammar.ACCEPTABLE, grammar.UNACCEPTABLE))
        assert good == bad


@pytest.mark.parametrize("name", ["in_domain", "out_of_domain"])
def test_words_alone_do_not_tell_acceptability(name):
    assert naive_bayes_accuracy(TASKS["grammar"]["pool"], TASKS["grammar"][name], unigrams) < 0.65


@pytest.mark.parametrize("name", ["in_domain", "out_of_domain"])
@pytest.mark.parametrize("features", [hypothesis_words, premise_and_hypothesis_words])
def test_words_alone_do_not_tell_entailment(name, features):
    assert naive_bayes_accuracy(TASKS["entailment"]["pool"], TASKS["entailment"][name], features) < 0.65


@pytest.mark.parametrize("name", ["pool", "in_domain"])
@pytest.mark.parametrize("column", ["premise", "hypothesis"])
def test_neither_premise_nor_hypothesis_alone_tells_the_label(name, column):
    frame = TASKS["entailment"][name]
    if column == "premise":
        # The one exception: what entails "dog" and what does not are different words, "poodle" and "animal".
        frame = frame[frame.heuristic != "hypernymy"]
    counts = frame.groupby([column, "label"]).size().unstack(fill_value=0)
    assert (counts[entailment.ENTAILMENT] == counts[entailment.NOT_ENTAILMENT]).all()


@pytest.mark.parametrize("name", ["pool", "in_domain"])
def test_word_overlap_is_a_useful_but_imperfect_cue_in_domain(name):
    frame = TASKS["entailment"][name]
    covered = [set(tokens(row.hypothesis)) <= set(tokens(row.premise)) for row in frame.itertuples()]
    accuracy = ((frame.label == entailment.ENTAILMENT) == covered).mean()
    assert 0.55 < accuracy < 0.75


def test_out_of_domain_hypotheses_overlap_with_their_premise_as_the_heuristic_says():
    for row in TASKS["entailment"]["out_of_domain"].itertuples():
        premise, hypothesis = tokens(row.premise), tokens(row.hypothesis)
        assert not Counter(hypothesis) - Counter(premise) or row.heuristic == "lexical_overlap"
        assert set(hypothesis) <= set(premise)
        assert bool(stretch_starts(hypothesis, premise)) == (row.heuristic != "lexical_overlap")
