# make quickstart: real few-shot fine-tuning in minutes. make test: the tests. Each sets up all that it needs in .venv (bootstrap.py).
PYTHON ?= python3
READY = .venv/.ready

.PHONY: quickstart test test-all test-setup chaos clusters bench lab lint install clean

quickstart: $(READY)
	.venv/bin/lowres run quickstart

# Two processes, each test file in one of them.
test: $(READY)
	.venv/bin/python -m pytest -n 2 --dist loadfile

# And those that take minutes, such as every type of adapter and every compilation, one at a time, whatever has changed since they passed.
test-all: test
	.venv/bin/python -m pytest -m slow

# What a stranger's first minutes are like: a clone, a new HOME, the public package index alone. Notes what passed for the next time.
test-setup:
	tests/fresh_setup.sh

chaos: $(READY)
	.venv/bin/python -m pytest -m chaos

# Slurm and SSH on this host, each started for the test and stopped after it.
clusters: $(READY)
	.venv/bin/python -m pytest -m cluster -rs

# lowres against the usual ways, side by side. Wants a machine that does nothing else; --only NAME and --quick measure less.
bench: $(READY)
	.venv/bin/python -m tests.benchmarks

# Memory settings as `lowres run` gives its kernels: a training step takes 0.7 s instead of 1.2 s.
lab: $(READY)
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 .venv/bin/jupyter lab --notebook-dir=.

lint: $(READY)
	.venv/bin/ruff check .

install: $(READY)

$(READY): requirements.lock pyproject.toml bootstrap.py
	@$(PYTHON) bootstrap.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache lowres.egg-info
