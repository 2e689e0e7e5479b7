"""The learned projection: equal to whitened PCA at the start, and what it is after that against closed forms."""

import copy

import numpy as np
import pytest
import torch
from einops import rearrange

from redi.core.channels import Channels
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.evaluation.representation.picture import components_picture
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.reducers import LearnedProjection, trained_state
from redi.models.reducers.pca import PCA
from redi.models.reducers.trained_projection import decorrelation, effective_rank, orthogonality, similarity
from redi.models.representation import Representation
from redi.pages.curves import run_panels

WIDTH = 12


class Squares(Encoder):
    """Twelve features of 2 x 2 pixels with very different variances."""

    dim = WIDTH

    def forward(self, images):
        patches = rearrange(images.float() / 255, "n c (h a) (w b) -> n (c a b) h w", a=2, b=2)
        return (patches + patches.roll(1, 1).square()) * torch.arange(1, 13)[:, None, None]

    def provenance(self):
        return {"encoder": "Squares"}


def images(n=16, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def codec(reducer, **options):
    encoder = Squares()
    reducer.fit([encoder(images(64, seed=9))])
    return JointCodec(Pixels(), [Representation(encoder, reducer, name="z", **options)]).for_image_size(8)


def trained(reducer, seed=1):
    """The reducer with another projection and other statistics."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(reducer.store_rank, reducer.store_rank, generator=generator)
    reducer.projection = torch.randn(reducer.store_rank, reducer.rank, generator=generator)
    reducer.running_mean = torch.randn(reducer.store_rank, generator=generator)
    reducer.running_covariance = factor @ factor.T
    return reducer


def test_at_step_0_the_state_is_that_of_whitened_pca():
    learned, pca = (codec(reducer) for reducer in (LearnedProjection(3), PCA(3, scale="whiten")))
    assert torch.equal(learned.encode(images()), pca.encode(images()))
    # The half that trains, with the statistics of the fit, agrees.
    part, stored = learned.trained_parts()["z"], learned.precompute(images())["z"]
    part.mean, part.covariance = part.running_mean, part.running_covariance
    expected = learned.representations["z"].reducer.finish(stored)
    assert torch.allclose(part(stored), expected, atol=1e-5) and expected.shape == (16, 3, 4, 4)


def test_the_trained_reducer_is_the_batch_norm_of_a_linear_layer():
    reducer = trained(codec(LearnedProjection(3, store_rank=7)).representations["z"].reducer)
    features = Squares()(images())
    channels = torch.einsum("se,nehw->nshw", reducer.components[:7], features - reducer.mean[:, None, None])
    projected = torch.einsum("sr,nshw->nrhw", reducer.projection, channels)
    mean = reducer.running_mean @ reducer.projection
    variance = (reducer.projection.T @ reducer.running_covariance @ reducer.projection).diagonal()
    expected = torch.nn.functional.batch_norm(projected, mean, variance, eps=1e-12)
    assert torch.allclose(reducer(features), expected, atol=1e-4)


def test_the_norm_in_training_is_torchs_batch_norm_with_its_gradient():
    part = LearnedProjection(2, store_rank=5).trained_part()
    stored = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.3
    weight = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    target = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    part.projection.data.copy_(weight)
    part.observe(stored)
    reference = weight.clone().requires_grad_()
    norm = torch.nn.BatchNorm2d(2, affine=False, eps=1e-12)
    ours, theirs = part(stored), norm(torch.einsum("sr,nshw->nrhw", reference, stored))
    assert torch.allclose(ours, theirs, atol=1e-5)
    gradients = [
        torch.autograd.grad((z * target).sum(), p)[0] for z, p in ((ours, part.projection), (theirs, reference))
    ]
    assert torch.allclose(*gradients, atol=1e-4)
    # and the running statistics: one tenth of the batch
    assert torch.allclose(part.running_mean, 0.1 * stored.mean(dim=(0, 2, 3)))
    assert torch.allclose(part.running_mean @ weight, norm.running_mean, atol=1e-6)


@pytest.mark.parametrize("spectrum, rank", [([1, 1, 1, 1], 4), ([1, 1, 0, 0], 2), ([3, 1], 1.6), ([5, 0, 0], 1)])
def test_the_effective_rank_of_a_known_spectrum(spectrum, rank):
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=torch.manual_seed(0))).Q
    assert float(effective_rank(basis @ torch.tensor(spectrum).float().diag() @ basis.T)) == pytest.approx(rank)


def test_regularisers_by_hand():
    columns = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])  # P'P = [[2, 2], [2, 4]]
    assert float(orthogonality(columns)) == pytest.approx(1 + 4 + 4 + 9)
    assert float(orthogonality(columns, "normalised")) == pytest.approx(2 * 0.5)  # a cosine of 2^-1/2, twice
    covariance = torch.tensor([[9.0, 0.5, 0.0], [0.5, 9.0, 1.0], [0.0, 1.0, 9.0]])
    assert float(decorrelation(covariance)) == pytest.approx(2 * (0.25 + 1) / 3)
    maps = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[None, :, None]  # two positions: (1, 1) and (0, 1)
    assert similarity(maps).flatten().tolist() == pytest.approx([1, 0.5**0.5, 0.5**0.5, 1])
    assert similarity(maps.permute(3, 1, 0, 2)).shape == (1, 2, 2)  # two vectors are compared with each other


def test_the_terms_of_channels_of_known_covariance():
    """Four independent channels with std 4, 3, 2, 1, and a P that takes the first one twice."""
    part = LearnedProjection(2, store_rank=4, vf="variance", ortho_weight=2, cov_weight=3, vf_weight=5).trained_part()
    part.covariance, part.floor = torch.tensor([16.0, 9.0, 4.0, 1.0]).diag(), torch.tensor(8.0)
    part.projection.data = torch.tensor([[1.0, 1.0], [0, 0], [0, 0], [0, 0]])
    total, values = part.terms(torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1))
    values = {name: value.item() for name, value in values.items()}
    expected = {"ortho": 2, "cov": 1, "vf": 0.5, "effective_rank": 1, "std_1": 4, "std_2": 4}
    assert values == pytest.approx(expected) and float(total) == pytest.approx(2 * 2 + 3 * 1 + 5 * 0.5)
    assert values["effective_rank"] == pytest.approx(2 / (1 + values["cov"]))


def test_equal_features_have_equal_similarities():
    part = LearnedProjection(3, store_rank=4).trained_part()
    stored = torch.randn(2, 4, 3, 3)
    part.observe(stored)
    _, values = part.terms(stored, stored[:, :3])
    assert float(part.terms(stored, stored)[1]["vf"]) == 0 < float(values["vf"])


OBJECTIVES = {
    "velocity": {},
    "noise of a discrete process, with a learned variance": {"process": DDPM(num_timesteps=20)},
    "cosine": {"cosine_weight": 1.0},
    "released dropout": {"dropout_rule": "released", "representation_dropout": 0.5},
}


class Network(torch.nn.Module):
    """Predicts each group from the sum of all channels; remembers its inputs."""

    def __init__(self, channels):
        super().__init__()
        self.scale, self.channels = torch.nn.Parameter(torch.ones(channels)), channels
        self.inputs = []

    def forward(self, x_t, t, y):
        self.inputs.append(x_t)
        return self.scale[:, None, None] * (x_t.sum(dim=1, keepdim=True) + x_t.square().mean(dim=1, keepdim=True))


def losses_of(part, *, network=None, shift=0.0, **options):
    """The losses of one batch with fixed draws. `shift` moves the network's input without changing the target."""
    channels = Channels(image=3, z=2)
    objective = JointObjective(channels=channels, num_classes=2, **options)
    objective.parts["projections"] = torch.nn.ModuleDict({"z": part})
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 4, 4), torch.zeros(6, dtype=torch.long)
    stored = {"z": torch.randn(6, 5, 2, 2)}
    total = 5 + sum(channels[name] for name in objective.process.variance_groups)
    network = network or Network(total)
    draws = objective.draw(x, y)
    return objective.losses(network, x, *draws, **objective.observe(stored)), network


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_gradient_reaches_p_through_the_input_alone(options):
    """The gradient of P is that of the input's, times the derivative of the state by P: the target adds nothing."""
    part = LearnedProjection(2, store_rank=5, ortho_weight=0, cov_weight=0, vf_weight=0).trained_part()
    losses, network = losses_of(part, **options)
    (x_t,) = network.inputs
    of_input, of_part = torch.autograd.grad(losses["loss"], [x_t, part.projection], retain_graph=True)
    (through_input,) = torch.autograd.grad(x_t, part.projection, of_input)
    assert of_part.abs().sum() > 0 and torch.allclose(of_part, through_input, atol=1e-6)


