"""Components from another package: written outside of the library, imported by a gin file, used by name."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.runs.experiment import Experiment
from redi.runs.prepare import prepare_run
from redi.runtime.log import read_log

import_all()

ROOT = Path(__file__).resolve().parents[1]

REDUCER = '''
import torch

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


@register
class FirstChannels(LinearReducer):
    """The first R features as they are."""

    def rows(self, covariance):
        return torch.eye(self.rank, len(covariance)).to(covariance)
'''

FUSION = '''
from redi.fusion import register
from redi.fusion.merged import Merged


@register
class Scaled(Merged):
    """Merged tokens times a fixed factor."""

    def __init__(self, *, factor: float = 1.0, **shapes):
        super().__init__(**shapes)
        self.factor = factor

    def embed(self, x):
        return self.factor * super().embed(x)
'''

GUIDANCE = '''
from redi.guidance import EVERYTHING, Guidance, register


@register
class Nudge(Guidance):
    """Weighs the plain prediction alone."""

    def __init__(self, *, strength: float = 0.0):
        self.strength = strength

    def check(self, channels, num_classes):
        assert "image" in channels

    def deviations(self, channels, t):
        return {EVERYTHING: {"image": 0.0}}
'''


RECORDER = '''
"""In place of wandb: what is logged goes to logged.jsonl."""

import json
import types

run = None


def init(project):
    global run
    with open("logged.jsonl", "a") as file:
        file.write(json.dumps({"project": project}) + "\\n")
    run = types.SimpleNamespace(log=log)
    return run


def log(record, step):
    with open("logged.jsonl", "a") as file:
        file.write(json.dumps(record | {"at": step}) + "\\n")
'''


def documented_logger() -> tuple[str, str]:
    """The module and the gin lines of docs/launch.md that log elsewhere, with the recorder for wandb."""
    text = (ROOT / "docs" / "launch.md").read_text().replace("wandb", "recorder")
    (module, lines) = re.findall(r"^```(?:python|gin)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return module, lines


@pytest.fixture(scope="module")
def program(python):
    """program(*arguments, cwd, path, NAME='value'): what Python did, which must succeed, with `path` to import from."""

    def program(*arguments: str, cwd: Path, path: Path, **variables: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])} | variables
        done = python(*arguments, cwd=cwd, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return program


def package(folder: Path, **modules: str) -> Path:
    (folder / "my_lab").mkdir(parents=True)
    (folder / "my_lab" / "__init__.py").write_text("")
    for name, text in modules.items():
        (folder / "my_lab" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_gin, program) -> Path:
    """A run with a reducer, a fusion and a guidance rule of another package, from a folder that is not theirs."""
    logs, logs_gin = documented_logger()
    path = package(tmp_path_factory.mktemp("path"), reducing=REDUCER, fusing=FUSION, guiding=GUIDANCE, logs=logs)
    (path / "recorder.py").write_text(RECORDER)
    work = tmp_path_factory.mktemp("work")
    (work / "mine.gin").write_text(f"""
include '{tiny_gin}'
import my_lab.reducing
import my_lab.fusing
import my_lab.guiding
{logs_gin}
Representation.reducer = @reducers.FirstChannels()
FirstChannels.rank = 3
DiffusionTransformer.fusion = @fusion.Scaled
Scaled.factor = 0.5
generate.guidance = [@guidance.Nudge()]
Nudge.strength = 0.25
train.preview_every = 2
""")
    program("-m", "redi.train", "--gin_file=mine.gin", "--run_dir=run", cwd=work, path=path)
    (work / "path").symlink_to(path)
    return work / "run"


def last_record(run: Path) -> dict:
    (checkpoint,) = (run / "checkpoints").iterdir()
    return json.loads((checkpoint / "record.json").read_text())


def test_a_run_uses_the_components_of_another_package(run):
    record = last_record(run)
    assert record["model_arguments"]["channels"] == {"image": 1, "domain": 3}
    assert record["codec"]["representations"]["domain"]["reducer"]["reducer"] == "FirstChannels"
    operative = (run / "operative.gin").read_text()
    assert "Scaled.factor = 0.5" in operative and "Nudge.strength = 0.25" in operative
    assert (run / "previews" / "step_00000002.png").exists()


def test_the_saved_configuration_imports_the_package_by_itself(run):
    imported = re.findall(r"^import (\S+)", (run / "config.gin").read_text(), re.MULTILINE)
    assert imported == ["my_lab.fusing", "my_lab.guiding", "my_lab.logs", "my_lab.reducing"]


def test_lines_and_checkpoints_reach_a_logger_of_another_package(run):
    project, *lines = map(json.loads, (run.parent / "logged.jsonl").read_text().splitlines())
    assert project == {"project": "digits"}
    assert lines == [line | {"at": line["step"]} for line in read_log(run)] and lines[-1]["step"] == 2


@pytest.fixture(scope="module")
def opened(run, program) -> list[str]:
    """What a new process says that opens the run, then parses its configuration, then lists all components."""
    code = """
