"""Predicted features of noised images: cosines of a model whose predictions are known, and the picture."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from redi.core.alignment import target_tokens
from redi.core.processes.flow_matching import FlowMatching
from redi.evaluation.predicted import predicted_features
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder


class Patches(Encoder):
    """Pixels of 2 x 2 patches."""

    dim = 12

    def forward(self, images):
        return functional.pixel_unshuffle(images / 255, 2)

    def provenance(self):
        return {"name": "Patches"}


def test_the_cosines_are_those_of_the_first_and_the_second_prediction():
    torch.manual_seed(0)
    codec = JointCodec(Pixels(), alignment=Patches())
    images = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    true = target_tokens(codec.precompute(images)["alignment"].float(), 16)
    halves = true * torch.cat([torch.ones(6), torch.zeros(6)])

    class Known(nn.Module):
        """Predicts the first half of the channels of the truth, and with its own prediction all of them."""

        feature_shape = (16, 12)
        fusion = SimpleNamespace(patch_grid=(4, 4))

        def forward(self, x, t, y, *, align, features=None):
            assert features is None or torch.equal(features, halves)
            return x, halves if features is None else 3 * true

    run = SimpleNamespace(
        codec=codec, model=Known(), process=FlowMatching(), objective=None, class_names=None, weights={"ema": {}}
    )
    batch = {"images": images, "labels": torch.zeros(12, dtype=torch.long)}
    cosines, picture = predicted_features(run, batch, times=(0.2, 0.8), columns=6)
    expected = (halves.norm(dim=-1) / true.norm(dim=-1)).mean()
    for t in (0.2, 0.8):
        assert cosines[t] == {"without": pytest.approx(float(expected), abs=1e-5), "with": pytest.approx(1, abs=1e-5)}
    assert picture.width > picture.height / 2
