"""Context distillation: who sees what, and the loss, against formulas by hand and torch's own functions."""

import numpy as np
import pytest
import torch
from conftest import word_ids
from torch.nn import functional as F
from toys import GRAMMAR

from lowres.files import BadInput
from lowres.methods.distillation import (
    CodedStudent,
    DistilledVerbalizer,
    LastState,
    Targets,
    check_distillation,
    describe_lesson,
    drawn_from_pool,
    folds,
    label_targets,
    prepare,
    taught,
    top_k_targets,
    unlabelled,
    with_rest,
)
from lowres.methods.evaluation import predict
from lowres.methods.in_context import Context, predict_after, without_prefix
from lowres.methods.training import train
from lowres.models.adapters import attach
from lowres.models.backbone import load_backbone
from lowres.models.batches import encode, pack
from lowres.models.heads import Verbalizer
from lowres.parameters import Distillation, validated
from lowres.runs.summary import compared, side_by_side
from lowres.tasks.load import Task, load_task
from lowres.tasks.shots import Streams, draw
from lowres.tasks.task_file import read_task

WORDS = [" No", " Yes"]
PATTERN = "{sentence} ?"

CODED = {"fidelity": "as_coded", "learning_rate": 1e-5}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(GRAMMAR, evaluation_rows=20)


@pytest.fixture(scope="module")
def backbone(tiny_opt):
    return load_backbone(tiny_opt, "cpu", "float32")


def parameters(**changes):
    values = {"shots": 4, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "unlabelled": 6, "max_length": 40}
    return validated("distillation", {**values, **changes}, "test")


def lesson_for(backbone, task, p, shots, seed=0):
    return prepare(backbone, backbone, task, p, shots, Streams(seed), PATTERN, WORDS)


def states_for(backbone, lesson) -> np.ndarray:
    sets = {"inputs": without_prefix(backbone, lesson.inputs)}
    return predict_after(backbone, LastState, sets, lesson.contexts, {"inputs": lesson.which})["inputs"]


def distilled(backbone, task, p, shots, seed=0) -> dict[str, np.ndarray]:
    """A trial as the notebook runs it."""
    backbone.restore()
    lesson = lesson_for(backbone, task, p, shots, seed)
    targets = taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson), p)
    head = DistilledVerbalizer(backbone, WORDS, targets)
    train(backbone, head, lesson.inputs, p, Streams(seed))
    evaluation = {name: encode(backbone, rows, PATTERN, p.max_length) for name, rows in task.evaluation.items()}
    return {"targets": targets.log.numpy(), **predict(backbone, head, evaluation)}


def same(one: dict, other: dict) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("changes", [{}, {"inputs": "pool"}, {"inputs": "pool", "context": "instruction"}, {"inputs": "pool", "top_k": 5}])
def test_the_pools_gold_labels_change_nothing(backbone, task, changes):
    p = parameters(**changes)
    shots = draw(task.pool, p.shots, 0)
    others = ~task.pool.index.isin(shots.index)
    permuted = task.pool.copy()
    permuted.loc[others, "label"] = np.random.default_rng(1).permutation(permuted.loc[others, "label"])
    assert not permuted["label"].equals(task.pool["label"])
    assert same(distilled(backbone, task, p, shots), distilled(backbone, Task(task.file, permuted, task.evaluation), p, shots))


@pytest.mark.parametrize("seed", [0, 1])
def test_an_inputs_own_label_cannot_reach_its_target(backbone, task, seed):
    p = parameters()
    shots = draw(task.pool, p.shots, seed)
    before = taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson_for(backbone, task, p, shots, seed)), p).log
    for i in range(len(shots)):
        changed = shots.copy()
        changed.iloc[i, changed.columns.get_loc("label")] ^= 1
        after = taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson_for(backbone, task, p, changed, seed)), p).log
        fold = folds(len(shots), 2) == folds(len(shots), 2)[i]
        assert torch.equal(before[fold], after[fold])  # its own and its whole fold's
        assert not torch.equal(before[~fold], after[~fold])  # the other fold sees it as a demonstration


def test_few_shot_inputs_see_the_other_fold_only(backbone, task):
    for count in (2, 3, 4):
        shots = draw(task.pool, count, 0)
        lesson = lesson_for(backbone, task, parameters(shots=count), shots)
        assert len(lesson.contexts) == 2 and set(lesson.which) == {0, 1}
        for row, which in zip(shots.index, lesson.which):
            assert row not in lesson.contexts[which].rows and row in lesson.contexts[1 - which].rows


