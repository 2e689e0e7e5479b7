"""Published checkpoints to run folders and back."""

import argparse
import contextlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import redi
from redi.core import config
from redi.data.datasets import Dataset
from redi.models.published.layout import Layout
from redi.models.published.parse import published_shapes
from redi.models.published.reg import REGLayout
from redi.models.published.weights import from_published
from redi.runs import convert
from redi.runs.experiment import Experiment
from redi.runs.stages import evaluate_stage, sample_stage
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.runtime.checksums import sha256
from redi.runtime.distributed import Processes
from redi.runtime.interrupt import DryRunEnd
from redi.training.parallel.ddp import DDP
from redi.training.state import TrainingState


def published_state(c=4, o=None, *, seed=0, kind=Layout, **sizes):
    """Random weights in the published layout, 8x8 in patches of 2."""
    g = torch.Generator().manual_seed(seed)
    sizes = {
        "width": 64,
        "depth": 1,
        "patch_size": 2,
        "patch_grid": (4, 4),
        "num_classes": 5,
        "mlp_hidden": 256,
    } | sizes
    layout = kind(in_channels=c, out_channels=o or c, **sizes)
    state = {name: 0.1 * torch.randn(shape, generator=g) for name, shape in published_shapes(layout).items()}
    return state | layout.tables()


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    """A tiny autoencoder in diffusers' format: a folder of the decoder's (and encoder's) weights."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    network = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pca(tmp_path_factory) -> Path:
    """A saved fit of features of DINOv2-B's width, under the settings of the published statistics."""
    torch.manual_seed(0)
    reducer = redi.reducers.PCA(rank=8, standardize=True, scale="raw")
    reducer.fit([torch.randn(2, 768, 4, 4)])
    folder = tmp_path_factory.mktemp("pca") / "fit"
    reducer.save(folder)
    return folder


@pytest.fixture(scope="module")
def redi_run(tmp_path_factory, vae, pca):
    """(run folder, checkpoint file, its content) of ReDi with a dead sigma."""
    folder = tmp_path_factory.mktemp("redi")
    content = {
        "model": {f"module.{name}": tensor for name, tensor in published_state(12, 24, seed=1).items()},
        "ema": published_state(12, 24),
        "opt": {},
        "args": argparse.Namespace(model="SiT-XL/2", path_type="Linear", prediction="velocity"),
        "steps": 4_000_000,
    }
    path = saved(folder / "redi.pt", content)
    convert.import_checkpoint(path, folder / "run", pca=pca, gin_bindings=[f"StableVAE.weights = '{vae}'"])
    return folder / "run", path, content


def test_an_imported_run_opens_with_the_averaged_weights(redi_run):
    folder, _, content = redi_run
    run = redi.load(folder, device="cpu")
    assert (run.step, run.num_classes, run.image_size) == (4_000_000, 5, 64)
    assert run.codec.channels == {"image": 4, "dinov2": 8}
    for which in ("ema", "model"):
        state = {name.removeprefix("module."): tensor for name, tensor in content[which].items()}
        expected = from_published(state).state
        assert all(torch.equal(run.weights[which][name], tensor) for name, tensor in expected.items())
    assert isinstance(run.process, redi.processes.FlowMatching) and not run.process.reversed


def test_images_and_features_are_drawn_with_the_decoder_alone(redi_run):
    # No encoder's weights are on this machine: DINOv2 would have to be downloaded.
    run = redi.load(redi_run[0], device="cpu")
    sampler = redi.samplers.EulerMaruyama(num_evaluations=2)
    drawn = redi.generate(run.model, run.codec, run.process, labels=[0, 4], sampler=sampler)
    assert drawn.images.shape == (2, 3, 64, 64) and drawn.x.shape == (2, 12, 8, 8)
    assert redi.sample_grid(drawn, run.codec, run.colours).width > 0


