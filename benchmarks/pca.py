"""Measure the fit of the PCA: its cost relative to the encoder, its memory, and a whole pass.

python benchmarks/pca.py [--device auto|cpu|cuda] [--quick] [--out FILE] [--images N]

The paper fits on 76,800 images (section 3.4): 19.7 million vectors of 768 from DINOv2-B at 224 px, 60 GB as float32.
Here, one batch of synthetic features with decreasing variances and a mean is used repeatedly, and the encoder has
random weights. `plain` is one float64 covariance per batch, from a copy of all its vectors. Memory is measured in
separate processes.
"""

import tempfile
import time
from pathlib import Path

import torch
from ledger import arguments, device_of, in_process, report, side_by_side

WIDTH, GRID, RANK, SEED = 768, 16, 8, 0
PAPER_IMAGES = 76_800
MODEL = "vit_base_patch14_reg4_dinov2.lvd142m"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, help=f"images in the whole pass; default: {PAPER_IMAGES}, CPU a third")
    given = parser.parse_args()
    device = device_of(given)
    batch = 2 if given.quick else 256 if device == "cuda" else 16
    rounds = 2 if given.quick else 20 if device == "cuda" else 5
    held = 64
    images = given.images or (64 if given.quick else PAPER_IMAGES if device == "cuda" else PAPER_IMAGES // 3)
    whole = whole_pass(images, held, device)
    rows = [
        *beside_the_encoder(batch, rounds, device),
        *(memory_row(way, device, held) for way in ("plain", "moments")),
        whole,
        *against_scikit_learn(64 if given.quick else 512, device),
    ]
    report(
        "pca",
        device=device,
        settings={"encoder": MODEL, "pixels": 224, "width": WIDTH, "grid": GRID, "rank": RANK, "rounds": rounds},
        rows=rows,
        notes=[
            f"The paper's {PAPER_IMAGES:,} images take {PAPER_IMAGES * GRID**2 / whole['vectors_per_second']:.0f} s at "
            "the rate of the whole pass" + (" (extrapolated)." if images != PAPER_IMAGES else " (measured)."),
            "share_of_encoder: time relative to the (fastest) encoder on the same images.",
            "memory_mib: peak above the memory of the process with its imports and one batch of features.",
            "angle_degrees: largest angle between the components and NumPy's eigenvectors of the covariance.",
        ],
        arguments=given,
    )


def features(num_images: int, device: str) -> torch.Tensor:
    """Return correlated features (N, E, h, w) float32 with decreasing variances and a mean."""
    generator = torch.Generator().manual_seed(SEED)
    mixing = torch.randn(32, WIDTH, generator=generator) * 0.8 ** torch.arange(32)[:, None]
    rows = torch.rand(num_images, GRID, GRID, WIDTH, generator=generator)
    rows += torch.randn(num_images, GRID, GRID, 32, generator=generator) @ mixing
    return rows.movedim(3, 1).contiguous().to(device)


def plain(found: torch.Tensor) -> torch.Tensor:
    """Return the covariance of a batch, times the number of vectors."""
    rows = found.movedim(1, 3).reshape(-1, found.shape[1]).double()
    rows = rows - rows.mean(dim=0)
    return rows.T @ rows


def beside_the_encoder(batch: int, rounds: int, device: str) -> list[dict]:
    """Return one row for encoding a batch and one for accumulating its moments."""
    from redi.models.reducers.moments import Moments

    found, moments, calls = features(batch, device), Moments(), {}
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (batch, 3, 256, 256), generator=generator, dtype=torch.uint8).to(device)
    for precision in ("float32", "bfloat16") if device == "cuda" else ("float32",):
        encoder = random_encoder(precision).to(device)
        calls[f"encoder, {precision}"] = lambda encoder=encoder: encoder(images)
    fastest = next(reversed(calls))
    calls |= {"plain": lambda: plain(found), "moments": lambda: moments.add(found)}
    timings = side_by_side(calls, rounds=rounds, warmup=1, device=device)
    rows = []
    for name, timing in timings.items():
        row = {"measurement": "speed", "variant": name, "images": batch, **timing.columns("batch")}
        row |= {"images_per_second": batch / timing.median, "vectors_per_second": batch * GRID**2 / timing.median}
        row["share_of_encoder"] = timings[fastest].faster_than(timing)
        row["ratio_to_plain"] = None if name.startswith("encoder") else timing.faster_than(timings["plain"])
        rows.append(row)
    return rows


