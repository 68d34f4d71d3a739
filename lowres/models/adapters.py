"""Parameter-efficient fine-tuning through PEFT: adapters put into a backbone, taken out again, and saved in PEFT's own form.

LoRA (Hu et al. 2021, arXiv 2106.09685) and its kin replace modules inside the model; prompt learning leaves the model alone
and puts virtual tokens in front of every text. Two are no types of PEFT's: with BITFIT the backbone's own biases train and nothing else does; with
BOTTLENECK a small network behind each layer.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lowres.files import BadInput, near, whole_folder
from lowres.parameters import LoRA

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftConfig


OWN = {"r": "the parameter rank", "lora_alpha": "the parameter alpha", "lora_dropout": "the parameter dropout"}
FIXED = {
    "target_modules": "the parameter target_modules", "peft_type": "the parameter peft_type", "task_type": "lowres", "inference_mode": "lowres",
    # These leave copies of modules or layers in the backbone, so that the next trial would not start from the pretrained one.
    "modules_to_save": "the parameter head", "layer_replication": "lowres, which keeps the backbone's layers",
    "trainable_token_indices": "lowres, which keeps the backbone's embeddings",
}


def configuration(p) -> PeftConfig | BottleneckConfig | None:
    """PEFT's configuration for a method's parameters, or BOTTLENECK's; None for BITFIT. Raises BadInput for a key that PEFT does not know."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    if p.peft_type == "BITFIT":
        if p.peft_options or p.target_modules:
            raise BadInput("peft_type: BITFIT takes neither peft_options nor target_modules: all biases train")
        return None
    if p.peft_type == "BOTTLENECK":
        return _bottleneck_config(p)
    schema = PEFT_TYPE_TO_CONFIG_MAPPING[p.peft_type]
    known = {field.name for field in fields(schema)}
    for key in p.peft_options:
        if key in FIXED or (key in OWN and p.peft_type == "LORA"):
            raise BadInput(f"peft_options: {key}: is not set here, but by {FIXED.get(key) or OWN[key]}")
        if key not in known:
            raise BadInput(f"peft_options: {key}: is no key of PEFT's {schema.__name__}{near(key, known)}")
    values = {"task_type": "CAUSAL_LM", **p.peft_options}
    if p.peft_type == "LORA":
        values |= {"r": p.rank, "lora_alpha": p.alpha, "lora_dropout": p.dropout}
    if "target_modules" in known:
        values["target_modules"] = targets(p)
    elif p.target_modules:
        raise BadInput(f"target_modules: {p.peft_type} puts tokens in front of the text and changes no module: leave them out")
    try:
        config = schema(**values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"peft_options: not accepted by PEFT: {_line(error)}") from None
    if config.is_prompt_learning and not config.num_virtual_tokens:
        raise BadInput(f"peft_options: {p.peft_type} wants num_virtual_tokens")
    return config


def _bottleneck_config(p) -> BottleneckConfig:
    width = p.peft_options.get("width")
    if set(p.peft_options) != {"width"} or type(width) is not int or width < 1 or p.target_modules:
        raise BadInput("peft_options: BOTTLENECK takes {width: 64}, a whole number, and no target_modules: there is one behind each layer")
    if p.compiled:
        raise BadInput("compiled: true would not see BOTTLENECK's adapters, which stand behind the layers: false is wanted")
    return BottleneckConfig(width)


@dataclass(frozen=True)
class BottleneckConfig:
    """How wide the narrow part is."""

    width: int
    is_prompt_learning = False