def test_an_imported_run_guides_another_without_an_encoder_s_weights(redi_run, vae, pca, tmp_path):
    path = saved(tmp_path / "weak.pt", {"ema": published_state(12, seed=2), "steps": 9})
    bindings = [f"StableVAE.weights = '{vae}'"]
    convert.import_checkpoint(path, tmp_path / "run", framework="sit", pca=pca, gin_bindings=bindings)
    run, weak = (redi.load(folder, device="cpu") for folder in (redi_run[0], tmp_path / "run"))
    euler, rule = redi.samplers.Euler(num_evaluations=1), redi.guidance.Autoguidance(1.5, weak=tmp_path / "run")
    plain, away = (one.generate([0, 4], sampler=euler).x for one in (run, weak))
    guided = run.generate([0, 4], sampler=euler, guidance=[rule]).x
    torch.testing.assert_close(guided, away + 1.5 * (plain - away), rtol=1e-4, atol=1e-5)  # one step is linear


def test_the_sample_program_works_on_an_imported_run(redi_run):
    folder = redi_run[0]
    config.parse([folder / "config.gin"], ["sample.num_images = 2", "EulerMaruyama.num_evaluations = 2"])
    sample_stage(Experiment(folder))
    assert (folder / "samples.png").exists()


class Thousand(Dataset):
    """Two images of the 1,000 classes of ImageNet."""

    def __init__(self):
        names = [f"n{number:08d}" for number in range(1000)]
        super().__init__(names=["a", "b"], labels=np.arange(2), class_names=names)

    def load(self, index):
        return np.zeros((64, 64, 3), np.uint8)

    def provenance(self):
        return {"dataset": "Thousand"}


def test_evaluating_an_imported_run_says_the_order_of_its_labels(redi_run, caplog):
    caplog.set_level("INFO")
    config.parse([redi_run[0] / "config.gin"], ["evaluate.networks = [@encoders.DomainEncoder()]"])
    experiment = Experiment(redi_run[0], dry_run=True)
    experiment.train_data = Thousand()
    with contextlib.suppress(DryRunEnd, ValueError):  # with samples or without
        evaluate_stage(experiment)
    assert "labels follow ImageNet's order: 0 = 'n00000000' ... 999 = 'n00000999'" in caplog.text


def test_the_configuration_is_complete_and_made_for_the_published_weights(redi_run):
    bound = config.statements((redi_run[0] / "config.gin").read_text())
    expected = {
        "Preprocessing.image_size": "64", "PCA.rank": "8", "PCA.scale": "'raw'", "PCA.standardize": "True",
        "DINOv2.resize": "'released'", "StableVAE.uint8_rule": "'truncate'", "DiffusionTransformer.width": "64",
        "generate.sampler": "@samplers.EulerMaruyama()", "DiffusionTransformer.size": "'B/2'",
    }  # fmt: skip
    assert {key: bound.get(key) for key in expected} == expected
    assert "PCA.path" not in bound  # the fit is in the checkpoint


def test_the_record_says_where_the_weights_are_from(redi_run):
    folder, path, _ = redi_run
    _, record = load_checkpoint(list_checkpoints(folder)[-1])
    published = record["published"]
    assert (published["file"], published["sha256"]) == ("redi.pt", sha256(path))
    assert published["framework"] == "sit" and "its settings name SiT-XL/2" in published["evidence"][0]


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_gives_every_bit_of_the_checkpoint_back(redi_run, tmp_path, weights, suffix):
    folder, _, content = redi_run
    convert.export(folder, tmp_path / f"again{suffix}", weights=weights)
    read = load_file if suffix == ".safetensors" else torch.load
    again = read(tmp_path / f"again{suffix}")
    expected = {name.removeprefix("module."): tensor for name, tensor in content[weights].items()}
    assert set(again) == set(expected) and (suffix == ".safetensors" or list(again) == list(expected))
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_an_imported_run_is_not_trained_on_but_begun_from(redi_run):
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters())
    state = TrainingState(redi_run[0], None, module, optimizer, None, Processes(), DDP())
    with pytest.raises(ValueError, match=r"it was imported or averaged: .*train\.initial_weights = '.*run'"):
        state.resume(seed=0, dataset=None)


