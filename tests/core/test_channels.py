import json

import pytest
import torch

from redi.core.channels import Channels, Vector

CHANNELS = Channels(image=3, dino=2, clip=4)


@pytest.fixture
def x():
    return torch.randn(5, 9, 4, 6, generator=torch.Generator().manual_seed(0))


def test_it_is_an_ordered_mapping_from_group_to_size():
    assert dict(CHANNELS) == {"image": 3, "dino": 2, "clip": 4} and list(CHANNELS) == ["image", "dino", "clip"]
    assert CHANNELS.total == 9 and CHANNELS.representations == ("dino", "clip")
    assert CHANNELS == {"image": 3, "dino": 2, "clip": 4} and "sam" not in CHANNELS


def test_its_representation_can_be_evaluated():
    assert eval(repr(CHANNELS)) == CHANNELS


def test_slices_follow_each_other_and_cover_every_channel():
    covered = [i for name in CHANNELS for i in range(CHANNELS.total)[CHANNELS.slice(name)]]
    assert covered == list(range(9))


def test_split_gives_what_the_slices_give(x):
    parts = CHANNELS.split(x)
    assert list(parts) == list(CHANNELS)
    for name, part in parts.items():
        assert torch.equal(part, x[:, CHANNELS.slice(name)])


def test_split_gives_views(x):
    CHANNELS.split(x)["dino"].zero_()
    assert (x[:, 3:5] == 0).all() and (x[:, :3] != 0).all()


def test_join_inverts_split_in_any_order_of_the_groups(x):
    parts = CHANNELS.split(x)
    assert torch.equal(CHANNELS.join(parts), x)
    assert torch.equal(CHANNELS.join(dict(reversed(parts.items()))), x)


def test_mask_zeroes_every_representation_of_the_dropped_samples_alone(x):
    drop = torch.tensor([True, False, True, False, False])
    expected = x.clone()
    expected[drop, 3:] = 0
    assert torch.equal(CHANNELS.mask(x, drop), expected)


def test_mask_zeroes_the_named_groups_alone(x):
    masked = CHANNELS.mask(x, torch.ones(5, dtype=torch.bool), groups=["clip"])
    assert torch.equal(masked[:, :5], x[:, :5]) and (masked[:, 5:] == 0).all()


def test_mask_can_take_the_image_too(x):
    masked = CHANNELS.mask(x, torch.ones(5, dtype=torch.bool), groups=["image"])
    assert (masked[:, :3] == 0).all() and torch.equal(masked[:, 3:], x[:, 3:])


def test_mask_leaves_its_input_and_its_dtype_alone(x):
    before = x.clone()
    masked = CHANNELS.mask(x.double(), torch.ones(5, dtype=torch.bool))
    assert torch.equal(x, before) and masked.dtype == torch.float64


def test_nothing_masked_is_the_identity(x):
    assert torch.equal(CHANNELS.mask(x, torch.zeros(5, dtype=torch.bool)), x)
    assert torch.equal(CHANNELS.mask(x, torch.ones(5, dtype=torch.bool), groups=[]), x)


def test_no_gradient_reaches_what_is_masked(x):
    x.requires_grad_()
    CHANNELS.mask(x, torch.ones(5, dtype=torch.bool)).sum().backward()
    assert (x.grad[:, :3] == 1).all() and (x.grad[:, 3:] == 0).all()


def test_per_channel_repeats_each_value_over_its_group(x):
    weights = CHANNELS.per_channel({"clip": 3.0, "image": 1.0, "dino": 2.0}, like=x.double())
    assert weights.shape == (1, 9, 1, 1) and weights.dtype == torch.float64
    assert weights.flatten().tolist() == [1.0] * 3 + [2.0] * 2 + [3.0] * 4


def test_an_image_alone_has_no_representations(x):
    channels = Channels(image=9)
    assert channels.representations == ()
    assert torch.equal(channels.mask(x, torch.ones(5, dtype=torch.bool)), x)


@pytest.mark.parametrize("sizes", [{}, {"dino": 2}, {"dino": 2, "image": 3}])
def test_the_image_must_come_first(sizes):
    with pytest.raises(ValueError, match="channel groups .*: the first must be 'image'"):
        Channels(**sizes)


