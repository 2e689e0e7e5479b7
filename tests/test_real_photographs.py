"""The programs on CIFAR-10's own JPEGs, as folders and as a zip."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

CIFAR10 = Path(os.environ.get("REDI_DATA", Path(__file__).parents[1] / "../shared/data")) / "cifar10.tar.xz"
PER_CLASS = 12
SMALL = {
    "DiffusionTransformer.width": 32,
    "DiffusionTransformer.depth": 2,
    "DiffusionTransformer.num_heads": 2,
    "DomainEncoder.num_steps": 5,
    "DomainEncoder.width": 16,
    "evaluator/DomainEncoder.num_steps": 5,
    "train.num_steps": 2,
    "train.preview_every": 2,
    "train.preview_images": 10,
    "train.batch_size": 8,
    "EulerMaruyama.num_evaluations": 2,
    "sample.num_images": 20,
}


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The first images of every class: train/<class>/*.jpg and test/<class>/*.jpg."""
    if not CIFAR10.exists():
        pytest.skip(f"no CIFAR-10 at {CIFAR10}: set REDI_DATA")
    folder, taken = tmp_path_factory.mktemp("cifar10"), Counter()
    with tarfile.open(CIFAR10) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and taken[path.parent] < PER_CLASS:
                taken[path.parent] += 1
                target = folder / path.parent.parent.name / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
    assert len(taken) == 20
    return folder


def run(train: Path, test: Path, run_dir: Path) -> dict:
    """Runs the whole job and returns its audit."""
    bindings = [f"{name} = {value}" for name, value in SMALL.items()] + [f"IMAGES = '{train}'", f"TEST = '{test}'"]
    flags = ["--gin_file=cifar10_small.gin", f"--run_dir={run_dir}", *(f"--gin_bindings={b}" for b in bindings)]
    done = subprocess.run([sys.executable, "-m", "redi.run", *flags], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "256 tokens" in done.stderr
    return json.loads((run_dir / "audit.json").read_text())


def test_the_whole_job_runs_on_folders_of_photographs(cifar10, tmp_path):
    audit = run(cifar10 / "train", cifar10 / "test", tmp_path / "run")
    assert audit["num_images"] == 10 * PER_CLASS
    assert audit["num_classes"] == audit["num_classes_present"] == 10
    assert audit["sizes"] == {"32x32": 10 * PER_CLASS}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics[0]["num_reference"] == 10 * PER_CLASS
    with Image.open(tmp_path / "run/samples.png") as picture:
        assert picture.width > 600  # ten classes side by side, images above features


def test_a_zip_of_the_same_photographs_is_the_same_data_set(cifar10, tmp_path):
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path in sorted((cifar10 / part).rglob("*.jpg")):
                archive.write(path, path.relative_to(cifar10 / part))
    audit = run(tmp_path / "train.zip", tmp_path / "test.zip", tmp_path / "run")
    assert audit["images_per_class"] == dict.fromkeys(
        sorted(path.name for path in (cifar10 / "train").iterdir()), PER_CLASS
    )
