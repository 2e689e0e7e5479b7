"""For every test: an empty gin configuration, and folders for caches and a user's state that no other run shares."""

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import gin
import pytest

# Several test processes at once (make test): each, and the programs it starts, gets its share of the cores:
# set before torch is imported, which reads it once.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
# The library and the tests, whose assertions pytest rewrites, need not be compiled again by each process and each run.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from redi.core.plug_ins import LIBRARIES  # noqa: E402
from redi.core.registry import registries  # noqa: E402
from redi.runtime import trusted_imports  # noqa: E402
from tests.warm_python import WarmPython  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collection makes 750,000 objects that stay; the garbage collector would visit them again and again, then and in
    tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def empty_gin_configuration():
    gin.clear_config()
    trusted_imports.trusted.clear()
    yield
    gin.clear_config()
    forget_plug_ins()


CLEAN: list[int] = []  # numbers of components without plug-ins


def forget_plug_ins() -> None:
    """What gin files of a test imported is unknown again, so that another test may define or list components."""
    tables = (gin.config._REGISTRY, *(registry.components for registry in registries.values()))
    if CLEAN == [len(known) for known in tables]:
        return
    for known in tables:
        for name, target in list(known.items()):
            module = getattr(target, "wrapped", target).__module__
            if module.split(".")[0] not in {*LIBRARIES, "tests"}:
                known.pop(name)
                sys.modules.pop(module, None)
                sys.modules.pop(module.split(".")[0], None)
    CLEAN[:] = [len(known) for known in tables]


@pytest.fixture(scope="session")
def python():
    """python(*arguments, cwd, env) -> what a process of its own did, without importing the libraries again."""
    with WarmPython() as python:
        yield python


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def redi_log():
    """The library's log as it was, after programs have set it up."""
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture
def warnings(caplog):
    """What the library warns of."""
    logger = logging.getLogger("redi")
    logger.addHandler(caplog.handler)  # the programs stop it from handing records on
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of this size ('2m') -> its folder; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"

    def mounted(size: str) -> Path:
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            folder.rmdir()
            pytest.skip("mounting a small file system needs privileges")
        return folder

    yield mounted
    if folder.is_dir():
        subprocess.run(["umount", str(folder)], check=True)


DATA = Path(os.environ.get("REDI_DATA", Path(__file__).parents[1] / "../shared/data"))
NEEDS_DATA = "needs data that lie outside the repository"


@pytest.fixture
def outside_data():
    """A file or folder by its name in $REDI_DATA (default: ../shared/data); without it the test is skipped, and the
    summary says so."""

    def outside_data(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"{NEEDS_DATA}: {name}")
        return DATA / name

    return outside_data


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NEEDS_DATA in str(report.longrepr)]
    if skipped:
        line = f"{len(skipped)} tests were skipped, because each {NEEDS_DATA}: set REDI_DATA"
        terminalreporter.line(line, yellow=True)


TINY = """
include 'digits.gin'
train.num_steps = 2
train.batch_size = 16
train.check_memory = False
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
EulerMaruyama.num_evaluations = 2
sample.num_images = 20
evaluator/DomainEncoder.width = 8
"""


@pytest.fixture(scope="session")
def tiny_gin(tmp_path_factory) -> str:
    """A gin file for programs: the digits with 179 training images, the smallest networks and two steps."""
    path = tmp_path_factory.mktemp("gin") / "tiny.gin"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="session")
def thousand_classes(tmp_path_factory) -> str:
    """A binding of IMAGES: a folder of 1,000 classes with one small image, of the last class."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (40, 30), "teal").save(folder / "only.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [["only.png", 999]]}))
    return f"IMAGES = '{folder}'"
