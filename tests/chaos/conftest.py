"""Fixtures of the faults: small trainings, and the report of what became of them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # no package: the trainings import plug-ins from here as users do

from chaos_driver import Training  # noqa: E402
from chaos_report import Report  # noqa: E402

GIN = """
include '{tiny_gin}'
train.log_every = 1
train.preview_every = 1000000
"""


@pytest.fixture(scope="module")
def make_training(tmp_path_factory, tiny_gin, python) -> Callable[..., Training]:
    """Makes trainings: make_training('train.num_steps = 300', ...) -> one that can be started."""

    def make(*lines: str, **settings) -> Training:
        text = GIN.format(tiny_gin=tiny_gin) + "\n".join(lines) + "\n"
        return Training(tmp_path_factory.mktemp("training"), text, python, **settings)

    return make


@pytest.fixture
def disk(mounted) -> Path:
    """A file system of 24 MiB; skipped where none may be mounted."""
    return mounted("24m")


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Iterator[Report]:
    """Written at the end, to $REDI_CHAOS_REPORT where that is set: `make chaos` does."""
    found = Report()
    yield found
    where = os.environ.get("REDI_CHAOS_REPORT")
    found.write(Path(where) if where else tmp_path_factory.mktemp("chaos"))
