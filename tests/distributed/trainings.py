"""Run several trainings as a process of torchrun: trainings.py FOLDER '{"name": {settings}, ...}'."""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import torch

from redi.core.clocks import Learned
from redi.core.ema.exponential import EMA
from redi.core.ema.power_function import PowerFunctionEMA
from redi.core.objective import JointObjective
from redi.core.predicted_features import PredictedFeatures
from redi.core.samplers.euler import Euler
from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.blocks import Modern
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.learned_projection import LearnedProjection
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.sampling.generate import generate
from redi.training import state
from redi.training.optimizers import Muon
from redi.training.parallel.fsdp import FSDP
from redi.training.trainer import train

MODEL = partial(
    DiffusionTransformer, width=16, depth=2, num_heads=2, patch_size=4, alignment_layer=1, alignment_width=8
)
MODERN = partial(MODEL, block=Modern, head_width=24, head_num_heads=3, timestep_features="gaussian")
NAMED = {
    "FSDP": FSDP, "PowerFunctionEMA": lambda: partial(PowerFunctionEMA, snapshot_every=2),
    "probe": lambda: partial(JointObjective, clock=Learned(), kinetic_weight=0.1),
    "ends at 2": lambda: lambda record: record["step"] == 2, "Muon": lambda: Muon,
    "SGD": lambda: partial(torch.optim.SGD, lr=0.01), "modern": lambda: MODERN,
}  # fmt: skip


class Noisy(Pixels):
    """Random latents, like those of a VAE."""

    def latents(self, moments, randn):
        latents = super().latents(moments)
        return latents + 0.1 * randn(latents.shape, device=latents.device)


class Broken(Noisy):
    """One training row of process 1 is NaN."""

    def latents(self, moments, randn):
        latents = super().latents(moments, randn)
        if os.environ["RANK"] == "1" and len(latents) == 4:  # its rows of a step
            latents[2] = float("nan")
        return latents


def trained(
    run_dir: Path, cached: bool = True, autoencoder=Noisy, aligned: bool = False, predicted: bool = False,
    learned: bool = False, **settings
) -> None:  # fmt: skip
    """A tiny run of 4 steps of 8 digits, half of which lose their representation; REPA ends after 2 steps.

    With `predicted`, features are predicted instead.
    """
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    reducer = LearnedProjection(rank=2, store_rank=6, speed=10.0) if learned else PCA(rank=2)
    representations = [Representation(encoder=encoder, reducer=reducer)]
    representations += [Representation(encoder=encoder, reducer=PCA(rank=5), vector="pooled")]
    alignment = [DomainEncoder(width=6, depth=1, image_size=8, num_steps=2, batch_size=16)] * (aligned or predicted)
    codec = JointCodec(autoencoder(channels=1), [] if predicted else representations, alignment=alignment)
    dataset = Digits().without(range(50, 1438))
    data = prepare(codec=codec, dataset=dataset, cache_dir=run_dir.parent / "cache", cache=cached, mirror=cached)
    given = {name: NAMED[value]() if value in NAMED else value for name, value in settings.items()}
    shares = PredictedFeatures(true_share=0.3, absent_share=0.3)
    given |= {"objective": partial(JointObjective, predicted_features=shares)} if predicted else {}
    defaults = {
        "model": MODEL, "ema": partial(EMA, decay=0.9), "preview": partial(generate, sampler=Euler(num_evaluations=1)),
        "objective": partial(JointObjective, representation_dropout=0.5, alignment_end_step=2, inner_layer=1),
        "num_steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "preview_images": 2, "device": "cpu",
        "preview_every": 2, "warmup_steps": 2, "check_memory": False,
    }  # fmt: skip
    train(run_dir, codec=codec, dataset=data, **(defaults | given))


def refuse(*_, **__):
    raise AssertionError("a process other than the first reads a checkpoint")


if __name__ == "__main__":
    if os.environ["RANK"] != "0":
        state.newest_good = refuse
    logging.basicConfig(level=logging.INFO)
    folder = Path(sys.argv[1])
    for name, settings in json.loads(sys.argv[2]).items():
        trained(folder / name, **settings)
    if os.environ["WORLD_SIZE"] == "2":
        try:
            trained(folder / "broken" / "run", autoencoder=Broken, parallel="FSDP", max_skipped_steps=0)
        except ValueError as error:
            print(f"told: {error}", flush=True)