PLAIN = {
    "SiT": ({}, (4, 8), "sit", "FlowMatching", {"reversed": False, "prediction": "velocity"}),
    "REPA": ({}, (4, 8), "repa", "FlowMatching", {"reversed": True}),
    "DiT": ({}, (4, 8), "dit", "DDPM", {"variance_groups": ("image",)}),
    "DiT without a learned variance": ({}, (4, 4), "dit", "DDPM", {"variance_groups": ()}),
    "GVP score": ({"path_type": "GVP", "prediction": "score"}, (4, 4), "sit", "GVP", {"prediction": "score"}),
}


@pytest.mark.parametrize(("args", "sizes", "framework", "process", "settings"), PLAIN.values(), ids=PLAIN)
def test_the_framework_decides_process_and_sampler(tmp_path, args, sizes, framework, process, settings):
    path = saved(tmp_path / "plain.pt", {"ema": published_state(*sizes), "args": argparse.Namespace(**args)})
    convert.import_checkpoint(path, tmp_path / "run", framework=framework)
    run = redi.load(tmp_path / "run", device="cpu")
    assert type(run.process).__name__ == process
    assert {name: getattr(run.process, name) for name in settings} == settings
    assert len(run.model.fusion.variance_heads) == len(settings.get("variance_groups", ()))
    bound = config.statements((tmp_path / "run" / "config.gin").read_text())
    assert bound["generate.sampler"] == f"@samplers.{'Ancestral' if framework == 'dit' else 'EulerMaruyama'}()"
    assert "JointCodec.representations" not in bound
    convert.export(tmp_path / "run", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert all(torch.equal(again[name], tensor) for name, tensor in published_state(*sizes).items())


def test_the_image_size_stands_in_for_a_position_table_that_is_not_stored(tmp_path):
    state = {name: tensor for name, tensor in published_state(4).items() if name != "pos_embed"}
    arguments = {"framework": "sit"}
    path = saved(tmp_path / "settings.pt", {"ema": state, "args": argparse.Namespace(image_size=64)})
    convert.import_checkpoint(path, tmp_path / "settings", **arguments)
    path = saved(tmp_path / "bound.pt", state)
    convert.import_checkpoint(path, tmp_path / "bound", **arguments, gin_bindings=["Preprocessing.image_size = 64"])
    for name in ("settings", "bound"):
        run = redi.load(tmp_path / name, device="cpu")
        assert run.model.grid == (8, 8) and run.image_size == 64
        convert.export(tmp_path / name, tmp_path / "again.pt")
        again = torch.load(tmp_path / "again.pt")
        assert list(again) == list(state) and all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("stored", "argument", "step"),
    [({"iteration": torch.tensor(7)}, None, 7), ({}, None, 0), ({}, 8, 8), ({"step": "last"}, 9, 9)],
)
def test_the_step_is_the_file_s_or_the_one_that_is_stated(tmp_path, caplog, stored, argument, step):
    path = saved(tmp_path / "x.pt", {"ema": published_state(), **stored})
    folder = convert.import_checkpoint(path, tmp_path / "run", framework="sit", step=argument)
    assert folder.name == f"step_{step:08d}"
    assert ("does not contain its training step; using 0. Pass --step to set it" in caplog.text) == (not step)


