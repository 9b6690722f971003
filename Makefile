# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GRAPH ?= inception_v3
CLUSTER ?= k80x4
TIME_LIMIT_S ?= 120
OUT ?= runs/$(GRAPH)-$(CLUSTER)

.PHONY: install train test lint check docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV): about a minute where packages are near, no output unless something is wrong."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --editable '.[test]'
	@touch $@

train: install  ## learn a placement of Inception-V3 on four K80 dies, and compare it with the other placers
	$(BIN)/placement train $(GRAPH) --cluster $(CLUSTER) --time-limit-s $(TIME_LIMIT_S) --out $(OUT)

test: install  ## the test suite
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

lint: install  ## style, types and floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint docs test  ## everything that CI runs

docs: $(VENV)/.docs  ## the documentation as a site, in build/site; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

$(VENV)/.docs: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --editable '.[docs]'
	@touch $@


clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
