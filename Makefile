# Everything runs in .venv; the stamp makes a second call skip the installation.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= fast
SEED    ?= 0
CROWD   ?=
NOTEBOOK ?= *
JOBS    ?= auto
RESOURCES ?=
WORKERS ?= auto
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install reproduce publish test smoke pack notebooks lab site report lock nbdime clean
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo 'variables:      PROFILE=smoke|fast|paper  CROWD=path.h5  NOTEBOOK="01*"  SEED=0  JOBS=2  RESOURCES=slurm.yaml  WORKERS=2  PYTHON=python3'

# every package as the lock has it, so pip has nothing to resolve
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 5) else "requirements.lock needs Python 3.11.5 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-build-isolation -e .
	@touch $@

install: $(STAMP)  ## the virtual environment, with ubrain in it

SETTINGS = --profile $(PROFILE) --seed $(SEED) $(if $(CROWD),--crowd '$(CROWD)')

# the claims are printed also where a number does not agree, which is the exit code
reproduce: $(STAMP)  ## simulate, run the notebooks, compare with the published numbers, print what each claim comes to
	@status=0; \
	$(BIN)/ubrain run '$(NOTEBOOK)' $(SETTINGS) --jobs $(JOBS) \
	  $(if $(RESOURCES),--on slurm --resources '$(RESOURCES)') || status=$$?; \
	$(BIN)/ubrain report $(SETTINGS) && exit $$status

publish: $(STAMP)  ## maintainers: put the finished run into papermill_runs/, figures/ and the README
	$(BIN)/ubrain publish '$(NOTEBOOK)' $(SETTINGS)

smoke: $(STAMP)  ## every notebook in the smallest profile: does it run?
	$(MAKE) reproduce PROFILE=smoke

pack: $(STAMP)  ## everything that a run reads from the cache in one file, for `ubrain run --pack FILE` elsewhere
	$(BIN)/ubrain pack '$(NOTEBOOK)' --profile $(PROFILE) --seed $(SEED) --jobs $(JOBS)

test: $(STAMP)  ## ruff, import contracts, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

notebooks: $(STAMP)  ## rebuild the paired .ipynb from the .py, and docs/faithfulness.md
	$(BIN)/ubrain notebooks

# outputs stay in the files that JupyterLab saves; a filter of this clone hides them from git
CLEAR = --stdin --stdout --to notebook --log-level ERROR --clear-output --ClearMetadataPreprocessor.enabled=True \
  --ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
  --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec \
  --ClearMetadataPreprocessor.preserve_nb_metadata_mask=jupytext

lab: $(STAMP)  ## open JupyterLab; git sees no outputs in notebooks/, they stay on disk
	-@bin="$$(cd '$(BIN)' && pwd)"; git config filter.without-outputs.clean "'$$bin/jupyter-nbconvert' $(CLEAR)"
	$(BIN)/jupyter lab --notebook-dir notebooks --FileContentsManager.post_save_hook=ubrain.report.runs.after_save $(LAB)

SITE := .cache/site
site: $(STAMP)  ## the documentation with executed notebooks and the voxel explorer, in .cache/site
	$(BIN)/python -m ubrain.report.site sources $(SITE)-sources
	rm -rf $(SITE)
	$(BIN)/sphinx-build -q -W --keep-going -j auto -c docs $(SITE)-sources $(SITE)
	$(BIN)/python -c 'import ubrain; print(ubrain.Lab("site").crowd.path)' > $(SITE)-crowd.txt
	$(BIN)/ubrain explore --checkpoint ubrain/crowd_of_six --crowd "$$(cat $(SITE)-crowd.txt)" --out $(SITE)/explorer.html
	$(BIN)/python -m ubrain.report.site check $(SITE)

report: $(STAMP)  ## write the tables of the committed run, the files for archives and the overview figure
	$(BIN)/ubrain report --write --figure

lock:  ## maintainers: pin every package for all systems; needs uv; LOCK=-U takes newer ones
	uv pip compile pyproject.toml --extra test --extra site --universal --fork-strategy fewest \
	  --python-version 3.11.5 --generate-hashes \
	  -c constraints.txt --custom-compile-command 'make lock' --no-annotate -o requirements.lock $(LOCK)

nbdime: $(STAMP)  ## git diff and git merge of this clone read notebooks cell by cell
	$(BIN)/nbdime config-git --enable
	@bin="$$(cd '$(BIN)' && pwd)"; \
	git config diff.jupyternotebook.command "'$$bin/git-nbdiffdriver' diff"; \
	git config merge.jupyternotebook.driver "'$$bin/git-nbmergedriver' merge %O %A %B %L %P"

clean:  ## remove the environment and everything that can be computed again
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache ubrain.egg-info
