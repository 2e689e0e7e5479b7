"""The whole job on digits, as a user runs it: a few steps of a tiny model."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import gin
import pytest
import torch
from PIL import Image

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.evaluation.samples.stored import load_samples
from redi.guidance.classifier_free import ClassifierFree
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.log import read_log
from redi.sampling.generate import generate

TINY = """
include 'digits.gin'
DomainEncoder.width = 8
DomainEncoder.depth = 1
DomainEncoder.num_steps = 5
evaluator/DomainEncoder.num_steps = 5
PCA.rank = 4
DiffusionTransformer.width = 32
DiffusionTransformer.depth = 2
DiffusionTransformer.num_heads = 2
train.num_steps = 20
train.batch_size = 16
train.log_every = 5
train.checkpoint_every = 10
train.preview_every = 10
train.preview_images = 10
train.device = 'cpu'
AdamW.lr = 1e-2
EulerMaruyama.num_evaluations = 4
generate.seed = 5
sample.num_images = 30
"""
RUN = ["-m", "redi.run", "--gin_file=tiny.gin", "--run_dir=run"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "tiny.gin").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def environment(workplace):
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "REDI_CACHE": str(workplace / "cache")}


@pytest.fixture(scope="module")
def first(workplace, environment):
    """The finished first run, of a new interpreter."""
    done = subprocess.run([sys.executable, *RUN], cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def run_dir(workplace, first):
    return workplace / "run"


@pytest.fixture(scope="module")
def second(workplace, environment, first, python):
    """The same command once more, with the files' times from before it."""
    before = times(workplace / "run")
    done = python(*RUN, cwd=workplace, env=environment)
    assert done.returncode == 0, done.stderr
    return done, before


def times(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    "samples.png metrics.json report.html config.gin operative.gin log.jsonl tensorboard checkpoints".split(),
)
def test_the_run_folder_holds(run_dir, name):
    path = run_dir / name
    assert path.exists()
    assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


def test_nothing_partial_is_left(run_dir):
    assert not [path for path in run_dir.rglob("*") if "partial" in path.name]


def test_the_picture_of_samples_can_be_opened(run_dir):
    with Image.open(run_dir / "samples.png") as picture:
        picture.load()
        assert min(picture.size) > 100


def test_every_metric_says_how_its_samples_were_drawn(run_dir):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    names = {metric["metric"] for metric in metrics}
    assert {"frechet_distance_domain_network", "recognised_as_label", "representation_agreement_domain"} <= names
    for metric in metrics:
        assert isinstance(metric["value"], float)
        samples = metric["samples"]
        assert samples["seeds"] == [5]
        settings = {"num_evaluations": 4, "diffusion_form": "sigma", "diffusion_norm": 1.0}
        settings |= {"last_step": "mean", "last_step_size": 0.04}
        assert samples["sampler"] == {"name": "EulerMaruyama", **settings}
        assert samples["function_evaluations"] == 4
        assert samples["guidance"] == [
            {"name": "ClassifierFree", "scale": 1.5, "groups": ["image"], "interval": [0.0, 1.0]}
        ]
        assert samples["weights"] == "ema" and len(samples["weights_sha256"]) == 64
        assert samples["checkpoint_step"] == 20
        assert samples["decoder"]["autoencoder"] == "Pixels" and samples["image_size"] == 8
        assert len(metric["network"]["sha256"]) == len(metric["reference"]["sha256"]) == 64
        assert metric["num_samples"] == 30


def test_the_report_holds_the_metrics(run_dir):
    text = (run_dir / "report.html").read_text()
    for metric in json.loads((run_dir / "metrics.json").read_text()):
        assert metric["metric"] in text
        assert f"{metric['value']:.4g}" in text


def test_the_log_goes_to_the_last_step(run_dir):
    assert [entry["step"] for entry in read_log(run_dir)] == [5, 10, 15, 20]


def test_the_saved_configuration_parses_back_to_itself(run_dir):
    import_all()
    config.parse([run_dir / "config.gin"])
    assert gin.query_parameter("train.num_steps") == 20
    assert gin.query_parameter("Pixels.channels") == 1  # from an included file
    assert config.statements(config.full_text()) == config.statements((run_dir / "config.gin").read_text())


def assert_complete(operative):
    found = set(config.statements(operative))
    expected = {"train.num_steps", "train.accumulate", "generate.batch_size", "prepare.seed"}
    expected |= {
        "EulerMaruyama.last_step_size",
        "sample.num_images",
        "evaluate.max_images",
        "JointObjective.label_dropout",
        "PCA.standardize",
    }
    assert expected <= found