def test_without_the_gradient_of_the_image_the_values_are_the_same():
    settings = {"store_rank": 5, "ortho_weight": 0, "cov_weight": 0, "vf_weight": 0}
    parts = [LearnedProjection(2, image_gradient=both, **settings).trained_part() for both in (True, False)]
    (joint, one), (apart, two) = (losses_of(part) for part in parts)
    assert joint.keys() == apart.keys() and all(torch.equal(joint[name], apart[name]) for name in joint)
    assert len(one.inputs) == 1 and len(two.inputs) == 2
    of_image, of_z, without = (
        torch.autograd.grad(losses[name], part.projection, retain_graph=True)[0]
        for losses, part, name in ((joint, parts[0], "image"), (joint, parts[0], "z"), (apart, parts[1], "loss"))
    )
    assert of_image.abs().sum() > 0 and torch.allclose(without, of_z, atol=1e-6)
    network = [torch.autograd.grad(losses["loss"], net.scale)[0] for losses, net in ((joint, one), (apart, two))]
    assert torch.allclose(*network, atol=1e-6)


def test_training_moves_p_and_the_codec_takes_it(tmp_path):
    one = codec(LearnedProjection(2, store_rank=5, speed=10.0))
    before, cache = one.fingerprint(), one.cache_fingerprint()
    network = trained_state(
        {"objective_parts.projections.z." + name: t for name, t in one.trained_parts()["z"].state_dict().items()}
    )
    state = one.learned_state()
    assert set(network) <= set(state)
    x = one.encode(images())
    one.load_learned_state(state | network)
    assert torch.allclose(one.encode(images()), x, atol=1e-4)  # the start, computed from P
    trained(one.representations["z"].reducer)
    assert one.fingerprint() != before and one.cache_fingerprint() == cache
    assert not torch.allclose(one.encode(images()), x, atol=0.1)
    # A new run starts from it; an artefact holds it; a cache neither holds nor overwrites it.
    reducer = one.representations["z"].reducer
    assert torch.equal(one.trained_parts()["z"].projection, reducer.projection)
    reducer.save(tmp_path / "saved")
    again = LearnedProjection(2, store_rank=5, path=str(tmp_path / "saved"))
    assert torch.equal(again(Squares()(images())), reducer(Squares()(images())))
    with pytest.raises(ValueError, match="mixes 5 channels into 2: set LearnedProjection.store_rank = 5"):
        LearnedProjection(2, store_rank=6, path=str(tmp_path / "saved"))
    encoded = one.encode(images())
    assert not any("projection" in name for name in one.learned_state(for_cache=True))
    one.load_learned_state(one.learned_state(for_cache=True), for_cache=True)
    assert torch.equal(one.encode(images()), encoded)


