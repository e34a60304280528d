# Thin: each target is one or two commands. `make demo` and `make test` need only Python and this folder.
PYTHON ?= python3
VENV ?= .venv
NEXT_VENV ?= .venv-hydra-next
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo study test test-thorough test-slurm test-hydra-next test-extras soak check bench gpu-check

demo: $(VENV)/installed  ## four algorithms, three sizes, real text, a scaling-law report: minutes on two cores
	@echo "Training: 48 runs, and those that their results ask for, about 160 in all; some minutes on two cores."
	$(BIN)/muloco-sweep launch +sweep=study cluster=local root=demo
	@echo "Report: reads the runs, fits laws, draws figures; seconds."
	$(BIN)/muloco-report demo --out demo/report

study: $(VENV)/installed-study  ## goes on with docs/study where its records end: 150 minutes at most
	$(BIN)/python docs/study/study.py

test: $(VENV)/installed-dev  ## each idea once; nothing that needs a SLURM, large packages or half a minute
	# One process more than cores, since some tests wait; in the order of tests/conftest.py, the longest files first.
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slurm and not thorough and not long"

test-thorough: $(VENV)/installed-dev  ## the same on more inputs, ranks and steps, and every command of the pages
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m thorough

test-slurm: $(VENV)/installed-dev  ## starts a real multi-node SLURM on this machine: root and Debian's packages
	# Each process has a cluster of its own and waits more than it computes, so there are more than cores.
	MULOCO_REQUIRE_SLURM=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal -m slurm

test-hydra-next: $(NEXT_VENV)/installed  ## the Hydra plugins under the next Hydra, beside another launcher, on SLURM too
	# What users' programs do under the plugins does not differ by Hydra's version: `make soak` has it for this one too.
	MULOCO_REQUIRE_SLURM=1 $(NEXT_VENV)/bin/python -m pytest -q -m "not thorough" tests/hydra --ignore tests/hydra/test_foreign_programs.py

test-extras: $(VENV)/installed-extras  ## what needs packages that are large and seldom used, and every section of --check-gpu
	# Without one of them its tests would be skipped.
	$(BIN)/python -c "import datasets, jax, lion_pytorch, lm_eval, optax, pytorch_optimizer, schedulefree, tensorboard, transformers"
	$(BIN)/python -m pytest -q tests/muloco_runner/data/test_named_datasets.py \
		tests/muloco_runner/test_targets.py::test_a_built_in_file_of_another_class_is_what_it_says \
		tests/muloco_runner/whole_machine_check.py tests/muloco_runner/inference/test_transformers.py \
		tests/muloco_runner/inference/test_lm_eval.py tests/muloco_runner/training/test_looking_inside.py \
		tests/muloco_runner/for_jax tests/muloco_runner/test_ancestors_page.py::test_arguments_for_jax \
		tests/test_study.py::test_a_run_trained_afresh_gives_the_same_losses

soak: $(VENV)/installed-dev $(NEXT_VENV)/installed  ## thousands of random histories and inputs, and what takes minutes: an hour
	MULOCO_HISTORIES=10000 $(BIN)/python -m pytest -q tests/sweeps/simulation/test_simulate.py
	$(BIN)/python tests/muloco_runner/data/random_inputs.py 3000
	MULOCO_SURFACES=500 MULOCO_SEQUENCES=1000 $(BIN)/python -m pytest -q tests/sweeps/tuning
	MULOCO_STUDIES=200 $(BIN)/python -m pytest -q tests/analysis/questions tests/analysis/test_laws.py
	MULOCO_REQUIRE_SLURM=1 $(NEXT_VENV)/bin/python -m pytest -q tests/hydra/test_foreign_programs.py
	$(BIN)/python -m pytest -q -m long

check: $(VENV)/installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## measurements, printed as ratios; takes a while
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

gpu-check:  ## everything that a GPU has to tell, in minutes; wherever there are torch, triton and numpy
	$(PYTHON) -m benchmarks.gpu_check

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the packages that pyproject.toml names, torch among them, into $(VENV): once, for a minute or more."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-study: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[study]"
	touch $@

$(NEXT_VENV)/installed: pyproject.toml tests/hydra/next.txt
	test -x $(NEXT_VENV)/bin/python || $(PYTHON) -m venv $(NEXT_VENV)
	$(NEXT_VENV)/bin/python -m pip install -q -r tests/hydra/next.txt
	$(NEXT_VENV)/bin/python -m pip install -q --no-deps -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,files,wandb,interactive,excel,export]"
	# Kernels are tested without a GPU too. A CPU build of torch does not bring triton; off Linux there is none.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps triton || test "$$(uname)" != Linux
	touch $@

$(VENV)/installed-extras: $(VENV)/installed-dev
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[data,optimizers,eval,tensorboard,jax,study]" "lm_eval[hf]" "transformers>=5"
	touch $@
