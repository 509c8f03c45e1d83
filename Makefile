# make demo        the whole chain at laptop size: from video to law (about 20 minutes on 2 cores after installation)
# make demo-full   the same study with more hours, sizes, seeds and episodes (1-2 hours)
# make test        sets itself up, then runs the tests
# make check       ruff and mypy
# make clean       removes what can be made again; runs/ is kept

SHELL := bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch-extensions

# Without a GPU the CPU build of torch does, and saves gigabytes where one is to be had.
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,torch==2.13.0)
# uv installs in seconds what takes pip minutes, but reads none of pip's settings.
INSTALL = install() { \
	if command -v uv >/dev/null; then UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" uv pip install --python $(PY) "$$@" && return; \
		echo "uv could not install; trying pip"; fi; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade; $(PY) -m pip install "$$@"; }; \
	printf '%s\n' $(CONSTRAINTS) > $(VENV)/constraints.txt; install --constraint $(VENV)/constraints.txt

GRAPHICS := libegl1 libegl-mesa0 libgl1-mesa-dri
DRAW := import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()
CAN_DRAW = { MUJOCO_GL=egl $(PY) -c "$(DRAW)" || MUJOCO_GL=osmesa $(PY) -c "$(DRAW)"; } >/dev/null 2>&1

.PHONY: demo demo-full test check clean graphics graphics-if-possible

demo: $(VENV)/installed graphics
	$(VENV)/bin/egoscale sweep run recipes/sweeps/tabletop.toml --jobs $(JOBS)

demo-full: $(VENV)/installed graphics
	$(VENV)/bin/egoscale sweep run recipes/sweeps/tabletop-full.toml --jobs $(JOBS)

test: $(VENV)/installed-dev graphics-if-possible
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -d runs ]; then echo "runs/ is kept: it holds results; delete it yourself if you mean to"; fi

$(PY):
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Python 3.11 or newer is needed; install it, or name one: make demo PYTHON=/path/to/python3.11"; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); command -v uv >/dev/null && uv venv --python $(PYTHON) $(VENV); } || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/installed: pyproject.toml | $(PY)
	@$(INSTALL) --editable '.[train,sim]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(PY)
	@$(INSTALL) --editable '.[train,sim,dev]'
	@touch $@ $(VENV)/installed

# The simulator draws without a screen through EGL or OSMesa.
graphics: $(VENV)/graphics

$(VENV)/graphics: | $(VENV)/installed
	@$(CAN_DRAW) && touch $@ && exit 0; \
	as=; if [ "$$(id -u)" != 0 ]; then as="sudo -n"; fi; \
	if command -v apt-get >/dev/null && $$as true 2>/dev/null; then \
		echo "installing $(GRAPHICS), to draw without a screen"; \
		get() { DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -q --no-install-recommends $(GRAPHICS); }; \
		get >/dev/null 2>&1 || { $$as apt-get update -q >/dev/null && get; }; \
	fi; \
	if $(CAN_DRAW); then touch $@; else \
		echo "The simulator cannot draw: neither EGL nor OSMesa works here. Ask an administrator for"; \
		echo "    apt-get install $(GRAPHICS)"; \
		echo "(or libosmesa6), then type the same command again."; exit 1; fi

# Tests that draw are skipped, with that reason, where it cannot be had.
graphics-if-possible:
	-@$(MAKE) --no-print-directory graphics
