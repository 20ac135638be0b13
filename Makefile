# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# uv reads its own settings only: hand it pip's.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
UV := $(BIN)/uv pip install -q -p $(BIN)/python -c constraints.txt
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo airflow dagster test test-all test-xla install lint types contracts check stats bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/uv: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt uv
	@touch $(BIN)/uv

$(VENV)/.demo: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing what the demo needs into $(VENV) ..." >&2
	@$(UV) -e ".[demo]"
	@touch $@

$(VENV)/.airflow: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing Airflow and what the loops need into $(VENV) ..." >&2
	@$(UV) -e ".[demo,airflow]"
	@touch $@

$(VENV)/.dagster: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing Dagster and what the loops need into $(VENV) ..." >&2
	@$(UV) -e ".[demo,dagster]"
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing what the tests need into $(VENV) ..." >&2
	@$(UV) -e ".[dev]"
	@touch $@ $(VENV)/.demo $(VENV)/.airflow $(VENV)/.dagster

demo: $(VENV)/.demo ## Turn the wheel through a year of flights, and print the table of the year
	@$(BIN)/python docs/demo.py

airflow: $(VENV)/.airflow ## Start a real Airflow with the flights loop, on this machine alone
	@$(BIN)/python docs/airflow_demo.py

dagster: $(VENV)/.dagster ## Start a real Dagster with the flights loop, on this machine alone
	@$(BIN)/python docs/dagster_demo.py

test: $(VENV)/.dev ## Run the tests, WORKERS files at a time
	@$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

test-all: $(VENV)/.dev ## Run the tests that need real servers or minutes, too
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# torch_xla wants a torch of its own version, which brings CUDA's libraries along: some 7 GB beside the rest.
XLA := .venv-xla
$(XLA)/.done: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing torch_xla and its torch into $(XLA) ..." >&2
	@$(BIN)/uv venv -q --allow-existing -p $(PYTHON) $(XLA)
	@sed -E '/^(torch|nvidia|triton|setuptools)/d' constraints.txt > $(XLA)/constraints.txt
	@UV_FIND_LINKS= $(BIN)/uv pip install -q -p $(XLA)/bin/python -c $(XLA)/constraints.txt -e ".[torch]" \
	  torch==2.9.0 torch_xla==2.9.0 scikit-learn pandas pyarrow xgboost hypothesis pytest pytest-timeout
	@touch $@

test-xla: $(XLA)/.done ## Run the torch flavour by torch_xla, on XLA's CPU device, in an environment of its own
	@PJRT_DEVICE=CPU $(XLA)/bin/python -m pytest -q tests/models/test_torch_xla.py

install: $(BIN)/uv ## Put everything into the virtual environment, orchestrators included
	@$(UV) -e ".[dev,airflow,dagster]"
	@touch $(VENV)/.dev $(VENV)/.demo $(VENV)/.airflow $(VENV)/.dagster

lint: $(VENV)/.dev ## Style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev ## Types
	@MYPYPATH=typings $(BIN)/mypy

contracts: $(VENV)/.dev ## Which layer may import which
	@$(BIN)/lint-imports

stats: $(VENV)/.dev ## Measure the gate's rates of false promotion, and its power, on the flights
	@$(BIN)/python benchmarks/gate_rates.py

bench: $(VENV)/.dev ## Measure overheads side by side
	@status=0; for script in overhead serving airflow_parse dagster_load ray_train; do \
	  $(BIN)/python benchmarks/$$script.py || status=1; done; exit $$status

clean: ## Remove the virtual environment and the demo's store
	@rm -rf $(VENV) $(XLA) .treadle .dagster loops/.treadle
