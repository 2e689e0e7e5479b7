"""A run whose images were moved, copied, touched, taken away or replaced: what the programs then do with it."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.data.audit import audit
from redi.data.datasets.digits import Digits
from redi.data.datasets.image_folder import ImageFolder
from redi.runs.experiment import Experiment
from redi.runs.stages import evaluate_stage, query_stage, sample_stage, train_stage
from redi.runtime.artefact import read_record, write_json, write_record
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import sealed

import_all()
FOLDERS = {"0": "bag", "1": "boot"}  # digits as if they were clothes


def images_gin(tiny: str, images: Path) -> str:
    return (
        tiny.replace("Digits.held_out_fraction = 0.9", "").replace("'digits.gin'", "'images.gin'")
        + f"""
IMAGES = '{images}'
Preprocessing.image_size = 8
DomainEncoder.image_size = 16
evaluator/DomainEncoder.image_size = 16
train.device = 'cpu'
"""
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_gin) -> Path:
    """A folder with images, cache/, own.gin and run/, of two steps."""
    root = tmp_path_factory.mktemp("trained")
    data = Digits(split="all", held_out_fraction=0.0)
    for position in np.flatnonzero(data.labels < 2)[:48]:
        file = root / "images" / FOLDERS[str(data.labels[position])] / f"{position}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.load(position)).save(file)
    (root / "own.gin").write_text(images_gin(Path(tiny_gin).read_text(), root / "images"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDI_CACHE", str(root / "cache"))
        config.parse([root / "own.gin"])
        experiment = Experiment(root / "run")
        experiment.claim(trains=True)
        train_stage(experiment)
    (root / "images").rename(root / "images of another place")
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch, caplog) -> Path:
    """All of it elsewhere, as `cp -r` copies it; no images are where it was trained."""
    shutil.copytree(trained, tmp_path / "place", copy_function=shutil.copyfile)
    (tmp_path / "place" / "images of another place").rename(tmp_path / "place" / "images")
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "place" / "cache"))
    caplog.set_level(logging.INFO)
    return tmp_path / "place"


def opened(place: Path, *bindings: str, trains: bool = False) -> Experiment:
    config.parse([], bindings, saved=[place / "run" / "config.gin"])
    experiment = Experiment(place / "run")
    experiment.claim(trains=trains)
    return experiment


def encoded(place: Path) -> list[Path]:
    return sorted((place / "cache").glob("*/*/*"))


def test_copied_images_resume_the_run_without_encoding_anything_again(place, caplog):
    before = encoded(place)
    train_stage(opened(place, f"IMAGES = '{place / 'images'}'", "train.num_steps = 3", trains=True))
    assert [folder.name for folder in list_checkpoints(place / "run")][-1] == "step_00000003"
    assert encoded(place) == before and "differ from those of" not in caplog.text


def test_with_another_cache_the_contents_in_the_audit_decide(place, caplog, capsys):
    shutil.rmtree(place / "cache")
    train_stage(opened(place, f"IMAGES = '{place / 'images'}'", "train.num_steps = 3", trains=True))
    assert "resuming from" in caplog.text and "differ from those of" not in caplog.text
    assert "images per class" not in capsys.readouterr().out  # not audited again


def test_samples_are_drawn_and_named_without_the_images(place, caplog):
    experiment = opened(place, "sample.labels = ['boot']", "sample.num_images = 3")
    sample_stage(experiment)
    assert "leaving real images out of the picture: ImageFolder.path = " in caplog.text and "looked for" in caplog.text
    assert experiment.run.class_names == redi.load(place / "run").class_names == ["bag", "boot"]
    assert (place / "run" / "samples.png").exists()


def test_evaluation_and_queries_say_which_images_they_need_and_take_them_elsewhere(place, tmp_path):
    sample_stage(opened(place))
    for stage, message in ((evaluate_stage, "looked for .*bind the"), (query_stage, "redi.query needs images.*bind")):
        with pytest.raises(ValueError, match=message):
            stage(opened(place))
    moved = (place / "images").rename(tmp_path / "elsewhere")
    small = "query.num_images = 2", "query.num_variations = 1", "evaluator/DomainEncoder.num_steps = 2"
    for stage in (evaluate_stage, query_stage):
        stage(opened(place, f"IMAGES = '{moved}'", "evaluate.representation = None", *small))
    assert (place / "run" / "queries.png").exists() and (place / "run" / "metrics.json").exists()


def test_one_replaced_image_is_another_data_set_for_training_and_evaluation(place):
    file, audited = sorted((place / "images").rglob("*.bmp"))[0], (place / "run" / "audit.json").read_text()
    Image.new("RGB", (8, 8), "red").save(file)
    for stage in (train_stage, evaluate_stage):
        with pytest.raises(ValueError, match=r"train.dataset differs from the data that .* \(with equal co"):
            stage(opened(place, f"IMAGES = '{place / 'images'}'", "train.num_steps = 3", trains=True))
    file.unlink()
    with pytest.raises(ValueError, match=r"\(4\d images in 2 classes \(bag, boot\) then, 4\d images"):
        opened(place, f"IMAGES = '{place / 'images'}'").train_data  # noqa: B018 - which audits
    assert (place / "run" / "audit.json").read_text() == audited


@pytest.fixture
def older(place):
    """Makes the run one of a version that kept no contents, of these images."""

    def older(dataset) -> None:
        record = audit(dataset, batch_size=16)[1] | {"passed": {"fingerprint": "of other times", "batch_size": 16}}
        kept = {key: value for key, value in record.items() if key not in ("class_names", "left_out")}
        write_json(place / "run" / "audit.json", sealed(kept))
        for checkpoint in list_checkpoints(place / "run"):
            record = read_record(checkpoint)
            record.pop("dataset_contents", None)
            write_record(checkpoint, record | {"dataset": "of other times"})

    return older


def test_an_older_run_of_numbered_classes_is_told_how_to_keep_its_order(place, older):
    (place / "images" / "bag").rename(place / "images" / "10")
    (place / "images" / "boot").rename(place / "images" / "2")
    where = f"IMAGES = '{place / 'images'}'"
    older(ImageFolder(path=str(place / "images"), numeric_order=False, split="train", held_out_fraction=0.1))
    with pytest.raises(ValueError, match=r"\(10, 2\) then, .*\(2, 10\) now.*: bind ImageFolder.numeric_order = False"):
        opened(place, where).train_data  # noqa: B018
    assert opened(place, where, "ImageFolder.numeric_order = False").train_data.class_names == ["10", "2"]


def test_an_older_run_that_kept_no_contents_goes_on_with_as_many_images_of_the_same_classes(place, older):
    where = f"IMAGES = '{place / 'images'}'"
    older(ImageFolder(path=str(place / "images"), split="train", held_out_fraction=0.1))
    assert opened(place, where).train_data.class_names == ["bag", "boot"]
    older(ImageFolder(path=str(place / "images"), split="train", held_out_fraction=0.3))
    with pytest.raises(ValueError, match="train.dataset differs from the data"):
        opened(place, where).train_data  # noqa: B018
