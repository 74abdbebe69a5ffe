# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the installation compiles.
COMPILED := $(wildcard models/*.pyx)

.PHONY: serve test soak fuzz scale check openapi clean

serve: $(VENV)/.installed-serve
	$(BIN)/petseg serve

test: $(VENV)/.installed-dev
	scripts/check

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak

scale: $(VENV)/.installed-scale
	$(BIN)/serve run deploy/ray.yaml

# Mutated images and generated requests; about an hour on two cores. IMAGES=400 REQUESTS=2000 is a short run.
IMAGES ?= 4000
REQUESTS ?= 20000
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m tests.fuzz --images $(IMAGES) --requests $(REQUESTS) --page docs/fuzzing.md

openapi: $(VENV)/.installed-dev
	$(BIN)/petseg openapi > openapi.json

$(VENV)/.installed-serve: pyproject.toml constraints.txt $(COMPILED) | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[openvino]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(COMPILED) | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed-serve

$(VENV)/.installed-scale: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[scale]'
	touch $@

$(VENV)/.installed-fuzz: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[fuzz]'
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=24'

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info models/*.so models/*.c
