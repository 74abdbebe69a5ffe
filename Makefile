# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test check openapi clean

serve: $(VENV)/.installed-serve
	$(BIN)/petseg serve

test: $(VENV)/.installed-dev
	scripts/check

openapi: $(VENV)/.installed-dev
	$(BIN)/petseg openapi > openapi.json

$(VENV)/.installed-serve: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[openvino]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed-serve

$(VENV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=24'

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
