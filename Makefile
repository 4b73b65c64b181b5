# make demo: train and score on the embedded data. make serve: its page and API. make test: every test. All install into .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CHECK := import sys; sys.exit(None if sys.version_info >= (3, 10) else f"imgclf needs Python 3.10 or later, and this is {sys.version.split()[0]}: make ... PYTHON=python3.12")
SOURCE ?=

.PHONY: demo serve test lab readme prepare save install
demo: $(READY)
	$(BIN)/imgclf run $(SOURCE)

serve: $(READY)
	$(BIN)/imgclf serve

test: $(READY)
	$(BIN)/nbdev_test
	$(BIN)/python -m pytest

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

install: $(READY)
ifneq ($(shell cat $(READY) 2> /dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@was=$$(cat $(READY) 2> /dev/null); test "$${was:-$(CURDIR)}" = "$(CURDIR)" || rm -rf .venv   # it was moved
	@$(BIN)/python -c '$(CHECK)' 2> /dev/null || $(PYTHON) -c '$(CHECK)'
	@$(BIN)/python -c '$(CHECK)' 2> /dev/null && test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@echo "$(CURDIR)" > $(READY)

# For developers: run the notebooks and keep their outputs; all that must be in step with them; all of it with the tests.
save: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_test --save
	$(BIN)/nbdev_clean

readme: $(READY)
	$(BIN)/python tools/readme.py
	$(BIN)/python -c "from imgclf_nb.options import env_example; print(env_example(), end='')" > .env.example

prepare: save readme
	$(BIN)/python -m pytest
