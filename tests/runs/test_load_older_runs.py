"""A run folder and a cache that an earlier state of the library wrote open, hold, and resume.

`run_of_version_0.1.0.tar.xz` holds `redi.run` of the tiny digits configuration (`tiny.gin`, two steps) and its cache,
written at commit a8a3bb3, before the house was rebuilt.
"""

import logging
import tarfile
from pathlib import Path

import pytest
import torch

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.runs.experiment import Experiment
from redi.runs.job import job
from redi.runtime.checkpoint import list_checkpoints

ARCHIVE = Path(__file__).parent / "run_of_version_0.1.0.tar.xz"

import_all()


@pytest.fixture
def older(tmp_path, monkeypatch, caplog) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    return tmp_path


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_its_own_configuration_finds_nothing_left_to_do(older, caplog):
    cached = files(older / "cache")
    config.parse([older / "run" / "config.gin"], ["train.device = 'cpu'"])
    experiment = Experiment(older / "run")
    experiment.claim(trains=True)
    assert set(job(experiment)) == {"train"}  # which sees that it holds the last step
    assert "samples and metrics are up to date" in caplog.text
    assert files(older / "cache") == cached  # nothing was fitted or encoded


def test_more_steps_resume_it_from_the_cache(older, caplog):
    cached = files(older / "cache")
    config.parse([older / "run" / "config.gin"], ["train.device = 'cpu'", "train.num_steps = 3"])
    experiment = Experiment(older / "run")
    experiment.claim(trains=True)
    job(experiment)
    assert "resuming from" in caplog.text and "using the cache" in caplog.text
    assert [folder.name for folder in list_checkpoints(older / "run")] == ["step_00000002", "step_00000003"]
    assert files(older / "cache") >= cached


def test_it_opens_and_its_model_draws_from_it(older):
    run = redi.load(older / "run")
    assert run.step == 2 and run.codec.fitted
    sampler = redi.samplers.Euler(num_evaluations=2)
    drawn = redi.generate(run.model, run.codec, run.process, labels=[0, 1], sampler=sampler)
    assert drawn.images.shape == (2, 3, 8, 8) and torch.isfinite(drawn.x).all()
    assert repr(run).startswith(f"<Run {older / 'run'}: DiffusionTransformer of step 2, image, ")
    assert len(repr(run)) < 300
    assert repr(drawn).startswith("<Generated images (2, 3, 8, 8), x (2, ") and repr(drawn).endswith("labels (2,)>")
    with pytest.raises(ValueError, match=r"labels = 1: must be a list, such as \[1\]"):
        run.generate(1)