def test_pool_inputs_are_no_shots_and_carry_no_label(backbone, task):
    p = parameters(inputs="pool")
    shots = draw(task.pool, p.shots, 0)
    rows = drawn_from_pool(task.pool, shots, 50, Streams(0))
    assert len(set(rows.index)) == 50 and not set(rows.index) & set(shots.index)
    assert list(rows.index[:6]) == list(drawn_from_pool(task.pool, shots, 6, Streams(0)).index)  # nested
    assert list(rows.index) != list(drawn_from_pool(task.pool, shots, 50, Streams(1)).index)
    assert unlabelled(rows, ["sentence"])["label"].tolist() == list(range(50))
    lesson = lesson_for(backbone, task, p, shots)
    assert lesson.inputs.labels.tolist() == list(range(6)) and len(lesson.contexts) == 1
    with pytest.raises(BadInput, match="unlabelled: 2400 is more than the 2392 rows"):
        drawn_from_pool(task.pool, shots, 2400, Streams(0))


def loss_of(backbone, lesson, targets) -> float:
    """The untrained student's mean divergence, dropout off."""
    backbone.model.eval()
    head = DistilledVerbalizer(backbone, WORDS, targets)
    with torch.no_grad():
        return sum(head.loss(backbone.hidden(rows), lesson.inputs.labels[rows.texts]).item() for rows in pack(lesson.inputs.ids)) / len(lesson.inputs)


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_0_when_both_see_the_same(backbone, task, top_k, temperature):
    p = parameters(top_k=top_k, temperature=temperature)
    backbone.restore()
    lesson = lesson_for(backbone, task, p, draw(task.pool, 4, 0))
    assert loss_of(backbone, lesson, taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson), p)) > 1e-3
    lesson.contexts = [Context(backbone.prefix)] * 2  # what the student sees, too
    assert abs(loss_of(backbone, lesson, taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson), p))) < 1e-5


