# `make demo` and `make test` do everything on a fresh machine: venv, install, weights, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: install demo test check format lint types notebooks bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job on the embedded model: trace, locate, edit, trace again. ARGS="--model smollm2" for the other one.
demo: install
	$(BIN)/editing locate-then-edit --prompt "The Space Needle is located in the city of" \
		--subject "The Space Needle" --new " Paris" --facts 12 --set tokens=8000 --out runs/demo $(ARGS)

test: install
	$(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

check: format lint types test

format: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

# Runs every notebook top to bottom, in place, at its full settings.
notebooks: install
	$(BIN)/jupyter execute --inplace --timeout=3600 notebooks/*.ipynb

# SmolLM2's half of the README's speed table, the figure of growth and an average; an hour or more on two cores.
# DATA=counterfact.json (also gzipped) adds ROME's scores on it.
bench: install
	$(BIN)/python benchmarks/tracing.py ratios --model smollm2 --sites 48
	$(BIN)/python benchmarks/tracing.py growth
	$(BIN)/python benchmarks/average.py --n 50 --out runs/average
	$(if $(DATA),for layer in 2 3; do \
		$(BIN)/editing evaluate --data $(DATA) --layer $$layer --n 50 --evenly --out runs/counterfact/$$layer; done)

clean:
	rm -rf runs build .pytest_cache .ruff_cache *.egg-info
