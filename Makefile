# make demo    evaluate the shipped checkpoint on 20 chains and leave runs/demo/report.html
# make test    all tests (WORKERS=2 processes)
# make lint    formatting, lint, types and the import contract
# make bench   the measurements of benchmarks/ that need no data set
# make worlds NAME=metaworld   another simulator (env=metaworld), in an environment of its own under .worlds/
# make calvin CALVIN_ROOT=...  the genuine CALVIN (env=calvin), from your clone of mees/calvin or mees/calvin_env
# make setup   only install: into .venv, from uv.lock; the others do it first
#
# Needs python3 (any), and Python 3.12, which uv fetches if the machine has none. Nothing is installed outside this folder.

POLICY ?= gr1_small
CHAINS ?= 20
WORKERS ?= 2

BIN := .venv/bin
# The uv on the PATH if it runs, else one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)

.PHONY: setup demo test lint bench worlds calvin clean
.DEFAULT_GOAL := setup

.uv/bin/uv:
	@command -v python3 >/dev/null || { echo "python3 is missing, and uv with it: install one (Debian: apt install python3 python3-venv)."; exit 2; }
	@python3 -m venv .uv || { echo "python3 cannot make a venv: install it (Debian: apt install python3-venv), or install uv."; exit 2; }
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/bin/uv,$(UV))
	$(UV) sync --frozen
	@$(BIN)/python -c "import ctypes.util, sys; sys.exit(not ctypes.util.find_library('EGL'))" || \
		echo "note: no libEGL here. Only renderer=gl needs it (Debian: apt install libegl1); the default renderer is software."

demo: setup
	@test -f checkpoints/$(POLICY)/model.safetensors || \
		{ echo "checkpoints/$(POLICY) holds no checkpoint: give POLICY=<a folder in checkpoints/>, or train one (README)."; exit 2; }
	$(BIN)/vla-evaluate checkpoint=checkpoints/$(POLICY) chains=$(CHAINS) videos=8 out=runs/demo
	@echo "open $(CURDIR)/runs/demo/report.html in a browser"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: setup
	@failed=0; for check in "ruff format --check ." "ruff check ." pyright "lint-imports --no-cache"; do \
		echo "$$check"; $(BIN)/$$check || failed=1; \
	done; exit $$failed

bench: setup
	$(BIN)/python -m benchmarks.render

FAR := envs/elsewhere/far/requirements
worlds: $(filter .uv/bin/uv,$(UV))
	@test -f $(FAR)/$(NAME).txt || { echo "NAME is '$(NAME)': give one of $(notdir $(basename $(wildcard $(FAR)/*.txt)))."; exit 2; }
	@test "$(NAME)" != calvin || { echo "CALVIN wants its code: make calvin CALVIN_ROOT=<your clone of mees/calvin>."; exit 2; }
	$(UV) venv --quiet --clear --python 3.12 .worlds/$(NAME)
	$(UV) pip install --quiet --python .worlds/$(NAME) -r $(FAR)/$(NAME).txt

CALVIN_REVISIONS := 1431a46 797142c
GIT := git -c safe.directory='*'
calvin: $(filter .uv/bin/uv,$(UV))
	@for from in "$(CALVIN_ROOT)/calvin_env" "$(CALVIN_ROOT)" ""; do \
		test -n "$$from" || { echo "CALVIN_ROOT is '$(CALVIN_ROOT)': give a git clone of mees/calvin with its submodules, or of" \
			"mees/calvin_env, that has the commits $(CALVIN_REVISIONS)."; exit 2; }; \
		for wanted in $(CALVIN_REVISIONS); do \
			$(GIT) -C "$$from" cat-file -e $$wanted^{commit} 2>/dev/null || continue 2; \
		done; break; \
	done; \
	from=$$($(GIT) -C "$$from" rev-parse --path-format=absolute --git-common-dir) && rm -rf .worlds/calvin_env.new || exit 1; \
	for wanted in $(CALVIN_REVISIONS); do \
		$(GIT) clone --quiet --no-checkout "$$from" .worlds/calvin_env.new/$$wanted && \
		$(GIT) -C .worlds/calvin_env.new/$$wanted checkout --quiet --detach $$wanted || exit 1; \
	done; \
	rm -rf .worlds/calvin_env && mv .worlds/calvin_env.new .worlds/calvin_env
	$(UV) venv --quiet --clear --no-project --python 3.11 .worlds/calvin
	$(UV) pip install --quiet --python .worlds/calvin -r $(FAR)/calvin.txt

clean:
	rm -rf .uv .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
