import json
import logging

import pytest
import torch
from torch import Tensor

from redi.models.reducers.conv_bottleneck import ConvBottleneck
from redi.models.reducers.pca import PCA

WIDTH = 12
SMALL = {"rank": 2, "hidden": 32, "num_steps": 100, "batch_size": 16, "learning_rate": 1e-2}


def circle(n: int, *, seed: int = 0) -> Tensor:
    """Features (N, E, 4, 4) on a curve: an angle with three harmonics, so no plane holds them, yet two numbers do."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(n, 1, 4, 4, generator=generator)
    harmonics = torch.cat([f(k * angle) / k for k in (1, 2, 3) for f in (torch.cos, torch.sin)], dim=1)
    mixing = torch.randn(WIDTH, 6, generator=torch.Generator().manual_seed(9))
    return 5 + torch.einsum("ek,nkhw->nehw", mixing, harmonics)


def fitted(data: Tensor, **settings) -> ConvBottleneck:
    reducer = ConvBottleneck(**SMALL | settings)
    reducer.fit([data])
    return reducer


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several wait for each other longer than these layers take, many times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> ConvBottleneck:
    return fitted(circle(200))


def kept(reducer, data: Tensor) -> float:
    """The share of the variance of standardised features that comes back."""
    mean, std = data.mean(dim=(0, 2, 3), keepdim=True), data.std(dim=(0, 2, 3), keepdim=True)
    lost = ((reducer.inverse(reducer(data)) - data) / std).square().sum()
    return 1 - float(lost / ((data - mean) / std).square().sum())


def test_it_keeps_more_of_a_curved_manifold_than_pca_of_the_same_rank(trained):
    pca = PCA(rank=2, standardize=True)
    pca.fit([circle(200)])
    unseen = circle(100, seed=1)
    assert kept(pca, unseen) < 0.8
    assert kept(trained, unseen) > 0.98


def test_the_explained_variance_is_that_of_images_it_has_not_seen(trained):
    assert trained.explained_variance == pytest.approx(kept(trained, circle(300, seed=2)), abs=0.01)


def test_it_records_what_pca_of_the_same_rank_keeps_of_the_same_images(trained):
    pca = PCA(rank=2, standardize=True)
    pca.fit([circle(200)])
    assert trained.report()["explained_variance_of_pca"] == pytest.approx(kept(pca, circle(300, seed=2)), abs=0.03)


def test_without_a_step_it_is_pca():
    """One step of a learning rate that moves nothing leaves the start as it is."""
    reducer = fitted(circle(40), rank=3, num_steps=1, learning_rate=1e-12)
    pca = PCA(rank=3, standardize=True)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    pca.fit([circle(40)[order[4:]]])  # a tenth is held out
    torch.testing.assert_close(reducer(circle(5, seed=3)), pca(circle(5, seed=3)), rtol=1e-3, atol=1e-4)


def test_the_code_has_mean_zero_and_mean_square_one(trained):
    code = trained(circle(500, seed=4))
    assert code.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert code.square().mean().item() == pytest.approx(1, abs=0.05)


def test_two_fits_are_bit_equal_however_the_stream_is_divided_and_whatever_was_drawn_before():
    settings = {"num_steps": 5, "max_images": 20}
    first = fitted(circle(50), **settings)
    torch.randn(7)
    second = ConvBottleneck(**SMALL | settings)
    second.fit(part for part in circle(50).split(7))
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_the_seed_decides_the_fit():
    first, second = (fitted(circle(30), num_steps=5, seed=seed) for seed in (0, 1))
    assert not torch.equal(first(circle(2)), second(circle(2)))


def test_at_most_so_many_images_are_held_and_each_with_equal_chance():
    """Every image carries its number; over 200 seeds each of 20 is among the 5 kept about 50 times (sd 6)."""
    numbers = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    counts = torch.zeros(20)
    for seed in range(200):
        sample = ConvBottleneck(rank=1, max_images=5, seed=seed)._sample([numbers[:8], numbers[8:]])
        chosen = sample[:, 0, 0, 0].long()
        assert len(set(chosen.tolist())) == 5
        counts[chosen] += 1
    assert ((counts - 50).abs() < 4 * 6.1).all()


def test_its_state_is_not_more_when_it_saw_more():
    few, many = (fitted(circle(n), num_steps=1, max_images=10).state_dict() for n in (10, 60))
    assert {name: t.shape for name, t in few.items()} == {name: t.shape for name, t in many.items()}


def test_a_saved_fit_reduces_alike(trained, tmp_path):
    trained.record_fit(encoder={"encoder": "Some"}, sample={"num_images": 200, "seed": 0})
    trained.save(tmp_path / "fit")
    other = ConvBottleneck(**SMALL, path=str(tmp_path / "fit"))
    assert torch.equal(other(circle(3)), trained(circle(3)))
    assert torch.equal(other.inverse(other(circle(3))), trained.inverse(trained(circle(3))))
    assert other.provenance() == trained.provenance()
    record = json.loads((tmp_path / "fit" / "record.json").read_text())
    assert record["report"]["explained_variance_of_pca"] == trained.report()["explained_variance_of_pca"]


def test_a_saved_fit_of_another_rank_is_refused(trained, tmp_path):
    trained.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="with rank = 2, but this reducer has 3: set ConvBottleneck.rank = 2"):
        ConvBottleneck(**SMALL | {"rank": 3}, path=str(tmp_path / "fit"))


def test_a_state_of_another_rank_does_not_load(trained):
    with pytest.raises(RuntimeError, match="size mismatch"):
        ConvBottleneck(**SMALL | {"rank": 3}).load_state_dict(trained.state_dict())


def test_learning_by_heart_is_warned_of(caplog):
    noise = torch.randn(10, WIDTH, 2, 2, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        fitted(noise, hidden=64, num_steps=30)
    assert "overfits" in caplog.text


@pytest.mark.parametrize("setting", ["hidden", "num_steps", "batch_size", "max_images"])
def test_a_setting_that_cannot_be_is_refused(setting):
    with pytest.raises(ValueError, match=f"ConvBottleneck.{setting} = 0"):
        ConvBottleneck(**{setting: 0})


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="of at least 2 images, but got [0-9]+ of 1: fit to more"):
        ConvBottleneck(rank=2).fit([circle(1)])
