# make demo    a faithfulness curve on the model that ships with the repository
# make test    all tests            make test-unit   tests of the package alone
# make lint    style, types, directions of imports, dead code
# make paper   every experiment and figure: make paper MODEL=toy HEAD=100 JOBS=2 TASKS="ioi sva"
# make docs    the manual            make wheel   what pip installs
# make bench   speed, measured side by side
# make fuzz    many odd inputs: make fuzz N=5000      make chaos   every experiment killed: make chaos N=20
# make cluster the workflow with submitted jobs, one of which is killed
# make proof   all methods on models whose circuit is known: docs/proof.md
# make exam    all methods compared, on known circuits and on the toy model: docs/methods-compared.md

PYTHON ?= python3
MODEL ?= toy
JOBS ?= 2
VENV ?= .venv
BIN = $(VENV)/bin
export HF_HUB_DISABLE_PROGRESS_BARS = 1
# Compiled files are kept, even where the environment says otherwise: tests start many processes.
export PYTHONDONTWRITEBYTECODE =

.PHONY: env demo test test-unit test-older fuzz chaos cluster lint format bench proof exam paper docs wheel clean

env: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,paper]'
	touch $@

demo: env
	$(BIN)/python pareto.py --model toy --task ioi --metric logit_diff --head 300
	$(BIN)/python results/pareto/plot_pareto_normalized_single.py --model toy --tasks ioi

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15

# Tests of the package alone, without whole experiments.
test-unit: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit

# The same tests with the oldest TransformerLens that is supported.
test-older: constraints.txt
	$(PYTHON) -m venv $(VENV)-older
	grep -v -i '^transformer-lens==' constraints.txt > $(VENV)-older/constraints.txt
	$(VENV)-older/bin/python -m pip install --quiet --constraint $(VENV)-older/constraints.txt torch
	$(VENV)-older/bin/python -m pip install --quiet --constraint $(VENV)-older/constraints.txt \
	    'transformer_lens==3.9.0' --editable '.[dev,paper]'
	OMP_NUM_THREADS=1 $(VENV)-older/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Many more inputs than the tests try: make fuzz N=5000
fuzz: env
	FUZZ_EXAMPLES=$(or $(N),1000) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

# Kills every experiment at random moments: make chaos N=20 ONLY="pareto.py stability.py"
chaos: env
	$(BIN)/python tests/chaos.py --n $(or $(N),20) $(if $(ONLY),--only $(ONLY))

# The workflow with jobs that are submitted: a node dies, another loses its scratch folder.
cluster: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt snakemake-executor-plugin-cluster-generic
	$(BIN)/python tests/cluster.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python benchmarks/run.py

paper: env
	$(BIN)/python -m snakemake --snakefile workflow/Snakefile --cores $(JOBS) --config model=$(MODEL) \
	    $(if $(HEAD),head=$(HEAD)) $(if $(TASKS),tasks="$(TASKS)") $(CONFIG) \
	    $(if $(STUDY),--configfile $(STUDY))

# The manual, docs/_build/html/index.html; warnings are errors.
docs: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# All methods on models whose circuit is known: docs/proof.md.
proof: env
	$(BIN)/python benchmarks/proof.py

# Every method on models whose circuit is known and on the toy model: docs/methods-compared.md.
exam: env
	$(BIN)/python -m benchmarks.exam

# setuptools warns of every folder of data that is no package, in 40 lines each; the wheel is tested.
wheel: env
	PYTHONWARNINGS=ignore $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) $(VENV)-older graphs results/*/*/csv results/*/*/png results/*/*/pdf
