"""Adapters, held against PEFT itself and against the untouched backbone."""

import copy

import pytest
import torch
from conftest import backbone_of, save_model
from peft import PeftModel
from toys import GRAMMAR
from transformers import AutoModelForCausalLM, GemmaConfig, GPTNeoXConfig, LlamaConfig, OPTConfig

from lowres.files import BadInput
from lowres.methods.evaluation import predict
from lowres.methods.training import train
from lowres.models import adapters
from lowres.models.batches import encode, pack
from lowres.models.heads import Classifier, Verbalizer
from lowres.parameters import PEFT_TYPES, validated
from lowres.runs.checks import check_method
from lowres.tasks.load import load_task
from lowres.tasks.shots import Streams, draw

TEXTS = [[2, 5, 6, 7], [2, 9, 10, 11, 12, 13], [2, 20]]
TOKENS = {"num_virtual_tokens": 4}
OPTIONS = {  # what a type wants at the tiny models' sizes
    "PROMPT_TUNING": TOKENS, "P_TUNING": TOKENS, "PREFIX_TUNING": TOKENS, "MISS": {"r": 4}, "ROAD": {"group_size": 4},
    "C3A": {"block_size": 16}, "VBLORA": {"vector_length": 16, "num_vectors": 8}, "WAVEFT": {"n_frequency": 20}, "FOURIERFT": {"n_frequency": 20},
    "BOTTLENECK": {"width": 8},
}

OFTEN = ("LORA", "BITFIT", "BOTTLENECK", "PROMPT_TUNING", "PREFIX_TUNING")  # one of each kind; the others take a minute


def parameters(model="smollm2-135m", **given):
    return validated("lora", {"model": str(model), "epochs": 1, **given}, "test")


@torch.no_grad()
def hidden(backbone):
    """(texts, width) in the order of TEXTS, in evaluation mode."""
    backbone.whole.eval()
    rows = next(pack(TEXTS))
    return backbone.hidden(rows)[torch.tensor(rows.texts).argsort()]


def attached(backbone, seed=1, **given):
    return adapters.attach(backbone, adapters.configuration(parameters(backbone.name, **given)), seed)


def trained(backbone, head, p, seed=0):
    task = load_task(GRAMMAR, "", 20)
    inputs = encode(backbone, draw(task.pool, 4, seed), task.file.pattern(""), 64)
    return train(backbone, head, inputs, p, Streams(seed))


def nudge(backbone):
    """Moves every weight that trains, as a step would."""
    with torch.no_grad():
        for weight in backbone.whole.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def test_with_b_zero_the_logits_are_the_backbones_exactly(tiny_model):
    backbone = backbone_of(tiny_model)
    before = hidden(backbone)
    attached(backbone)
    assert torch.equal(hidden(backbone), before)
    nudge(backbone)
    assert not torch.equal(hidden(backbone), before)


