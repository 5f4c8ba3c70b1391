# `make demo` and `make test` do all the set-up on a machine with Python 3.10 or newer and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs lock benchmark cluster-test large-test faults screenshots clean

demo: .venv/installed
	@rm -rf demo
	@$(BIN)/mvad sample demo/data
	@$(BIN)/mvad run demo/data --out demo/results --backbone efficientnet_lite0
	@echo "summary: demo/results/summary.json, one row per image: demo/results/scores"

test: .venv/installed-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

docs: .venv/installed-dev
	@PYTHONPATH=tests $(BIN)/python tests/helpers/cli_page.py docs/cli.md

lock: .venv/installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python tests/helpers/lock.py

benchmark: .venv/installed-dev
	@$(BIN)/python jobs/benchmark.py

cluster-test: .venv/installed-dev
	@MVAD_MULTINODE=1 $(BIN)/python -m pytest tests/test_multinode.py

large-test: .venv/installed-dev
	@MVAD_HUGE=1 $(BIN)/python -m pytest tests/scoring/test_huge_image.py

faults: .venv/installed-dev
	@PYTHONPATH=tests $(BIN)/python tests/helpers/harness.py --kills 100 --signals 100 --shortages
	@PYTHONPATH=tests $(BIN)/python tests/helpers/killed_writes.py

screenshots: .venv/installed-dev
	@PYTHONPATH=tests $(BIN)/python tests/helpers/screenshots.py docs

clean:
	rm -rf .venv demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mvad needs Python 3.10 or newer; choose one with: make PYTHON=python3.12")'
	@echo "installing into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]" 2>.venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1" 2>.venv/pip.log || { cat .venv/pip.log; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev 2>.venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@
