# make help lists the commands. Everything is installed into $(VENV) and built into _build; nothing else is touched.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# Passed on: make book CHAPTER=vae_urkle SCALE=lite SEED=1; SOLUTIONS=no goes to the site, COURSE_URL= to the course
CHAPTER ?=
PARAMETERS := $(foreach name,SCALE DATASET SEED SOLUTIONS,$(if $($(name)),$(name)=$($(name))))

COURSE_URL ?=

# A plan of many runs, carried out by Snakemake on all cores of this machine
PLAN ?= book/runs.yaml
PORT ?= 8000
# Tests run in a random order, another one each day; ORDER=7 repeats that of a seed
ORDER ?= $(shell date +%j)
SNAKEMAKE := $(PY) -m snakemake --snakefile book/Snakefile --configfile $(PLAN) --cores all

LOWEST = $(shell $(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    more = p['optional-dependencies']; lines = p['dependencies'] + more['autoattack'] + more['foundation']; \
    print(*(line.replace('>=', '==') for line in lines))")

STARTED := $(shell date +%s)
# The installation is redone when what is asked for changes, or when the folder has moved (the install is editable).
# pip would compile all files to bytecode on one core; compileall does so on all, and some templates cannot be compiled.
STAMP := $(VENV)/.installed-$(shell (pwd; cat requirements.txt pyproject.toml) | cksum | cut -d ' ' -f 1)

.PHONY: help install book course serve test lowest sweeps plan runs queue next lint clean
.DEFAULT_GOAL := help

help:
	@echo "make book     install, run every chapter at demo scale, build the site (CHAPTER=name runs one;"
	@echo "              SCALE=, DATASET= and SEED= are passed on to the chapters; SOLUTIONS=no leaves the exercises'"
	@echo "              solutions out of the pages and of the notebooks offered for download)"
	@echo "make course   what a teacher hands out, in _build/course: notebooks with and without solutions, slides (HTML, PDF),"
	@echo "              all figures (COURSE_URL=address of the folder that students open notebooks from, as on GitHub)"
	@echo "make serve    the built site at http://localhost:8000 (PORT=), for the lab, which browsers do not run from a file"
	@echo "make test     install, run the whole test suite (reuses the run and the site of make book)"
	@echo "make sweeps   run the recorded sweeps (CHAPTER=name runs one chapter's), at most 30 minutes a chapter"
	@echo "make plan     what make runs would do, run by run, and what it is expected to cost"
	@echo "make runs     the plan of book/runs.yaml, or of PLAN=file: chapters, scales, data sets, seeds, each run once"
	@echo "make lowest   the library's tests with the lowest versions it allows, in an environment of their own"
	@echo "make queue    what is worth running next on a GPU, and what it costs; make next (MINUTES=10) runs the first"
	@echo "make lint     ruff (the chapters too) and mypy"
	@echo "make install  only the installation, into $(VENV) (PYTHON=python3.12 chooses the interpreter)"
	@echo "make clean    remove _build (the installation stays)"

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "robrep needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: name another one, as in make $(MAKECMDGOALS) PYTHON=python3.12" % v[:2])'
	@test -x $(PY) || { echo "install: creating $(VENV)"; $(PYTHON) -m venv $(VENV) || { \
	    echo "The venv module is missing: on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }; }
	@echo "install: requirements.txt into $(VENV) (about 6 GB, most of it torch; a few minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(PY) -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@rm -f $(VENV)/.installed-*
	@touch $@
	@echo "install: done in $$(( $$(date +%s) - $(STARTED) )) s"

book: $(STAMP)
	@$(PY) -m robrep.book.site book $(CHAPTER) $(PARAMETERS) --started $(STARTED)

course: $(STAMP)
	@$(PY) -m robrep.book.site course $(if $(COURSE_URL),COURSE_URL=$(COURSE_URL)) --started $(STARTED)

serve: $(STAMP)
	@$(PY) -m http.server $(PORT) --bind localhost --directory _build/html

test: $(STAMP)
	@$(PY) -m pytest tests -q -n 2 -m "not book" --randomly-seed=$(ORDER)
	@$(PY) -m robrep.book.site book
	@$(PY) -m pytest tests -q -m book --randomly-seed=$(ORDER)

sweeps: $(STAMP)
	@$(PY) -m robrep.book.site sweeps $(CHAPTER)

plan: $(STAMP)
	@$(SNAKEMAKE) --dry-run --quiet rules

runs: $(STAMP)
	@$(SNAKEMAKE) --rerun-incomplete

# The library's tests with the lowest versions that pyproject.toml allows
lowest:
	@$(PYTHON) -m venv $(VENV)-lowest
	@$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check $(LOWEST) safetensors hypothesis foolbox pot \
	    pytest pytest-randomly pytest-xdist
	@$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(VENV)-lowest/bin/python -m pytest -q -n 2 $$(grep -L "robrep.book\|\"book\"\|MISTAKES\|spellchecker\|harper" tests/test_*.py)

queue: $(STAMP)
	@$(PY) -m robrep.book.queue

next: $(STAMP)
	@$(PY) -m robrep.book.queue --run $(if $(MINUTES),--minutes $(MINUTES))

lint: $(STAMP)
	@$(PY) -m ruff check robrep tests benchmarks setup.py
	@$(PY) -m ruff check book --line-length 132
	@$(PY) -m mypy

clean:
	rm -rf _build .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis
