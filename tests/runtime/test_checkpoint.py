"""Checkpoints: rotation, foreign folders, and full disks."""

import os
import textwrap

import pytest
import torch

from redi.runtime.artefact import save_artefact
from redi.runtime.checkpoint import Retention, list_checkpoints, load_checkpoint, save_checkpoint


def write(run_dir, step, keep=2, size=3):
    tensors = {"model": {"w": torch.full((size,), float(step))}}
    return save_checkpoint(run_dir, step, tensors, {"seed": 0}, Retention(keep))


def steps(run_dir):
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(run_dir)]


def test_a_checkpoint_comes_back(tmp_path):
    tensors, record = load_checkpoint(write(tmp_path, 7))
    assert torch.equal(tensors["model"]["w"], torch.full((3,), 7.0))
    assert (record["step"], record["seed"]) == (7, 0)


@pytest.mark.parametrize("keep", [1, 2, 3, 10])
def test_rotation_keeps_the_newest(tmp_path, keep):
    for step in (5, 10, 100, 1000, 20_000_000):
        write(tmp_path, step, keep)
    assert steps(tmp_path) == [5, 10, 100, 1000, 20_000_000][-keep:]


def test_a_smaller_keep_removes_what_an_earlier_run_kept(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=10)
    write(tmp_path, 5, keep=2)
    assert steps(tmp_path) == [4, 5]


def test_writing_a_step_again_keeps_the_others(tmp_path):
    for step in (1, 2, 2):
        write(tmp_path, step, keep=2)
    assert steps(tmp_path) == [1, 2]


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert list_checkpoints(tmp_path) == []


def test_a_damaged_checkpoint_is_refused_with_the_one_to_go_on_from(tmp_path):
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="model.safetensors has .* truncated.*delete .*step_00000002.*step_00000001"):
        load_checkpoint(folder)


def test_the_only_checkpoint_damaged_means_to_start_again(tmp_path):
    folder = write(tmp_path, 2)
    (folder / "record.json").unlink()
    with pytest.raises(ValueError, match="record.json is missing.*delete .*step_00000002 to start from step 0"):
        load_checkpoint(folder)


def test_an_artefact_that_is_no_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000001"
    save_artefact(folder, {"state": {"a": torch.zeros(1)}}, {"format": "something else"})
    with pytest.raises(ValueError, match="step_00000001 is not a redi checkpoint"):
        load_checkpoint(folder)


WRITE_TWO = """
    import resource, sys, torch
    from redi.runtime.checkpoint import Retention, save_checkpoint

    save_checkpoint(sys.argv[1], 1, {"model": {"w": torch.zeros(10)}}, {}, keep=Retention(1))
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    try:
        save_checkpoint(sys.argv[1], 2, {"model": {"w": torch.zeros(1_000_000)}}, {}, keep=Retention(1))
    except OSError as error:
        print(error)
"""


def assert_only_the_first_checkpoint_is_there(run_dir, message):
    assert "checkpoint at step 2 was not written" in message
    assert "the last good checkpoint is" in message
    assert "step_00000001" in message
    assert "Free disk space and rerun the same command" in message
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000001"]
    tensors, _ = load_checkpoint(list_checkpoints(run_dir)[-1])
    assert torch.equal(tensors["model"]["w"], torch.zeros(10))


def test_a_write_that_fails_half_way_leaves_the_checkpoint_before_it(tmp_path, python):
    done = python("-c", textwrap.dedent(WRITE_TWO), tmp_path, 100_000)
    assert_only_the_first_checkpoint_is_there(tmp_path, done.stdout)


@pytest.fixture
def small_disk(mounted):
    return mounted("1m")


def test_a_disk_too_small_leaves_the_checkpoint_before_it(small_disk, python):
    done = python("-c", textwrap.dedent(WRITE_TWO), small_disk)
    assert "MiB needed" in done.stdout
    assert_only_the_first_checkpoint_is_there(small_disk, done.stdout)


def test_a_disk_that_fills_up_while_writing_leaves_the_checkpoint_before_it(small_disk):
    write(small_disk, 1, keep=1, size=10)
    # The free space is enough for the tensors' bytes as counted, but not for the files: 1 MiB in 4 KiB pages.
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    size = int(free / 1.011) // 4 // 64
    tensors = {f"group{i}": {"w": torch.zeros(size)} for i in range(64)}
    with pytest.raises(OSError) as caught:
        save_checkpoint(small_disk, 2, tensors, {}, keep=Retention(1))
    assert "checkpoint at step 2 was not written" in str(caught.value)
    assert "MiB needed" not in str(caught.value)
    assert steps(small_disk) == [1]
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step_00000001"]
    load_checkpoint(list_checkpoints(small_disk)[-1])
