# Every target does its own set-up first: Python 3.11+ is all that a fresh machine needs.
#
#   make demo        distil a teacher into students on real data; writes runs/demo
#   make test        the default tests        (ARGS="-k kd" hands pytest more words)
#   make slow        the slow tests
#   make lint        ruff and mypy
#   make setup       only the set-up: a virtual environment in .venv
#   make help        this list
#
# VENV=DIR     use or make this virtual environment, which several clones may share
# PYTHON=NAME  the Python that makes it (default python3)
# JOBS=N       processes that run tests (default 2)

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python

# What runs is always this clone's own source, whichever clone set up a shared VENV.
export PYTHONPATH := $(CURDIR)/src

# The stamp's name holds a hash of what decides the installed packages: nothing changed, nothing done.
STAMP := $(VENV)/.limbeck-$(shell cat constraints.txt pyproject.toml | cksum | tr ' ' -)

.PHONY: help setup demo test slow lint

help:
	@sed -n 's/^#   make/make/p' Makefile

setup: $(STAMP)

# In an existing VENV, pip installs only what is missing or has another version than the pinned one.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"limbeck needs Python 3.11 or newer; name one, for example: make PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.limbeck-*
	@echo "installing into $(VENV); torch is several GB, a first time takes minutes"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(VENV)/bin/limbeck demo

# Tests of one group (xdist_group, for example all checks of one method) share a process.
test: $(STAMP)
	$(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadgroup $(ARGS)

slow: $(STAMP)
	$(PY) -m pytest -m slow -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