class Bottleneck(nn.Module):
    """h + W_up relu(W_down h) behind a layer (Houlsby et al. 2019, arXiv 1902.00751), one a layer, behind its feed-forward part (Pfeiffer et al.
    2021, arXiv 2005.00247). W_up starts at 0, so that a new one changes nothing."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(self.down(hidden).relu())


def _bottlenecks(backbone, width: int) -> None:
    backbone.model.requires_grad_(False)
    for layer in layer_stack(backbone.model.base_model):
        layer.bottleneck = Bottleneck(backbone.model.config.hidden_size, width).to(backbone.device)
        hook = layer.register_forward_hook(lambda layer, _, out: (layer.bottleneck(out[0]), *out[1:]) if isinstance(out, tuple)
                                           else layer.bottleneck(out))
        backbone.bottlenecks.append((layer, hook))


def targets(p) -> str | list[str] | None:
    """target_modules as PEFT takes them; None leaves the choice to its own table of model families."""
    return "all-linear" if p.target_modules == ["all-linear"] else list(p.target_modules) or None


def attach(backbone, config: PeftConfig | None, seed: int) -> nn.Module | None:
    """Puts an adapter with weights drawn from `seed` into the backbone and freezes all else; `backbone.restore()` takes it out.

    Returns the PeftModel (None for what is none of PEFT's). Raises BadInput for target modules that match
    nothing, a rank above a module's width, a backbone without biases.
    """
    if config is None:
        _train_biases(backbone.model, backbone.name)
        return None
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if isinstance(config, BottleneckConfig):
            _bottlenecks(backbone, config.width)
            return None
        backbone.adapter = inject(backbone.model, config, backbone.name)
    return backbone.adapter


def detach(backbone) -> None:
    """Takes the adapter out again. Base weights that it changed (merged, biases) are `restore`'s to put back."""
    for layer, hook in backbone.bottlenecks:
        hook.remove()
        del layer.bottleneck
    backbone.bottlenecks.clear()
    adapter, backbone.adapter = backbone.adapter, None
    if adapter is not None and not adapter.active_peft_config.is_prompt_learning:
        adapter.base_model.unload()


def inject(model: nn.Module, config: PeftConfig, name: str) -> nn.Module:
    """`get_peft_model` on a copy of `config` (PEFT writes into it), with faults told as BadInput and the model left whole."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    _check_targets(model, getattr(config, "target_modules", None), name)
    config = copy.deepcopy(config)
    if config.is_prompt_learning and config.peft_type.value != "PREFIX_TUNING" and config.token_dim is None:
        config.token_dim = model.get_input_embeddings().embedding_dim  # PEFT takes the layers' width, which OPT-350M's is not
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise BadInput(f"{config.peft_type.value} does not fit the model {name!r}: {_line(error)}; its linear modules are "
                       f"{', '.join(linear_names(model))}") from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        adapter.base_model.unload()
        raise BadInput("target_modules: the language-model head cannot be adapted: label logits are read off its own rows")
    _check_rank(adapter, config)
    return adapter


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of a model's linear modules, the head's excepted: what target modules can be."""
    head = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                   if type(module).__name__ in ("Linear", "Conv1D") and module is not head})


def _check_targets(model: nn.Module, targets, name: str) -> None:
    names = [module for module, _ in model.named_modules()]
    for target in sorted(targets) if isinstance(targets, (list, set)) else []:
        if not any(module == target or module.endswith("." + target) for module in names):
            raise BadInput(f"target_modules: {target!r} matches nothing in {name!r}; its linear modules are {', '.join(linear_names(model))}")


def _check_rank(adapter: nn.Module, config: PeftConfig) -> None:
    """A matrix of rank r needs r rows and columns: PEFT itself takes any r."""
    if config.peft_type.value != "LORA":
        return
    for module_name, module in adapter.named_modules():
        if getattr(module, "r", None) and hasattr(module, "in_features"):
            rank, width = max(module.r.values()), min(module.in_features, module.out_features)
            if rank > width:
                adapter.base_model.unload()
                raise BadInput(f"rank: {rank} is above the width {width} of {module_name.rpartition('.')[2]}")


