# make demo · make serve · make test · make test-tileserver · make check · make dev · make region REGION=name
# Set GEOBACTER_REGIONS and GEOBACTER_DATA to work on other regions, in another folder.

PYTHON ?= python3
export GEOBACTER_DATA := $(abspath $(or $(GEOBACTER_DATA),data))
export DAGSTER_HOME := $(abspath $(or $(DAGSTER_HOME),$(GEOBACTER_DATA)/dagster))
export MLFLOW_DISABLE_TELEMETRY ?= true
export PYTHONUNBUFFERED ?= 1
BIN := .venv/bin
LAUNCH := $(BIN)/python -m geobacter_pipeline

.PHONY: demo region build train embed refresh evaluate sweep serve dev test test-tileserver check format clean

demo: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	@$(LAUNCH) demo

region build embed refresh evaluate: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	@test -n "$(REGION)" || { echo "Which region? make $@ REGION=name"; exit 2; }
	@$(LAUNCH) $@ $(REGION)

train: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	@$(LAUNCH) train $(if $(SECONDS),--seconds $(SECONDS))

# PLAN=file.toml tries what it says; without it, what chose the defaults (hours).
sweep: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	@$(LAUNCH) sweep --plan "$(PLAN)"

# The HTTP API and the explorer, on loopback; HOST and PORT say where else (then GEOBACTER_TOKEN has to be set).
serve: .venv/installed
	@$(BIN)/geobacter serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(if $(WORKERS),--workers $(WORKERS))

dev: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	@$(BIN)/python -m geobacter_pipeline.dev

# One process a core, each of one thread.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not tileserver" -n auto --dist worksteal

# PostgreSQL, osm2pgsql, renderd and mod_tile from Debian's packages, started by the tests; skipped where they cannot be had.
test-tileserver: .venv/installed
	$(BIN)/pytest -m tileserver -rs

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

# uv installs in half a minute; where it cannot (a mirror that only pip knows of), pip does it.
.venv/installed: pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit("Geobacter needs Python 3.11 to 3.13, this is " + sys.version) if not (3, 11) <= sys.version_info < (3, 14) else 0'
	@echo "Installing into .venv (5 GB with torch; about a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv || true
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[pipeline,serve,dev]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,serve,dev]'
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	@mkdir -p $(@D)
	@ln -sf $(abspath dagster.yaml) $@
	@touch -h $@
