"""Which checkpoints are kept, and from which one a run resumes if some are damaged."""

import logging

import pytest
import torch

from redi.evaluation.monitor import Monitor
from redi.runtime.checkpoint import Retention, check_best, is_good, list_checkpoints, newest_good, save_checkpoint

FRECHET = "frechet_distance_domain_network_of_500"


def write(run_dir, step, keep=None, ready=None, **record):
    tensors = {"model": {"w": torch.full((3,), float(step))}}
    return save_checkpoint(run_dir, step, tensors, record, keep or Retention(100), ready=ready)


def steps(run_dir):
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(run_dir)]


def flip_a_bit(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_every_so_manieth_stays_beside_the_newest(tmp_path):
    for step in range(10, 130, 10):
        write(tmp_path, step, Retention(last=2, every=50))
    assert steps(tmp_path) == [50, 100, 110, 120]


@pytest.mark.parametrize(("best", "stays"), [("lowest x", 30), ("highest x", 20)])
def test_the_best_stays_beside_the_newest(tmp_path, best, stays):
    for step, value in {10: 5.0, 20: 9.0, 30: 1.0, 40: None, 50: float("nan"), 60: 4.0}.items():
        write(tmp_path, step, Retention(last=1, best=best), monitor={} if value is None else {"x": value})
    assert steps(tmp_path) == [stays, 60]


def test_a_better_one_takes_the_place_of_the_best(tmp_path):
    for step, value in {10: 5.0, 20: 3.0, 30: 4.0, 40: 2.0, 50: 6.0}.items():
        write(tmp_path, step, Retention(last=1, best="lowest x"), monitor={"x": value})
    assert steps(tmp_path) == [40, 50]


def test_of_equally_good_ones_the_newest_stays(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step, Retention(last=1, best="lowest x"), monitor={"x": 1.0} if step < 30 else {})
    assert steps(tmp_path) == [20, 30]


def test_a_best_one_with_a_damaged_record_is_not_taken_for_the_best(tmp_path):
    folder = write(tmp_path, 10, monitor={"x": 1.0})
    flip_a_bit(folder / "record.json", (folder / "record.json").read_bytes().index(b"1.0"))
    for step, value in {20: 3.0, 30: 4.0}.items():
        write(tmp_path, step, Retention(last=1, best="lowest x"), monitor={"x": value})
    assert steps(tmp_path) == [20, 30]


@pytest.mark.parametrize("settings", [{"last": 0}, {"last": True}, {"every": 0}, {"every": 2.5}, {"last": None}])
def test_counts_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"train.keep_\w+ = .* must be an integer of at least 1"):
        Retention(**settings)


@pytest.mark.parametrize("best", [FRECHET, "best x", "lowest", "lowest ", "", 3])
def test_a_best_that_says_no_direction_is_refused(best):
    with pytest.raises(ValueError, match="train.keep_best = .* must be 'lowest' or 'highest'"):
        Retention(best=best)


def test_a_best_that_the_monitor_does_not_measure_is_refused_before_training():
    from redi.models.encoders.domain import DomainEncoder

    monitor = Monitor(networks=[DomainEncoder()])
    check_best(None, None)
    check_best(f"lowest {FRECHET}", monitor)
    check_best("highest recognised_as_label_of_500", monitor)  # if its network learns labels
    check_best("lowest anything", lambda *args, **options: {})  # which says no names
    with pytest.raises(ValueError, match="needs a monitor: set train.monitor"):
        check_best(f"lowest {FRECHET}", None)
    with pytest.raises(
        ValueError, match=f"0' must name a metric of train.monitor: {FRECHET}, recognised_as_label_of_500; did you mean"
    ):
        check_best(f"lowest {FRECHET}0", monitor)


def test_files_that_are_ready_are_moved_in_and_verified(tmp_path):
    from safetensors.torch import save_file

    ready = tmp_path / "checkpoints" / "scratch" / "whole.safetensors"
    ready.parent.mkdir(parents=True)
    save_file({"w": torch.arange(4.0)}, ready)
    folder = write(tmp_path, 5, ready={"ema": ready})
    assert not ready.exists()
    _, tensors, record = newest_good(tmp_path)
    assert torch.equal(tensors["ema"]["w"], torch.arange(4.0)) and set(tensors) == {"model", "ema"}
    assert set(record["files"]) == {"model.safetensors", "ema.safetensors"}
    flip_a_bit(folder / "ema.safetensors")
    assert not is_good(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "record.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_the_one_before_a_damaged_checkpoint_is_used_and_said_so(tmp_path, caplog, file, damage):
    for step in (1, 2, 3):
        write(tmp_path, step, seed=0)
    path = tmp_path / "checkpoints" / "step_00000003" / file
    content = path.read_bytes()
    if damage == "flipped":
        flip_a_bit(path, content.index(b'"seed": 0') + 8 if file == "record.json" else -1)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}[damage]])
    folder, tensors, record = newest_good(tmp_path)
    assert (folder.name, record["step"], tensors["model"]["w"].tolist()) == ("step_00000002", 2, [2.0] * 3)
    said = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(said) == 1 and file in said[0]
    assert "broken_step_00000003; using the previous one" in said[0] and "step_00000002" in said[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "broken_step_00000003", "step_00000001", "step_00000002"
    ]  # fmt: skip


def test_a_step_that_is_written_again_and_damaged_again_is_set_aside_again(tmp_path):
    write(tmp_path, 1)
    for _ in range(2):
        flip_a_bit(write(tmp_path, 2) / "model.safetensors")
        assert newest_good(tmp_path)[0].name == "step_00000001"
    assert steps(tmp_path) == [1]


def test_whoever_only_reads_leaves_the_damaged_one_where_it_is(tmp_path, caplog):
    write(tmp_path, 1)
    flip_a_bit(write(tmp_path, 2) / "model.safetensors")
    assert newest_good(tmp_path, set_aside=False)[0].name == "step_00000001"
    assert steps(tmp_path) == [1, 2]
    assert "altered" in caplog.text


def test_where_all_are_damaged_nothing_is_renamed_and_all_are_named(tmp_path):
    for step in (1, 2):
        flip_a_bit(write(tmp_path, step) / "model.safetensors")
    pattern = "all checkpoints .* are damaged: .*_00000002.*altered.*_00000001.*altered.*delete"
    with pytest.raises(ValueError, match=pattern):
        newest_good(tmp_path)
    assert steps(tmp_path) == [1, 2]


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    assert newest_good(tmp_path) is None


def test_a_checkpoint_of_another_version_is_refused_and_not_passed_over(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2, format="redi checkpoint 1")
    with pytest.raises(ValueError, match="of another redi version"):
        newest_good(tmp_path)
    assert steps(tmp_path) == [1, 2]


def test_what_killed_processes_left_is_cleared_away(tmp_path):
    for name in (".step_00000007.0123.partial", ".step_00000007.0123.replaced", ".step_00000003.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    write(tmp_path, 8)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000008"]
