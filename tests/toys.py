"""Two small tasks whose rows were made up for the tests: one has one text column, the other two."""

GRAMMAR, ENTAILMENT = "tests/tasks/grammar.yaml", "tests/tasks/entailment.yaml"
