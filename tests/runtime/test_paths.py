"""Paths with ~ at every public entry, and a process without an account, a home or a writable cache."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

import redi
from redi.evaluation.samples.stored import Samples, load_samples
from redi.pages.report import report
from redi.runs.average import average
from redi.runs.convergence import run_folders
from redi.runs.convert import export, import_checkpoint
from redi.runtime.paths import cache_folder, complete_account, local_path

ENTRIES = {
    "load": redi.load,
    "read_published": redi.read_published,
    "Cache": redi.Cache,
    "ImageFolder": lambda path: redi.datasets.ImageFolder(path=path),
    "AdmBatch": lambda path: redi.datasets.AdmBatch(path=path),
    "HuggingFace": lambda path: redi.datasets.HuggingFace(path=path),
    "Samples": Samples,
    "load_samples": load_samples,
    "report": report,
    "reconstruct_average": lambda path: redi.reconstruct_average(path, 0.1),
    "average": lambda path: average(path, 0.1),
    "import_checkpoint": lambda path: import_checkpoint(path, path),
    "export": lambda path: export(path, "weights.pt"),
    "PCA": lambda path: redi.reducers.PCA(rank=2, path=path),
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def no_account(monkeypatch) -> None:
    """A user id without an entry in the password database and without variables, as in a container."""

    def getpwuid(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")  # noted, so that what is set below is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_tilde_is_the_home_folder_at_every_entry(name, home):
    with pytest.raises((ValueError, OSError)) as error:
        ENTRIES[name]("~/nothing")
    assert str(home / "nothing") in str(error.value)
    assert not Path("~").exists()


def test_the_arguments_of_convergence_are_patterns_below_the_home_folder(home):
    (home / "one").mkdir(parents=True)
    (home / "one" / "log.jsonl").touch()
    assert run_folders("baseline", ["~/o*"]) == [home / "one"]


def test_a_user_without_an_account_has_a_name_and_a_home(no_account):
    complete_account()
    assert getpass.getuser() == f"uid_{os.getuid()}"
    assert os.path.expanduser("~/cache") == "/cache"


def test_the_cache_of_a_user_without_an_account_names_it_too(no_account, tmp_path):
    cache_folder(tmp_path)
    assert os.environ["HOME"] == "/" and getpass.getuser()


def test_a_home_that_nobody_knows_is_named(no_account):
    with pytest.raises(ValueError, match=r"^~/run: this user has no home folder: set HOME"):
        local_path("~/run")


def test_an_account_stays_as_it_is(monkeypatch, home):
    monkeypatch.setenv("LOGNAME", "somebody")
    before = dict(os.environ)
    complete_account()
    assert dict(os.environ) == before


def test_a_cache_that_cannot_be_made_is_refused_with_the_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="cannot create the cache folder .*: set REDI_CACHE to a writable folder"):
        cache_folder(None)
