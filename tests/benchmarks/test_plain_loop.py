"""The baseline computes what the library computes: else its times would say nothing."""

import pytest
import torch


@pytest.fixture
def small():
    """The quickstart's codec with a model of two blocks, in whose layers nothing is zero; a batch of images."""
    from setups import SETUPS, Setup, make_batch, make_codec

    setup = Setup("S/2", 8, 10, SETUPS["quickstart"].sides | {"width": 32, "depth": 2})
    codec = make_codec(setup)
    return setup, codec, make_batch(setup, codec, 8, images=True)


def after_library_steps(setup, codec, batch, fusion, num_steps, **options):
    from setups import make_model

    from redi.core.ema import EMA
    from redi.training.step import TrainingStep

    model, objective = make_model(setup, codec, fusion=fusion)
    objective.representation_dropout = 0.2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    step = TrainingStep(
        codec=codec, model=model, objective=objective, optimizer=optimizer, ema=EMA(model=model, decay=0.9), **options
    )
    return model, step.ema.parameters, [float(step(batch, number)["loss"]) for number in range(num_steps)]


@pytest.mark.parametrize("fusion", ["merged", "separate"])
def test_losses_weights_and_average_are_the_librarys(small, fusion):
    from plain_loop import PlainLoop
    from setups import make_model

    setup, codec, batch = small
    settings = {"warmup_steps": 3, "seed": 5, "max_grad_norm": 0.5}
    model, average, expected = after_library_steps(*small, fusion, 6, **settings)
    plain, _ = make_model(setup, codec, fusion=fusion)
    loop = PlainLoop(codec, plain, learning_rate=1e-3, ema_decay=0.9, representation_dropout=0.2, **settings)
    losses = [loop.step(batch, number) for number in range(6)]
    assert losses == pytest.approx(expected, rel=1e-5)
    for (name, own), theirs in zip(plain.named_parameters(), model.parameters(), strict=True):
        # Adam divides by the root of a mean square: where gradients are all rounding error, so is the update.
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=2e-5, msg=name)
        torch.testing.assert_close(loop.average[name], average[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 2.4])
def test_samples_are_the_librarys(small, scale):
    from plain_loop import plain_sample
    from setups import make_model

    import redi
    from redi.core.samplers import ImageNoise
    from redi.core.samplers.euler_maruyama import EulerMaruyama
    from redi.guidance.classifier_free import ClassifierFree

    setup, codec, _ = small
    model, objective = make_model(setup, codec)
    labels = torch.arange(4)
    drawn = redi.generate(
        model, codec, objective.process, labels=labels, seed=3, sampler=EulerMaruyama(num_evaluations=30),
        guidance=[ClassifierFree(scale=scale)], precision="float32",
    )  # fmt: skip
    draw = ImageNoise(3, range(4), (9, 8, 8), "cpu")
    x = plain_sample(model, draw, labels, scale=scale, num_evaluations=30)
    torch.testing.assert_close(x, drawn.x, rtol=1e-4, atol=1e-4)


def test_the_plain_forward_is_the_models(small):
    from plain_loop import plain_forward
    from setups import make_model

    setup, codec, _ = small
    model, _ = make_model(setup, codec)
    x, t, y = torch.randn(3, 9, 8, 8), torch.rand(3), torch.tensor([0, 3, 10])
    for checkpointing in (True, False):
        prediction = plain_forward(model, x, t, y, checkpointing=checkpointing)
        torch.testing.assert_close(prediction, model(x, t, y), rtol=1e-4, atol=1e-5)
