"""What every method takes: one schema a method, with types, ranges and one line of help a parameter.

A method's parameters stand in three places that a test holds together: its schema here, its notebook's parameters
cell, and its file in `parameters/methods/`. All are flat, so that papermill and a person can set them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from lowres.files import ROOT, BadInput, checked, near, read_yaml, shown

Fidelity = Literal["as_described", "as_coded"]
Words = Literal["label_words", "vocabulary"]
WordScore = Literal["sum", "mean", "first", "character"]
WordScoreRead = Literal["sum", "mean", "first", "character", "unconditional"]  # where nothing trains
WORD_SCORE = "words of several tokens: sum of log-probabilities, mean, first token alone; choices: sum, mean, character"
ClassWeights = Literal["none", "balanced"]
Head = Literal["verbalizer", "classifier"]
# PEFT's types that are known to work here (a test tries each), and two which are none of PEFT's, BITFIT and BOTTLENECK. Left out are those that want
# a loop of their own (ADALORA), task numbers (POLY, MULTITASK_PROMPT_TUNING) or the weights before they can be checked (FROD).
PEFT_TYPES = (
    "LORA", "BITFIT", "BOTTLENECK", "IA3", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LN_TUNING", "LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA",
    "FOURIERFT", "VBLORA", "MISS", "RANDLORA", "ROAD", "HIRA", "C3A", "WAVEFT", "OSF", "DELORA", "GRALORA",
)


def _count_or_all(value: Any) -> Any:
    if value != "all" and (type(value) is not int or value < 0):
        raise ValueError("a whole number or 'all' is wanted")
    return value


CountOrAll = Annotated[int | Literal["all"], BeforeValidator(_count_or_all)]


class Parameters(BaseModel):
    """What every method has. Defaults are for a first look: a small model, task and evaluation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)

    model: str = Field("smollm2-135m", min_length=1, description="backbone: smollm2-135m, gemma3-270m, a folder, or a hub id[@revision]")
    task: str = Field("sentiment", min_length=1, description="a file of parameters/tasks by its name, or by its path")
    data_dir: str = Field("", description="folder with the task's files; empty: the task's hub or embedded source")
    shots: int = Field(16, ge=1, description="labelled examples per class")
    uneven: bool = Field(False, description="a class that has fewer rows than shots gives what it has; else that is an error")
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0, 1], min_length=1, description="one trial each")
    max_length: int = Field(128, ge=8, description="tokens of an input; the longest text column of a longer one is cut")
    also_evaluate: list[str] = Field([], description="other tasks to predict besides, out of domain: as many labels and text columns")
    evaluation_rows: int = Field(200, ge=0, description="rows per evaluation set, one fixed stratified choice; 0: all")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 autocast where it is native")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: the first GPU, else the CPU")
    compiled: bool = Field(False, description="torch.compile the layers: worth its start where a run takes minutes")
    output_dir: str = Field("", description="where trials and the record go; empty: nothing is kept")

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed stands twice: a copy is not a trial")
        return seeds

    @field_validator("output_dir")
    @classmethod
    def _papermill_can_write_there(cls, path: str) -> str:
        if "{" in path or "}" in path:
            raise ValueError("braces are not allowed: papermill would fill them in")
        return path