def test_the_inverse_is_the_linear_regression_of_the_features():
    reducer = trained(codec(LearnedProjection(3, store_rank=WIDTH)).representations["z"].reducer)
    features = Squares()(images(64, seed=9))  # those of the fit
    z, rows = (rearrange(maps, "n c h w -> (n h w) c").double() for maps in (reducer(features), features))
    design = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    expected = design @ torch.linalg.lstsq(design, rows).solution
    found = rearrange(reducer.inverse(reducer(features)), "n c h w -> (n h w) c")
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-2)
    untrained = codec(LearnedProjection(3)).representations["z"].reducer
    pca = codec(PCA(3, scale="whiten")).representations["z"].reducer
    assert torch.equal(untrained.inverse(z := untrained(features)), pca.inverse(z))


def test_a_vector_is_projected_too():
    one = codec(LearnedProjection(2, store_rank=5), vector="pooled")
    objective = JointObjective(channels=one.channels, num_classes=2).with_parts_of(one)
    stored = one.precompute(images())
    x = one.join(stored)
    network = Network(one.channels.total)
    losses = objective.losses(
        network, x, *objective.draw(x, torch.zeros(16, dtype=torch.long)), **objective.observe(stored)
    )
    losses["loss"].backward()
    assert one.channels.vectors == {"z": 2}
    assert objective.projections["z"].projection.grad.abs().sum() > 0


