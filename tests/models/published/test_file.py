"""Checkpoint files: their containers, and files that are broken or hostile."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from redi.models.published.file import read_published

W, E = torch.arange(3.0), torch.arange(3.0) + 10


def test_a_bare_state_dict_is_read_in_its_order(tmp_path):
    torch.save({"b": W, "a": E}, tmp_path / "bare.pt")
    file = read_published(tmp_path / "bare.pt")
    assert list(file.state()) == ["b", "a"] and torch.equal(file.state("model")["b"], W)
    assert (file.args, file.step) == ({}, None)


@pytest.mark.parametrize("in_zip", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_of_a_training_checkpoint_the_average_is_preferred_and_the_settings_are_read(tmp_path, in_zip):
    args = argparse.Namespace(model="SiT-XL/2", path_type="Linear", layers=[1, 2], cfg=None)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(W.clone())]).state_dict()
    content = {"model": {"module.a": W}, "ema": {"a": E}, "opt": optimizer, "args": args, "steps": 400_000}
    torch.save(content, tmp_path / "0400000.pt", _use_new_zipfile_serialization=in_zip)
    file = read_published(tmp_path / "0400000.pt")
    assert torch.equal(file.state()["a"], E) and torch.equal(file.state("model")["a"], W)
    assert file.args == {"model": "SiT-XL/2", "path_type": "Linear", "layers": [1, 2], "cfg": None}
    assert file.step == 400_000


@pytest.mark.parametrize("name", ["step", "steps", "train_steps", "global_step", "iteration", "n_iter", "num_updates"])
@pytest.mark.parametrize(
    "value", [7, 7.0, torch.tensor(7), torch.tensor([7.0]), np.int64(7), np.float32(7)], ids=lambda v: type(v).__name__
)
def test_the_step_is_read_under_its_usual_names_and_types(tmp_path, name, value):
    torch.save({"model": {"a": W}, "epoch": 900, name: value}, tmp_path / "x.pt")
    assert read_published(tmp_path / "x.pt").step == 7


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-1, "-1"), (1.5, "1.5"), (torch.tensor(0.5), "0.5"), (float("nan"), "nan"), (W, "Tensor"), ("last", "str")],
)
def test_a_step_that_is_no_count_is_refused_only_where_it_is_asked_for(tmp_path, value, shown):
    torch.save({"model": {"a": W}, "iteration": value}, tmp_path / "x.pt")
    file = read_published(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt holds iteration = {shown}, which is not a step number: pass --step"):
        assert file.step is None


def test_without_a_step_none_is_known(tmp_path):
    torch.save({"model": {"a": W}, "epoch": 900}, tmp_path / "x.pt")
    assert read_published(tmp_path / "x.pt").step is None


def test_raw_weights_stand_in_for_an_average_that_is_not_there(tmp_path):
    torch.save({"model": {"a": W}}, tmp_path / "raw.pt")
    assert torch.equal(read_published(tmp_path / "raw.pt").state("ema")["a"], W)


def test_safetensors_are_read(tmp_path):
    save_file({"a": W}, tmp_path / "weights.safetensors")
    assert torch.equal(read_published(tmp_path / "weights.safetensors").state()["a"], W)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    torch.save({f"{prefix}blocks.0.weight": W}, tmp_path / "wrapped.pt")
    assert list(read_published(tmp_path / "wrapped.pt").state()) == ["blocks.0.weight"]


def test_the_prefix_of_a_compiled_block_is_taken_off(tmp_path):
    torch.save({"blocks.0._orig_mod.weight": W}, tmp_path / "wrapped.pt")
    assert list(read_published(tmp_path / "wrapped.pt").state()) == ["blocks.0.weight"]


class Runs:
    """A pickle of it runs a command when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["in the state", "in the settings", "alone", "before PyTorch 1.6", "plain pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, where):
    path, ran = tmp_path / "hostile.pt", tmp_path / "ran"
    code = Runs(ran)
    if where == "in the state":
        torch.save({"a": W, "b": code}, path)
    elif where == "in the settings":
        torch.save({"model": {"a": W}, "args": argparse.Namespace(x=code)}, path)
    elif where == "plain pickle":
        path.write_bytes(pickle.dumps(code, protocol=2))
    else:
        torch.save(code, path, _use_new_zipfile_serialization=where == "alone")
    with pytest.raises(ValueError, match="posix.system, and loading such objects can run code"):
        read_published(path)
    assert not ran.exists()


def test_every_class_that_is_not_let_in_is_named(tmp_path):
    torch.save(
        {"model": {"a": W}, "args": argparse.Namespace(path=tmp_path), "scaler": torch.nn.Linear(1, 1)},
        tmp_path / "x.pt",
    )
    path_class = f"{type(tmp_path).__module__}.PosixPath"  # pathlib._local in Python 3.13
    with pytest.raises(ValueError, match=rf"{path_class}, torch.nn.modules.linear.Linear.*save only the state dict"):
        read_published(tmp_path / "x.pt")


def test_settings_that_are_no_plain_values_are_refused(tmp_path):
    endless = []
    endless.append(endless)
    torch.save({"ema": {"a": W}, "args": argparse.Namespace(x=endless)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="args that cannot be written as JSON"):
        read_published(tmp_path / "x.pt")


def halved(path):
    torch.save({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def halved_legacy(path):
    torch.save({"a": torch.randn(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no tensors here")


BROKEN = {
    "empty.pt": lambda path: path.write_bytes(b""),
    "text.pt": lambda path: path.write_text("<html>404 not found</html>"),
    "half.pt": halved,
    "half_legacy.pt": halved_legacy,
    "archive.pt": other_archive,
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "huge_header.safetensors": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    "short_header.safetensors": lambda path: path.write_bytes((10**7).to_bytes(8, "little") + b"{}"),
    "pickle.safetensors": lambda path: torch.save({"a": W}, path),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, name):
    BROKEN[name](tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is truncated"):
        read_published(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([W], "holds a list, not a state dict"),
        (W, "holds a Tensor, not a state dict"),
        ({}, r"holds no named tensors \(it is empty\): save a state dict, alone or as one of .*ema"),
        ({"model": {}}, r"holds no named tensors \(model: dict"),
        ({"epoch": 3, "lr": 0.1}, r"holds no named tensors \(epoch: int, lr: float\): save a state dict"),
        ({"module.a": W, "a": W}, "holds a twice"),
    ],
)
def test_something_else_than_named_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="absent.pt is not a file or folder"):
        read_published(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="is a folder without a file .safetensors, .pth"):
        read_published(tmp_path)
