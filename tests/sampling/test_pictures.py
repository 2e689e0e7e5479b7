"""Pictures: the colours of features and the positions of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from redi.data.cache.write import write_cache
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.sampling.generate import Generated
from redi.sampling.pictures import ColourBasis, class_ordered, num_columns, sample_grid, stack, tile


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(40, 1438))


@pytest.fixture(scope="module")
def encoder(images):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    encoder.fit(images)
    return encoder


@pytest.fixture(scope="module")
def fitted(encoder, images):
    """Return a function that returns the codec of a rank."""

    def fitted(rank):
        reducer = PCA(rank=rank)
        reducer.fit([encoder(images.batch(range(40))["images"])])
        representation = Representation(encoder=encoder, reducer=reducer, name="z")
        return JointCodec(autoencoder=Pixels(channels=1), representations=[representation])

    return fitted


def features_of(codec, images, positions):
    return codec.channels.split(codec.encode(images.batch(positions)["images"]))["z"]


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_colours_are_bytes_on_the_grid_of_the_features(fitted, images, rank):
    codec = fitted(rank)
    rgb = ColourBasis.fit(codec.channels, codec.encode_sample(images))("z", features_of(codec, images, range(4)))
    assert rgb.shape == (4, 3, 8, 8)
    assert rgb.dtype == torch.uint8


def test_equal_features_have_equal_colours_in_any_batch(fitted, images):
    codec = fitted(5)
    colours = ColourBasis.fit(codec.channels, codec.encode_sample(images))
    features = features_of(codec, images, range(6))
    together = colours("z", features)
    for i in range(6):
        assert torch.equal(colours("z", features[i : i + 1])[0], together[i])


def test_colours_of_one_channel_are_grey(fitted, images):
    codec = fitted(1)
    rgb = ColourBasis.fit(codec.channels, codec.encode_sample(images))("z", features_of(codec, images, range(4)))
    assert torch.equal(rgb[:, 0], rgb[:, 1])
    assert torch.equal(rgb[:, 0], rgb[:, 2])


def test_the_basis_is_that_of_the_principal_components(fitted, images):
    codec = fitted(5)
    features = features_of(codec, images, range(40))
    rows = features.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    centred = rows - rows.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ components[:3].T
    colours = ColourBasis.fit(codec.channels, codec.encode_sample(images))
    rgb = colours("z", features).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    for channel in range(3):
        low, high = np.quantile(projected[:, channel], [0.01, 0.99])
        expected = np.clip((projected[:, channel] - low) / (high - low), 0, 1) * 255
        flipped = 255 - np.clip((projected[:, channel] - low) / (high - low), 0, 1) * 255  # the sign is a convention
        error = min(abs(rgb[:, channel] - expected).max(), abs(rgb[:, channel] - flipped).max())
        assert error <= 1  # rounding to bytes, at the edge of float32


def test_the_basis_from_a_cache_is_that_from_the_images(fitted, images, tmp_path):
    codec = fitted(3)
    from_images = ColourBasis.fit(codec.channels, codec.encode_sample(images))
    from_cache = ColourBasis.fit(
        codec.channels, codec.encode_sample(write_cache(tmp_path / "cache", codec, images, batch_size=40))
    )
    for name, tensor in from_images.tensors.items():
        assert torch.equal(tensor, from_cache.tensors[name])


def test_the_image_alone_needs_no_colours(images):
    codec = JointCodec(autoencoder=Pixels(channels=1))
    assert ColourBasis.fit(codec.channels, codec.encode_sample(images)).tensors == {}


def plain(colour, size=10):
    return Image.new("RGB", (size, size), colour)


def test_a_sheet_has_room_for_every_stack():
    sheet = tile([[plain("red")] * 7, [plain("blue")] * 7], list(range(7)), "", columns=3)
    assert sheet.size == (3 * 14 + 4, 4 + 3 * (2 * 11 + 4 + 12))


def test_entries_fill_the_sheet_row_by_row_with_layers_under_each_other():
    upper = [plain((i, 0, 0)) for i in range(5)]
    lower = [plain((0, i, 0)) for i in range(5)]
    sheet = np.asarray(tile([upper, lower], list(range(5)), "", columns=2))
    for i in range(5):
        left, top = 4 + i % 2 * 14, 4 + i // 2 * 38 + 12
        assert (sheet[top : top + 10, left : left + 10] == (i, 0, 0)).all()
        assert (sheet[top + 11 : top + 21, left : left + 10] == (0, i, 0)).all()


def test_a_long_name_stays_inside_its_own_column():
    cells = [[plain("white", 40)] * 2]
    blank, named = (np.asarray(tile(cells, [name, ""], "", columns=2)) for name in ("", "a class\nwith a long name"))
    changed = (blank != named).any(axis=(0, 2)).nonzero()[0]
    assert len(changed) and 4 <= changed.min() and changed.max() < 4 + 40


def test_a_grid_shows_images_above_their_features(fitted, images):
    codec = fitted(3)
    batch = images.batch(range(12))
    colours = ColourBasis.fit(codec.channels, codec.encode_sample(images))
    drawn = Generated(batch["images"], codec.encode(batch["images"]), batch["labels"], {})
    sheet = np.asarray(sample_grid(drawn, codec, colours, columns=4))
    rgb = colours("z", codec.channels.split(drawn.x)["z"])
    for i in (0, 5, 11):
        left, top = 4 + i % 4 * 68, 4 + i // 4 * (2 * 65 + 16) + 12
        shown = sheet[top : top + 64 : 8, left : left + 64 : 8].transpose(2, 0, 1)  # 8 pixels a side each
        assert np.array_equal(shown, batch["images"][i].numpy())
        shown = sheet[top + 65 : top + 129 : 8, left : left + 64 : 8].transpose(2, 0, 1)
        assert np.array_equal(shown, rgb[i].numpy())


def test_stacked_pictures_keep_their_size():
    sheet = stack([plain("red", 4), plain("blue", 6)])
    assert sheet.size == (6, 10)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((5, 5)) == (0, 0, 255)
    assert sheet.getpixel((5, 0)) == (255, 255, 255)


def test_columns_are_classes():
    labels = torch.tensor([2, 0, 1, 0, 1, 2, 0, 2, 1])
    chosen = class_ordered(labels, columns=3, rows=2)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(chosen.tolist())) == 6


def test_one_class_alone_fills_the_rows():
    assert class_ordered(torch.zeros(20, dtype=torch.int64), columns=5, rows=2).tolist() == list(range(10))


def test_columns_stay_classes_where_one_class_is_short():
    labels = torch.tensor([0, 0, 1, 2, 2])
    chosen = class_ordered(labels, columns=3, rows=2)
    assert [int(labels[i]) for i in chosen[:3]] == [0, 1, 2]
    assert len(chosen) <= 6


def test_every_column_shows_one_class_where_the_classes_have_different_counts():
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([9, 3, 5, 2, 7])
    labels = torch.arange(5).repeat_interleave(counts)[torch.randperm(26, generator=generator)]
    for columns in (2, 4, 5):
        chosen = class_ordered(labels, columns, rows=4)
        shown = labels[chosen].reshape(-1, columns)
        assert len(shown) == min(4, int(counts[:columns].min()))  # whole rows
        assert (shown == torch.arange(columns)).all()
        assert len(set(chosen.tolist())) == len(chosen)


@pytest.mark.parametrize(
    ("labels", "columns", "shows"),
    [
        ([3, 7] * 9, 10, 18),
        ([0, 1, 2, 3] * 50, 8, 32),
        ([5] * 12, 10, 12),
        (list(range(30)) * 2, 10, 20),
        ([0, 1, 2], 3, 3),
    ],  # fmt: skip
)
def test_a_sheet_has_columns_of_one_class_each_and_is_as_wide_for_few_classes(labels, columns, shows):
    labels = torch.tensor(labels)
    assert num_columns(labels) == columns
    shown = labels[class_ordered(labels, columns, rows=4)].tolist()
    assert len(shown) == shows
    for column in range(columns):
        assert len(set(shown[column::columns])) == 1
