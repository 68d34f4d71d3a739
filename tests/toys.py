"""Small tasks whose rows were made up for the tests: one has one text column, the next two, in `requests` a row has several labels or none, in
`uses` one of three choices is right, in `stories` the answer is a span of a passage, and in `finds` words are tagged.

    python tests/toys.py      writes the rows of all but the first two and the last, which a test writes where it wants them
"""

from pathlib import Path

import numpy as np
import yaml

from lowres.files import ROOT
from lowres.tasks.task_file import extended_task, read_task

GRAMMAR, ENTAILMENT, REQUESTS, USES, STORIES, FINDS = (
    f"tests/tasks/{name}.yaml" for name in ("grammar", "entailment", "requests", "uses", "stories", "finds"))
SHARES = {"refund": 0.4, "delay": 0.3, "address": 0.15, "thanks": 0.25}  # of the rows that have the label
CLAUSES = {  # in domain a shop's customers, out of domain a library's guests
    "in": {"refund": ["please send my money back", "I would like a refund", "give me back what I paid", "I want the {} refunded"],
           "delay": ["the {} has not arrived", "to this day I wait for the {}", "the {} is late", "when will the {} come"],
           "address": ["I have moved to another street", "my address has changed", "send the {} to my new house", "I live elsewhere now"],
           "thanks": ["thank you", "many thanks", "I am grateful for your help", "thanks for the {}"],
           "": ["do you sell the {}", "which colours are there", "is the {} made of wood", "how heavy is the {}"]},
    "out": {"refund": ["the fee for the {} should be paid back", "refund my deposit", "I paid twice for the {}"],
            "delay": ["the {} is overdue", "nobody has returned the {} so far", "I have waited for weeks"],
            "address": ["I moved to another town", "please change where I live", "this is not my street any more"],
            "thanks": ["that was kind of you", "thank you all", "thanks for finding the {}"],
            "": ["are you open today", "where is the reading room", "can I read the {} here"]},
}
THINGS = {"in": ["lamp", "chair", "kettle", "desk", "mirror", "shelf", "carpet", "clock"],
          "out": ["novel", "atlas", "journal", "map", "dictionary", "film"]}


