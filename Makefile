# Needs Python 3.11 to 3.14, git and make; everything else goes into .venv. `make help` lists the targets.

# PYTHON=/path/to/python selects the interpreter. The default is the first of CANDIDATES that is Python 3.11 to 3.14.
PYTHON ?=
CANDIDATES := python3.12 python3.11 python3.13 python3.14 python3 python
VENV := .venv
# Extras besides test, dev and docs, such as EXTRAS=gpu,slurm. Later calls keep them.
EXTRAS ?=
PYTEST_ARGS ?=

# The last step writes a stamp: the Python and the folder of .venv, the extras, a checksum of the requirements.
# Same stamp: nothing to do. Other extras or requirements: pip updates .venv. No stamp (an interrupted install),
# a copied folder, another Python or a missing one: .venv is created again, mostly from pip's cache.
define INSTALL
set -eu
unset PYTHONHOME PYTHONPATH
stamp=$(VENV)/.installed

# Print "311 /real/interpreter" if $$1 runs and fits. python3.12 on the PATH may be a pyenv shim that does not run.
probe() {
    "$$1" -c 'import sys, venv, ensurepip
version = sys.version_info[:2]
sys.exit(1) if not (3, 11) <= version <= (3, 14) else print("%d%d" % version, sys._base_executable)' \
        2>/dev/null </dev/null || :
}

current=$$(probe $(VENV)/bin/python)
if [ -n "$$PYTHON" ]; then
    base=$$(probe "$$PYTHON")
    [ -n "$$base" ] || { echo "PYTHON=$$PYTHON is not Python 3.11 to 3.14 with venv and ensurepip" >&2; exit 1; }
elif [ -n "$$current" ]; then
    base=$$current
else
    for name in $(CANDIDATES); do
        base=$$(probe "$$name")
        [ -z "$$base" ] || break
    done
    if [ -z "$$base" ]; then
        echo "No Python 3.11 to 3.14 with venv and ensurepip among: $(CANDIDATES)." >&2
        echo "Install one (on Debian and Ubuntu also python3-venv), or pass its path: make PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
fi

version=$${base%% *}
constraints=constraints/py$$version-torch211.txt
owner="$$version $$PWD"
more=$${EXTRAS:-$$(sed -n 2p $$stamp 2>/dev/null || :)}
extras=test,dev,docs$${more:+,$$more}
state=$$(printf '%s\n' "$$owner" "$$more" "$$(cat setup.cfg pyproject.toml "$$constraints" | cksum)")
if [ "$${current%% *}" = "$$version" ] && [ -f $$stamp ] && [ "$$(sed -n 1p $$stamp)" = "$$owner" ]; then
    [ "$$(cat $$stamp)" != "$$state" ] || exit 0
    rm $$stamp
    # The distribution was called redi before. Left installed, both would own the same commands.
    $(VENV)/bin/python -I -m pip uninstall -qq -y redi </dev/null
else
    echo "Creating $(VENV) with $${base#* }"
    rm -rf $(VENV)
    "$${base#* }" -m venv $(VENV)
fi
echo "Installing redi-diffusion[$$extras] with $$constraints: about 5 GB, a few minutes the first time"
rm -rf redi.egg-info
$(VENV)/bin/python -m pip install -e ".[$$extras]" -c "$$constraints" </dev/null
printf '%s\n' "$$state" > $$stamp
endef
export INSTALL PYTHON EXTRAS

# pip must not wait for input.
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := install
.NOTPARALLEL:
.PHONY: quickstart test chaos install docs lint clean-venv help

quickstart: install ## train, sample and evaluate a small model on handwritten digits; a CPU is enough
	$(VENV)/bin/python -m redi.run --gin_file=digits_pretrained.gin --run_dir=runs/quickstart

test: install ## run the tests; PYTEST_ARGS='-k fusion' passes arguments to pytest
	$(VENV)/bin/python -m pytest -n auto $(PYTEST_ARGS)

chaos: install ## long rounds of injected faults and hostile files, about 20 minutes; the report goes to runs/chaos/
	REDI_CHAOS_REPORT=$${REDI_CHAOS_REPORT:-$(CURDIR)/runs/chaos} $(VENV)/bin/python -m pytest -m chaos $(PYTEST_ARGS)

install: ## create or update .venv; EXTRAS=gpu,slurm adds extras; PYTHON=python3.11 selects the interpreter
	@sh -c "$$INSTALL"

docs: install ## build the documentation, strictly and offline: open site/docs/index.html
	$(VENV)/bin/python -m sphinx -q -W --keep-going -c docs . site

lint: install ## ruff and mypy
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

clean-venv: ## remove .venv
	rm -rf $(VENV)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[a-z ]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
