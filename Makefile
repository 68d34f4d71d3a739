# make quickstart: real few-shot fine-tuning in about ten minutes. make test: the tests. Each sets up all that it needs.
PYTHON ?= python3
READY = .venv/.ready

.PHONY: quickstart test chaos bench lab check clean

quickstart: $(READY)
	.venv/bin/lowres run quickstart

test: $(READY)
	.venv/bin/python -m pytest

chaos: $(READY)
	.venv/bin/python -m pytest -m chaos

# lowres against the usual ways, side by side. Wants a machine that does nothing else; --only NAME and --quick measure less.
bench: $(READY)
	.venv/bin/python -m tests.benchmarks

# Memory settings as `lowres run` gives its kernels: a training step takes 0.7 s instead of 1.2 s.
lab: $(READY)
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 .venv/bin/jupyter lab --notebook-dir=.

check: $(READY)
	.venv/bin/ruff check .

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	.venv/bin/python -m lowres prepare
	@touch $(READY)

clean:
	rm -rf .venv .pytest_cache .ruff_cache lowres.egg-info
