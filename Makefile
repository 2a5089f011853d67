# `make demo` shows the whole path, `make test` checks it; both set up .venv on a machine that has nothing installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test full lint docs dist page clean weights

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m tests.demo demo-out

test: lint
	bash tests/install.sh
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# All tests, also those that take minutes (tests/needs.py); a JDK and the Arm cross compiler are installed for them.
full: lint
	bash tests/install.sh --full
	CLUSIR_FULL=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/typecheck.py

# Exports the shipped checkpoint into the package; run it after clusir/weights/tiny.safetensors changed.
weights: $(STAMP)
	$(BIN)/clusir-export --onnx clusir/weights/tiny.onnx --precision fp32,bf16

# The site, from docs/ and the docstrings of the public names, into build/site. It loads nothing from elsewhere; to search it: python -m http.server -d build/site
docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[docs]'
	$(BIN)/python .ci/docs.py build/site

# The browser page, which wheel and source distribution hold.
page:
	[ -d runtimes/web/node_modules/esbuild ] || npm --prefix runtimes/web ci --ignore-scripts --no-audit --no-fund
	npm --prefix runtimes/web run page

# Wheel and source distribution; tests/test_wheel.py says what is in them and installs the wheel.
dist: $(STAMP) page
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) demo-out build dist site runtimes/page/built *.egg-info
