"""Small folders of runs and sweeps for the pages, with hand-written files."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from redi.core.channels import Channels
from redi.runtime.artefact import save_artefact
from redi.runtime.checkpoint import Retention, save_checkpoint
from redi.runtime.checksums import tensors_sha256
from redi.sampling.pictures import ColourBasis

SAMPLES = {
    "seeds": [42],
    "num_images": 6,
    "labels": "equal",
    "weights": "ema",
    "weights_sha256": "beef" * 16,
    "checkpoint_step": 1500,
    "sampler": {"name": "EulerMaruyama", "num_evaluations": 50, "last_step_size": 0.04},
    "guidance": [{"name": "ClassifierFree", "scale": 1.5, "groups": ["image"]}],
    "function_evaluations": 50,
    "network_evaluations_per_image": 100.0,
    "precision": "float32",
    "decoder": {"autoencoder": "Pixels", "channels": 1},
    "uint8_rule": "round half to even",
    "image_size": 4,
    "given": [],
    "kept": ["images", "x"],
}
METRIC = {
    "metric": "frechet_distance_domain_network",
    "value": 12.3456,
    "better": "lower",
    "per_seed": [12.0, 12.6912],
    "spread": 0.48874,
    "standard_error": 0.3111,
    "value_at_infinity": 11.75,
    "floor": 1.5,
    "times_floor": 8.2304,
    "warnings": ["only 6 samples for 48 features"],
    "num_samples": 6,
    "num_reference": 359,
    "network": {"encoder": "DomainEncoder", "width": 48, "seed": 1, "sha256": "cafe" * 16},
    "reference": {"dataset": "Digits", "split": "held_out", "sha256": "f00d" * 16},
    "versions": {"redi": "0.4", "torch": "2.11.0"},
}


def write_samples(folder, seed=42, keep=("images", "x")) -> str:
    """Six images of 4 x 4 pixels with eight channels of features, in two parts, as `redi.sample` writes them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(6) % 2
    drawn = {
        "images": torch.randint(0, 256, (6, 3, 4, 4), generator=generator, dtype=torch.uint8),
        "x": torch.randn(6, 9, 4, 4, generator=generator),
    }
    kept = {"labels": labels} | {name: drawn[name] for name in keep}
    digest = tensors_sha256(drawn)
    parts = []
    for start in (0, 3):
        part = {"file": f"part-0000{start // 3}.safetensors", "start": start, "stop": start + 3}
        parts.append(part | {"labels_sha256": tensors_sha256({"labels": labels[start : start + 3]})})
    groups = {
        part["file"].split(".")[0]: {k: t[part["start"] : part["stop"]] for k, t in kept.items()} for part in parts
    }
    record = SAMPLES | {"seeds": [seed], "kept": list(keep), "parts": parts, "samples_sha256": digest}
    save_artefact(folder / "samples", groups, record)
    return digest


def write_metrics(folder, *changes, digest="0123", **samples) -> None:
    """metrics.json with an entry for each of `changes` to METRIC."""
    record = SAMPLES | {"samples_sha256": digest} | samples
    entries = [METRIC | {"samples": record} | change for change in changes or ({},)]
    (folder / "metrics.json").write_text(json.dumps(entries))


def write_log(folder, slope=2.0) -> None:
    """Five entries, and three of a monitor."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, 6):
        loss = slope / step
        lines.append({"step": step, "loss": loss, "image": loss / 2, "images_per_second": 9.0, "gradient_norm": 1.0})
        if step % 2:
            lines.append({"step": step, "monitor/frechet_distance_domain_network_of_50": 100.0 * slope / step})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def make():
    """The helper functions of this file."""
    return SimpleNamespace(
        run=write_run, sweep=write_sweep, samples=write_samples, metrics=write_metrics, metric=METRIC, drawn=SAMPLES
    )


@pytest.fixture
def run_dir(tmp_path):
    """A run without samples, so that its metrics are not compared with samples."""
    folder = tmp_path / "my <run> & more"
    write_run(folder)
    return folder


def write_run(folder) -> None:
    (folder / "previews").mkdir(parents=True)
    write_metrics(folder)
    write_log(folder)
    Image.new("RGB", (700, 10), "red").save(folder / "samples.png")
    for step in range(1, 8):
        Image.new("RGB", (20, 10), "blue").save(folder / "previews" / f"step_{step:08d}.png")
    (folder / "config.gin").write_text("# see <b>https://example.org</b>\nPCA.rank = 8\n")
    (folder / "operative.gin").write_text("EMA.decay = 0.995\n")


RANKS = (2, 10, 1)


@pytest.fixture
def sweep_dir(tmp_path):
    """Three ranks with two seeds; the last point failed, and rank 1 was measured without keeping images."""
    folder = tmp_path / "rank <sweep>"
    write_sweep(folder)
    return folder


def write_sweep(folder) -> None:
    points = []
    for rank in RANKS:
        for seed in (0, 1):
            name = f"rank={rank},seed={seed}"
            bindings = {"PCA.rank": str(rank), "JointCodec.fusion": "@fusion.Merged()", "train.seed": str(seed)}
            points.append({"name": name, "bindings": bindings, "model": name, "group": f"rank={rank}"})
            write_point(folder, name, rank, seed)
    (folder / "sweep.json").write_text(
        json.dumps({"name": "rank", "axes": ["PCA.rank", "JointCodec.fusion", "train.seed"], "points": points})
    )
    (folder / "config.gin").write_text("sweep.grid = {'PCA.rank': [2, 10, 1]}\n")


def write_point(folder, name, rank, seed) -> None:
    point, model = folder / "points" / name, folder / "models" / name
    point.mkdir(parents=True)
    (point / "config.gin").write_text(f"PCA.rank = {rank}\n")
    write_log(model, slope=rank + seed / 2)
    if rank == 1 and seed == 1:
        (point / "error.txt").write_text("loss is <nan> at step 3\n\nTraceback: ...\nValueError: loss is <nan>\n")
        return
    write_samples(point, seed=42, keep=() if rank == 1 else ("images", "x"))
    if rank == 2:
        channels = Channels(image=1, domain=8)
        colours = ColourBasis.fit(channels, torch.randn(4, 9, 4, 4, generator=torch.Generator().manual_seed(0)))
        record = {"model_arguments": {"channels": dict(channels)}}
        save_checkpoint(model, 5, {"colours": colours.tensors}, record, keep=Retention(1))
    metrics = [
        {"metric": "fid_clean", "value": 100.5 / rank + seed, "spread": None, "better": "lower", "num_samples": 6},
        {"metric": "recall", "value": rank / 16, "spread": 0.01, "better": "higher", "num_samples": 6},
    ]
    result = {"name": name, "group": f"rank={rank}", "bindings": {}, "model": name, "status": "done"}
    result |= {"metrics": metrics, "seconds": {"train": 9.0 + rank, "sample": 1.5}, "versions": {"torch": "2.11"}}
    (point / "result.json").write_text(json.dumps(result))
