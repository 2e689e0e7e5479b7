"""Every kind of set-up, the whole way at the smallest size: prepared, trained, stopped, resumed, opened and sampled."""

import json

import pytest
import torch

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.evaluation.samples.stored import load_samples
from redi.runs.experiment import Experiment
from redi.runs.stages import evaluate_stage, query_stage, sample_stage, train_stage
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.runtime.log import read_log

DDPM = ["JointObjective.process = @processes.DDPM()", "generate.sampler = @samplers.Ancestral()"]
DDPM += ["Ancestral.num_evaluations = 3"]
TWO = ["JointCodec.representations = [@first/Representation(), @second/Representation()]"]
TWO += ["first/Representation.name = 'one'", "second/Representation.name = 'two'", "second/DomainEncoder.seed = 7"]
TWO += ["second/PCA.rank = 3", "JointObjective.representation_weight = {'one': 1.0, 'two': 0.5}"]
TWO += ["Representation.encoder = @encoders.DomainEncoder()", "Representation.reducer = @reducers.PCA()"]
TOKEN = ["JointCodec.representations = [@Representation(), @token/Representation()]"]
TOKEN += ["token/Representation.name = 'token'", "token/Representation.vector = 'pooled'", "token/PCA.rank = 5"]
VECTOR_GUIDED = ["generate.guidance = [@guidance.ClassifierFree()]", "ClassifierFree.scale = {'token': 1.5}"]
VECTOR_GUIDED += ["JointObjective.clock = @clocks.Lead()", "Lead.offset = {'token': 0.3}"]
VECTOR_GUIDED += ["EulerMaruyama.num_evaluations = 4"]

SET_UPS = {
    "DiT with a learned variance": DDPM,
    "DiT with a variance learned for the image alone": [*DDPM, "DDPM.learned_variance = ('image',)"],
    "DiT with a fixed variance": [*DDPM, "DDPM.learned_variance = ()", "DDPM.variance = 'large'"],
    "noise prediction on the GVP path": ["JointObjective.process = @processes.GVP()", "GVP.prediction = 'noise'"],
    "score prediction on the VP path": ["JointObjective.process = @processes.VP()", "VP.prediction = 'score'"],
    "a representation that leads": ["JointObjective.process = @processes.Shifted()", "Shifted.shift = {'domain': 0.5}"],
    "timesteps of their own": [
        "JointObjective.independent_timesteps = True",
        "DiffusionTransformer.group_timesteps = True",
    ],
    "a lead and logit-normal times": [
        "JointObjective.clock = @clocks.Lead()",
        "JointObjective.time_distribution = @time_distributions.LogitNormal()",
        "generate.sampler = @samplers.Euler()",
        "Euler.num_evaluations = 4",
    ],
    "REPA": [
        "JointCodec.alignment = @alignment/encoders.DomainEncoder()",
        "alignment/DomainEncoder.seed = 5",
        "DiffusionTransformer.alignment_layer = 1",
        "DiffusionTransformer.alignment_width = 8",
    ],
    "REPA with two encoders, a convolution, normalised, that ends": [
        "JointCodec.alignment = {'small': @small/encoders.DomainEncoder(), 'large': @large/encoders.DomainEncoder()}",
        "small/DomainEncoder.width = 6",
        "large/DomainEncoder.width = 10",
        "DiffusionTransformer.alignment_layer = 1",
        "DiffusionTransformer.alignment_projector = 'conv'",
        "JointObjective.alignment_normalisation = 0.6",
        "JointObjective.alignment_end_step = 3",
    ],
    "two representations": TWO,
    "a vector, a lead and its own guidance scale": [*TOKEN, *VECTOR_GUIDED],
    "a vector with a learned variance": [*TOKEN, *DDPM],
    "the image alone": ["JointCodec.representations = []"],
    "separate tokens": ["DiffusionTransformer.fusion = @fusion.Separate"],
    "no labels": ["Digits.num_classes = 1", "generate.guidance = []"],
    "Representation Guidance": [
        "JointObjective.representation_dropout = 0.2",
        "generate.guidance = [@guidance.RepresentationGuidance()]",
    ],
    "mirrored images": ["prepare.mirror = True"],
    "encoders in every step": ["prepare.cache = False", "prepare.mirror = True"],
    "today's parts": [
        "WEAK_STEP = 2",
        "train.checkpoint_every = 2",
        "EulerMaruyama.num_evaluations = 4",
        "token/PCA.rank = 2",
    ],
}
FILES = {"today's parts": ["modern.gin"]}


