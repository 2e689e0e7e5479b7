"""Conditional queries of a tiny joint model with random weights: conditions, metrics and pictures."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.evaluation import queries
from redi.evaluation.queries import query
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.runs.load import Run
from redi.sampling.generate import Generated
from redi.sampling.pictures import ColourBasis

SAMPLER = Euler(num_evaluations=3)


@pytest.fixture(scope="module")
def digits():
    return Digits(split="held_out", held_out_fraction=0.05)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=3, batch_size=16)
    codec = JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=PCA(rank=3), name="z")]
    )
    prepare(codec=codec, dataset=digits, cache=False, cache_dir=tmp_path_factory.mktemp("cache"))
    return run_of(codec, digits)


def run_of(codec, digits) -> Run:
    torch.manual_seed(0)
    model = DiffusionTransformer(
        channels=codec.channels, grid=(8, 8), num_classes=10, width=16, depth=1, num_heads=2, patch_size=4
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    weights = {"ema": dict(model.named_parameters())}
    colours = ColourBasis.fit(codec.channels, codec.encode_sample(digits, 50))
    return Run(model, codec, FlowMatching(), None, weights, colours, step=7, num_classes=10, image_size=8)


def test_a_label_by_name_is_that_of_its_number(trained, digits, tmp_path):
    trained.class_names = [f"digit {label}" for label in range(10)]
    settings = {"trained": trained, "dataset": digits, "num_images": 2, "num_variations": 1, "sampler": SAMPLER}
    named = query(tmp_path, labels=["digit 3"], **settings)
    assert named == query(tmp_path, labels=[3], **settings) | {"labels": ["digit 3"]}
    with pytest.raises(ValueError, match="no class is named 'digit 33'; did you mean 'digit 3'"):
        query(tmp_path, labels=["digit 33"], **settings)


def test_it_measures_both_questions_and_writes_them(trained, digits, tmp_path):
    result = query(tmp_path, trained=trained, dataset=digits, num_images=4, num_variations=2, sampler=SAMPLER)
    assert json.loads((tmp_path / "queries.json").read_text()) == json.loads(json.dumps(result))
    for question in ("features_given_image", "image_given_features"):
        assert set(result[question]) == {"z"}
        assert all(-1 <= value <= 1 for value in result[question]["z"].values())
    assert (result["function_evaluations"], result["checkpoint_step"], result["labels"]) == (3, 7, "null")


def test_the_picture_has_a_row_for_all_that_was_asked(trained, digits, tmp_path):
    query(tmp_path, trained=trained, dataset=digits, num_images=4, num_variations=2, sampler=SAMPLER)
    with Image.open(tmp_path / "queries.png") as picture:
        width, height = picture.size
    rows = 1 + 2 + 2  # image; features own and drawn; two variations
    assert width > 4 * (64 + 4) + 4  # the title is wider than four images, and is not cut off
    assert height == 22 + rows * 65 + 4 + 12


def test_the_image_s_own_features_agree_with_themselves_alone(trained, digits, tmp_path, monkeypatch):
    images = digits.batch(torch.linspace(0, len(digits) - 1, 4).long().tolist())["images"]

    def perfect(*args, labels, **settings):
        again = images.repeat(len(labels) // 4, 1, 1, 1)
        return Generated(again, trained.codec.encode(again), labels, {})

    monkeypatch.setattr(queries, "generate", perfect)
    result = query(tmp_path, trained=trained, dataset=digits, num_images=4, num_variations=2)
    for question in ("features_given_image", "image_given_features"):
        assert result[question]["z"]["agreement"] == pytest.approx(1, abs=1e-6)
        assert result[question]["z"]["floor"] < 0.99


def test_a_model_of_images_alone_cannot_be_asked(trained, digits, tmp_path):
    plain = run_of(JointCodec(autoencoder=Pixels(channels=1)), digits)
    with pytest.raises(ValueError, match="no representation to query"):
        query(tmp_path, trained=plain, dataset=digits)


@pytest.mark.parametrize(
    ("setting", "message"), [({"labels": "none"}, "query.labels = 'none'"), ({"num_images": 1}, "query.num_images = 1")]
)
def test_settings_that_cannot_work_are_refused(trained, digits, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        query(tmp_path, trained=trained, dataset=digits, **setting)


def test_a_vector_is_asked_about_and_left_out_of_the_picture(digits, tmp_path):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=3, batch_size=16)
    parts = [Representation(encoder, PCA(rank=3), name="z"), Representation(encoder, PCA(rank=5), vector="pooled")]
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=parts)
    prepare(codec=codec, dataset=digits, cache=False, cache_dir=tmp_path)
    settings = {"trained": run_of(codec, digits), "dataset": digits, "num_images": 4, "num_variations": 1}
    result = query(tmp_path, sampler=SAMPLER, **settings)
    for question in ("features_given_image", "image_given_features"):
        assert set(result[question]) == {"z", "domain_pooled"}
        assert all(-1 <= value <= 1 for value in result[question]["domain_pooled"].values())
    with Image.open(tmp_path / "queries.png") as picture:
        assert picture.size[1] == 22 + (1 + 2 + 1) * 65 + 4 + 12
