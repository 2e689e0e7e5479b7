"""The programs on crops of real photographs, as folders and as a zip of JPEGs."""

import json
import zipfile
from pathlib import Path

import pytest
from absl.testing import flagsaver
from PIL import Image
from sklearn.datasets import load_sample_images

from redi import command_line, prepare
from redi import run as run_program

pytestmark = pytest.mark.usefixtures("redi_log")

PER_CLASS = 12
SMALL = {
    "Preprocessing.image_size": 32,
    "ImageFolder.split": "'all'",
    "held_out/ImageFolder.split": "'all'",
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
def photographs(tmp_path_factory) -> Path:
    """Crops of the two photographs that scikit-learn ships, ten places as ten classes: train/<place>/*.jpg and
    test/<place>/*.jpg."""
    folder = tmp_path_factory.mktemp("photographs")
    for place in range(10):
        photo = Image.fromarray(load_sample_images().images[place % 2])
        for part, shift in (("train", 0), ("test", 3)):
            target = folder / part / f"place{place}"
            target.mkdir(parents=True)
            for number in range(PER_CLASS):
                left, top = 60 * place + shift, 30 * number + shift
                photo.crop((left, top, left + 64, top + 64)).resize((32, 32)).save(target / f"{number}.jpg")
    return folder


def run(train: Path, test: Path, run_dir: Path, program=run_program) -> dict:
    """Runs a program on them and returns the audit."""
    bindings = [f"{name} = {value}" for name, value in SMALL.items()]
    bindings += [f"IMAGES = '{train}'", f"held_out/ImageFolder.path = '{test}'"]
    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(gin_file=["images.gin"], gin_bindings=bindings, run_dir=str(run_dir)):
        assert command_line.exit_status(program.main, ["program"]) == 0
    return json.loads((run_dir / "audit.json").read_text())


def test_the_whole_job_runs_on_folders_of_photographs(photographs, tmp_path):
    audit = run(photographs / "train", photographs / "test", tmp_path / "run")
    assert audit["num_images"] == 10 * PER_CLASS
    assert audit["num_classes"] == audit["num_classes_present"] == 10
    assert audit["sizes"] == {"32x32": 10 * PER_CLASS}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics[0]["num_reference"] == 10 * PER_CLASS
    with Image.open(tmp_path / "run/samples.png") as picture:
        assert picture.width > 600  # ten classes side by side, images above features


def test_a_zip_of_the_same_photographs_is_the_same_data_set(photographs, tmp_path):
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path in sorted((photographs / part).rglob("*.jpg")):
                archive.write(path, path.relative_to(photographs / part))
    audit = run(tmp_path / "train.zip", tmp_path / "test.zip", tmp_path / "run", program=prepare)
    assert audit["images_per_class"] == dict.fromkeys(
        sorted(path.name for path in (photographs / "train").iterdir()), PER_CLASS
    )