def test_a_skipped_batch_leaves_the_running_statistics():
    part = LearnedProjection(2, store_rank=5).trained_part()
    before = copy.deepcopy(part.state_dict())
    part.observe(torch.full((2, 5, 2, 2), float("nan")))
    assert all(torch.equal(before[name], tensor) for name, tensor in part.state_dict().items())


def test_a_collapse_is_warned_of_when_it_happens_and_when_it_goes_on():
    part = LearnedProjection(8).trained_part()
    objective = JointObjective(channels=Channels(image=3, z=8), num_classes=2)
    objective.parts["projections"] = torch.nn.ModuleDict({"z": part})
    said = [[*objective.remarks({"projection/z/effective_rank": rank})] for rank in (7.0, 4.0, 3.9, 3.0, 1.9)]
    assert [len(remarks) for remarks in said] == [0, 0, 1, 0, 1]
    assert "effective rank is 3.9 of 8" in said[2][0] and "LearnedProjection.cov_weight = 1" in said[2][0]


BAD = {
    "rank = 8 with 8 stored channels .store_rank.: must be smaller": {"store_rank": 8},
    "store_rank = 4: must be at least LearnedProjection.rank = 8": {"store_rank": 4},
    "cov_weight = -1": {"cov_weight": -1},
    "momentum = 0: must be in": {"momentum": 0},
    "speed = 0": {"speed": 0},
    "ortho_on = 'both'": {"ortho_on": "both"},
    "vf = 'floor'": {"vf": "floor"},
}


@pytest.mark.parametrize("message, settings", BAD.items())
def test_bad_settings_are_refused_by_name(message, settings):
    with pytest.raises(ValueError, match=f"LearnedProjection.{message}"):
        LearnedProjection(8, **settings)


def test_more_channels_than_the_encoder_has_are_refused():
    with pytest.raises(ValueError, match="LearnedProjection.store_rank = 16 exceeds the encoder width 12"):
        codec(LearnedProjection(4, store_rank=16))
    assert codec(LearnedProjection(4)).representations["z"].reducer.store_rank == WIDTH  # of four times the rank
    with pytest.raises(ValueError, match="LearnedProjection.rank = 12 with 12 stored channels"):
        codec(LearnedProjection(12))


def test_the_report_draws_rank_spread_and_regularisers_apart_from_the_losses():
    values = {"effective_rank": 7.0, "std_1": 3.0, "std_2": 2.0, "ortho": 0.1, "cov": 0.2, "vf": 0.3}
    line = {"loss": 1.0, **{f"projection/z/{name}": value for name, value in values.items()}}
    losses, *panels = run_panels([{"step": step, **line} for step in (1, 2)])
    assert [curve.label for curve in losses.curves] == ["loss"]
    labels = {panel.title.split()[0]: [curve.label for curve in panel.curves] for panel in panels}
    assert labels == {"effective": ["z"], "std": ["z: 1", "z: 2"], "regularisers": ["z: ortho", "z: cov", "z: vf"]}


def test_the_learned_components_are_drawn_below_those_of_pca():
    class Dataset:
        mirrored = False

        def __len__(self):
            return 3

        def batch(self, positions):
            return {"images": images()[list(positions)], "labels": torch.zeros(len(positions), dtype=torch.long)}

    one = codec(LearnedProjection(2, store_rank=5))
    assert components_picture(one, Dataset()) is None
    reducer = one.representations["z"].reducer
    parts = one.trained_parts()["z"].state_dict()
    state = {f"objective_parts.projections.z.{name}": tensor for name, tensor in parts.items()}
    one.load_learned_state(one.learned_state() | trained_state(state))
    picture = np.asarray(components_picture(one, Dataset()))
    rows = [picture[34 + 65 * row : 98 + 65 * row, 4:68] for row in range(5)]  # cells of 64 pixels
    assert np.abs(rows[1].astype(int) - rows[2]).max() <= 1 < np.abs(rows[1].astype(int) - rows[3]).max()
    trained(reducer)
    after = np.asarray(components_picture(one, Dataset()))
    assert (after[99:163, 4:68] == rows[1]).all() and not (after[164:228, 4:68] == rows[2]).all()