def test_a_group_without_channels_is_refused_by_name():
    with pytest.raises(ValueError, match=r"channel groups \{'dino': 0\}: every size must be at least 1"):
        Channels(image=3, dino=0)


def test_an_unknown_group_is_refused_with_the_known_ones(x):
    with pytest.raises(ValueError, match="no channel group 'sam': must be one of image, dino, clip"):
        CHANNELS.slice("sam")
    with pytest.raises(ValueError, match="no channel group 'sam'"):
        CHANNELS.mask(x, torch.ones(5, dtype=torch.bool), groups=["sam"])


@pytest.mark.parametrize("shape", [(5, 8, 4, 6), (5, 9, 4), (9, 4, 6)])
def test_a_state_of_another_shape_is_refused(shape):
    for refuse in (CHANNELS.split, lambda x: CHANNELS.mask(x, torch.ones(5, dtype=torch.bool))):
        with pytest.raises(ValueError, match=r"joint state of shape .*: must be \(N, 9, H, W\) for Channels"):
            refuse(torch.zeros(shape))


def test_groups_of_other_sizes_do_not_join(x):
    with pytest.raises(ValueError, match="joint state of shape"):
        CHANNELS.join(CHANNELS.split(x) | {"dino": x[:, :1]})


# Vectors

WITH_VECTOR = Channels(image=2, dino=1, token=Vector(5, channels=2))  # on a grid of 2 x 2: 5 numbers, 3 of padding


@pytest.fixture
def state():
    return torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def test_a_vector_takes_as_few_channels_as_hold_it():
    assert [Vector.on_grid(length, (4, 6)).channels for length in (1, 24, 25, 48)] == [1, 1, 2, 2]


def test_a_vector_is_stored_row_by_row_with_zeros_after_it():
    numbers = torch.arange(1.0, 6.0)[None]
    stored = WITH_VECTOR.stored("token", numbers, (2, 2))
    assert stored.tolist() == [[[[1, 2], [3, 4]], [[5, 0], [0, 0]]]]
    assert torch.equal(WITH_VECTOR.vector("token", stored), numbers)


def test_trim_zeroes_the_padding_alone(state):
    expected = state.clone()
    expected[:, 4, 0, 1] = expected[:, 4, 1] = 0
    assert torch.equal(WITH_VECTOR.trim(state), expected)
    assert CHANNELS.trim(x := torch.ones(1, 9, 2, 2)) is x


def test_no_gradient_reaches_padding(state):
    state.requires_grad_()
    (WITH_VECTOR.trim(state).sum() + sum(WITH_VECTOR.means(state).values()).sum()).backward()
    assert not state.grad[:, 4].flatten(1)[:, 1:].any() and (state.grad[:, :4] != 0).all()


def test_means_of_a_vector_are_those_of_its_numbers(state):
    means = WITH_VECTOR.means(state)
    torch.testing.assert_close(means["token"], state[:, 3:].flatten(1)[:, :5].mean(1))
    torch.testing.assert_close(means["image"], state[:, :2].flatten(1).mean(1))


def test_a_record_is_json_and_gives_the_channels_back():
    record = json.loads(json.dumps(WITH_VECTOR.record()))
    again = Channels(**record)
    assert again == WITH_VECTOR and again.vectors == {"token": 5} and again.maps == ("image", "dino")
    assert eval(repr(WITH_VECTOR)).vectors == {"token": 5}
    assert CHANNELS.record() == dict(CHANNELS)  # as in older checkpoints


@pytest.mark.parametrize(("length", "grid"), [(4, (2, 2)), (6, (2, 2)), (5, (2, 1))])
def test_vectors_that_the_channels_do_not_hold_are_refused(length, grid):
    with pytest.raises(ValueError, match=r"vectors \(1, .*\) of token in 2 channels of 2 x .: must be \(N, 5\)"):
        WITH_VECTOR.stored("token", torch.ones(1, length), grid)


def test_the_image_cannot_be_a_vector():
    with pytest.raises(ValueError, match="'image' is a Vector: must be a map on the grid"):
        Channels(image=Vector(5, 2))
    with pytest.raises(ValueError, match="every size must be at least 1"):
        Channels(image=1, token=Vector(0, 1))