def _train_biases(model: nn.Module, name: str) -> None:
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): every bias trains, those of norms too, and nothing else."""
    biases = {key for key, _ in model.named_parameters() if key.rpartition(".")[2] == "bias"}
    if not biases:
        raise BadInput(f"peft_type: BITFIT trains the biases, and the model {name!r} has none")
    for key, weight in model.named_parameters():
        weight.requires_grad_(key in biases)


def behind_prompt(adapter: nn.Module | None, embed: nn.Module, rows) -> tuple[dict, int]:
    """What a forward pass takes for `rows` (batches.Rows), and how many virtual tokens stand in front of each row.

    Each text sees all virtual tokens and then itself, and its positions go on where theirs end, as in PEFT's own forward pass,
    which cannot be used: it takes no mask of four dimensions and no positions.
    """
    plain = {"input_ids": rows.ids, "position_ids": rows.positions, "attention_mask": rows.mask}
    if adapter is None or not adapter.active_peft_config.is_prompt_learning:
        return plain, 0
    count = adapter.active_peft_config.num_virtual_tokens
    prompt = adapter.get_prompt(batch_size=len(rows.ids))
    wide = torch.cat([rows.mask.new_zeros(*rows.mask.shape[:3], count), rows.mask], dim=3)
    if not isinstance(prompt, torch.Tensor):  # prefix tuning: keys and values of every layer, no tokens of its own
        return {**plain, "position_ids": rows.positions + count, "attention_mask": wide, "past_key_values": prompt}, 0
    shape = (len(rows.ids), 1, count, wide.shape[3])
    causal = torch.full(shape, torch.finfo(wide.dtype).min, device=wide.device).triu(1)
    own = torch.arange(count, device=rows.ids.device).expand(len(rows.ids), count)
    return {
        "inputs_embeds": torch.cat([prompt, embed(rows.ids)], dim=1),
        "position_ids": torch.cat([own, rows.positions + count], dim=1),
        "attention_mask": torch.cat([causal, wide], dim=2),
    }, count


def layer_stack(model: nn.Module) -> nn.ModuleList:
    """A decoder's layers, lowest first: the longest list of modules of one type that lies in no other such list.

    Found by structure, since every family names them otherwise; a mixture's experts lie inside a layer. Raises BadInput if none is there.
    """
    lists = [module for module in model.modules()
             if isinstance(module, nn.ModuleList) and len(module) and len({type(item) for item in module}) == 1]
    inside = {id(inner) for outer in lists for inner in outer.modules() if inner is not outer}
    outermost = [module for module in lists if id(module) not in inside]
    if not outermost:
        raise BadInput(f"model: {type(model).__name__} has no stack of layers of one type, which adapt: layers and compiled: true want")
    return max(outermost, key=len)


def describe(backbone) -> pd.DataFrame:
    """A line for each kind of weight that trains: its name's last parts, how many there are, their shape, all their numbers together."""
    import pandas as pd

    kinds: dict[tuple[str, str], list[int]] = {}
    for name, weight in backbone.whole.named_parameters():
        if weight.requires_grad:
            parts = [part for part in name.split(".") if not part.isdigit() and part not in ("default", "base_layer")]
            kinds.setdefault((".".join(parts[-3:]), " x ".join(map(str, weight.shape))), []).append(weight.numel())
    total = sum(map(sum, kinds.values()))
    print(f"{total:,} of {backbone.parameters():,} weights train, {100 * total / backbone.parameters():.2f} %; a new classifier's come on top")
    return pd.DataFrame([{"weight": name, "shape": shape, "how many": len(sizes), "numbers": sum(sizes)}
                         for (name, shape), sizes in kinds.items()]).set_index("weight")


def student(p) -> PeftConfig:
    """The LoRA of a distilled student: of its rank, else as the method lora has it (the product scaled by 1, dropout 0.1)."""
    return configuration(LoRA(rank=p.rank, alpha=p.rank))


def check_student(p) -> None:
    """Raises BadInput for a rank above a layer's width."""
    inject(shape_of(p.model), student(p), p.model)


def shape_of(name: str) -> nn.Module:
    """A model of the right shapes, without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lowres.models.weights import resolve

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve(name, weights=False)))


def check(p) -> None:
    """What can be told of a method's PEFT parameters from the model's configuration alone. Raises BadInput."""
    from lowres.tasks.task_file import read_task

    config = configuration(p)
    if p.fidelity == "as_coded":
        read_task(p.task).pattern("as_coded")
    model = shape_of(p.model)
    virtual, context = getattr(config, "num_virtual_tokens", None) or 0, model.config.max_position_embeddings
    if virtual and virtual + p.max_length > context:
        raise BadInput(f"peft_options: num_virtual_tokens: {virtual} and max_length {p.max_length} are more than the model's context of {context}")
    if config is None:
        _train_biases(model, p.model)
    elif not config.is_prompt_learning and not isinstance(config, BottleneckConfig):
        inject(model, config, p.model)


def save(backbone, head: nn.Module, folder: Path) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` as plain PEFT loads them, and a new head's weights beside them.

    `folder` appears whole or not at all, in place of an older one.
    """
    from safetensors.torch import save_file

    from lowres.tasks.hub import split_revision

    adapter, config = backbone.adapter, backbone.adapter.active_peft_config
    # The backbone as it was asked for, not the path of some cache.
    config.base_model_name_or_path, config.revision = split_revision(backbone.name)
    weights = {key: value.detach().cpu() for key, value in head.state_dict().items()}
    with whole_folder(folder) as made:
        adapter.save_pretrained(made, save_embedding_layers=False)
        (made / "README.md").unlink(missing_ok=True)  # PEFT's form of a model card, not filled in
        if weights:
            save_file(weights, made / "head.safetensors")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