def test_the_operative_configuration_names_the_defaults_of_every_stage(run_dir):
    assert_complete((run_dir / "operative.gin").read_text())


def test_the_operative_configuration_is_still_complete_after_the_same_command(run_dir, second):
    assert_complete((run_dir / "operative.gin").read_text())


def test_the_same_command_again_trains_and_prepares_nothing(run_dir, second):
    done, before = second
    after = times(run_dir)
    for name in before:
        if name.startswith(("checkpoints", "previews", "samples", "audit", "metrics")):
            assert after[name] == before[name], name
    assert [entry["step"] for entry in read_log(run_dir)] == [5, 10, 15, 20]
    assert "fitting" not in done.stderr
    assert "images into" not in done.stderr


def test_a_loaded_run_draws_the_stored_samples(run_dir):
    run, stored = redi.load(run_dir, device="cpu"), load_samples(run_dir).read()
    settings = {"sampler": EulerMaruyama(num_evaluations=4), "guidance": [ClassifierFree(scale=1.5)], "seed": 5}
    drawn = generate(run.model, run.codec, run.process, labels=stored.labels, **settings)
    # The file was written by another process, perhaps with another number of threads: rounding of float32.
    torch.testing.assert_close(drawn.x, stored.x, rtol=1e-4, atol=1e-4)
    assert (drawn.images.int() - stored.images.int()).abs().max() <= 1


def test_a_loaded_model_has_the_averaged_weights(run_dir):
    run = redi.load(run_dir, device="cpu")
    assert (run.step, run.num_classes, run.image_size) == (20, 10, 8)
    assert not run.model.training
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, run.weights["ema"][name])
    assert any(not torch.equal(run.weights["ema"][name], tensor) for name, tensor in run.weights["model"].items())


def test_an_earlier_checkpoint_can_be_loaded(run_dir):
    assert redi.load(run_dir, step=10, device="cpu").step == 10


def test_a_checkpoint_that_is_not_there_is_refused(run_dir):
    with pytest.raises(ValueError, match="no checkpoint of step 15: choose one of step_00000010, step_00000020"):
        redi.load(run_dir, step=15)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        redi.load(tmp_path)


def test_loading_leaves_the_caller_s_configuration_as_it_was(run_dir):
    import_all()
    config.parse([], ["PCA.rank = 3", "my_macro = 7", "scoped/EMA.decay = %my_macro"])
    before, locked = config.full_text(), gin.config_is_locked()
    redi.load(run_dir, device="cpu")
    assert config.full_text() == before
    assert gin.config_is_locked() == locked


def test_loading_leaves_what_the_caller_has_used_as_it_was(run_dir):
    import_all()
    config.parse([], ["PCA.rank = 3"])
    config.call(redi.reducers.PCA)
    before = config.operative_text()
    redi.load(run_dir, device="cpu")
    assert config.operative_text() == before
    assert "PCA.rank = 3" in before


def test_no_pickle_is_read(run_dir, environment, python):
    program = """
        import pickle, sys
        import torch, sklearn.datasets
        import redi

        def refuse(*args, **kwargs):
            raise AssertionError("a pickle was read")

        with torch.device("meta"):
            torch.arange(2.0)  # imports modules of torch that derive classes from what is replaced below
        torch.load = torch.serialization.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
        run = redi.load(sys.argv[1], device="cpu")
        sampler = redi.samplers.Euler(num_evaluations=2)
        drawn = redi.generate(run.model, run.codec, run.process, labels=[0, 1], sampler=sampler)
        print(tuple(drawn.images.shape))
    """
    done = python("-c", textwrap.dedent(program), run_dir, env=environment)
    assert done.stdout.strip() == "(2, 3, 8, 8)", done.stderr


def test_a_configuration_that_asks_for_endless_memory_is_refused_before_it_is_taken(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    with open(tmp_path / "run" / "config.gin", "a") as file:
        file.write("\nDiffusionTransformer.width = 40_000_000\nDiffusionTransformer.num_heads = 4\n")  # 20 PB
    with pytest.raises(ValueError, match="step_.* does not fit the model that"):
        redi.load(tmp_path / "run", device="cpu")


def test_no_file_of_a_run_is_a_pickle(run_dir):
    for folder in list_checkpoints(run_dir):
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
