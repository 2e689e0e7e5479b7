"""Fixtures of the faults: small trainings, and the report of what became of them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # no package: the trainings import plug-ins from here as users do

from chaos_damage import small_disk  # noqa: E402
from chaos_driver import Training  # noqa: E402
from chaos_report import Report  # noqa: E402

GIN = """
include 'digits.gin'
train.batch_size = 16
train.log_every = 1
train.preview_every = 1000000
Digits.held_out_fraction = 0.9
prepare.num_fit_images = 64
DomainEncoder.num_steps = 5
DomainEncoder.batch_size = 16
DomainEncoder.width = 16
DomainEncoder.depth = 1
PCA.rank = 2
DiffusionTransformer.size = 'S/4'
DiffusionTransformer.width = 16
DiffusionTransformer.depth = 1
DiffusionTransformer.num_heads = 2
"""


@pytest.fixture(scope="module")
def make_training(tmp_path_factory) -> Callable[..., Training]:
    """Makes trainings: make_training('train.num_steps = 300', ...) -> one that can be started."""

    def make(*lines: str, **settings) -> Training:
        return Training(tmp_path_factory.mktemp("training"), GIN + "\n".join(lines) + "\n", **settings)

    return make


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 24 MiB; skipped where none may be mounted."""
    try:
        with small_disk(tmp_path / "disk", 24) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Iterator[Report]:
    """Written at the end, to $REDI_CHAOS_REPORT where that is set: `make chaos` does."""
    found = Report()
    yield found
    where = os.environ.get("REDI_CHAOS_REPORT")
    found.write(Path(where) if where else tmp_path_factory.mktemp("chaos"))
