"""Why does a joint model win or lose? Measure finished runs, plain and joint, on the same images, times and noise.

    python experiments/causes.py RUN_DIR [RUN_DIR ...] --out FOLDER

Writes causes.json and causes.png to FOLDER and prints a table.
- Loss of each group in ten bins of t, on held-out images with the EMA weights. The change of the image's loss if the
  features next to it are clean, or at the same t those of another image of the class, or noise alone ("no features").
- What x_t tells of each group: the share of its variance that a linear denoiser knows, and a linear probe's accuracy on
  the class. Features repeated on a finer grid are known earlier. Directions: (sum of variances)^2 / sum of squares.
- Agreement of sampled images and features, with its floor and ceiling; the share of sampled features off their grid.
- Fréchet distance of images sampled jointly, and given the real features of training images with the same labels.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.noise import ImageNoise
from redi.core.snr_table import CURVE
from redi.evaluation.evaluate import prepare_networks
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.references import reference_features
from redi.evaluation.representation.encoder_space import KINDS, EncoderSpace, agreement, derangement
from redi.evaluation.representation.probes import Labelled, accuracy, linear_probe
from redi.pages.plots import Panel, Series, save

NUM_IMAGES, NUM_SAMPLES, NUM_EVALUATIONS, NUM_BINS, PROBED = 1024, 500, 25, 10, (0.1, 0.3, 0.5)
MIDDLES = [(k + 0.5) / NUM_BINS for k in range(NUM_BINS)]


def some(codec, dataset, count: int) -> tuple[Tensor, Tensor]:
    """Return joint states and labels of at most `count` images of a data set, at even distances."""
    batch = dataset.batch(torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist())
    return torch.cat([codec.encode(part) for part in batch["images"].split(128)]), batch["labels"]


@torch.no_grad()
def losses(run, x: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return the losses of all groups, and the changes of the image's, in bins of t."""
    channels, kept, curves = run.codec.channels, torch.zeros(len(x), dtype=torch.bool), {}
    size = channels["image"]
    for k in range(NUM_BINS):
        uniforms = (k + torch.rand(len(x), generator=torch.Generator().manual_seed(k))) / NUM_BINS
        t = run.process.draw_times((len(x),), "cpu", uniforms)
        times = t[:, None].expand(-1, len(channels)) if run.objective.clock.independent else t
        noise = channels.trim(
            ImageNoise(k, range(len(x)), tuple(x.shape[1:]))()
        )  # the image's, whatever features follow
        still = (1 - run.process.alpha(t)) / run.process.sigma(t).clamp(min=1e-6) * x  # alpha x + sigma still = x

        def loss(features: Tensor, eps: Tensor = noise, times=times, noise=noise) -> dict[str, Tensor]:
            state, eps = (torch.cat([a[:, :size], b[:, size:]], dim=1) for a, b in ((x, features), (noise, eps)))
            return run.objective.losses(run.model, state, labels, times, eps, kept)

        own = loss(x)
        values = {f"loss of {name}": own[name] for name in channels}
        if channels.representations:
            others = {"clean": loss(x, still), "another image's": loss(x[derangement(labels, 0)]), "no": loss(0 * x)}
            values |= {f"change of image loss, {n} features": o["image"] - own["image"] for n, o in others.items()}
        for name, value in values.items():
            curves.setdefault(name, []).append(float(value))
    return curves


