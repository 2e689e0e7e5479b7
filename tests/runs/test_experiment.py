"""One job builds every object at most once."""

from collections import Counter

import pytest

import redi.command_line as command_line
from redi.core import config
from redi.core.configurables import import_all
from redi.data.datasets.digits import Digits
from redi.models.codec import JointCodec
from redi.models.encoders import encoders
from redi.models.transformer import DiffusionTransformer
from redi.runs.experiment import Experiment
from redi.runs.job import job

import_all()


@pytest.fixture
def built(monkeypatch) -> Counter:
    """Counts constructions: data sets by their split, models by where they are held."""
    counts: Counter = Counter()

    def counted(cls, name_of):
        original = cls.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            counts[name_of(self)] += 1

        monkeypatch.setattr(cls, "__init__", init)

    counted(Digits, lambda digits: f"digits, {digits.split}")
    counted(JointCodec, lambda codec: "codec")
    # Models on the meta device are of the checks before any work: shapes alone, no memory.
    counted(DiffusionTransformer, lambda model: f"model on {next(model.parameters()).device.type}")
    return counts


def test_a_whole_job_builds_every_data_set_and_the_codec_once_and_a_model_for_training_and_for_sampling(
    tiny_gin, tmp_path, built
):
    config.parse([tiny_gin], ["train.device = 'cpu'"])
    experiment = Experiment(tmp_path / "run")
    experiment.claim(trains=True)
    job(experiment)
    del built["model on meta"]
    assert built == {"digits, train": 1, "digits, held_out": 1, "codec": 1, "model on cpu": 2}


def test_nothing_is_built_to_ask_whether_it_is_bound(tiny_gin, built):
    config.parse([tiny_gin])
    assert config.is_bound("train.dataset") and not config.is_bound("prepare.cache_url")
    assert not config.is_bound("evaluate.max_images") and config.is_bound("evaluate.max_images", default=True)
    assert not built


def test_what_a_resumed_run_may_change_is_said_where_the_argument_is_defined():
    assert all(config.is_harmless(f"encoders.{name}.weights") for name in encoders)
    assert config.is_harmless("train.num_steps") and not config.is_harmless("train.seed")


def test_a_run_that_is_not_there_is_refused_with_what_makes_one(tiny_gin, tmp_path):
    config.parse([tiny_gin])
    with pytest.raises(ValueError, match=r"run holds no trained model: train one with redi.train --run_dir="):
        Experiment(tmp_path / "run").claim(trains=False)
    assert not (tmp_path / "run").exists()


def test_programs_hand_the_folders_of_their_flags_to_the_experiment(tiny_gin, tmp_path, monkeypatch):
    from absl.testing import flagsaver

    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(gin_file=[tiny_gin], gin_bindings=[], trained_dir=str(tmp_path / "model")):
        experiment = command_line.parse(tmp_path / "run")
    assert (experiment.run_dir, experiment.trained_dir) == (tmp_path / "run", tmp_path / "model")