def test_a_folder_of_shards_is_imported_and_its_files_are_in_the_record(tmp_path):
    state, source = published_state(), tmp_path / "source"
    source.mkdir()
    parts = {f"{i}.safetensors": {name: state[name] for name in list(state)[i::2]} for i in range(2)}
    for file, part in parts.items():
        save_file(part, source / file)
    places = {name: file for file, part in parts.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    folder = convert.import_checkpoint(source, tmp_path / "run", framework="sit")
    assert load_checkpoint(folder)[1]["published"]["sha256"] == {file: sha256(source / file) for file in parts}


def test_without_a_framework_the_message_says_what_to_pass(tmp_path):
    path = saved(tmp_path / "plain.pt", published_state(4))
    with pytest.raises(ValueError, match=r"holds no settings .*: choose with --framework=sit\|dit\|repa"):
        convert.import_checkpoint(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_ones_own_says_what_other_channels_are(tmp_path):
    path = saved(tmp_path / "pixels.pt", published_state(3, num_classes=1))
    (tmp_path / "mine.gin").write_text("include 'plain.gin'\n")
    arguments = {"framework": "sit", "gin_files": [str(tmp_path / "mine.gin")]}
    convert.import_checkpoint(path, tmp_path / "run", **arguments)
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.codec.channels == {"image": 3} and run.image_size == 8


def test_the_evaluate_program_works_on_an_imported_run(tmp_path, tiny_gin):
    path = saved(tmp_path / "digits.pt", published_state(1, num_classes=10, patch_grid=(8, 8)))
    bindings = ["JointCodec.representations = []", "sample.num_images = 12", "Digits.image_size = 16"]
    convert.import_checkpoint(path, tmp_path / "run", framework="sit", gin_files=[tiny_gin], gin_bindings=bindings)
    config.parse([tmp_path / "run" / "config.gin"])
    sample_stage(Experiment(tmp_path / "run"))
    evaluate_stage(Experiment(tmp_path / "run"))
    assert "frechet_distance_domain_network" in (tmp_path / "run" / "metrics.json").read_text()


def test_the_heads_of_an_odd_width_are_taken_from_a_binding(tmp_path):
    path = saved(tmp_path / "odd.pt", published_state(4, width=48))
    with pytest.raises(ValueError, match="the number of heads is unknown"):
        convert.import_checkpoint(path, tmp_path / "run", framework="sit")
    bindings = ["DiffusionTransformer.num_heads = 6"]
    convert.import_checkpoint(path, tmp_path / "run", framework="sit", gin_bindings=bindings)
    assert redi.load(tmp_path / "run", device="cpu").model.blocks[0].num_heads == 6


def test_without_statistics_the_message_says_where_they_are_published(tmp_path):
    path = saved(tmp_path / "redi.pt", published_state(12))
    with pytest.raises(
        ValueError, match=r"8 feature channels, and checkpoints do.*--pca=dino_pca_model.pth.*zelaki/ReDi"
    ):
        convert.import_checkpoint(path, tmp_path / "run", framework="sit")
    assert not (tmp_path / "run").exists()


def test_the_published_statistics_travel_in_the_checkpoint(tmp_path, outside_data):
    path = saved(tmp_path / "redi.pt", published_state(12))
    pca = outside_data("published-pca/dino_pca_model.pth")
    convert.import_checkpoint(path, tmp_path / "run", framework="sit", pca=pca)
    reducer = redi.load(tmp_path / "run", device="cpu").codec.representations["dinov2"].reducer
    # The standard deviations of the first components, as published.
    expected = torch.tensor([5.77, 4.90, 4.79, 4.20, 4.01, 3.77, 3.68, 3.56])
    assert (reducer.deviations[:8] - expected).abs().max() < 0.006


def test_the_configuration_at_hand_stays_as_it_was(tmp_path):
    config.parse([], ["PCA.rank = 3"])
    before = config.full_text()
    path = saved(tmp_path / "plain.pt", published_state(4))
    convert.import_checkpoint(path, tmp_path / "run", framework="sit")
    assert config.full_text() == before
    with pytest.raises(ValueError, match="no gin file"):
        convert.import_checkpoint(path, tmp_path / "other", framework="sit", gin_files=["missing.gin"])
    assert config.full_text() == before and not (tmp_path / "other").exists()


def test_a_folder_with_a_run_is_left_alone(redi_run):
    with pytest.raises(ValueError, match="already holds a run"):
        convert.import_checkpoint(redi_run[1], redi_run[0])


def test_a_configuration_that_does_not_fit_is_refused(tmp_path):
    path = saved(tmp_path / "plain.pt", published_state(4))
    with pytest.raises(ValueError, match="configured DiffusionTransformer does not fit the checkpoint"):
        convert.import_checkpoint(
            path, tmp_path / "run", framework="sit", gin_bindings=["DiffusionTransformer.depth = 2"]
        )


def test_unknown_settings_of_a_training_program_are_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"ema": published_state(4), "args": argparse.Namespace(path_type="spiral")})
    with pytest.raises(ValueError, match="path_type = 'spiral'"):
        convert.import_checkpoint(path, tmp_path / "run", framework="sit")


