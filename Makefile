# Needs Python 3.11 or 3.12, git and make; everything else goes into .venv. `make help` lists the targets.

# PYTHON=/path/to/python chooses the interpreter; otherwise the first of CANDIDATES that really is 3.11 or 3.12.
PYTHON ?=
CANDIDATES := python3.12 python3.11 python3 python
VENV := .venv
EXTRAS ?=
PYTEST_ARGS ?=

# The stamp is written last: the Python and the folder that .venv belongs to; the extras; the state of the requirements.
# Same stamp: nothing to do. Other extras or requirements: pip brings .venv up to date. No stamp (an interrupted
# install), a copied folder, another Python or one that is gone: .venv is made anew; pip's cache makes that cheap.
define INSTALL
set -eu
unset PYTHONHOME PYTHONPATH
stamp=$(VENV)/.installed

# "311 /real/interpreter" if $$1 runs and will do; python3.12 on the PATH may be a pyenv shim that does not.
probe() {
    "$$1" -c 'import sys, venv, ensurepip
version = sys.version_info[:2]
sys.exit(1) if version not in ((3, 11), (3, 12)) else print("%d%d" % version, sys._base_executable)' \
        2>/dev/null </dev/null || :
}

current=$$(probe $(VENV)/bin/python)
if [ -n "$$PYTHON" ]; then
    found=$$(probe "$$PYTHON")
    [ -n "$$found" ] || { echo "PYTHON=$$PYTHON is not a Python 3.11 or 3.12 with venv and ensurepip" >&2; exit 1; }
elif [ -n "$$current" ]; then
    found=$$current
else
    for name in $(CANDIDATES); do
        found=$$(probe "$$name")
        [ -z "$$found" ] || break
    done
    if [ -z "$$found" ]; then
        echo "No Python 3.11 or 3.12 with venv and ensurepip among: $(CANDIDATES)." >&2
        echo "Install one (Debian and Ubuntu: python3-venv too), or name it: make PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
fi

version=$${found%% *}
constraints=constraints/py$$version-torch211.txt
owner="$$version $$PWD"
extras=$${EXTRAS:-$$(sed -n 2p $$stamp 2>/dev/null || :)}
extras=$${extras:-test,dev}
wanted=$$(printf '%s\n' "$$owner" "$$extras" "$$(cat setup.cfg pyproject.toml "$$constraints" | cksum)")
if [ "$${current%% *}" = "$$version" ] && [ -f $$stamp ] && [ "$$(sed -n 1p $$stamp)" = "$$owner" ]; then
    [ "$$(cat $$stamp)" != "$$wanted" ] || exit 0
    rm $$stamp
else
    echo "Creating $(VENV) with $${found#* }"
    rm -rf $(VENV)
    "$${found#* }" -m venv $(VENV)
fi
echo "Installing redi[$$extras] with $$constraints: some 5 GB, a few minutes the first time"
$(VENV)/bin/python -m pip install -e ".[$$extras]" -c "$$constraints" </dev/null
printf '%s\n' "$$wanted" > $$stamp
endef
export INSTALL PYTHON EXTRAS

# pip must not wait for an answer where nobody is there to give one.
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := install
.NOTPARALLEL:
.PHONY: quickstart test chaos install lint clean-venv help

quickstart: install ## train, sample and evaluate a small model on handwritten digits; a CPU is enough
	$(VENV)/bin/python -m redi.run --gin_file=digits.gin --run_dir=runs/quickstart

test: install ## run the tests; PYTEST_ARGS='-k fusion' passes arguments on
	$(VENV)/bin/python -m pytest -n auto $(PYTEST_ARGS)

chaos: install ## the long rounds of faults and of hostile files, about 20 minutes; the report lies in runs/chaos/
	REDI_CHAOS_REPORT=$${REDI_CHAOS_REPORT:-$(CURDIR)/runs/chaos} $(VENV)/bin/python -m pytest -m chaos $(PYTEST_ARGS)

install: ## create or update .venv; EXTRAS=test,dev,gpu installs more; PYTHON=python3.11 chooses
	@sh -c "$$INSTALL"

lint: install ## ruff
	$(VENV)/bin/python -m ruff check .

clean-venv: ## remove .venv
	rm -rf $(VENV)

help: ## this list
	@sed -n 's/^\([a-z-]*\):[a-z ]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
