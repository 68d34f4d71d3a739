"""Three small tasks whose rows were made up for the tests: one has one text column, the next two, and in the last a row has several labels or none.

    python tests/toys.py      writes the rows of the last
"""

from pathlib import Path

import numpy as np

GRAMMAR, ENTAILMENT, REQUESTS = "tests/tasks/grammar.yaml", "tests/tasks/entailment.yaml", "tests/tasks/requests.yaml"
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


def tables() -> dict[str, str]:
    """The files of the task `requests`, by their names."""
    asked = {"pool": ("in", 360, 0), "shop": ("in", 200, 1), "library": ("out", 200, 2)}
    return {name: "\n".join(["text\tlabels", *map("\t".join, requests(*how))]) + "\n" for name, how in asked.items()}


if __name__ == "__main__":
    for name, table in tables().items():
        (Path(__file__).parent / "tasks" / "requests" / f"{name}.tsv").write_text(table)
