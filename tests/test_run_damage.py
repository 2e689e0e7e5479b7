"""What `redi.run` and a sweep take for done, when files of it were damaged since."""

import pytest
import torch

from redi.core import config
from redi.evaluation.records import read_metrics
from redi.runs.job import is_current, is_trained
from redi.runtime.artefact import save_artefact, write_json
from redi.runtime.checkpoint import Retention, checkpoint_dir, save_checkpoint
from redi.runtime.checksums import sealed, sha256, tensors_sha256

KEY = {"checkpoint": "step_00000002", "configuration_sha256": "ab" * 32}
RESULTS = ("samples/record.json", "samples.png", "metrics.json", "operative.gin")


@pytest.fixture
def done(tmp_path):
    """A run's folder with results, as far as `redi.run` looks at them."""
    labels = torch.arange(4)
    parts = [{"file": "part-00000.safetensors", "start": 0, "stop": 4, "labels_sha256": tensors_sha256({"": labels})}]
    record = {"parts": parts, "seeds": [0], "num_images": 4, "kept": [], "samples_sha256": "00"}
    save_artefact(tmp_path / "samples", {"part-00000": {"labels": labels}}, record)
    (tmp_path / "samples.png").write_bytes(bytes(range(200)))
    write_json(tmp_path / "metrics.json", [sealed({"metric": "fid_clean", "value": 9.25})])
    (tmp_path / "operative.gin").write_text("train.seed = 0\n")
    write_json(tmp_path / "stages.json", KEY | {"files": {name: sha256(tmp_path / name) for name in RESULTS}})
    return tmp_path


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def test_whole_results_of_the_same_configuration_hold(done):
    assert is_current(done / "stages.json", KEY, RESULTS)
    assert not is_current(done / "stages.json", KEY | {"checkpoint": "step_00000003"}, RESULTS)
    assert not is_current(done / "no such file", KEY, RESULTS)


@pytest.mark.parametrize("name", [*RESULTS, "samples/part-00000.safetensors", "stages.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_damaged_results_do_not_hold_and_the_file_is_named(done, caplog, name, damage):
    path = done / name
    content = path.read_bytes()
    if damage == "flipped":
        flip(path)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}[damage]])
    assert not is_current(done / "stages.json", KEY, RESULTS)
    if damage != "gone" and name != "stages.json":
        assert "sampling and evaluating again" in caplog.text and path.name in caplog.text


def test_every_bit_of_the_metrics_counts(done):
    path = done / "metrics.json"
    (whole,), content = read_metrics(path), path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            (read,) = read_metrics(path)
        except ValueError:  # BrokenArtefact
            continue
        assert {key: read[key] for key in ("metric", "value")} == {"metric": "fid_clean", "value": 9.25}, position
    assert whole["value"] == 9.25


def test_a_model_whose_last_checkpoint_is_damaged_is_trained_again_from_the_one_before(tmp_path, caplog):
    config.parse(gin_bindings=["train.num_steps = 2"])
    for step in (1, 2):
        assert not is_trained(tmp_path)
        save_checkpoint(tmp_path, step, {"model": {"w": torch.zeros(3)}}, {}, Retention(2))
    assert is_trained(tmp_path)
    flip(checkpoint_dir(tmp_path, 2) / "model.safetensors", -1)
    assert not is_trained(tmp_path)
    assert "model.safetensors was altered" in caplog.text


def test_a_model_that_on_log_ended_is_trained_while_it_is_bound(tmp_path):
    config.parse(gin_bindings=["train.num_steps = 9"])
    save_checkpoint(tmp_path, 4, {"model": {"w": torch.zeros(3)}}, {"ended_early": True}, Retention(2))
    assert not is_trained(tmp_path)
    config.parse(gin_bindings=["train.num_steps = 9", "train.on_log = @generate"])
    assert is_trained(tmp_path)