import redi
from pathlib import Path

run = redi.load("run", device="cpu")
print(type(run.model.fusion).__name__, run.model.fusion.factor)
print(*(type(r.reducer).__name__ for r in run.codec.representations.values()))

import redi
from redi.core import config
from redi.core.listing import table
from redi.models.reducers import reducers

config.parse(["run/config.gin"])
print(config.full_text() == Path("run/config.gin").read_text())
print("FirstChannels" in reducers)
print(table())
"""
    return program("-c", code, cwd=run.parent, path=run.parent / "path").stdout.splitlines()


def test_a_run_with_components_of_another_package_opens_again(opened):
    assert opened[:2] == ["Scaled 0.5", "FirstChannels"]


def test_the_saved_configuration_parses_back_to_itself(opened):
    assert opened[2] == "True"


def test_a_run_of_somebody_elses_is_refused_and_the_refusal_says_how_to_open_it(run, tmp_path, python, program):
    arguments = ["-m", "redi.sample", "--run_dir=run", "--gin_bindings=sample.num_images = 4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(run.parent / "path"), str(ROOT)])}
    environment["XDG_STATE_HOME"] = str(tmp_path)  # the home of another user
    done = python(*arguments, cwd=run.parent, env=environment)
    assert done.returncode == 1 and not (run / "samples").exists()
    assert "run/config.gin contains 'import my_lab.fusing', " in done.stderr
    (flag,) = set(re.findall(r"--plugin=\S+?(?=,)", done.stderr))
    program(*arguments, flag, cwd=run.parent, path=run.parent / "path", XDG_STATE_HOME=str(tmp_path))
    assert (run / "samples" / "record.json").exists()


def test_the_registry_and_the_table_list_them(opened):
    assert opened[3] == "True"
    assert {"  @fusion.Scaled(factor=1.0)", "  @guidance.Nudge(strength=0.0)"} <= set(opened)
    assert "      The first R features as they are." in opened


def test_an_edited_reducer_is_fitted_and_encoded_anew(tmp_path, tiny_gin, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    bindings = "Representation.reducer = @reducers.FirstChannels()\nFirstChannels.rank = 3\n"
    (tmp_path / "mine.gin").write_text(f"include '{tiny_gin}'\nimport my_reducer\n" + bindings)
    edited = REDUCER.replace("torch.eye(self.rank, len(covariance))", "torch.eye(len(covariance)).flip(0)[: self.rank]")
    assert edited != REDUCER

    def fits(text: str) -> set[str]:
        """As a new process does."""
        (tmp_path / "my_reducer.py").write_text(text)
        sys.modules.pop("my_reducer", None)
        importlib.invalidate_caches()
        caplog.clear()
        config.parse(["mine.gin"], [f"prepare.cache_dir = '{tmp_path / 'cache'}'"])
        prepare_run(Experiment(tmp_path / "run"))
        return set(re.findall("fitting (\\w+)|(encoding)", caplog.text))

    assert fits(REDUCER) == {("DomainEncoder", ""), ("FirstChannels", ""), ("", "encoding")}
    assert fits(REDUCER) == set()
    assert fits(edited) == {("FirstChannels", ""), ("", "encoding")}
