# demo · test · check · bench: each sets up .venv by itself, once; after that nothing here needs the network.
# Another Python: make test PYTHON=python3.12. Another package index: pip's own variables, such as PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
# Python compiles what it imports; compiling all of torch beforehand is half of an installation. Tests, where a warning
# is an error, get it done on all cores: what a package's own source makes Python warn of is then not said in them.
INSTALL = .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test test-all check bench clean
help:
	@echo 'make demo      train on the embedded data set; says where the report and the classifier are'
	@echo 'make test      the whole test suite'
	@echo 'make test-all  the same and the slow tests'
	@echo 'make check     ruff and pyright'
	@echo 'make bench     time training against a plain PyTorch loop'
	@echo 'make clean     remove .venv and what the tools left'

demo: .venv/.installed
	.venv/bin/opsin train

test: .venv/.installed-dev
	.venv/bin/python -m pytest

test-all: .venv/.installed-dev
	.venv/bin/python -m pytest -m 'not gpu or gpu'

check: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/pyright

bench: .venv/.installed-dev
	.venv/bin/python benchmarks/bench_train.py
	.venv/bin/python benchmarks/bench_v2.py

clean:
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache build dist

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "opsin needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) '.[dev]'
	@.venv/bin/python -W ignore -m compileall -qq -j 0 .venv/lib || true
	@touch .venv/.installed $@
