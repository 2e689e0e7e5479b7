"""Compare reducers on real features: variance kept, cosine of the reconstruction, linear probes, seconds to fit.

python experiments/reducers/table.py features CIFAR10 FEATURES.pt      # once; CIFAR10 has the folders train and test
python experiments/reducers/table.py fit FEATURES.pt REDUCER RANK      # adds a row to results.json beside this file
python experiments/reducers/table.py                                   # prints the table
"""

import json
import sys
import time
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from redi.data.datasets import ImageFolder
from redi.evaluation.representation.probes import Labelled, accuracy, linear_probe
from redi.models.encoders import EfficientNetLite
from redi.models.reducers import reducers

RESULTS = Path(__file__).with_name("results.json")
NUM_IMAGES = {"train": 4000, "test": 1000}
# Settings apart from the rank. The learned ones are sized for features of width 112 on a CPU.
SETTINGS: dict[str, dict] = {
    "PCA": {"standardize": True},
    "GaussianRandomProjection": {"standardize": True},
    "ConvBottleneck": {"hidden": 128, "num_steps": 400, "max_images": 4000},
    "ConvCompressor": {"hidden": 128, "num_steps": 400, "max_images": 4000},
    "SemVAE": {"hidden": 128, "depth": 2, "num_heads": 4, "num_steps": 400, "learning_rate": 1e-3, "max_images": 4000},
}


def extract(cifar10: str, path: str) -> None:
    """Save the features (N, 112, 8, 8) and labels of images drawn with seed 0, as many of every class."""
    encoder, parts = EfficientNetLite(0, image_size=128), {}
    for split, count in NUM_IMAGES.items():
        images = ImageFolder(f"{cifar10}/{split}")
        labels = torch.as_tensor(images.labels)
        generator = torch.Generator().manual_seed(0)
        chosen = [
            i[torch.randperm(len(i), generator=generator)[: count // 10]]
            for i in ((labels == label).nonzero()[:, 0] for label in range(10))
        ]
        numbers = torch.cat(chosen)[torch.randperm(count, generator=generator)]
        pixels = torch.stack([images[int(i)][0] for i in numbers])
        features = torch.cat([encoder(part) for part in pixels.split(100)])
        parts[split] = {"features": features.half(), "labels": labels[numbers]}
    torch.save({"encoder": encoder.provenance(), **parts}, path)


def probe(train: Tensor, test: Tensor, labels: dict[str, Tensor]) -> float:
    """Return the accuracy of logistic regression on vectors (N, D)."""
    return accuracy(linear_probe(Labelled(train, labels["train"])), Labelled(test, labels["test"]))


def fit(path: str, name: str, rank: int) -> dict:
    """Fit a reducer to the training images and measure it on the test images."""
    saved = torch.load(path, weights_only=True)
    features = {split: saved[split]["features"].float() for split in NUM_IMAGES}
    labels = {split: saved[split]["labels"] for split in NUM_IMAGES}
    row: dict = {"reducer": name, "rank": rank, "settings": SETTINGS.get(name, {})}
    codes = features
    if name != "none":
        reducer, start = reducers[name](rank=rank, **SETTINGS[name]), time.perf_counter()
        reducer.fit(features["train"].split(500))
        row["seconds"] = round(time.perf_counter() - start, 1)
        with torch.no_grad():
            codes = {split: torch.cat([reducer(part) for part in maps.split(250)]) for split, maps in features.items()}
            restored = torch.cat([reducer.inverse(part) for part in codes["test"].split(250)])
        mean, std = (f(features["train"], "n e h w -> e 1 1") for f in (mean_of, std_of))
        wanted, given = (features["test"] - mean) / std, (restored - mean) / std
        row["variance"] = 1 - float((given - wanted).square().sum() / wanted.square().sum())
        row["cosine"] = float(functional.cosine_similarity(given, wanted, dim=1).mean())
        row["num_parameters"] = sum(parameter.numel() for parameter in reducer.parameters())
    row["probe_mean"] = probe(*(reduce(codes[s], "n r h w -> n r", "mean") for s in NUM_IMAGES), labels)
    if name != "none":
        row["probe_map"] = probe(*(rearrange(codes[s], "n r h w -> n (r h w)") for s in NUM_IMAGES), labels)
    return row


def mean_of(x: Tensor, pattern: str) -> Tensor:
    return reduce(x, pattern, "mean")


def std_of(x: Tensor, pattern: str) -> Tensor:
    return reduce(x.square(), pattern, "mean").sub(mean_of(x, pattern).square()).sqrt()


def main() -> None:
    """Run the command."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    match sys.argv[1:]:
        case ["features", cifar10, path]:
            extract(cifar10, path)
        case ["fit", path, name, rank]:
            row = fit(path, name, int(rank))
            rows = [r for r in rows if (r["reducer"], r["rank"]) != (name, int(rank))] + [row]
            RESULTS.write_text(json.dumps(sorted(rows, key=lambda r: (r["reducer"], r["rank"])), indent=1) + "\n")
            print(row)
        case []:
            print("| reducer | rank | variance | cosine | probe of the mean | probe of the map | seconds |")
            print("|---|---|---|---|---|---|---|")
            order = ["none", *SETTINGS]
            for r in sorted(rows, key=lambda r: (order.index(r["reducer"]), r["rank"])):
                shares = [f"{r[key]:.3f}" if key in r else "" for key in ("variance", "cosine")]
                probes = [f"{100 * r[key]:.1f} %" if key in r else "" for key in ("probe_mean", "probe_map")]
                print(f"| {r['reducer']} | {r['rank']} | {' | '.join(shares + probes)} | {r.get('seconds', '')} |")


if __name__ == "__main__":
    main()
