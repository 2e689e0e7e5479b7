import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from redi.models.autoencoders import LatentStatistics, StableVAE, TinyVAE
from redi.models.codec import JointCodec
from redi.runtime.checksums import sha256


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z = 3 * draw(5, 4, 2, 2) + 7
SHAPES = {"scalar": (), "channel": (4,), "broadcast": (1, 4, 1, 1), "position": (4, 2, 2)}


def saved(path: Path, entries: dict) -> str:
    save_file(entries, path) if path.suffix == ".safetensors" else torch.save(entries, path)
    return str(path)


def as_map(tensor: Tensor) -> Tensor:
    return tensor.view(4, 1, 1) if tensor.dim() == 1 else tensor


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_latents_are_normalised_by_the_file(tmp_path, shape, suffix):
    mean, std = draw(*shape, seed=1), draw(*shape, seed=2).exp()
    statistics = LatentStatistics(saved(tmp_path / f"stats{suffix}", {"mean": mean, "std": std}))
    expected = (Z - as_map(mean)) / as_map(std)
    torch.testing.assert_close(statistics(Z.float()).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.inverse(expected.float()).double(), Z, rtol=1e-5, atol=1e-5)


FORMATS = {
    "RAE without a mean": ({"mean": None, "var": draw(4, 2, 2).exp()}, {"rule": "variance", "eps": 1e-5}),
    "RAE": ({"mean": draw(4, 2, 2), "var": draw(4, 2, 2).exp()}, {"rule": "variance", "eps": 0.1}),
    "REPA-E": ({"latents_scale": draw(1, 4, 1, 1).exp(), "latents_bias": draw(1, 4, 1, 1)}, {}),
    "std plus eps": ({"mean": draw(4), "std": draw(4).exp()}, {"eps": 0.5}),
    "broadcast": ({"mean_broadcast": draw(1, 4, 1, 1), "std_broadcast": draw(1, 4, 1, 1).exp()}, {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_published_formats_mean_what_their_programs_compute(tmp_path, name):
    entries, settings = FORMATS[name]
    statistics = LatentStatistics(saved(tmp_path / "stats.pt", entries), **settings)
    expected = {
        "RAE without a mean": lambda: Z / (entries["var"] + 1e-5).sqrt(),
        "RAE": lambda: (Z - entries["mean"]) / (entries["var"] + 0.1).sqrt(),
        "REPA-E": lambda: (Z - entries["latents_bias"]) * entries["latents_scale"],
        "std plus eps": lambda: (Z - as_map(entries["mean"])) / (as_map(entries["std"]) + 0.5),
        "broadcast": lambda: (Z - entries["mean_broadcast"]) / entries["std_broadcast"],
    }[name]()
    torch.testing.assert_close(statistics(Z.float()).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_hash_of_the_file_is_checked(tmp_path):
    path = saved(tmp_path / "stats.pt", {"mean": draw(4), "std": torch.ones(4)})
    LatentStatistics(path, sha256=sha256(Path(path))).load()
    with pytest.raises(ValueError, match="has the SHA-256 .*, not abc: use the file with that hash, or change"):
        LatentStatistics(path, sha256="abc").load()


class Sneaky:
    def __reduce__(self):
        return print, ("code ran",)


BAD = {
    "no such file": (None, {}),
    "set LatentStatistics.rule = 'variance'": ({"mean": draw(4), "var": torch.ones(4)}, {}),
    "holds weight, not std or latents_scale": ({"weight": torch.ones(4)}, {}),
    "and std positive": ({"mean": draw(4), "std": torch.tensor([1.0, 0, 1, 1])}, {}),
    "mean must be finite": ({"mean": torch.full((4,), torch.nan), "std": torch.ones(4)}, {}),
    r"has the shape \(4, 2\): must be": ({"std": torch.ones(4, 2)}, {}),
    r"has the shape \(32, 1, 1\), but the latents are \(4, 2, 2\)": ({"std": torch.ones(32)}, {}),
    r"has the shape \(4, 16, 16\), but the latents are": ({"std": torch.ones(4, 16, 16)}, {}),
    "No code was run": ({"std": Sneaky()}, {}),
}


@pytest.mark.parametrize("message", BAD)
def test_other_files_are_refused(tmp_path, message, capsys):
    entries, settings = BAD[message]
    path = str(tmp_path / "none.pt") if entries is None else saved(tmp_path / "stats.pt", entries)
    with pytest.raises(ValueError, match=rf"LatentStatistics.path = .*({message})"):
        LatentStatistics(path, **settings)(Z.float())
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rule": "var"}, "rule = 'var': must be 'std' or 'variance'"),
        ({"eps": -1.0}, "eps = -1.0 must be a finite number of at least 0"),
        ({"per": "pixel"}, "per = 'pixel': must be 'channel' or 'position'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=f"LatentStatistics.{message}"):
        LatentStatistics(**setting)


@pytest.mark.parametrize("rule", ["std", "variance"])
@pytest.mark.parametrize("per", ["channel", "position"])
def test_a_fit_standardises_the_latents_that_it_saw(per, rule):
    statistics, z = LatentStatistics(per=per, rule=rule), 1e3 + draw(40, 4, 2, 2)
    with statistics.collecting() as moments:
        for batch in z.split(16):
            assert statistics(batch) is batch
    statistics.fit(moments)
    dims = (0,) if per == "position" else (0, 2, 3)
    torch.testing.assert_close(statistics.std.double(), z.std(dims, keepdim=True)[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.mean.double(), z.mean(dims, keepdim=True)[0], rtol=1e-6, atol=0)


def test_the_deviation_is_measured_in_units_of_the_stored_std():
    statistics = LatentStatistics.of(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    z = torch.stack([torch.tensor([-1.0, 3.0]), torch.tensor([-3.0, 3.0])], dim=1).double().view(2, 2, 1, 1)
    with statistics.collecting() as moments:
        statistics(z)  # means 1 and 0, std sqrt(8) and sqrt(18)
    assert statistics.deviation(moments) == pytest.approx((0.0, 2**0.5, 18**0.5))


def test_normalising_on_a_device_reads_no_values():
    statistics = LatentStatistics.of(torch.zeros(4), torch.ones(4)).to("meta")  # reading from it raises
    z = torch.empty(2, 4, 8, 8, device="meta")
    assert statistics(z).shape == statistics.inverse(z).shape == z.shape


def test_unfitted_statistics_are_refused():
    with pytest.raises(ValueError, match="not fitted: call prepare"):
        LatentStatistics()(Z)


# In an autoencoder.


@pytest.mark.parametrize("kind", [StableVAE, TinyVAE])
def test_statistics_replace_scale_and_shift(vae_folders, kind):
    folder = str(vae_folders[kind.__name__])
    scaled, statistics = kind(folder, scale=0.5, shift=3.0), LatentStatistics.of(3.0, 2.0)
    other = kind(folder, statistics=statistics)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    stored = scaled.moments(images)
    torch.manual_seed(0)
    latents = scaled.latents(stored)
    torch.manual_seed(0)
    others = other.latents(stored)
    torch.testing.assert_close(others, latents)
    assert torch.equal(other.decode(latents), scaled.decode(latents))
    assert other.stored_provenance() == scaled.stored_provenance() and other.provenance() != scaled.provenance()
    assert json.loads(json.dumps(other.provenance())) == other.provenance()


def test_scale_and_statistics_exclude_each_other(vae_folders):
    folder, statistics = str(vae_folders["StableVAE"]), LatentStatistics.of(0.0, 2.0)
    StableVAE(folder, scale=0.18215, statistics=statistics)  # the default, as in a saved configuration
    with pytest.raises(ValueError, match=r"StableVAE.shift = 0.5 has no effect with StableVAE.statistics: remove one"):
        StableVAE(folder, shift=0.5, statistics=statistics)
    with pytest.raises(ValueError, match="StableVAE.statistics = 'stats.pt': must be a LatentStatistics object"):
        StableVAE(folder, statistics="stats.pt")


def test_a_codec_refuses_statistics_of_another_grid(vae_folders):
    vae = StableVAE(str(vae_folders["StableVAE"]), statistics=LatentStatistics.of(0.0, torch.ones(4, 16, 16)))
    with pytest.raises(ValueError, match=r"has the shape \(4, 16, 16\), but the latents are \(4, 8, 8\)"):
        JointCodec(vae).grid(32)
