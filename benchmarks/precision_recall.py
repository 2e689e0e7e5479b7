"""Measure time and peak memory of precision and recall, and of the Fréchet distance with its finite-sample error.

    python benchmarks/precision_recall.py                  # 50,000 x 50,000 at 2048 features: minutes on two cores
    python benchmarks/precision_recall.py --images 2000 10000

The features are synthetic: 64 latent directions, noise in all directions, no negative values, float32. The matrix of
all pairwise distances would take 9.3 GiB for 50,000 images. Computed in blocks, it takes a few hundred megabytes
besides the features, for any number of images. Every number is measured in a separate process. Writes
results/precision_recall.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

WIDTH, LATENT, SEED = 2048, 64, 0


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def features(role: str, num_images: int, spread: float):
    import torch

    from redi.evaluation.metrics.features import Features

    generator = torch.Generator().manual_seed(SEED + (role == "samples"))
    mixing = torch.randn(LATENT, WIDTH, generator=torch.Generator().manual_seed(SEED)) / LATENT**0.5
    made = torch.empty(num_images, WIDTH)
    for part in made.split(1000):  # in place, so that generating them does not set the peak
        noise = torch.randn(part.shape, generator=generator)
        part.copy_((spread * torch.randn(len(part), LATENT, generator=generator) @ mixing + 0.3 * noise).abs_())
    return Features(role, {"pooled": made})


def precision_and_recall(samples, reference) -> dict:
    from redi.evaluation.metrics.precision_recall import precision_recall

    return precision_recall(samples=samples, reference=reference)


def distance(samples, reference) -> dict:
    from redi.evaluation.metrics.frechet import frechet_distance

    return {"frechet_distance": frechet_distance(samples, reference)}


def distance_and_error(samples, reference) -> dict:
    from redi.evaluation.metrics.frechet import Gaussian, finite_sample_error, frechet_distance

    against = Gaussian.of(reference.tensors["pooled"])
    return {"frechet_distance": frechet_distance(samples, against), **finite_sample_error(samples, against)}


MEASURED = {f.__name__: f for f in (precision_and_recall, distance, distance_and_error)}


def measure(name: str, num_images: int) -> dict:
    import torch

    samples, reference = features("samples", num_images, 0.97), features("reference", num_images, 1.0)
    held, start, cpu = peak_mib(), time.perf_counter(), time.process_time()
    values = MEASURED[name](samples, reference)
    return {
        "what": name,
        "images": [num_images, num_images],
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_with_features_mib": round(held),
        "peak_mib": round(peak_mib()),
        "features_mib": round(2 * num_images * WIDTH * 4 / 2**20),
        "all_distances_would_take_mib": round(num_images**2 * 4 / 2**20),
        "values": values,
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision_recall.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    runs = []
    for num_images in arguments.images:
        for name in MEASURED:
            command = [sys.executable, __file__, "--one", name, str(num_images)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
    result = {
        "what": f"metrics of synthetic features of width {WIDTH}, float32, seed {SEED}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "runs": runs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