@pytest.mark.parametrize("peft_type", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in PEFT_TYPES])
def test_each_type_is_pefts_own_function_and_leaves_no_trace(tiny_llama, tiny_opt, peft_type):
    backbone = backbone_of(tiny_opt if peft_type == "BITFIT" else tiny_llama)
    before, weights = hidden(backbone), copy.deepcopy(backbone.model.state_dict())
    p = parameters(backbone.name, peft_type=peft_type, peft_options=OPTIONS.get(peft_type, {}))
    check_method(p)
    adapter = adapters.attach(backbone, adapters.configuration(p), seed=1)
    nudge(backbone)
    changed = hidden(backbone)
    assert not torch.allclose(changed, before, atol=1e-4)
    if adapter is not None:  # an independent forward pass: PEFT's, one text at a time, with no rows, masks or positions of ours
        for text, state in zip(TEXTS, changed):
            with torch.no_grad():
                theirs = adapter(input_ids=torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(state @ backbone.output.T, theirs, atol=2e-5, rtol=1e-4)
    backbone.restore()
    assert torch.equal(hidden(backbone), before)
    assert list(backbone.model.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in backbone.model.state_dict().items())
    assert all(weight.requires_grad for weight in backbone.model.parameters())


@pytest.mark.parametrize(("peft_type", "names"), [
    ("LORA", ("lora_A", "lora_B")), ("IA3", ("ia3_l",)), ("PROMPT_TUNING", ("prompt_encoder",)), ("BITFIT", (".bias",)),
    ("BOTTLENECK", (".bottleneck.",)),
])
@pytest.mark.parametrize("head_type", ["classifier", "verbalizer"])
def test_only_the_intended_weights_move(tiny_opt, peft_type, names, head_type):
    backbone = backbone_of(tiny_opt)
    p = parameters(tiny_opt, peft_type=peft_type, peft_options=OPTIONS.get(peft_type, {}), learning_rate=0.01, epochs=4, warmup_ratio=0.0)
    adapter = adapters.attach(backbone, adapters.configuration(p), 1)
    head = Classifier(backbone, 2, 0) if head_type == "classifier" else Verbalizer(backbone, [" No", " Yes"])
    before = {name: weight.detach().clone() for name, weight in backbone.whole.named_parameters()}
    training = trained(backbone, head, p)
    moved = {name for name, weight in backbone.whole.named_parameters() if not torch.equal(weight, before[name])}
    allowed = {name for name in before if any(part in name for part in names)}
    assert moved and moved <= allowed
    if peft_type != "BITFIT":  # a bias of the keys has no gradient: it shifts all of a row's attention alike
        assert moved == allowed
    own = sum(weight.numel() for weight in head.parameters())
    expected = adapter.get_nb_trainable_parameters()[0] if adapter else sum(before[name].numel() for name in allowed)
    assert training.trainable == expected + own
    assert backbone.parameters() == (adapter.get_nb_trainable_parameters()[1] if adapter else sum(w.numel() for w in before.values()))


def test_lora_counts_are_those_of_its_matrices(tiny_llama):
    backbone = backbone_of(tiny_llama)
    attached(backbone, rank=5)
    trainable = sum(weight.numel() for weight in backbone.whole.parameters() if weight.requires_grad)
    assert trainable == 3 * (5 * (32 + 32) + 5 * (32 + 16))  # query 32 x 32 and value 32 -> 16 (two of four heads), in 3 layers
    table = adapters.describe(backbone)
    assert table["numbers"].sum() == trainable


def test_a_new_bottleneck_changes_nothing_and_has_the_numbers_of_its_two_matrices(tiny_model):
    backbone = backbone_of(tiny_model)
    before, total = hidden(backbone), backbone.parameters()
    attached(backbone, peft_type="BOTTLENECK", peft_options={"width": 5})
    assert torch.equal(hidden(backbone), before)
    size = backbone.model.config.hidden_size
    trainable = sum(weight.numel() for weight in backbone.whole.parameters() if weight.requires_grad)
    assert trainable == backbone.parameters() - total == 3 * (2 * 5 * size + 5 + size), "down, up and their biases, behind 3 layers"


def test_a_bottleneck_adds_its_network_behind_each_layer(tiny_llama):
    """Against transformers' own forward pass, the networks computed by hand between the layers."""
    backbone = backbone_of(tiny_llama)
    attached(backbone, peft_type="BOTTLENECK", peft_options={"width": 5})
    nudge(backbone)
    found, added = hidden(backbone), [layer.bottleneck for layer in backbone.model.model.layers]
    backbone.restore()
    for text, state in zip(TEXTS, found):
        inner = backbone.model.model
        with torch.no_grad():
            states = inner.embed_tokens(torch.tensor([text]))
            around = inner.rotary_emb(states, torch.arange(len(text))[None])
            mask = torch.full((1, 1, len(text), len(text)), torch.finfo(torch.float32).min).triu(1)
            for layer, one in zip(inner.layers, added):
                states = layer(states, attention_mask=mask, position_embeddings=around)
                states = states + torch.relu(states @ one.down.weight.T + one.down.bias) @ one.up.weight.T + one.up.bias
            torch.testing.assert_close(inner.norm(states)[0, -1], state, atol=2e-5, rtol=1e-4)


def test_merged_equals_unmerged(tiny_model):
    backbone = backbone_of(tiny_model)
    attached(backbone)
    nudge(backbone)
    apart = hidden(backbone)
    merged = copy.deepcopy(backbone.adapter).merge_and_unload().eval()
    for text, state in zip(TEXTS, apart):
        with torch.no_grad():
            torch.testing.assert_close(merged(input_ids=torch.tensor([text])).logits[0, -1], state @ backbone.output.T, atol=1e-5, rtol=1e-5)


def test_new_weights_come_from_the_seed_alone(tiny_opt):
    backbone, drawn = backbone_of(tiny_opt), []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        attached(backbone, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)  # nor do they move what others draw
        drawn.append(torch.cat([w.detach().flatten() for n, w in backbone.whole.named_parameters() if "lora_A" in n]))
        backbone.restore()
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_dropout_works_in_training_and_not_in_prediction(tiny_llama):
    backbone, losses = backbone_of(tiny_llama), {}
    for dropout in (0.0, 0.5):
        backbone.restore()
        attached(backbone, dropout=dropout)
        nudge(backbone)
        assert torch.equal(hidden(backbone), hidden(backbone))
        losses[dropout] = trained(backbone, Verbalizer(backbone, [" No", " Yes"]), parameters(tiny_llama)).losses
    assert losses[0.0] != losses[0.5]


def test_a_trial_repeats_whatever_ran_before_it(tiny_llama):
    backbone, results = backbone_of(tiny_llama), []
    sets = {"pool": encode(backbone, load_task(GRAMMAR, "", 20).pool.head(20), "{sentence} ?", 64)}
    for peft_type in ("LORA", "IA3", "PROMPT_TUNING", "LORA"):
        p = parameters(tiny_llama, peft_type=peft_type, peft_options=OPTIONS.get(peft_type, {}), learning_rate=0.01, epochs=4)
        backbone.restore()
        adapters.attach(backbone, adapters.configuration(p), 1)
        head = Verbalizer(backbone, [" No", " Yes"])
        losses = trained(backbone, head, p).losses
        results.append((losses, predict(backbone, head, sets)["pool"].tobytes()))
    assert results[0] == results[3] and results[0] != results[1]


@pytest.mark.parametrize(("peft_type", "fixture"), [
    ("LORA", "tiny_opt"), ("IA3", "tiny_llama"), ("PROMPT_TUNING", "tiny_opt_post_norm"), ("PREFIX_TUNING", "tiny_llama"),
])
def test_plain_peft_loads_what_is_saved(request, tmp_path, peft_type, fixture):
    folder = request.getfixturevalue(fixture)
    backbone = backbone_of(folder)
    attached(backbone, peft_type=peft_type, peft_options=OPTIONS.get(peft_type, {}))
    nudge(backbone)
    head = Classifier(backbone, 2, 0)
    adapters.save(backbone, head, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path / "adapter").eval()
    for text, state in zip(TEXTS, hidden(backbone)):
        with torch.no_grad():
            torch.testing.assert_close(plain(input_ids=torch.tensor([text])).logits[0, -1], state @ backbone.output.T, atol=1e-5, rtol=1e-5)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"}
    adapters.save(backbone, Verbalizer(backbone, [" No", " Yes"]), tmp_path / "adapter")  # again, in place of the old one
    assert not (tmp_path / "adapter" / "head.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(("config", "expected"), [
    (OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4), {"q_proj", "v_proj"}),
    (LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4), {"q_proj", "v_proj"}),
    (GemmaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8),
     {"q_proj", "v_proj"}),
    (GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4), {"query_key_value"}),
], ids=["opt", "llama", "gemma", "gpt_neox"])
def test_query_and_value_are_found_by_pefts_own_table(tmp_path, config, expected):
    folder = save_model(tmp_path / "model", config)
    check_method(parameters(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = adapters.inject(model, adapters.configuration(parameters(folder)), folder)
    assert {name.split(".")[-2] for name, _ in adapter.named_modules() if name.endswith(".lora_A")} == expected


@pytest.mark.parametrize(("given", "said"), [
    ({"rank": 33}, "rank: 33 is above the width 32 of"),
    ({"target_modules": ["q_prok"]}, r"target_modules: 'q_prok' matches nothing.*fc1, fc2, k_proj, out_proj, q_proj, v_proj"),
    ({"target_modules": ["q_proj", "nothing"]}, "target_modules: 'nothing' matches nothing"),
    ({"target_modules": ["lm_head"]}, "the language-model head cannot be adapted"),
    ({"peft_options": {"use_rslorra": True}}, r"peft_options: use_rslorra: is no key.*use_rslora"),
    ({"peft_options": {"r": 3}}, "by the parameter rank"),
    ({"peft_type": "PROMPT_TUNING"}, "wants num_virtual_tokens"),
    ({"peft_type": "PROMPT_TUNING", "peft_options": {"num_virtual_tokens": 200}}, "more than the model's context of 256"),
    ({"peft_type": "PROMPT_TUNING", "peft_options": TOKENS, "target_modules": ["q_proj"]}, "changes no module"),
    ({"peft_type": "LN_TUNING"}, "LN_TUNING does not fit"),
    ({"peft_type": "BOTTLENECK"}, "BOTTLENECK takes {width: 64}"),
    ({"peft_type": "BOTTLENECK", "peft_options": {"width": 0}}, "BOTTLENECK takes {width: 64}"),
    ({"peft_type": "BOTTLENECK", "peft_options": {"width": 4}, "compiled": True}, "would not see BOTTLENECK's adapters"),
    ({"head": "classifier", "peft_options": {"modules_to_save": ["fc1"]}}, "modules_to_save"),
])
def test_bad_input_is_told_before_weights_are_read(tiny_opt, given, said):
    with pytest.raises(BadInput, match=said):
        check_method(parameters(tiny_opt, **given))


@pytest.mark.parametrize(("given", "said"), [
    ({"peft_type": "LORRA"}, r"peft_type: 'LORRA' is not accepted.*did you mean.*LORA"),
    ({"peft_type": "IA3", "rank": 4}, "peft_type: 'IA3' is not accepted: rank would have no effect"),
    ({"rank": 0}, "rank: 0"),
    ({"save_adapter": True}, "nowhere to keep"),
    ({"save_adapter": True, "output_dir": "x", "peft_type": "BITFIT"}, "no adapter that it could load"),
    ({"fidelity": "as_coded"}, "fidelity: 'as_coded' is not accepted: the authors ran learning_rate 1e-05, not 0.005; head 'classifier'"),
    ({"fidelity": "as_coded", "head": "classifier", "learning_rate": 1e-5, "alpha": 16}, "the authors ran alpha 8, not 16"),
    ({"fidelity": "as_coded", "head": "classifier", "learning_rate": 1e-5, "pattern": "this_is"}, "the pattern 'as_coded', not 'this_is'"),
])
def test_bad_input_is_told_by_the_schema(given, said):
    with pytest.raises(BadInput, match=said):
        parameters(**given)


def test_a_backbone_without_biases_has_no_bitfit(tiny_llama):
    with pytest.raises(BadInput, match="BITFIT trains the biases, and the model .* has none"):
        check_method(parameters(tiny_llama, peft_type="BITFIT"))


def test_the_fidelities_differ_where_they_should_and_nowhere_else():
    coded = parameters(fidelity="as_coded", head="classifier", learning_rate=1e-5, rank=4)
    described = parameters(rank=4)
    differing = {key for key, value in coded.model_dump().items() if value != getattr(described, key)}
    assert differing == {"fidelity", "head", "learning_rate"}
    assert adapters.configuration(coded).to_dict() == adapters.configuration(described).to_dict()
    config = adapters.configuration(coded)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
