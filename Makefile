# Every target sets up its own .venv first where it is missing or older than pyproject.toml.
PYTHON ?= python3
PRESET ?= nano
VENV := .venv
READY := $(VENV)/.ready
# Two processes, each with a Ray cluster of its own; a file's tests share what they set up.
PYTEST := $(VENV)/bin/pytest -n 2 --dist loadfile

.PHONY: demo test test-slow lint bench clean

demo: $(READY) ## corpus to served model, one completion over HTTP, and a report
	$(VENV)/bin/python examples/demo.py --preset $(PRESET)

test: $(READY) ## the fast tests; `make test-slow` adds the end-to-end runs
	$(PYTEST)

test-slow: $(READY)
	$(PYTEST) -m slow

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY) ## every benchmark in its quick form
	for name in $$($(VENV)/bin/forge bench --names); do $(VENV)/bin/forge bench $$name --quick || status=1; done; exit $$status

clean:
	rm -rf $(VENV) build *.egg-info

# torch first and pinned: another spelling lets pip choose a build with gigabytes of CUDA libraries.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Agent Forge needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet torch==2.13.0
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@
