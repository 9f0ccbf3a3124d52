# make demo | make test: everything happens in .venv. TORCH chooses the torch requirement, PYTHON the interpreter,
# BENCH the arguments of `pygen bench`.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BENCH  ?=

VENV := $(CURDIR)/.venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --quiet --disable-pip-version-check
# One stamp per requirement: another TORCH installs and builds again.
TORCH_STAMP := $(VENV)/.torch-$(subst /,-,$(subst =,-,$(TORCH)))
SOURCES     := $(shell find csrc -type f) setup.py pyproject.toml pygen/__init__.py
CXX_FILES   := $(filter %.h %.cpp %.cu %.cuh,$(shell find csrc tests -type f))

# Spinning OpenMP threads make torch many times slower as soon as another process wants their cores.
export OMP_WAIT_POLICY ?= passive
# Nothing that is installed later may replace torch.
export PIP_CONSTRAINT := $(VENV)/constraints.txt

.NOTPARALLEL:
.PHONY: build demo test lint bench clean

build: $(VENV)/.built

demo: $(VENV)/.extra-demo $(VENV)/.built
	$(BIN)/pygen demo

# For the tests every fallback and every warning of the compiler is an error.
test: export PYGEN_REQUIRE_EXT = 1
test: export PYGEN_WERROR = 1
test: lint $(VENV)/.peers
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.extra-test $(VENV)/.built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

bench: $(VENV)/.extra-bench $(VENV)/.built
	$(BIN)/pygen bench $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info pygen/_build.json pygen/*.so

$(TORCH_STAMP):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.torch-*
	touch $(PIP_CONSTRAINT)
	$(PIP) install "$(TORCH)" "setuptools>=77" wheel ninja
	$(BIN)/python -c "import torch; print(f'torch=={torch.__version__}')" > $(PIP_CONSTRAINT)
	touch $@

$(VENV)/.built: $(TORCH_STAMP) $(SOURCES)
	$(PIP) install --no-build-isolation --editable .
	touch $@

$(VENV)/.peers: $(TORCH_STAMP) tests/peers.txt
	rm -rf $(VENV)/peers
	$(PIP) install --no-deps --target $(VENV)/peers --requirement tests/peers.txt
	touch $@

# Brings what an extra names, and builds as well.
$(VENV)/.extra-%: $(TORCH_STAMP) pyproject.toml
	$(PIP) install --no-build-isolation --editable ".[$*]"
	touch $@ $(VENV)/.built
