import pytest
import torch

from redi.core.channels import Channels

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
