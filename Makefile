# `make demo` shows the whole path, `make test` checks it; both set up .venv on a machine that has nothing installed.
PYTHON ?= $(shell .ci/python.sh)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# An environment that is there keeps its Python, unless PYTHON asks for another: made over in place it would be of both.
KEEP = [ "$(origin PYTHON)" = file ] && $(BIN)/python -c 'import ctypes, pip' 2>/dev/null
# A file of tests belongs to one process, in the order of tests/conftest.py, which also says how many processes.
TESTS := -m pytest -q -n auto --maxprocesses 5 --dist loadfile --no-loadscope-reorder

.PHONY: demo test full style lint docs dist page clean weights

# Unpacking takes longest, and pip does it on one core: what is largest is unpacked by two, and a third adds what is
# missing, or says why it cannot. What is there by then is compiled beside it, the rest on all cores, which pip would not
# do either. Some packages hold files of other Pythons; of those left out hardly a file is imported. pandas, and what of
# Ray is used: each of a dozen processes of a cluster would compile them by itself.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c .ci/constraints.txt
RARE := tests?|testing|rllib|tune|serve|llm|train|sklearn|pip|setuptools|mypy|mypyc|_inductor|lexers|distutils
RARE := $(RARE)|onnxruntime/(transformers|tools)|scipy/(stats|optimize|signal|integrate)|sympy/physics
COMPILE = $(BIN)/python -m compileall -qq -x '/($(RARE))/'
$(STAMP): pyproject.toml .ci/constraints.txt
	$(KEEP) || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --no-deps torch & $(PIP) --no-deps openvino ray pyarrow scipy pandas onnxruntime; wait
	there=$$(ls -d $(VENV)/lib/python*/site-packages/*/); $(COMPILE) $$there & \
	$(PIP) -e '.[dev]'; installed=$$?; wait; exit $$installed
	$(COMPILE) -j 0 $(VENV)/lib clusir export runtimes calibration || true
	touch $@

demo: $(STAMP)
	$(BIN)/python -m tests.demo demo-out

# The tools of the other languages are installed while the environment is made. The tests are compiled before the processes
# that run them start: each would do it for itself. Types are checked beside them, which leave a core idle now and then.
define run_tests
	bash tests/install.sh $(1) & $(MAKE) --no-print-directory style; styled=$$?; $(BIN)/python .ci/compile_tests.py; wait; exit $$styled
	$(BIN)/python .ci/typecheck.py & types=$$!; $(2) $(BIN)/python $(TESTS); tested=$$?; wait $$types && exit $$tested
endef

test:
	$(call run_tests)

# All tests, also those that take minutes (tests/needs.py); a JDK and the Arm cross compiler are installed for them.
full:
	$(call run_tests,--full,CLUSIR_FULL=1)

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/python .ci/typecheck.py

# Exports the shipped checkpoint into the package; run it after clusir/weights/tiny.safetensors changed.
weights: $(STAMP)
	$(BIN)/clusir-export --onnx clusir/weights/tiny.onnx --weights shared --precision fp32,bf16

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