def test_reg_is_opened_and_drawn_by_its_own_sampler(tmp_path, vae):
    content = {"ema": published_state(kind=REGLayout), "model": published_state(kind=REGLayout, seed=1), "steps": 5}
    path = saved(tmp_path / "reg.pt", content)
    with pytest.raises(ValueError, match="--framework=sit: must be reg for this checkpoint: it holds wg_norm.weight"):
        convert.import_checkpoint(path, tmp_path / "other", framework="sit")
    convert.import_checkpoint(path, tmp_path / "run", gin_bindings=[f"StableVAE.weights = '{vae}'"])
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.process.reversed and run.codec.channels == {"image": 4, "dinov2_class": 12}
    assert run.codec.channels.vectors == {"dinov2_class": 768} and run.image_size == 64
    bound = config.statements((tmp_path / "run" / "config.gin").read_text())
    expected = {
        "JointObjective.representation_weight": "{'dinov2_class': 0.03}", "Identity.centred": "False",
        "ClassifierFree.interval": "(0.15, 1.0)", "EulerMaruyama.num_evaluations": "250",
        "StableVAE.uint8_rule": "'truncate'",
    }  # fmt: skip
    assert {key: bound.get(key) for key in expected} == expected
    config.parse([tmp_path / "run" / "config.gin"], ["sample.num_images = 2", "EulerMaruyama.num_evaluations = 2"])
    sample_stage(Experiment(tmp_path / "run"))
    assert (tmp_path / "run" / "samples.png").exists()
    for weights in ("ema", "model"):
        convert.export(tmp_path / "run", tmp_path / "again.pt", weights=weights)
        again = torch.load(tmp_path / "again.pt")
        assert all(torch.equal(again[name], tensor) for name, tensor in content[weights].items())


def compressor_files(folder: Path, width: int, rank: int) -> list[str]:
    """Write REGLUE's compressor with one hidden channel and its statistics; return the bindings that name them."""
    shapes = {}
    for half, inputs, outputs in (("encoder.model", width, rank), ("decoder.model", rank, width)):
        shapes |= {f"{half}.0.weight": (1, inputs, 3, 3), f"{half}.0.bias": (1,)}
        shapes |= {f"{half}.2.weight": (outputs, 1, 3, 3), f"{half}.2.bias": (outputs,)}
        for i in (1, 2):
            norms = {f"{half}.1.bn{i}.{name}": (1,) for name in ("weight", "bias", "running_mean", "running_var")}
            shapes |= {f"{half}.1.conv{i}.weight": (1, 1, 3, 3)} | norms
    files = {
        "weights": {name: torch.ones(shape) for name, shape in shapes.items()},
        "statistics": {"mean": torch.zeros(width), "std": torch.ones(width)},
    }
    paths = {name: saved(folder / f"compressor_{name}.pt", content) for name, content in files.items()}
    return ["ConvCompressor.hidden = 1", *(f"ConvCompressor.{name} = '{path}'" for name, path in paths.items())]


def test_reglue_is_opened_with_its_compressor(tmp_path, vae):
    state = published_state(20, kind=REGLayout)
    path = saved(tmp_path / "reglue.pt", {"ema": state, "steps": 5})
    with pytest.raises(ValueError, match=r"16 feature channels.* the ConvCompressor that .*ConvCompressor\.weights = "):
        convert.import_checkpoint(path, tmp_path / "run")
    bindings = [*compressor_files(tmp_path, 4 * 768, 16), f"StableVAE.weights = '{vae}'"]
    convert.import_checkpoint(path, tmp_path / "run", gin_bindings=bindings)
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.codec.channels == {"image": 4, "dinov2": 16, "dinov2_class": 12}
    encoder = run.codec.representations["dinov2"].encoder
    assert (encoder.layers, encoder.registers, encoder.dim) == ((8, 9, 10, 11), True, 3072)
    drawn = run.generate([1], sampler=redi.samplers.EulerMaruyama(num_evaluations=2))
    assert drawn.x.shape == (1, 32, 8, 8) and drawn.x[:, 20:].flatten(1)[:, :768].all()
    convert.export(tmp_path / "run", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_the_name_of_an_export_says_its_format(redi_run, tmp_path):
    with pytest.raises(ValueError, match=r"x\.npz: the file name must end in \.pt"):
        convert.export(redi_run[0], tmp_path / "x.npz")
