# Every target sets up what it needs first: see scripts/setup.sh. `make help` lists them.

PY := .venv/bin/python
export PYTHON TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check experiments peers clean

help: ## list the targets
	@awk -F ': ## ' '/^[a-z-]+: ## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Variables: ARGS="..." is passed on to the program (run), to pytest (test, test-slow)'
	@echo '  or to testing/run_all.py (experiments);'
	@echo '  TORCH_INDEX=URL takes PyTorch from that package index; PYTHON=PATH names a Python 3.11.'

run: ## open the window, or run a command: make run ARGS="generate --help"
	@scripts/setup.sh run
	@$(PY) main.py $(ARGS)

test: ## run every test but the slow ones, the real window included
	@scripts/setup.sh dev
	@$(PY) -m pytest -m "not slow" $(ARGS)

test-slow: ## run the slow tests
	@scripts/setup.sh dev
	@$(PY) -m pytest -m slow $(ARGS) || { \
	    status=$$?; [ $$status -eq 5 ] || exit $$status; \
	    echo "There is no slow test: nothing was run."; }

check: ## lint (ruff) and type-check (mypy)
	@scripts/setup.sh dev
	@$(PY) -m ruff check .
	@$(PY) -m mypy

experiments: ## measure what is worth it (testing/); QUICK=1 only tries that all of it works
	@scripts/setup.sh dev
	@$(PY) testing/run_all.py $(if $(QUICK),--quick) $(ARGS)

peers: ## install the engines that testing/peer_comparison.py compares with (needs g++)
	@scripts/setup.sh run
	@scripts/setup_peers.sh

clean: ## remove caches and build products (not .venv, .venv-peers)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . \( -path ./.venv -o -path ./.venv-peers \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