def requests(domain: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Made-up rows, each another: a text of a clause for each of its labels, in any order, and its labels joined by a bar."""
    stream, rows = np.random.default_rng(seed), {}
    while len(rows) < count:
        labels = [label for label, share in SHARES.items() if stream.random() < share]
        clauses = [stream.choice(CLAUSES[domain][label]).format(stream.choice(THINGS[domain])) for label in labels or [""]]
        text = ", ".join(clauses[i] for i in stream.permutation(len(clauses)))
        rows.setdefault(f"{text[0].upper()}{text[1:]}.", "|".join(labels))
    return list(rows.items())


USED = {"in": {"cut bread": ["a knife", "a sharp blade"], "boil water": ["a kettle", "a deep pot"], "eat soup": ["a spoon", "a large wooden spoon"],
               "dry a plate": ["a towel", "a soft cloth"], "open a tin": ["a tin opener"], "weigh flour": ["the scales", "a pair of scales"]},
        "out": {"dig a hole": ["a spade", "an old shovel"], "water a bed": ["a can", "a long hose"], "cut a hedge": ["shears", "a pair of shears"],
                "climb a tree": ["a ladder"], "gather leaves": ["a rake", "a rake and a basket"]}}


def uses(domain: str, count: int, seed: int) -> list[tuple[str, ...]]:
    """Made-up rows, each another: a question, three choices, and the letter of the one that serves."""
    stream, rows, tasks = np.random.default_rng(seed), {}, list(USED[domain])
    while len(rows) < count:
        chosen, right = stream.choice(tasks, 3, replace=False), int(stream.integers(3))
        things = [str(stream.choice(USED[domain][task])) for task in chosen]
        who = stream.choice(["I", "you", "we", "they", "the cook", "the neighbours"])
        rows.setdefault((f"With what do {who} {chosen[right]}?", *things), "ABC"[right])
    return [(*row, letter) for row, letter in rows.items()]


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Made-up rows: a sentence whose verb agrees with its subject, the same with one that does not, and what it is about."""
    stream, rows = np.random.default_rng(seed), {}
    while len(rows) < count:
        near, what = stream.choice(["garden", "river", "school", "bakery", "bridge"], 2), stream.choice(["walk", "sing", "sleep", "laugh", "wait"])
        who, many = stream.choice(["child", "nurse", "pilot", "baker", "painter"]), bool(stream.integers(2))
        subject = f"The {who}{'s' if many else ''} near the {near[0]}"
        good, bad = (f"{subject} {what}{'s' if one else ''} by the {near[1]}." for one in (not many, many))
        rows.setdefault((good, bad), "many" if many else "one")
    return [(*row, about) for row, about in rows.items()]


TOLD = {"in": {"who": ["Anna", "Boris Lund", "the baker", "Mrs. Ode"], "what": ["a red lamp", "an old clock", "two chairs", "the (small) mirror"],
               "where": ["the market", "a shop in Riga", "the attic"]},
        "out": {"who": ["the captain", "Ida", "a young sailor"], "what": ["a rope", "three maps", "the ship's bell"],
                "where": ["the harbour", "an island", "the lower deck"]}}


def stories(domain: str, count: int, seed: int, without: float = 0.0) -> list[tuple[str, str, str, str]]:
    """Made-up rows: a question, a passage of two sentences, the answer and its first character there; a share `without` an answer has neither."""
    stream, rows, told = np.random.default_rng(seed), {}, TOLD[domain]
    while len(rows) < count:
        found = [{what: str(stream.choice(told[what])) for what in told} | {"when": str(stream.integers(1900, 1999))} for _ in range(2)]
        if len({str(one[what]) for one in found for what in ("who", "what")}) < 4:
            continue
        about, lacking = found[int(stream.integers(2))], stream.random() < without
        asked = str(stream.choice(["what", "where", "when"]))
        sentences = [f"In {one['when']}, {one['who']} found {one['what']} at {one['where']}." for one in found if not (lacking and one is about)]
        passage, question = " ".join(sentences), f"{asked.capitalize()} did {about['who']} find{' something' if asked != 'what' else ''}?"
        begin = passage.find(about["who"]) if asked != "when" else passage.find(about["when"])
        rows.setdefault((question, passage), ("", "") if lacking else (about[asked], str(passage.find(about[asked], begin))))
    return [(*row, *answer) for row, answer in rows.items()]


def tables() -> dict[str, str]:
    """The files of the task `requests`, by their names."""
    asked = {"pool": ("in", 360, 0), "shop": ("in", 200, 1), "library": ("out", 200, 2)}
    return {name: "\n".join(["text\tlabels", *map("\t".join, requests(*how))]) + "\n" for name, how in asked.items()}


def tables_of_choices() -> dict[str, str]:
    """The files of the task `uses`, by their names."""
    asked = {"pool": ("in", 240, 0), "kitchen": ("in", 120, 1), "garden": ("out", 120, 2)}
    return {name: "\n".join(["question\tfirst\tsecond\tthird\tanswer", *map("\t".join, uses(*how))]) + "\n" for name, how in asked.items()}


def tables_of_stories(without: float = 0.0) -> dict[str, str]:
    """The files of the task `stories`, by their names."""
    asked = {"pool": ("in", 160, 0), "market": ("in", 60, 1), "harbour": ("out", 60, 2)}
    return {name: "\n".join(["question\tstory\tanswer\tbegins", *map("\t".join, stories(*how, without))]) + "\n" for name, how in asked.items()}


NAMED = {"in": {"human": ["Anna", "Boris Lund", "Mrs. Ode"], "spot": ["Riga", "the Old Market", "Port Said"], "year": ["1901", "1956"]},
         "out": {"human": ["Ida", "Captain Flint"], "spot": ["the Lower Deck", "Malta"], "year": ["1712", "1807"]}}


def finds(domain: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Made-up rows, each another: words, and for each its tag: people and places, and years, which the task does not ask for."""
    stream, rows = np.random.default_rng(seed), {}
    forms = ["{human} met {human} in {spot} .", "In {year} , {human} left {spot} for {spot} .", "Nobody was there .", "{spot} is far ."]
    while len(rows) < count:
        words, tags = [], []
        for word in str(stream.choice(forms, p=[0.4, 0.4, 0.1, 0.1])).split():
            kind = word.strip("{}")
            said = str(stream.choice(NAMED[domain][kind])).split() if kind != word else [word]
            words += said
            tags += [f"B-{kind}", *[f"I-{kind}"] * (len(said) - 1)] if kind != word else ["O"]
        rows.setdefault(" ".join([*words, str(stream.integers(100))]), " ".join([*tags, "O"]))
    return list(rows.items())


def tables_of_tags() -> dict[str, str]:
    """The files of the task `finds`, by their names."""
    asked = {"pool": ("in", 80, 0), "town": ("in", 40, 1), "ship": ("out", 40, 2)}
    return {name: "\n".join(["words\ttags", *map("\t".join, finds(*how))]) + "\n" for name, how in asked.items()}


def remade(folder: Path, task: str, tables: dict[str, str], **changes) -> str:
    """A made-up task written anew with these `tables` and changes to its file (None takes a key away): its path. Its old form is forgotten."""
    place = folder / Path(task).stem
    place.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (place / f"{name}.tsv").write_text(table)
    content = yaml.safe_load((ROOT / task).read_text()) | {"checksums": {}} | changes
    place.with_suffix(".yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    read_task.cache_clear()
    extended_task.cache_clear()
    return str(place.with_suffix(".yaml"))


def up_projection(backbone):
    """A weight of a llama's first layer, whose gradient stands for all."""
    return backbone.model.model.layers[0].mlp.up_proj.weight


def trained_on(backbone, head, inputs, laid):
    """The loss of inputs, summed over the rows that they were laid in, and its gradient at `up_projection`; none is left behind."""
    from lowres.models.batches import read

    backbone.model.eval()
    loss = 0.0
    for rows in laid:
        part = head.loss(read(backbone, rows), inputs.labels[rows.texts])
        part.backward()
        loss += part.item()
    gradient = up_projection(backbone).grad.clone()
    backbone.model.zero_grad()
    return loss, gradient


if __name__ == "__main__":
    for task, found in {"requests": tables(), "uses": tables_of_choices(), "stories": tables_of_stories()}.items():
        for name, table in found.items():
            place = Path(__file__).parent / "tasks" / task / f"{name}.tsv"
            place.parent.mkdir(exist_ok=True)
            place.write_text(table)
