"""Does a joint model lose against a plain one in sampling the features, or in sampling the image?

    python experiments/cifar10/given_features.py RUN_DIR [RUN_DIR ...]

Prints for every run with one representation:
- the Fréchet distance of images sampled jointly with their features;
- the Fréchet distance of images sampled given the encoder's features of real training images with the same labels;
- the reconstruction error of the sampled features: the share of their energy that features resized from the encoder's
  grid cannot have (0 for real features).
All with 25 evaluations, 500 images and the network of the run's evaluation.
"""

import json
import sys
from pathlib import Path

import torch

import redi
from redi.core import config
from redi.core.resize import resized, restored
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.evaluation.evaluate import prepare_networks
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.references import reference_features
from redi.sampling.generate import generate

COUNT, EVALUATIONS = 500, 25


def measure(folder: Path) -> dict:
    from redi.core.configurables import import_all

    run = redi.load(folder, device="cpu")
    [name] = run.codec.channels.representations
    import_all()
    with config.isolated():
        config.parse([folder / "config.gin"])
        dataset, reference = config.bound("train.dataset"), config.bound("evaluate.reference")
        [network] = config.bound("evaluate.networks")
    prepare_networks([network], dataset)
    against = Gaussian.of(reference_features(reference, network).tensors["pooled"])
    positions = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:COUNT].tolist()
    batch = dataset.batch(positions)
    z = run.codec.channels.split(run.codec.encode(batch["images"]))[name]

    def draw(**options):
        return generate(
            run.model, run.codec, run.process, labels=batch["labels"], weights=run.weights["ema"],
            sampler=EulerMaruyama(num_evaluations=EVALUATIONS), **options,
        )  # fmt: skip

    joint, from_features = draw(), draw(given={name: z})
    generated = run.codec.channels.split(joint.x)[name]
    grid = run.codec.representations[name].encoder(batch["images"][:1]).shape[-2:]
    rest = generated - resized(restored(generated, grid), generated.shape[-2:])
    return {
        "run": folder.name,
        "joint": frechet_distance(Gaussian.of(network.pooled(joint.images)), against),
        "given_real_features": frechet_distance(Gaussian.of(network.pooled(from_features.images)), against),
        "residual_noise_in_features": float(rest.square().mean() / generated.square().mean()),
    }


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(json.dumps(measure(Path(path))), flush=True)
