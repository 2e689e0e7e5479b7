"""LightningDiT, SFD and DiT-DH as runs: what is inferred, sampled by the published sampler, and written back."""

import math

import pytest
import torch

import redi
from redi.core import config
from redi.models.published.bindings import REVERSED
from redi.models.published.dit_dh import DiTDH
from redi.models.published.lightningdit import SFD, LightningDiT
from redi.models.published.parse import published_shapes
from redi.runs import convert
from redi.runs.experiment import Experiment
from redi.runs.stages import sample_stage

PIXELS = "include 'plain.gin'\n"
FEATURES = """
JointCodec.representations = [@Representation()]
Representation.encoder = @encoders.DINOv2()
Representation.reducer = @reducers.PCA()
PCA.rank = 2
"""


def published_file(path, kind, c, **options):
    """{model, ema, opt, config} with random weights of width 32 and a 4x4 grid."""
    sizes = {"width": 32, "depth": 2, "patch_size": 1, "patch_grid": (4, 4), "num_classes": 5, "num_heads": 2}
    layout = kind(**sizes, in_channels=c, out_channels=c, mlp_hidden=85, **options)
    states = {}
    for which in ("model", "ema"):
        g = torch.Generator().manual_seed(len(states))
        states[which] = {n: 0.1 * torch.randn(s, generator=g) for n, s in published_shapes(layout).items()}
        states[which] |= layout.tables()
    settings = {"transport": {"path_type": "Linear", "prediction": "velocity"}, "model": {"model_type": "XL/1"}}
    module = {f"module.{name}": tensor for name, tensor in states["model"].items()}
    torch.save({"model": module, "ema": states["ema"], "opt": {}, "config": settings}, path)
    return states


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    """A tiny f16d32 autoencoder in diffusers' format."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 5, "up_block_types": ("UpDecoderBlock2D",) * 5}
    sizes = {"block_out_channels": (8,) * 5, "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 32}
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(**sizes, **blocks).save_pretrained(folder)
    return str(folder)


def exported(run_dir, states):
    for which, state in states.items():
        convert.export(run_dir, run_dir / "again.pt", weights=which)
        again = torch.load(run_dir / "again.pt")
        assert list(again) == list(state) and all(torch.equal(again[name], tensor) for name, tensor in state.items())
    return True


def test_lightningdit_is_opened_and_drawn_by_its_own_sampler(tmp_path, vae):
    states = published_file(tmp_path / "x.pt", LightningDiT, 32)
    bindings = ["JointCodec.autoencoder = @autoencoders.StableVAE()", f"StableVAE.weights = '{vae}'"]
    with pytest.raises(ValueError, match=r"LatentStatistics.path = None: must be the file of the statistics"):
        needs = ["StableVAE.statistics = @LatentStatistics()"]
        convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", gin_bindings=bindings + needs)
    torch.save({"mean": torch.zeros(16), "std": torch.ones(16)}, tmp_path / "of_16.pt")
    with pytest.raises(ValueError, match=r"of_16.pt' has the shape \(16, 1, 1\), but the latents are \(32, 4, 4\)"):
        needs.append(f"LatentStatistics.path = '{tmp_path / 'of_16.pt'}'")
        convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", gin_bindings=bindings + needs)
    convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", step=80_000, gin_bindings=bindings)
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.image_size == 64 and run.codec.channels == {"image": 32} and not run.process.reversed
    bound = config.statements((tmp_path / "run" / "config.gin").read_text())
    expected = {
        "Modern.qk_norm": "False", "Euler.num_evaluations": "249", "ClassifierFree.channels": "{'image': 3}",
        "ClassifierFree.scale": "10.0", "DiffusionTransformer.width": "32", "Preprocessing.image_size": "64",
    }  # fmt: skip
    assert {key: bound.get(key) for key in expected} == expected
    assert float(bound["Euler.shift"]) == pytest.approx(1 / 0.3)
    config.parse([tmp_path / "run" / "config.gin"], ["sample.num_images = 2", "Euler.num_evaluations = 2"])
    sample_stage(Experiment(tmp_path / "run"))
    assert (tmp_path / "run" / "samples.png").exists() and exported(tmp_path / "run", states)


def test_a_run_holds_its_statistics_and_refuses_another_autoencoder(tmp_path, vae):
    published_file(tmp_path / "x.pt", LightningDiT, 32)
    statistics, path = {"mean": torch.randn(32), "std": torch.rand(32) + 1}, tmp_path / "stats.pt"
    torch.save(statistics, path)
    autoencoder = ["JointCodec.autoencoder = @autoencoders.StableVAE()", f"StableVAE.weights = '{vae}'"]
    autoencoder += ["StableVAE.statistics = @LatentStatistics()", f"LatentStatistics.path = '{path}'"]
    convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", gin_bindings=autoencoder)
    path.unlink()
    loaded = redi.load(tmp_path / "run", device="cpu").codec.statistics
    assert torch.equal(loaded.mean[:, 0, 0], statistics["mean"]) and torch.equal(loaded.std[:, 0, 0], statistics["std"])
    with pytest.raises(ValueError, match=r"was trained with Channels\(image=32\), but the codec has .*image=48"):
        other = ["JointCodec.autoencoder = @autoencoders.Folded()", "Folded.factor = 4"]
        other += ["Folded.statistics = @LatentStatistics()"]
        redi.load(tmp_path / "run", device="cpu", gin_bindings=other)


def test_sfd_is_a_run_with_its_clock(tmp_path):
    reducer = redi.reducers.PCA(rank=2)
    reducer.fit([torch.randn(2, 768, 4, 4)])
    reducer.save(tmp_path / "pca")
    states = published_file(tmp_path / "x.pt", SFD, 5, qk_norm=True)
    (tmp_path / "mine.gin").write_text(PIXELS + FEATURES)
    options = {"framework": "sfd", "pca": tmp_path / "pca", "gin_files": [str(tmp_path / "mine.gin")]}
    convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", **options)
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.model.has_group_times and run.process.clock.offset == 0.3
    times = [run.process.clock.time(group, 0.5) for group in run.codec.channels]
    assert times == pytest.approx([0.35, 0.65])
    x = run.generate([0, 4], sampler=redi.samplers.Euler(num_evaluations=4)).x
    assert x.shape == (2, 5, 4, 4) and x.std() > 0.1
    assert exported(tmp_path / "run", states)


def test_dit_dh_is_a_run_whose_time_is_that_of_the_noise(tmp_path):
    states = published_file(tmp_path / "x.pt", DiTDH, 3, head_width=64, head_num_heads=2)
    states["model"] = states["ema"]
    torch.save({"ema": states["ema"]}, tmp_path / "x.pt")  # averages alone
    (tmp_path / "mine.gin").write_text(PIXELS)
    convert.import_checkpoint(tmp_path / "x.pt", tmp_path / "run", gin_files=[str(tmp_path / "mine.gin")])
    run = redi.load(tmp_path / "run", device="cpu")
    assert run.process.reversed and run.model.wide_head is not None and len(run.model.blocks) == 4
    assert run.generate([0, 4], sampler=redi.samplers.Euler(num_evaluations=2)).images.shape == (2, 3, 4, 4)
    assert exported(tmp_path / "run", states)


def test_the_grid_of_rae_is_equal_in_noise_time_before_its_shift():
    sizes = {"width": 1152, "depth": 28, "patch_size": 1, "patch_grid": (16, 16), "num_classes": 1000}
    layout = DiTDH(**sizes, in_channels=768, out_channels=768, mlp_hidden=3072, num_heads=16)
    bound = config.statements("\n".join(layout.bindings()))
    times = torch.tensor(eval(bound["Euler.times"]), dtype=torch.float64)
    shift, noise_time = math.sqrt(768 * 16 * 16 / 4096), torch.linspace(1, 0.001, 50, dtype=torch.float64)
    torch.testing.assert_close(times[:-1], 1 - shift * noise_time / (1 + (shift - 1) * noise_time), rtol=0, atol=1e-14)
    assert times[-2] == pytest.approx(0.9931, abs=1e-4) and times[-1] == 1  # the last jump is ours
    assert "dit-dh" in REVERSED and bound["Preprocessing.image_size"] == "256"
