"""The record of a run's training sessions."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch

from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.runtime.distributed import Processes
from redi.training.history import History, command, in_brief


def begun(folder, step: int) -> History:
    representation = Representation(encoder=DomainEncoder(width=8, depth=1, image_size=8), reducer=PCA(rank=2))
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[representation])
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    layers[0].requires_grad_(False)
    return History(folder, step, layers, Processes(), codec, 8)


def test_sessions_follow_one_another_with_their_steps(tmp_path):
    first = begun(tmp_path, 0)
    first.write(5)
    first.write(10)
    begun(tmp_path, 10).write(12)
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["num_parameters"], record["num_trainable"]) == (16 + 5, 5)
    assert [(s["first_step"], s["num_steps"]) for s in record["sessions"]] == [(0, 10), (10, 2)]
    line = "Sequential, 2.1e-05 M parameters · 8 x 8 pixels · domain: PCA, 2 channels · 12 steps"
    assert in_brief(record)["model"] == line and in_brief(record)["command"] == command()
    assert all(s["device"].startswith("CPU, ") and s["seconds"] >= 0 for s in record["sessions"])


def test_a_vector_is_summarized_by_its_length():
    sessions = [{"seconds": 1.0, "num_steps": 2, "first_step": 0, "began": "2026-01-01", "device": "", "command": ""}]
    channels = {"image": 1, "token": {"length": 5, "channels": 2}}
    record = {"sessions": sessions, "image_size": 8, "channels": channels, "reducers": {"token": "PCA"}}
    line = in_brief(record | {"model": "Mine", "num_parameters": 1_000_000})["model"]
    assert line == "Mine, 1 M parameters · 8 x 8 pixels · token: PCA, a vector of 5 · 2 steps"


def test_a_damaged_file_begins_anew_with_a_warning(tmp_path, caplog):
    (tmp_path / "training.json").write_text('{"sessions": ')
    begun(tmp_path, 3).write(4)
    assert "training.json is damaged" in caplog.text
    assert len(json.loads((tmp_path / "training.json").read_text())["sessions"]) == 1


@pytest.mark.parametrize(
    ("module", "words", "line"),
    [
        ("redi.run", ["/opt/redi/run.py", "--gin_file=a b.gin"], "python -m redi.run '--gin_file=a b.gin'"),
        ("redi.run", ["run.py", "--gin_bindings=IMAGES = 'a'"], "python -m redi.run \"--gin_bindings=IMAGES = 'a'\""),
        ("redi.run", ["run.py", "x = 'a$b'"], """python -m redi.run 'x = '"'"'a$b'"'"''"""),
        ("tool.__main__", ["/opt/tool/__main__.py", "x"], "python -m tool x"),
        (None, ["/home/someone/bin/redi.run", "--run_dir=runs/a"], "redi.run --run_dir=runs/a"),
    ],
)
def test_a_command_is_as_it_was_typed_without_folders_of_the_machine(monkeypatch, module, words, line):
    spec = ModuleSpec(module, None) if module else None
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert command() == line
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    assert command() == "a notebook"