@pytest.fixture
def job(tiny_gin, tmp_path):
    def job(name: str, folder: str, num_steps: int):
        import_all()
        config.parse(
            [tiny_gin, *FILES.get(name, ())], [*SET_UPS[name], f"train.num_steps = {num_steps}", "train.log_every = 1"]
        )
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        (run_dir / "config.gin").write_text(config.full_text())
        train_stage(Experiment(run_dir))
        return run_dir

    return job


@pytest.mark.parametrize("name", SET_UPS)
def test_a_run_that_stopped_and_went_on_equals_one_that_did_not_opens_and_is_sampled(job, name):
    unbroken = job(name, "unbroken", 4)
    job(name, "broken", 2)
    broken = job(name, "broken", 4)
    (ours, _), (theirs, _) = (load_checkpoint(list_checkpoints(folder)[-1]) for folder in (broken, unbroken))
    for part in ("model", "ema", "optimizer"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(tensor, theirs[part][key]) for key, tensor in ours[part].items()), part
    losses = [[line["loss"] for line in read_log(folder)] for folder in (broken, unbroken)]
    assert losses[0] == losses[1]
    assert all(torch.tensor(losses[0]).isfinite())

    sample_stage(Experiment(broken))
    drawn = load_samples(broken).read()
    assert drawn.record["function_evaluations"] == drawn.record["sampler"]["num_evaluations"]
    assert drawn.x.isfinite().all()
    assert drawn.x.shape[1] == redi.load(broken).codec.channels.total
    assert (broken / "samples.png").exists()


def test_samples_of_a_model_with_a_vector_are_measured(job):
    run_dir = job("today's parts", "run", 2)
    config.parse([run_dir / "config.gin"], ["evaluate.networks = []"])
    sample_stage(Experiment(run_dir))
    evaluate_stage(Experiment(run_dir))
    metrics = {entry["metric"] for entry in json.loads((run_dir / "metrics.json").read_text())}
    assert {"representation_agreement_features", "representation_agreement_token"} <= metrics


def test_terms_of_the_objective_are_in_the_log(job):
    repa = read_log(job("REPA", "repa", 2))[-1]
    assert -1 <= repa["alignment"] <= 1
    dit = read_log(job("DiT with a learned variance", "dit", 2))[-1]
    assert dit["vlb"] > 0


def test_the_alignment_with_each_encoder_is_in_the_log_until_its_end(job, caplog):
    caplog.set_level("INFO")
    entries = read_log(job("REPA with two encoders, a convolution, normalised, that ends", "run", 4))
    assert [sorted(name for name in entry if "alignment" in name) for entry in entries] == [
        *[["alignment_large", "alignment_small"]] * 3, []
    ]  # fmt: skip
    job("REPA with two encoders, a convolution, normalised, that ends", "run", 5)  # resumes after the end
    assert caplog.text.count("REPA's alignment ended at step 3 (JointObjective.alignment_end_step)") == 2


def test_a_rule_that_the_model_was_not_trained_for_is_named_when_it_samples(job, caplog):
    run_dir = job("separate tokens", "run", 2)
    config.parse([run_dir / "config.gin"], ["generate.guidance = [@guidance.RepresentationGuidance()]"])
    sample_stage(Experiment(run_dir))
    assert "RepresentationGuidance uses predictions without the representation" in caplog.text


def test_the_spread_of_every_group_is_in_the_log_and_in_the_checkpoint(job, caplog):
    caplog.set_level("INFO")
    run_dir = job("two representations", "run", 2)
    assert "signal-to-noise ratio" in caplog.text
    spread = load_checkpoint(list_checkpoints(run_dir)[-1])[1]["spread"]
    assert list(spread) == ["image", "one", "two"]


@pytest.mark.parametrize("name", ["DiT with a learned variance", "timesteps of their own"])
def test_a_joint_model_of_either_framework_can_be_asked(job, name):
    run_dir = job(name, "run", 2)
    config.parse([run_dir / "config.gin"], ["query.num_images = 2", "query.num_variations = 1"])
    query_stage(Experiment(run_dir))
    answer = json.loads((run_dir / "queries.json").read_text())
    assert answer["function_evaluations"] == 250
    assert (run_dir / "queries.png").exists()
