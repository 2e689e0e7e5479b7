"""The training program on a cache in object storage, without images and without fits."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from absl.testing import flagsaver

from redi import command_line, prepare, run, train
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint


@pytest.fixture
def call(monkeypatch, tmp_path, tiny_gin, capsys):
    """Runs a program in this process, with a cache folder of its own -> its exit status and what it said."""
    monkeypatch.chdir(tmp_path)
    command_line.FLAGS.mark_as_parsed()

    def call(main, folder, cache, *bindings):
        monkeypatch.setenv("REDI_CACHE", str(tmp_path / cache))
        flags = {"gin_file": [tiny_gin], "gin_bindings": list(bindings), "run_dir": str(tmp_path / folder)}
        with flagsaver.flagsaver(**flags):
            status = command_line.exit_status(main, ["program"])
        return SimpleNamespace(status=status, errors=capsys.readouterr().err)

    return call


@pytest.fixture
def stream(call, tmp_path):
    """The bindings that train from a published copy of a cache of shards of 32 images."""
    assert call(prepare.main, "prepared", "first", "prepare.rows_per_shard = 32").status == 0
    (encoded,) = (tmp_path / "first" / "encoded").iterdir()
    shutil.copytree(encoded, tmp_path / "store")
    url = f"prepare.cache_url = 'file://{tmp_path / 'store'}'"
    return "train.dataset = None", url, "train.shuffle = 'shards'", "prepare.window_images = 64"


def test_a_run_on_a_stream_learns_and_resumes_as_one_that_is_not_interrupted(call, stream, tmp_path):
    settings = *stream, "train.checkpoint_every = 2"
    for folder, steps in (("whole", [4]), ("resumed", [2, 4])):
        for num_steps in steps:
            done = call(train.main, folder, folder, *settings, f"train.num_steps = {num_steps}")
            assert done.status == 0, done.errors
    (whole, _), (resumed, _) = (load_checkpoint(list_checkpoints(tmp_path / f)[-1]) for f in ("whole", "resumed"))
    for name, tensor in whole["model"].items():
        assert torch.equal(resumed["model"][name], tensor)
    assert not list((tmp_path / "whole" / "streamed").glob("*"))  # fetched shards are unlinked


def test_the_global_order_and_what_compares_with_images_are_refused(call, stream):
    assert "set train.shuffle = 'shards'" in call(train.main, "a", "a", *stream[:2]).errors
    assert "the cache streamed from prepare.cache_url holds none" in call(run.main, "b", "b", *stream).errors