class Trained(Parameters):
    """What every method that trains has besides. Defaults are the paper's (arXiv 2405.13181), but for the learning rates: see parameters/methods/."""

    epochs: int = Field(40, ge=1, description="passes over the shots")
    batch_size: int = Field(32, ge=1, description="examples per optimizer step")
    learning_rate: float = Field(5.0e-5, gt=0, description="peak of the schedule")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="part of the steps that warms up, linearly; at least 1 step")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    class_weights: ClassWeights = Field("none", description="balanced: of uneven shots each class counts as much as the others")
    choosable: ClassVar[tuple[str, ...]] = ("learning_rate", "epochs", "pattern", "label_words")
    choose: dict[str, list[Any]] = Field({}, description="values of which the shots choose, for learning_rate, epochs, pattern or label_words")

    @field_validator("choose")
    @classmethod
    def _can_be_chosen(cls, choose: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in choose.items():
            if key not in cls.choosable or key not in cls.model_fields:
                raise ValueError(f"{key!r} cannot be chosen{near(key, [name for name in cls.choosable if name in cls.model_fields])}")
            if not values:
                raise ValueError(f"{key}: at least one value is wanted")
            field = cls.model_fields[key]
            form = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            kind = TypeAdapter(form, config=ConfigDict(strict=True, allow_inf_nan=False))
            for value in values:
                try:
                    kind.validate_python(value)
                except ValidationError:
                    raise ValueError(f"{key}: {value!r} is no value of it") from None
        return choose


class Vanilla(Trained):
    """A new linear head on the last token; every weight trains."""

    learning_rate: float = Field(2.0e-4, gt=0, description="peak of the schedule")
    fidelity: Fidelity = Field("as_described", description="as_coded: the authors' schedule, quirk by quirk (wants learning_rate 1.0e-5)")

    @field_validator("fidelity")
    @classmethod
    def _as_the_authors_ran_it(cls, fidelity: str, others: ValidationInfo) -> str:
        return _as_coded(fidelity, others.data)


class PBFT(Trained):
    """A pattern and label words, scored by the language-model head; no new weights."""

    pattern: str = Field("", description="a pattern of the task file by its name; empty: its first")
    label_words: str = Field("", description="label words of the task file by their name; empty: its first")
    word_score: WordScore = Field("sum", description=WORD_SCORE)
    loss: Words = Field("label_words", description="the softmax is over the label words, or the whole vocabulary")
    fidelity: Fidelity = Field("as_described", description="as_coded: a new random head on the authors' prompted input (wants learning_rate 1.0e-5)")

    @field_validator("fidelity")
    @classmethod
    def _as_the_authors_ran_it(cls, fidelity: str, others: ValidationInfo) -> str:
        return _as_coded(fidelity, others.data, "as_coded", loss="label_words")


# Adaptive fine-tuning's parameters that only one of its readings has.
ADAPTIVE_ONLY = {
    "search_words": "pattern", "choose_always": "pattern", "train_layers": "layers", "layer_decay": "layers",
    "corpus_steps": "corpus", "corpus_learning_rate": "corpus", "corpus_rows": "corpus",
}


class Adaptive(Trained):
    """What is adapted before or in fine-tuning: the pattern, the layers that train, or the corpus that was read."""

    adapt: Literal["pattern", "layers", "corpus"] = Field("pattern", description="choose the pattern; train the top layers; read the pool first")
    head: Head = Field("verbalizer", description="label words through the pattern, or a new classifier (layers and corpus only)")
    pattern: str = Field("", description="the (default) pattern by its name; empty: the task's first, plain for a classifier")
    label_words: str = Field("", description="the (default) label words by their name; empty: the task's first")
    word_score: WordScore = Field("sum", description=WORD_SCORE)
    search_words: int = Field(20, ge=0, description="pattern: words searched among so many top predictions per label; 0: off")
    choose_always: bool = Field(False, description="pattern: may leave the default below 16 shots, too")
    train_layers: int = Field(0, ge=0, description="layers: how many of the top ones train; 0: the top sixth")
    layer_decay: float = Field(0.95, gt=0, le=1, description="layers: a layer's rate is this times that of the one above")
    corpus_steps: int = Field(50, ge=1, description="corpus: optimizer steps of language modelling, batch_size texts each")
    corpus_learning_rate: float = Field(5.0e-5, gt=0, description="corpus: peak of its own schedule")
    corpus_rows: int = Field(1000, ge=1, description="corpus: unlabelled texts of the pool that are read")
    fidelity: Fidelity = Field("as_described", description="as_coded: the authors' layers (wants head classifier, layer_decay 1.0, rate 1.0e-5)")

    @field_validator(*ADAPTIVE_ONLY)
    @classmethod
    def _has_an_effect(cls, value: Any, others: ValidationInfo) -> Any:
        reading = ADAPTIVE_ONLY[others.field_name]
        if value != cls.model_fields[others.field_name].default and others.data.get("adapt", reading) != reading:
            raise ValueError(f"it would have no effect: it is for adapt = {reading}, not {others.data['adapt']}")
        return value

    @field_validator("head")
    @classmethod
    def _patterns_are_for_words(cls, head: str, others: ValidationInfo) -> str:
        if head == "classifier" and others.data.get("adapt") == "pattern":
            raise ValueError("adapt = pattern chooses a pattern and label words, which only the verbalizer reads")
        return head

    @field_validator("fidelity")
    @classmethod
    def _as_the_authors_ran_it(cls, fidelity: str, others: ValidationInfo) -> str:
        return _as_coded(fidelity, others.data, "plain", adapt="layers", head="classifier", train_layers=0, layer_decay=1.0)


class LoRA(Trained):
    """Small new matrices beside frozen ones; or another of PEFT's adapters."""

    learning_rate: float = Field(5.0e-3, gt=0, description="peak of the schedule; small new matrices want more than whole weights")
    rank: int = Field(8, ge=1, description="LORA: rows of A, columns of B")
    alpha: int = Field(8, ge=1, description="LORA: the product is scaled by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="LORA: of what goes into A")
    target_modules: list[str] = Field([], description="modules to adapt by the end of their names; empty: PEFT's choice (LORA: query and value)")
    peft_type: str = Field("LORA", description="LORA, BITFIT (all biases), BOTTLENECK, IA3, PROMPT_TUNING or another type of PEFT's")
    peft_options: dict[str, Any] = Field({}, description="keys of that type's PEFT configuration, such as num_virtual_tokens")
    head: Head = Field("verbalizer", description="label words through the pattern, or a new classifier")
    pattern: str = Field("", description="a pattern of the task file by its name; empty: its first, plain for a classifier")
    label_words: str = Field("", description="label words of the task file by their name; empty: its first")
    word_score: WordScore = Field("sum", description=WORD_SCORE)
    save_adapter: bool = Field(False, description="keep each trial's adapter in output_dir, as PEFT loads it")
    fidelity: Fidelity = Field("as_described", description="as_coded: the authors' prompted input (wants head classifier, learning_rate 1.0e-5)")

    @field_validator("peft_type")
    @classmethod
    def _is_known(cls, peft_type: str, others: ValidationInfo) -> str:
        if peft_type not in PEFT_TYPES:
            raise ValueError(f"it is no type of adapter that is known to work here{near(peft_type, PEFT_TYPES)}")
        changed = [key for key in ("rank", "alpha", "dropout") if others.data.get(key) != cls.model_fields[key].default]
        if changed and peft_type != "LORA":
            raise ValueError(f"{', '.join(changed)} would have no effect: another type than LORA takes its own keys from peft_options")
        return peft_type

    @field_validator("save_adapter")
    @classmethod
    def _has_where_to_go(cls, save_adapter: bool, others: ValidationInfo) -> bool:
        if save_adapter and (peft_type := others.data.get("peft_type")) in ("BITFIT", "BOTTLENECK"):
            raise ValueError(f"{peft_type} is no type of PEFT's, so there is no adapter that it could load")
        if save_adapter and not others.data.get("output_dir"):
            raise ValueError("output_dir is empty, so there is nowhere to keep an adapter")
        return save_adapter

    @field_validator("fidelity")
    @classmethod
    def _as_the_authors_ran_it(cls, fidelity: str, others: ValidationInfo) -> str:
        return _as_coded(fidelity, others.data, "as_coded", alpha=8, dropout=0.1, target_modules=[], peft_type="LORA", head="classifier")


def _as_coded(fidelity: str, asked: dict[str, Any], pattern: str = "", **ran: Any) -> str:
    """A fidelity overrides no parameter: one that says another thing than the authors ran is refused, and both are told."""
    ran = {"learning_rate": 1e-5} | ran
    if fidelity == "as_coded" and asked.get("choose"):
        raise ValueError("the authors chose nothing: choose goes with as_described only")
    wrong = [f"{key} {value!r}, not {asked[key]!r}" for key, value in ran.items() if key in asked and asked[key] != value]
    if asked.get("pattern") not in (None, "", pattern):
        wrong.append(f"the pattern {pattern!r}, not {asked['pattern']!r}")
    if fidelity == "as_coded" and wrong:
        raise ValueError(f"the authors ran {'; '.join(wrong)}: set these too")
    return fidelity


class InContext(Parameters):
    """The frozen backbone and a prompt; nothing trains."""

    pattern: str = Field("", description="a pattern of the task file by its name; empty: its first")
    label_words: str = Field("", description="label words of the task file by their name; empty: its first")
    word_score: WordScoreRead = Field("sum", description=f"{WORD_SCORE}, unconditional")
    demonstrations: CountOrAll = Field("all", description="of each class in the prompt, as many as fit; all: all the shots; 0: zero-shot")
    scoring: Literal["label_words", "likelihood"] = Field("label_words", description="likelihood: how probable the text itself is, no prompt")
    calibrate: bool = Field(False, description="divide by what a content-free input gets (Zhao et al. 2021)")

    @field_validator("calibrate")
    @classmethod
    def _calibrates_label_words(cls, calibrate: bool, others: ValidationInfo) -> bool:
        if calibrate and others.data.get("scoring") == "likelihood":
            raise ValueError("it is for label words, and scoring = likelihood has none")
        return calibrate


class Distillation(Trained):
    """A student without context learns what the same model answers with it (Askell et al. 2021; Snell et al. 2022)."""

    choosable: ClassVar[tuple[str, ...]] = ("learning_rate", "epochs")
    shots: CountOrAll = Field(16, description="labelled examples per class; all: the whole pool, as_coded only (with epochs: 3)")
    fidelity: Fidelity = Field("as_described", description="as_coded: random heads, one prompt, gold labels (wants learning_rate 1.0e-5)")
    pattern: str = Field("", description="a pattern of the task file by its name; empty: its first")
    label_words: str = Field("", description="label words of the task file by their name; empty: its first")
    word_score: WordScore = Field("sum", description=WORD_SCORE)
    context: Literal["demonstrations", "instruction"] = Field("demonstrations", description="what the teacher sees and the student does not")
    demonstrations: CountOrAll = Field("all", description="of each class in a context, as many as fit; all: all the shots")
    inputs: Literal["few-shot", "pool"] = Field("few-shot", description="what is learnt on: the shots' own texts in two folds, or other texts")
    unlabelled: int = Field(256, ge=1, description="texts drawn from the pool when inputs is pool")
    top_k: int = Field(0, ge=0, description="distil the teacher's k likeliest tokens and the rest; 0: the label words alone")
    temperature: float = Field(1.0, gt=0, description="of teacher and student; the loss is times its square")
    teacher: str = Field("", description="another, larger model with the same tokenizer; empty: the backbone itself")
    rank: int = Field(0, ge=0, description="of a LoRA student; 0: every weight trains")

    @field_validator("shots", "demonstrations")
    @classmethod
    def _some(cls, count: int | str) -> int | str:
        if count == 0:
            raise ValueError("at least 1 is wanted")
        return count

    @field_validator("class_weights")
    @classmethod
    def _learns_no_labels(cls, weights: str) -> str:
        if weights != "none":
            raise ValueError("a student learns what its teacher answers, and no labels that could be weighted")
        return weights

    @field_validator("fidelity")
    @classmethod
    def _all_shots_are_as_coded(cls, fidelity: str, others: ValidationInfo) -> str:
        if fidelity == "as_described" and others.data.get("shots") == "all":
            raise ValueError("shots = all has no unlabelled input left: it goes with as_coded only")
        return _as_coded(fidelity, others.data)

    @field_validator("inputs")
    @classmethod
    def _two_folds(cls, inputs: str, others: ValidationInfo) -> str:
        asked = others.data
        if (asked.get("fidelity"), asked.get("context"), asked.get("shots"), inputs) == ("as_described", "demonstrations", 1, "few-shot"):
            raise ValueError("two folds of demonstrations want at least 2 shots")
        return inputs

    @field_validator("pattern", "word_score", "context", "demonstrations", "inputs", "unlabelled", "top_k", "temperature", "teacher", "rank")
    @classmethod
    def _as_described_only(cls, value: Any, others: ValidationInfo) -> Any:
        if others.data.get("fidelity") == "as_coded" and value != cls.model_fields[others.field_name].default:
            raise ValueError("the authors' procedure (fidelity = as_coded) has random heads and one prompt, and no such choice")
        return value


class Baselines(Parameters):
    """What a practitioner would try first: logistic regression on frozen states or on counted words, or another program's answers."""

    classifier: Literal["probe", "tfidf", "brought"] = Field("probe", description="probe: on the frozen last state; tfidf: on words; brought: a file")
    class_weights: ClassWeights = Field("none", description="balanced: of uneven shots each class counts as much as the others")
    pattern: str = Field("", description="probe: a pattern of the task file by its name; empty: its first")
    predictions: str = Field("", validate_default=True, description="brought: a table with set, row and label, or a probability a label")

    @field_validator("pattern")
    @classmethod
    def _probes_read_patterns(cls, pattern: str, others: ValidationInfo) -> str:
        if pattern and others.data.get("classifier") != "probe":
            raise ValueError("it would have no effect: only classifier = probe reads the text in a pattern")
        return pattern

    @field_validator("predictions")
    @classmethod
    def _brought_from_a_file(cls, predictions: str, others: ValidationInfo) -> str:
        if bool(predictions) != (others.data.get("classifier") == "brought"):
            raise ValueError("a file goes with classifier = brought, and with nothing else")
        return predictions


METHODS: dict[str, type[Parameters]] = {
    "vanilla": Vanilla, "pbft": PBFT, "adaptive": Adaptive, "lora": LoRA, "in_context": InContext, "distillation": Distillation,
    "baselines": Baselines,
}
# Parameters that say where and on what to compute, not what: they change no result that is compared.
WHEREABOUTS = {"data_dir", "output_dir", "device", "seeds", "precision", "compiled"}


def validated(method: str, values: dict[str, Any], where: str) -> Parameters:
    """A method's parameters, checked. Raises BadInput naming `where`, the key and the value."""
    if method not in METHODS:
        raise BadInput(f"{where}: method: {method!r} is not a method{near(method, METHODS)}")
    return checked(METHODS[method], values, where)


def defaults(method: str) -> dict[str, Any]:
    """The method's parameter file, checked against its schema."""
    path = ROOT / "parameters" / "methods" / f"{method}.yaml"
    return validated(method, read_yaml(path), shown(path)).model_dump()
