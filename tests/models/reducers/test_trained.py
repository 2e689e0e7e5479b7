"""What trained reducers share: early stop and the scale of the code."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

from redi.models.reducers.conv_bottleneck import ConvBottleneck
from redi.models.reducers.conv_compressor import ConvCompressor


def features(n: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 3, generator=generator)
    return torch.einsum("er,nrhw->nehw", mixing, torch.randn(n, 3, 4, 4, generator=generator))


def test_training_stops_and_keeps_the_best_weights_once_held_out_images_gain_nothing(caplog):
    """With a learning rate that destroys the start, PCA, the first measurements are the best."""
    settings = {"rank": 2, "hidden": 8, "num_steps": 100, "learning_rate": 0.3, "seed": 1}
    whole = ConvBottleneck(**settings)
    whole.fit([features()])
    with caplog.at_level(logging.INFO):
        stopped = ConvBottleneck(**settings, patience=2)
        stopped.fit([features()])
    (best, last) = map(int, re.search(r"no improvement since step (\d+) of (\d+)", caplog.text).groups())
    assert last == best + 2 * 5 < 100
    short = ConvBottleneck(**settings | {"num_steps": 100}, patience=100)  # never stops, but keeps the best too
    short.fit([features()])
    assert (
        stopped.explained_variance <= short.explained_variance and short.explained_variance >= whole.explained_variance
    )
    assert stopped.provenance()["patience"] == 2 and "patience" not in whole.provenance()


def test_a_raw_code_is_the_output_of_the_encoder():
    reducer = ConvCompressor(rank=2, hidden=4, num_steps=3, scale="raw")
    reducer.fit([features()])
    standardised = (features() - reducer.mean[:, None, None]) / reducer.std[:, None, None]
    assert torch.equal(reducer(features()), reducer.encode(standardised))
    assert reducer.provenance()["scale"] == "raw"


def test_the_code_of_a_fit_has_mean_square_one():
    reducer = ConvCompressor(rank=2, hidden=4, num_steps=30)
    reducer.fit([features(200)])
    assert reducer(features(200)).square().mean().item() == pytest.approx(1, abs=0.1)


def test_batch_norms_are_fitted_and_then_frozen():
    reducer = ConvCompressor(rank=2, hidden=4, num_steps=30)
    reducer.fit([features()])
    norms = [module for module in reducer.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 4 and not any(norm.training for norm in norms)
    assert all(norm.num_batches_tracked > 0 and norm.running_var.ne(1).all() for norm in norms)
