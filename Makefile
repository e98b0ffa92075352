PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

.PHONY: install lint test demo clean

install: .venv/installed

# Reinstalled when what to install changes. The constraints hold the versions that were tested together.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "volseg needs Python 3.10 or newer, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes of one thread each: together they fill two cores without fighting for them.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov --cov-report=term:skip-covered

# A generated CT data set -> trained model -> masks of the held-out cases -> scores and a picture.
demo: install
	rm -rf $(DEMO)
	$(BIN)/volseg phantom $(DEMO)/data --train 16 --test 4
	$(BIN)/python tools/train.py --config configs/demo.yaml data.root=$(DEMO)/data output=$(DEMO)/run
	$(BIN)/python tools/predict.py --model $(DEMO)/run/model.safetensors --input $(DEMO)/data/imagesTs --output $(DEMO)/masks
	$(BIN)/python tools/evaluate.py --pred $(DEMO)/masks --ref $(DEMO)/data/labelsTs --images $(DEMO)/data/imagesTs \
		--dataset $(DEMO)/data/dataset.json --out $(DEMO)/scores
	@echo "scores and picture: $(DEMO)/scores"

clean:
	rm -rf .venv $(DEMO) .mypy_cache .ruff_cache .pytest_cache
