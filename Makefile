# make setup   a virtual environment with everything, in .venv
# make demo    a small model learns a task: before, training, after
# make demo-rlhf   pre-training, conversations, reward model, PPO and export in one command, about 8 minutes
# make test    the tests (a few minutes); make test-slow those that take long; make check ruff and types
# make test-web   the board in a real browser; installs Debian's Chromium where it may
# On a machine whose driver needs another torch build (README.md): make setup TORCH_INDEX=https://...

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEWS := | { grep -v '^Requirement already satisfied' || true; }

SHELL := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: setup demo demo-rlhf test test-slow test-web chromium check clean

setup: $(VENV)/.ready

# Where Python comes without ensurepip (Debian's python3.11), pip itself fills the environment.
$(VENV)/.ready: setup.py pyproject.toml constraints.txt
	@echo "== setup: virtual environment in $(VENV), with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	@echo "== setup: torch (the largest download)"
	@$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(NEWS)
	@echo "== setup: llmforge and what it needs"
	@$(PIP) install -c constraints.txt -e '.[dev]' $(NEWS)
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

demo-rlhf: setup
	@$(BIN)/forge-cli train recipes/rlhf/chain.yaml

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-web: setup chromium
	$(BIN)/python -m pytest -m web tests/webui

# Where it cannot be installed the browser tests skip and say so; CHROMIUM=/path names one that lies elsewhere.
chromium:
	@command -v chromium chromium-browser google-chrome "$$CHROMIUM" >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null; } || \
		echo "== chromium: not here and not installed; browser tests will skip"

# webui/ is llmforge.webui (setup.py): mypy sees it where it is imported from.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types/llmforge
	@ln -s $(CURDIR)/src/llmforge/* $(CURDIR)/webui build/types/llmforge/
	MYPYPATH=build/types $(BIN)/mypy -p llmforge

# Runs and models stay; rm -r runs .venv removes those.
clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