def test_training_brings_the_student_to_its_teacher(backbone, task):
    p = parameters(epochs=30, learning_rate=3e-3)
    backbone.restore()
    lesson = lesson_for(backbone, task, p, draw(task.pool, 4, 0))
    targets = taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson), p)
    start = loss_of(backbone, lesson, targets)
    train(backbone, DistilledVerbalizer(backbone, WORDS, targets), lesson.inputs, p, Streams(0))
    assert loss_of(backbone, lesson, targets) < start / 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_and_its_gradient_are_the_formulas_by_hand(backbone, temperature):
    hidden = torch.randn(3, backbone.width, requires_grad=True, generator=torch.Generator().manual_seed(0))
    z_teacher = torch.tensor([[2.0, -1.0], [0.3, 0.4], [-3.0, 1.0]])
    loss = DistilledVerbalizer(backbone, WORDS, label_targets(z_teacher, temperature)).loss(hidden, torch.arange(3))
    rows = backbone.output[word_ids(backbone.tokenizer, WORDS)].detach()
    p, q = torch.softmax(z_teacher / temperature, 1), torch.softmax(hidden @ rows.T / temperature, 1)
    assert loss.item() == pytest.approx((temperature**2 * (p * (p / q).log()).sum()).item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(hidden.grad, temperature * (q - p) @ rows)  # d/dz T^2 KL = T (q - p)
    backbone.model.zero_grad()


def test_targets_are_looked_up_by_the_inputs_number(backbone):
    targets = label_targets(torch.tensor([[2.0, -1.0], [0.3, 0.4], [-3.0, 1.0]]), 1.0)
    hidden = torch.ones(3, backbone.width)
    whole = DistilledVerbalizer(backbone, WORDS, targets)
    parts = [DistilledVerbalizer(backbone, WORDS, Targets(targets.log[[i]], 1.0)).loss(hidden[:1], torch.tensor([0])) for i in (2, 0)]
    torch.testing.assert_close(whole.loss(hidden[:2], torch.tensor([2, 0])), sum(parts))


def test_top_k_and_the_rest_are_a_distribution():
    output, states = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.randn(70, 8, generator=torch.Generator().manual_seed(1))
    for k in (1, 10, 49):
        targets = top_k_targets(states, output, k, 2.0)
        full = torch.softmax(states @ output.T / 2.0, 1)
        expected = full.sort(1, descending=True).values[:, :k]
        torch.testing.assert_close(targets.log.exp(), torch.cat([expected, 1 - expected.sum(1, keepdim=True)], 1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(targets.log.exp().sum(1), torch.ones(70))
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    with_rest(logits, torch.tensor([[2]]))[0, 1].backward()
    assert torch.isfinite(logits.grad).all()


def test_as_coded_trains_as_torchs_kl_div_on_raw_logits_does(backbone):
    raw = torch.tensor([[0.3, 0.1], [0.2, 0.6], [0.05, 0.4]])  # all positive: torch's own value is a number
    gold, hidden = torch.tensor([0, 1, 1]), torch.randn(3, backbone.width, generator=torch.Generator().manual_seed(0))
    for teacher in (raw, raw - 0.5):
        head = CodedStudent(backbone, 2, 5, teacher, gold)
        loss = head.loss(hidden, torch.arange(3)) / 3
        ours = torch.autograd.grad(loss, head.weight)[0]
        log_q = F.log_softmax(head.logits(hidden), 1)
        theirs = 0.5 * F.kl_div(log_q, teacher, reduction="batchmean") + 0.5 * F.nll_loss(log_q, gold)
        torch.testing.assert_close(ours, torch.autograd.grad(theirs, head.weight)[0])
        if (teacher > 0).all():  # the constant that is left out
            constant = 0.5 * (teacher * teacher.log()).sum() / 3
            assert loss.item() == pytest.approx((theirs - constant).item(), rel=1e-5)
        else:
            assert torch.isnan(theirs)


def test_as_coded_teacher_and_student_are_different_random_heads():
    streams = [Streams(seed) for seed in (0, 1)]
    assert len({value for stream in streams for value in (stream.weights, stream.teacher, stream.dropout)}) == 6


def test_a_lora_student_learns_and_leaves_the_backbone_whole(backbone, task):
    from peft import LoraConfig

    backbone.restore()
    whole = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    p = parameters(rank=2, epochs=20, learning_rate=1e-2)
    lesson = lesson_for(backbone, task, p, draw(task.pool, 4, 0))
    targets = taught(backbone, Verbalizer(backbone, WORDS), states_for(backbone, lesson), p)
    start = loss_of(backbone, lesson, targets)
    attach(backbone, LoraConfig(r=p.rank, lora_alpha=4, task_type="CAUSAL_LM"), 0)
    assert loss_of(backbone, lesson, targets) == pytest.approx(start, abs=1e-6)  # B = 0: the student starts as the backbone
    training = train(backbone, DistilledVerbalizer(backbone, WORDS, targets), lesson.inputs, p, Streams(0))
    assert training.trainable == 3 * 2 * 2 * 2 * 32  # layers, query and value, A and B, rank, width
    assert loss_of(backbone, lesson, targets) < 0.9 * start
    backbone.restore()
    assert all(torch.equal(whole[key], value) for key, value in backbone.model.state_dict().items())


def test_another_teacher_needs_the_same_vocabulary(tiny_opt, tiny_opt_post_norm, tiny_llama, task):
    spec = task.file
    check_distillation(parameters(model=tiny_opt, teacher=tiny_opt_post_norm), spec)
    with pytest.raises(BadInput, match="different vocabularies"):
        check_distillation(parameters(model=tiny_opt, teacher=tiny_llama), spec)
    student, teacher = load_backbone(tiny_opt, "cpu", "float32"), load_backbone(tiny_opt_post_norm, "cpu", "float32")
    p = parameters(inputs="pool", top_k=3)
    lesson = prepare(teacher, student, task, p, draw(task.pool, 4, 0), Streams(0), PATTERN, WORDS)
    targets = taught(teacher, Verbalizer(teacher, WORDS), states_for(teacher, lesson), p)
    training = train(student, DistilledVerbalizer(student, WORDS, targets), lesson.inputs, p, Streams(0))
    assert training.losses[-1] < training.losses[0]


def test_what_stands_in_no_file_is_refused_before_weights_are_read(tiny_opt):
    spec = read_task(GRAMMAR)
    size = load_backbone(tiny_opt, "cpu", "float32").output.shape[0]
    check_distillation(parameters(model=tiny_opt, top_k=size - 1), spec)
    with pytest.raises(BadInput, match=f"top_k: {size} leaves no rest"):
        check_distillation(parameters(model=tiny_opt, top_k=size), spec)
    bare_spec = spec.model_copy(update={"instruction": ""})
    with pytest.raises(BadInput, match="'grammar', which has none"):
        check_distillation(parameters(model=tiny_opt, context="instruction"), bare_spec)


def test_demonstrations_that_cannot_fit_are_refused(backbone, task):
    with pytest.raises(BadInput, match="not even one of each label fits"):
        prepare(backbone, backbone, task, parameters(), draw(task.pool, 4, 0), Streams(0), PATTERN, WORDS, room=240)


def test_the_lesson_shown_is_the_divergence_by_hand(backbone, task):
    backbone.restore()
    lesson = lesson_for(backbone, task, parameters(), draw(task.pool, 4, 0))
    table = describe_lesson(backbone, backbone, WORDS, lesson, Distillation(temperature=2.0))
    p, q = (table[[f"{who}, ' No'", f"{who}, ' Yes'"]].astype(float).to_numpy() for who in ("teacher", "student"))
    np.testing.assert_allclose(table["KL, nats"].astype(float), (p * np.log(p / q)).sum(1), atol=5e-3)
    alone = predict(backbone, Verbalizer(backbone, WORDS), {"a": lesson.inputs})["a"][:4]
    np.testing.assert_allclose(q[:, 0], 1 / (1 + np.exp((alone[:, 1] - alone[:, 0]) / 2)), atol=1e-3)


def trial_with(own: float, **also: float) -> dict:
    """A trial of which only accuracies and MCCs matter here."""
    scores = {"domain": "in", "macro_f1": 0.0, "n": 10, "constant": 0.5, "commonest_prediction": 0.5, "by": {}}
    result = lambda value: {"sets": {"a": {**scores, "accuracy": value, "mcc": 2 * value - 1}}, "outcome_sha256": str(value)}
    rest = {"seed": 0, "seconds": {"train": 1.0}, "memory": {"resident": 1.0}, "trainable": 1, "losses": []}
    return {**rest, **result(own), "also": {who.replace("_", " "): result(value) for who, value in also.items()}}


@pytest.mark.parametrize("teacher, verdict", [
    ([0.8, 0.81, 0.82], "is better than"), ([0.2, 0.21, 0.22], "is worse than"), ([0.2, 0.5, 0.9], "is NOT shown to be better than"),
    ([0.6, 0.6, 0.6], "is ahead of"), ([0.5, 0.5, 0.5], "is no better than"), ([0.4], "is behind"),
])
def test_the_teacher_is_compared_with_the_untrained_student_by_seed(teacher, verdict):
    trials = [trial_with(0.7, teacher=accuracy, student_before=0.5) for accuracy in teacher]
    [sentence] = compared(trials, "teacher", "student before")
    assert f"the teacher {verdict} the student before" in sentence
    assert ("no interval" in sentence) == (len(set(teacher)) == 1)
    assert f"; MCC {2 * (sum(teacher) / len(teacher) - 0.5):+.3f} (" in sentence
    assert compared(trials, "student after", "student before")[0].startswith("a: the student after is ahead of")


def test_results_stand_side_by_side_and_copies_are_one_trial():
    trials = [trial_with(0.7, teacher=0.6, student_before=0.5), trial_with(0.8, teacher=0.9, student_before=0.5)]
    table = side_by_side(trials, own="student after").set_index("who")
    assert list(table.index) == ["teacher", "student before", "student after"]
    assert table["trials (distinct)"].tolist() == ["2 (2)", "1 (1)", "2 (2)"]
    assert table.loc["student before", "accuracy, % [95 % interval]"] == "50.0 [no interval]"


@pytest.mark.parametrize("values, words", [
    ({"unlabelled": 0}, "unlabelled: 0"),
    ({"temperature": 0.0}, "temperature: 0.0"),
    ({"shots": "all"}, "it goes with as_coded only"),
    ({"shots": 0}, "shots: 0"),
    ({"shots": 1}, "inputs: 'few-shot' is not accepted: two folds"),
    ({"demonstrations": 0}, "demonstrations: 0"),
    ({"fidelity": "as_coded"}, "the authors ran learning_rate 1e-05, not 5e-05"),
    ({**CODED, "top_k": 3}, "top_k: 3"),
    ({**CODED, "rank": 3}, "rank: 3"),
    ({**CODED, "context": "instruction"}, "context: 'instruction'"),
    ({**CODED, "inputs": "pool"}, "inputs: 'pool'"),
])
def test_bad_parameters_are_told_in_a_sentence(values, words):
    with pytest.raises(BadInput) as error:
        validated("distillation", values, "here")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_all_shots_and_one_shot_are_accepted_where_they_make_sense():
    assert validated("distillation", CODED | {"shots": "all", "epochs": 3}, "here").shots == "all"
    assert validated("distillation", {"shots": 1, "inputs": "pool"}, "here").shots == 1
    assert validated("distillation", CODED | {"shots": 1}, "here").shots == 1
