"""What would fail after hours of encoding is refused before: with the binding's name, and nothing computed."""

import inspect
import re

import pytest
import torch
from PIL import Image

from redi.core import config
from redi.core.configurables import import_all
from redi.core.registry import configurable
from redi.models.encoders import encoders
from redi.runs.checks import check_label_order
from redi.runs.experiment import Experiment
from redi.runs.prepare import prepare_run

import_all()
SHIPPED = sorted(str(file.relative_to(config.config_dir())) for file in config.config_dir().rglob("*.gin"))


@pytest.fixture
def refused(tiny_gin, tmp_path, monkeypatch):
    """The explanation with which preparing for the whole job is refused under these bindings."""
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))

    def refused(*bindings: str) -> str:
        (tmp_path / "run").mkdir(exist_ok=True)
        with pytest.raises(ValueError) as error:
            config.parse([tiny_gin], ["train.device = 'cpu'", *bindings])
            prepare_run(Experiment(tmp_path / "run"), evaluates=True)
        assert not list((tmp_path / "cache").glob("*"))  # neither fitted nor encoded
        return str(error.value)

    return refused


def images(folder, *names: str) -> list[str]:
    """Bindings of a reference of one image per name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return ["evaluate.reference = @datasets.ImageFolder()", f"ImageFolder.path = '{folder}'"]


@pytest.mark.parametrize(
    ("names", "level"),
    [
        ([f"n{number:08d}" for number in range(1000)], "INFO"),
        ([str(number) for number in range(1000)], "INFO"),
        ([f"n{number:08d}" for number in reversed(range(1000))], "WARNING"),
        (sorted(str(number) for number in range(1000)), "WARNING"),
        ([f"bird {number}" for number in range(1000)], "WARNING"),
        (["ant", "bee"], None),
    ],
)
def test_labels_of_published_weights_are_explained_and_an_unknown_order_warned_of(caplog, names, level):
    caplog.set_level("INFO")
    check_label_order(names)
    assert [record.levelname for record in caplog.records] == [level] * (level is not None)


def test_settings_that_can_work_are_prepared(tiny_gin, tmp_path):
    config.parse([tiny_gin], ["train.device = 'cpu'"])
    experiment = Experiment(tmp_path)
    data = prepare_run(experiment, evaluates=True)
    assert experiment.codec.fitted and len(data) == 179


@pytest.mark.parametrize(("rank", "numbers"), [(3, 0), (4, 20)])
def test_tokens_of_more_numbers_than_the_model_is_wide_are_pointed_out(tiny_gin, tmp_path, caplog, rank, numbers):
    size = ["DiffusionTransformer.size = 'S/2'", "DiffusionTransformer.width = 16", f"PCA.rank = {rank}"]
    config.parse([tiny_gin], ["train.device = 'cpu'", *size])
    prepare_run(Experiment(tmp_path))
    found = [record.getMessage() for record in caplog.records if "each token packs" in record.getMessage()]
    assert len(found) == bool(numbers)  # one image channel and the rank, by patches of 2 x 2
    assert not numbers or f"each token packs {numbers} values" in found[0] and "width of 16" in found[0]


def test_a_vector_longer_than_the_model_is_wide_is_pointed_out(tiny_gin, tmp_path, caplog):
    bindings = ["JointCodec.representations = [@Representation(), @token/Representation()]", "token/PCA.rank = 5"]
    bindings += ["token/Representation.vector = 'pooled'", "DiffusionTransformer.num_heads = 1"]
    for width, warned in ((8, False), (4, True)):
        caplog.clear()
        config.parse([tiny_gin], ["train.device = 'cpu'", *bindings, f"DiffusionTransformer.width = {width}"])
        prepare_run(Experiment(tmp_path))
        assert ("domain_pooled packs 5 values (a vector) into a width of 4" in caplog.text) == warned


TRAINING = {
    "an unknown precision": ("train.precision = 'bf16'", "train.precision = 'bf16': must be 'auto', 'float32', 'tf32'"),
    "an unknown order": ("train.shuffle = 'some'", "train.shuffle = 'some' must be 'global' or 'shards'"),
    "compiled by half": ("train.compile = 'half'", "train.compile = 'half': must be 'auto', True or False"),
    "steps in words": ("train.num_steps = 'many'", "train.num_steps = 'many': must be an integer"),
    "a part of a step": ("train.num_steps = 1.5", "train.num_steps = 1.5: must be an integer"),
    "a turned gradient": ("train.max_grad_norm = -1", "train.max_grad_norm = -1 must be a finite number of at least 0"),
    "weights that are nowhere": ("train.initial_weights = 'nowhere.pt'", "nowhere.pt"),
    "a weight below zero": (
        "JointObjective.representation_weight = -1",
        "JointObjective.representation_weight = {'domain': -1}: must be finite and at least 0",
    ),
    "an alignment that ended before it began": (
        "JointObjective.alignment_end_step = -1",
        "JointObjective.alignment_end_step = -1 must be an integer of at least 0",
    ),
    "more than the mean": (
        "JointObjective.alignment_normalisation = 1.5",
        "JointObjective.alignment_normalisation = 1.5: must be in [0, 1], or None for features as they are",
    ),
    "an empty step": ("train.batch_size = -4", "train.batch_size = -4 must be an integer of at least 1"),
    "unequal parts": ("train.accumulate = 3", "train.accumulate = 3 must divide train.batch_size = 16"),
    "no iterations of Muon": (
        "train.optimizer = @optimizers.Muon\nMuon.ns_steps = 0",
        "train.optimizer: Muon refuses its settings: Muon.ns_steps = 0 must be an integer of at least 1",
    ),
    "a schedule without steps": ("train.schedule = @schedules.Cosine()\nCosine.num_steps = 0", "Cosine.num_steps = 0"),
    "an average of the start alone": ("EMA.decay = 1", "EMA.decay = 1"),
    "a device that nobody has": ("train.device = 'nonsense'", "train.device = 'nonsense' is not available"),
    "attention for a GPU": (
        "DiffusionTransformer.attention = 'xformers'",
        "DiffusionTransformer.attention = 'xformers' cannot run here (cpu, float32, ",
    ),
    "a width in letters": ("DiffusionTransformer.width = 'a'", "DiffusionTransformer.width = 'a': must be an integer"),
    "a preview's precision": ("generate.precision = 'half'", "generate.precision = 'half'"),
    "a rule without a list": (
        "generate.guidance = @guidance.ClassifierFree()",
        "must be a list, for example [guidance.ClassifierFree()]",
    ),
    "a model without an inner head": (
        "generate.guidance = [@guidance.InnerGuidance()]",
        "InnerGuidance needs an inner prediction, which this model does not have: train with JointObjective",
    ),
    "an inner block beyond the depth": (
        "JointObjective.inner_layer = 2",
        "JointObjective.inner_layer = 2: must be in 1 ... 1, the depth",
    ),
    "a scale in letters": ("ClassifierFree.scale = 'a'", "ClassifierFree.scale = 'a': must be a number"),
}


@pytest.mark.parametrize(("binding", "message"), TRAINING.values(), ids=TRAINING)
def test_what_training_would_refuse_is_refused_before_encoding(refused, binding, message):
    assert message in refused(binding)


CLOCKS = {
    "an offset beyond 1": (
        ["JointObjective.clock = @clocks.Lead()", "Lead.offset = 2"],
        "Lead.offset = 2: every offset must be a number in [-1, 1]",
    ),
    "a lead of a group that does not exist": (
        ["JointObjective.clock = @clocks.Lead()", "Lead.groups = ['dinov2']"],
        "Lead.groups = ('dinov2',): must name representations of the codec (domain)",
    ),
    "a lead of the image alone": (
        ["JointObjective.clock = @clocks.Lead()", "JointCodec.representations = []"],
        "clocks.Lead needs a representation, but the codec has only the image: bind clocks.Shared",
    ),
    "a clock for timesteps": (
        ["JointObjective.clock = @clocks.Lead()", "JointObjective.process = @processes.DDPM()"],
        "JointObjective.clock = Lead with JointObjective.process = DDPM, which has discrete timesteps: must be",
    ),
    "a shift of 0": (
        ["JointObjective.clock = @clocks.Shift()", "Shift.shift = {'domain': 0}"],
        "Shift.shift = {'domain': 0}: every shift must be finite and greater than 0",
    ),
    "a process as the clock": (
        ["JointObjective.clock = @processes.GVP()"],
        "JointObjective.clock must be one of clocks (Independent, Lead, Learned, Shared, Shift), got GVP, which is of",
    ),
    "a clock as the distribution": (
        ["JointObjective.time_distribution = @clocks.Shared()"],
        "JointObjective.time_distribution must be one of time_distributions (LogitNormal, Uniform), got Shared",
    ),
    "one time": (
        ["JointObjective.time_distribution = @time_distributions.LogitNormal()", "LogitNormal.std = 0"],
        "LogitNormal.std = 0: must be finite and greater than 0",
    ),
    "timesteps by the logit": (
        [
            "JointObjective.time_distribution = @time_distributions.LogitNormal()",
            "JointObjective.process = @processes.DDPM()",
        ],
        "time_distribution = LogitNormal with JointObjective.process = DDPM, which has discrete timesteps",
    ),
}


@pytest.mark.parametrize(("bindings", "message"), CLOCKS.values(), ids=CLOCKS)
def test_clocks_and_times_that_cannot_be_are_refused_before_encoding(refused, bindings, message):
    assert message in refused(*bindings)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (
            ["JointObjective.independent_timesteps = True"],
            "in new runs, bind JointObjective.clock = @clocks.Independent()",
        ),
        (
            ["JointObjective.process = @processes.Shifted()", "Shifted.shift = {'domain': 0.5}"],
            "in new runs, bind JointObjective.clock = @clocks.Shift()",
        ),
        (
            ["JointObjective.clock = @clocks.Lead()", "DiffusionTransformer.group_timesteps = False"],
            "DiffusionTransformer.group_timesteps = False has no effect",
        ),
        (["DiffusionTransformer.group_times_by = 'concatenation'"], "DiffusionTransformer.group_times_by needs a"),
    ],
)
def test_bindings_that_a_clock_replaces_are_named_once(tiny_gin, tmp_path, caplog, bindings, message):
    enough = "EulerMaruyama.num_evaluations = 4"  # steps for the kinks of a lead
    config.parse([tiny_gin], ["train.device = 'cpu'", enough, *bindings])
    prepare_run(Experiment(tmp_path))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum(message in warning for warning in warnings) == 1


def test_muon_is_refused_for_a_model_without_matrices(refused):
    @configurable
    class Flat(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.layer = torch.nn.Conv2d(channels.total, channels.total, 3, padding=1)

        def forward(self, x, t, y):
            return self.layer(x)

    text = refused("train.model = @Flat", "train.optimizer = @optimizers.Muon")
    assert "train.optimizer: Muon refuses its settings: Flat.blocks has no matrices" in text


def test_a_schedule_that_ends_with_another_step_than_the_run_is_pointed_out(tiny_gin, tmp_path, caplog):
    bindings = ["train.schedule = @schedules.Linear()", "Linear.num_steps = 77"]
    config.parse([tiny_gin], ["train.device = 'cpu'", *bindings])
    (tmp_path / "run").mkdir()
    prepare_run(Experiment(tmp_path / "run"), trains=True)
    assert "train.schedule has 77 steps, but train.num_steps = " in caplog.text


def test_settings_are_checked_before_any_image_is_read(refused):
    nowhere = ["train.dataset = @datasets.ImageFolder()", "ImageFolder.path = '/no/such/folder'"]
    assert refused(*nowhere, "train.log_every = 0").startswith("train.log_every = 0")
    assert refused(*nowhere).startswith("ImageFolder.path = '/no/such/folder' does not exist")


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (
            ["JointObjective.alignment_end_step = 5", "DiffusionTransformer.alignment_projector = 'conv'"],
            "unused bindings: JointObjective.alignment_end_step, DiffusionTransformer.alignment_projector need "
            "JointCodec.alignment",
        ),
        (
            ["DiffusionTransformer.alignment_projector = 'conv'", "DiffusionTransformer.alignment_width = 8",
             "DiffusionTransformer.alignment_layer = 1", "JointCodec.alignment = @a/encoders.DomainEncoder()"],
            "unused binding: DiffusionTransformer.alignment_width belongs to the MLP",
        ),
    ],
)  # fmt: skip
def test_settings_of_repa_that_have_no_effect_are_pointed_out(tiny_gin, tmp_path, caplog, bindings, message):
    (tmp_path / "run").mkdir()
    config.parse([tiny_gin], ["train.device = 'cpu'", f"prepare.cache_dir = '{tmp_path}'", *bindings])
    prepare_run(Experiment(tmp_path / "run"), evaluates=False)
    assert message in caplog.text


def test_a_value_of_the_wrong_type_is_refused_with_the_component_it_was_given_to(refused):
    text = refused("train.ema = @datasets.Digits")
    assert re.search("a bound value has the wrong type.*Digits", text, re.DOTALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_encoding(refused):
    text = refused("train.device = 'cuda'")
    assert text.startswith("train.device = 'cuda' is not available") and text.endswith("Set train.device = 'auto'")


RESULTS = {
    "unknown weights": ("sample.weights = 'emma'", "sample.weights = 'emma': must be 'ema' or 'model'"),
    "a label beyond the classes": ("sample.labels = [99]", "sample.labels = [99]: must be 'equal', 'random'"),
    "no labels": ("sample.labels = []", "sample.labels = []"),
    "no images": ("sample.num_images = 0", "sample.num_images = 0 must be an integer"),
    "another network": ("evaluate.networks = [@reducers.PCA()]", "evaluate.networks must be one of encoders"),
    "a network without a list": (
        "evaluate.networks = @evaluator/encoders.DomainEncoder()",
        "evaluate.networks is not a list: set, for example, [encoders.DomainEncoder()]",
    ),
    "two networks alike": (
        "evaluate.networks = [@evaluator/encoders.DomainEncoder(), @encoders.DomainEncoder()]",
        "evaluate.networks: several networks have the same metric names (domain_network)",
    ),
    "the encoder alone": (
        "evaluate.networks = [@encoders.DomainEncoder()]",
        "evaluate.networks contains the DomainEncoder whose features are generated (equal settings, so equal weights)",
    ),
    "an unknown metric": (
        "evaluate.metrics = ['frechet']",
        "evaluate.metrics: unknown metric 'frechet'; choose from frechet_dist",
    ),
    "a metric without a list": (
        "evaluate.metrics = 'recall'",
        "; write ['recall']",
    ),
    "one image": ("evaluate.max_images = 1", "evaluate.max_images = 1 must be an integer of at least 2 (None"),
    "a batch of none": ("generate.batch_size = 0", "generate.batch_size = 0 must be an integer of at least 1"),
    "a rate below zero": ("AdamW.lr = -1e-3", "train.optimizer: AdamW refuses its settings: Invalid learning"),
    "a seed below zero": ("sample.seeds = (0, -1)", "sample.seeds = (0, -1): must be an integer in 0"),
    "a seed twice": ("sample.seeds = (1, 1)", "sample.seeds = (1, 1): must be a list of distinct integers"),
    "weights of a metric that are nowhere": (
        "evaluate.networks = [@encoders.Inception()]\nInception.weights = 'nowhere.pth'",
        "Inception.weights = 'nowhere.pth'",
    ),
    "a reference of another resolution": (
        "held_out/Digits.image_size = 16",
        "evaluate.reference has images of 16 pixels, but the samples have 8",
    ),
    "no statistics": (
        "evaluate.reference = @StoredStatistics()\nStoredStatistics.path = 'nowhere.npz'\n"
        "StoredStatistics.network = 'clean'",
        "StoredStatistics.path = 'nowhere.npz' is not a file",
    ),
    "an empty reference": ("held_out/Digits.held_out_fraction = 0.001", "evaluate.reference has 0 images"),
    "all digits": ("held_out/Digits.split = 'all'", "evaluate.reference shares 179 images with the training data"),
    "another split": ("held_out/Digits.split_seed = 5", "images with the training data (digit "),
}


@pytest.mark.parametrize(("binding", "message"), RESULTS.values(), ids=RESULTS)
def test_what_sampling_and_evaluating_would_refuse_is_refused_before_encoding(refused, binding, message):
    assert message in refused(binding)


def test_a_reference_of_one_image_is_refused_before_encoding(refused, tmp_path):
    text = refused(*images(tmp_path / "images", "0/only.png"))
    assert text.startswith("evaluate.reference has 1 images, but a distance needs at least two")
    assert "ImageFolder.held_out_fraction" in text


def test_a_reference_of_other_classes_is_refused_before_encoding(refused, tmp_path):
    text = refused(*images(tmp_path / "images", "cat/1.png", "dog/1.png"))
    assert text.startswith("evaluate.reference has the classes cat, dog, but the training data have 0, 1, 2, 3")


def test_what_only_the_results_need_does_not_stop_training_alone(tiny_gin, tmp_path):
    config.parse([tiny_gin], ["train.device = 'cpu'", "sample.weights = 'emma'"])
    experiment = Experiment(tmp_path)
    prepare_run(experiment)
    codec = experiment.codec
    assert codec.fitted


@pytest.mark.parametrize("name", SHIPPED)
def test_no_setting_of_the_generator_s_encoder_reaches_the_network_of_a_shipped_evaluation(name):
    config.parse([name])
    found = config.statements(config.full_text())
    networks = re.findall(r"@(\w+)/encoders\.(\w+)\(\)", found.get("evaluate.networks", ""))
    if not networks:
        pytest.skip("it binds no network")
    assert found["evaluate.networks"].count("@") == len(networks)  # each has a scope of its own
    for scope, name in networks:
        bound = {key.split(".")[-1] for key in found if re.match(rf"{scope}/(encoders\.)?{name}\.", key)}
        if (scope, name) == ("evaluator", "DomainEncoder") or name == "DINOv2":
            assert bound == set(inspect.signature(encoders[name]).parameters)
