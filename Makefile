# Every target sets up .venv first when it is missing.
PROFILE ?= dsrg_vgg16_voc
DEVICE  ?= auto
RUN     ?=
ARGS    ?=
SEEDS   ?=
VOC_ROOT ?=
FROM    ?=
WEIGHTS ?=
OUT     ?= results/$(PROFILE).onnx
IMAGES  ?=

BIN   := .venv/bin
STAMP := .venv/.installed
REPRO := $(BIN)/python -m repro
# onnxruntime-gpu where an NVIDIA driver answers, onnxruntime elsewhere
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.DEFAULT_GOAL := help
.PHONY: help setup test test-long test-gpu lint format data reproduce-mini reproduce-voc bench tables publish onnx check-paper clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | \
	  while IFS="$$(printf '\t')" read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done
	@echo; echo "  reproduce-voc takes VOC_ROOT=…/VOCdevkit/VOC2012 PROFILE=$(PROFILE) DEVICE=$(DEVICE) RUN=folder ARGS=\"key=value …\""

setup: $(STAMP)  ## Make .venv and install everything at the versions of constraints.txt, checked by hash

$(STAMP): pyproject.toml constraints.txt requirements/base.txt requirements/$(EXTRA).txt tools/find_python
	@echo "setting up .venv: some minutes, about 3 GB (docs/install.md)"
	@python=$$(tools/find_python) && \
	{ [ -x $(BIN)/python ] || "$$python" -m venv .venv; }
	@# all but torch by hash (tools/lock says why not that, and writes the lists), then torch and this package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements/base.txt -r requirements/$(EXTRA).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt \
	  -e '.[dev,report,$(EXTRA)]'
	@# the tests' oracle for the dense CRF is compiled on installation: nice to have, a must where tests decide
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pydensecrf2 >.venv/pydensecrf.log 2>&1 \
	  || { echo "pydensecrf2 could not be built (no C++ compiler? see .venv/pydensecrf.log): the tests against it will skip" >&2; \
	       [ -z "$$CI" ]; }
	@# the GPU kernels' tests run them in Triton's interpreter; PyTorch's CUDA builds bring the version that they need
	@$(BIN)/python -c "import triton" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check triton==3.9.0 >.venv/triton.log 2>&1 \
	  || { echo "triton could not be installed (see .venv/triton.log): the tests of the GPU kernels will skip" >&2; \
	       [ -z "$$CI" ]; }
	@touch $@

test: $(STAMP)  ## Set up and run all tests, the examples of docstrings too (REPRO_SHARED=folder with voc-sample/ for those on real images)
	@# bytecode is kept, whatever the environment says: the tests start many processes; small files come last
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP)  ## Only the tests that take minutes: full width on real images, 20 killed runs, 2,000 iterations of memory
	$(BIN)/python -m pytest -m long

test-gpu: $(STAMP)  ## Only the tests that need a CUDA device
	$(BIN)/python -m pytest -m cuda

lint: $(STAMP)  ## Formatting, lint, types and known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m bandit --quiet --configfile pyproject.toml --recursive repro weights_conversion tools
	tools/audit $(BIN)/python

format: $(STAMP)  ## Let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

data: $(STAMP)  ## Get VOC 2012, masks, cues and weights (VOC_ROOT= your own tree, FROM=folder of your copies)
	$(REPRO) data fetch $(if $(VOC_ROOT),--voc-root "$(VOC_ROOT)") $(if $(FROM),--from "$(FROM)")

reproduce-mini: $(STAMP)  ## Build the embedded set and run every stage on it (SEEDS=0,1,2 for a spread)
	@# one thread, as the published runs had: the number of threads changes how sums are rounded
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	  $(REPRO) reproduce --config mini "device=$(DEVICE)" $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(RUN),"output=$(RUN)") $(ARGS)

reproduce-voc: $(STAMP)  ## Run the whole experiment on PASCAL VOC 2012
	$(REPRO) reproduce --config $(PROFILE) "device=$(DEVICE)" $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(VOC_ROOT),"dataset.root=$(VOC_ROOT)") $(if $(RUN),"output=$(RUN)") $(ARGS)

bench: $(STAMP)  ## Time every part of training and prediction (PROFILE, DEVICE, ARGS="precision=fast …")
	$(REPRO) bench --config $(PROFILE) "device=$(DEVICE)" $(ARGS)

tables: $(STAMP)  ## Write the results folder of every finished run in results/runs again
	$(REPRO) tables

publish: $(STAMP)  ## Write them to results/published, which is part of the repository, and README's table
	$(REPRO) tables --publish
	$(BIN)/python tools/readme_numbers

check-paper: $(STAMP)  ## Compare finished runs with the published values; fails on a miss, naming it
	$(REPRO) check-paper

onnx: $(STAMP)  ## Export WEIGHTS=file of PROFILE's net to OUT=file.onnx, compared with PyTorch on IMAGES=folder
	@[ -n "$(WEIGHTS)" ] || { echo "make onnx: WEIGHTS=file expected, .safetensors or .caffemodel" >&2; exit 2; }
	$(REPRO) export --config $(PROFILE) "device=$(DEVICE)" --weights "$(WEIGHTS)" --out "$(OUT)" \
	  $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

clean:  ## Remove .venv and caches, keep results and data
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