def random_encoder(precision: str):
    """The paper's encoder at 224 px, with random weights."""
    import timm
    from safetensors.torch import save_file

    from redi.models.encoders.dinov2 import DINOv2

    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        save_file(timm.create_model(MODEL, pretrained=False).state_dict(), path)
        encoder = DINOv2(weights=str(path), image_size=224, precision=precision)
        encoder.load()
    return encoder


def memory_row(way: str, device: str, num_images: int) -> dict:
    found = in_process(memory, way=way, device=device, num_images=num_images)
    return {name: found[name] for name in ("measurement", "variant", "images", *found) if name != "peak_memory_gib"}


def memory(*, way: str, device: str, num_images: int) -> dict:
    """Return the memory that accumulating five batches adds; for the moments, solving the PCA is included."""
    from redi.models.reducers.moments import Moments
    from redi.models.reducers.pca import PCA

    # In place, because freed memory would count as in use.
    found = torch.empty(num_images, WIDTH, GRID, GRID, device=device)
    found.uniform_(generator=torch.Generator(device).manual_seed(SEED))
    before = resident(device, "VmRSS")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if way == "plain":
        for _ in range(5):
            plain(found)
    else:
        moments = Moments()
        for _ in range(5):
            moments.add(found)
        added = resident(device, "VmHWM")
        PCA(rank=RANK).solve(moments)
    peak = resident(device, "VmHWM")
    row = {"measurement": "memory", "variant": way, "images": num_images, "features_mib": found.nbytes / 2**20}
    return row | {"adding_up_memory_mib": (peak if way == "plain" else added) - before, "memory_mib": peak - before}


def resident(device: str, which: str) -> float:
    """Return the MiB of this process: torch's allocator on a GPU, else resident memory, now (VmRSS) or peak (VmHWM)."""
    if device == "cuda":
        held = torch.cuda.memory_allocated() if which == "VmRSS" else torch.cuda.max_memory_allocated()
        return held / 2**20
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


def whole_pass(num_images: int, batch: int, device: str) -> dict:
    """Accumulate the moments of all images' features and solve the PCA."""
    from redi.models.reducers.moments import Moments
    from redi.models.reducers.pca import PCA

    found, moments = features(batch, device), Moments()
    start = time.perf_counter()
    for first in range(0, num_images, batch):
        moments.add(found[: num_images - first])
    PCA(rank=RANK).solve(moments)  # synchronises a GPU
    seconds = time.perf_counter() - start
    return {
        "measurement": "whole pass", "images": num_images, "vectors": moments.count, "seconds": seconds,
        "vectors_per_second": moments.count / seconds, "images_per_second": num_images / seconds,
    }  # fmt: skip


def against_scikit_learn(num_images: int, device: str) -> list[dict]:
    """Fit redi's and scikit-learn's PCA in one pass over different features, in batches of 32 images.

    scikit-learn runs on the CPU.
    """
    import numpy as np
    from sklearn.decomposition import IncrementalPCA

    from redi.models.reducers.pca import PCA

    batches = [part for part in features(num_images, device).split(32)]
    as_rows = [part.movedim(1, 3).reshape(-1, WIDTH).cpu().numpy() for part in batches]
    exact = np.linalg.eigh(np.cov(np.concatenate(as_rows).T.astype(np.float64)))[1][:, : -RANK - 1 : -1]  # (E, R)

    def of_redi() -> np.ndarray:
        reducer = PCA(rank=RANK)
        reducer.fit(batches)
        return reducer.components[:RANK].cpu().numpy()

    def of_scikit_learn() -> np.ndarray:
        incremental = IncrementalPCA(n_components=RANK)
        for rows in as_rows:
            incremental.partial_fit(rows)
        return incremental.components_

    rows = []
    for name, fit in {"redi PCA": of_redi, "scikit-learn IncrementalPCA": of_scikit_learn}.items():
        start = time.perf_counter()
        found = fit()
        seconds = time.perf_counter() - start
        # From the sine (the components outside the exact span), because the cosine of a small angle rounds to 1.
        basis = np.linalg.qr(found.T.astype(np.float64))[0]
        sine = np.linalg.norm(basis - exact @ (exact.T @ basis), ord=2)
        row = {"measurement": "against scikit-learn", "variant": name, "images": num_images, "fit_seconds": seconds}
        row |= {
            "vectors_per_second": num_images * GRID**2 / seconds,
            "angle_degrees": float(np.degrees(np.arcsin(sine))),
        }
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