def along_the_clock(run, name: str, x: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[dict, list[float]]:
    """Return numbers and the known share of a group, from states of training and held-out images."""
    channels = run.codec.channels
    train, test = (channels.unpadded(states)[name].flatten(1) for states in x)
    variances = torch.linalg.svdvals((train - train.mean(dim=0)).double()).square() / (len(train) - 1)

    def path(t: float) -> list[float]:
        both = (torch.as_tensor(of(t)).expand(1, channels.total, 1, 1) for of in (run.process.alpha, run.process.sigma))
        return [coefficient[0, channels.slice(name)][0].item() for coefficient in both]

    signals = [(alpha**2 * variances, sigma**2) for alpha, sigma in map(path, CURVE)]
    known = [float((variances * signal / (signal + noise)).sum() / variances.sum()) for signal, noise in signals]
    directions = float(variances.sum() ** 2 / variances.square().sum())
    half = next((t for t, share in zip(CURVE, known, strict=True) if share > 0.5), None)
    numbers = {f"{name}: values": train.shape[1], f"{name}: directions": directions, f"{name}: half known at t": half}
    torch.manual_seed(0)
    for t in (*PROBED, 1) if len(labels[0].unique()) > 1 else ():
        alpha, sigma = (1, 0) if t == 1 else path(t)
        noised = [alpha * z + sigma * torch.randn_like(z) for z in (train, test)]
        fit, other = (Labelled(z, y) for z, y in zip(noised, labels, strict=True))
        numbers[f"{name}: class known at t = {t}"] = accuracy(linear_probe(fit), other)
    return numbers, known


def sampled(run, dataset, reference, networks, null: int | None) -> dict[str, float]:
    """Return agreement, the share off the grid, and distances."""
    x, labels = some(run.codec, dataset, NUM_SAMPLES)
    labels = labels if null is None else torch.full_like(labels, null)
    names, split = run.codec.channels.representations, run.codec.channels.split
    settings, numbers = {"sampler": EulerMaruyama(num_evaluations=NUM_EVALUATIONS)}, {}
    draws = {"sampled": run.generate(labels, **settings)}
    if given := {name: split(x)[name] for name in names}:
        draws["given real features"] = run.generate(labels, **settings, given=given)
    prepare_networks(networks, dataset, device=torch.device("cpu"))
    for network in networks:
        against = Gaussian.of(reference_features(reference, network).tensors["pooled"])
        for how, drawn in draws.items():
            pooled = torch.cat([network.pooled(part) for part in drawn.images.split(100)])
            metric = network.metric_name("frechet_distance")
            numbers[f"{metric}, {how}"] = frechet_distance(Gaussian.of(pooled), against)
    images, features = draws["sampled"].images, split(draws["sampled"].x)
    for name in names:
        space = EncoderSpace(run.codec, name, images[:1])
        cosines = agreement(space, images, features[name], labels).centred
        numbers |= {f"{name}: agreement, {kind}": float(cosines[kind].nanmean()) for kind in KINDS[:3]}
        numbers[f"{name}: share off the grid"] = float(space.off_grid(features[name]).mean())
    return numbers


def measure(folder: Path) -> dict[str, dict]:
    """Return {"numbers", "curves"} of a run."""
    run = redi.load(folder, device="cpu")
    import_all()
    with config.isolated():
        config.parse([folder / "config.gin"])
        data = [config.bound(name) for name in ("train.dataset", "evaluate.reference")]
        networks = config.bound("evaluate.networks")
    x, labels = zip(*(some(run.codec, dataset, NUM_IMAGES) for dataset in data), strict=True)
    null = run.num_classes if run.objective.label_dropout > 0.5 else None  # trained without labels
    curves = losses(run, x[1], labels[1] if null is None else torch.full_like(labels[1], null))
    numbers = {"token dimension": x[0][0].numel() // run.model.fusion.num_tokens}
    numbers |= {"width": run.model.label_embedding.embedding_dim} | {name: fmean(c) for name, c in curves.items()}
    for name in run.codec.channels:
        more, curves[f"known share of {name}"] = along_the_clock(run, name, x, labels)
        numbers |= more
    return {"numbers": numbers | sampled(run, *data, networks, null), "curves": curves}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = {folder.name: measure(folder) for folder in arguments.runs}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "causes.json").write_text(json.dumps(results, indent=1) + "\n")
    # Joint runs first, so that a run has the same colour in every panel.
    order = sorted(results.items(), key=lambda item: -len(item[1]["curves"]))
    panels = []
    for title in order[0][1]["curves"]:
        curves = ((run, result["curves"].get(title, [])) for run, result in order)
        series = [Series(run, CURVE if len(y) > NUM_BINS else MIDDLES[: len(y)], y) for run, y in curves]
        panels.append(Panel(title, "t", series, y_scale="zero"))
    save(arguments.out / "causes.png", panels)
    print(f"| measure | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for name in dict.fromkeys(name for result in results.values() for name in result["numbers"]):
        cells = (result["numbers"].get(name) for result in results.values())
        print(f"| {name} | {' | '.join('' if value is None else f'{value:.3g}' for value in cells)} |")


if __name__ == "__main__":
    main()
