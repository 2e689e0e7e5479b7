"""Time and peak memory of a PCA fit over a stream of features, made up as it goes: no images, no encoder.

    python benchmarks/pca_memory.py                        # 2,000 images, about 20 s on one core
    python benchmarks/pca_memory.py --images 500 2000 8000

The paper fits on 76,800 images (section 3.4), which are 19.7 million vectors of 768 for DINOv2-B: 60 GB as float32.
The fit keeps a mean and a 768 x 768 matrix, so its peak resident memory must not depend on the number of images. Every
number is measured in a process of its own, so that none sees what another has freed: the peak after the imports,
after a fit to one batch, and after the fit to all. Writes results/pca_memory.json beside this file.
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

WIDTH, GRID, BATCH, SEED = 768, 16, 64, 0
PAPER_IMAGES = 76_800


def features(num_images: int):
    """Batches (N, E, h, w) float32 of correlated features with falling variances and a mean."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    mixing = torch.randn(32, WIDTH, generator=generator) * 0.8 ** torch.arange(32)[:, None]
    for start in range(0, num_images, BATCH):
        count = min(BATCH, num_images - start)
        noise = torch.rand(count, GRID, GRID, WIDTH, generator=generator)
        yield (noise + torch.randn(count, GRID, GRID, 32, generator=generator) @ mixing).movedim(3, 1)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def measure(num_images: int) -> dict:
    """Fits once, after a fit to a single batch; the time is that of the fit without making up the features."""
    import torch

    from redi.models.reducers.moments import Moments
    from redi.models.reducers.pca import PCA

    imported = peak_mib()
    reducer = PCA(rank=8)
    reducer.fit(features(BATCH))
    one_batch, making, start = peak_mib(), 0.0, time.perf_counter()
    moments, stream = Moments(), features(num_images)
    while True:
        began = time.perf_counter()
        batch = next(stream, None)
        making += time.perf_counter() - began
        if batch is None:
            break
        moments.add(batch)
    reducer.solve(moments)
    seconds = time.perf_counter() - start - making
    return {
        "images": num_images,
        "vectors": moments.count,
        "peak_after_imports_mib": round(imported, 1),
        "peak_after_one_batch_mib": round(one_batch, 1),
        "peak_mib": round(peak_mib(), 1),
        "threads": torch.get_num_threads(),
        "fit_seconds": round(seconds, 2),
        "vectors_per_second": round(moments.count / seconds),
        "features_as_float32_mib": round(moments.count * WIDTH * 4 / 2**20),
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pca_memory.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    runs = []
    for num_images in arguments.images:
        command = [sys.executable, __file__, "--one", str(num_images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(runs[-1])
    rate = runs[-1]["vectors_per_second"]
    result = {
        "what": f"PCA of synthetic features of width {WIDTH} on a {GRID}x{GRID} grid, batches of {BATCH}, seed {SEED}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "runs": runs,
        "extrapolated_to_the_paper": {
            "images": PAPER_IMAGES,
            "fit_hours": round(PAPER_IMAGES * GRID**2 / rate / 3600, 2),
            "how": "vectors per second of the last run; not measured. Without the encoder, which dominates",
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
