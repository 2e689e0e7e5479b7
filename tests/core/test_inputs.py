"""Images that are not uint8 (N, 3, H, W) are refused by every component, and the advice in the message works."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.inputs import WrongType, check_images
from redi.data.audit import audit
from redi.data.cache.fits import fit_reducer
from redi.data.datasets import Dataset
from redi.data.datasets.digits import Digits
from redi.evaluation.references import reference_features
from redi.evaluation.samples.feature_store import features_of
from redi.models.autoencoders import Autoencoder, autoencoders
from redi.models.codec import JointCodec, Representation
from redi.models.encoders import Encoder, encoders
from redi.models.reducers import Reducer
from redi.models.reducers.pca import PCA
from redi.sampling.conditional import check_given
from redi.sampling.pictures import thumbnails

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
UNIT = IMAGES.float() / 255
WRONG_DTYPES = {
    "from 0 to 1": UNIT, "from -1 to 1": 2 * UNIT - 1, "half": UNIT.half(), "from 0 to 255": IMAGES.float(),
    "int64": IMAGES.long(), "bool": IMAGES > 127, "an array": IMAGES.numpy(), "a list": [IMAGES[0], IMAGES[1]],
}  # fmt: skip
WRONG_SHAPES = {
    "one image": IMAGES[0], "channels last": IMAGES.permute(0, 2, 3, 1), "one, channels last": IMAGES[0].movedim(0, 2),
    "grey": IMAGES[:, :1], "transparent": torch.cat([IMAGES, IMAGES[:, :1]], dim=1), "flat": IMAGES.flatten(1),
}  # fmt: skip


def refuses(take) -> None:
    """Assert that `take`, a function of images, refuses wrong images."""
    assert issubclass(WrongType, TypeError) and issubclass(WrongType, ValueError)  # see its docstring
    for cases, error in ((WRONG_DTYPES, WrongType), (WRONG_SHAPES, ValueError)):
        for images in cases.values():
            got = re.escape(str(tuple(images.shape))) if isinstance(images, Tensor) else type(images).__name__
            with pytest.raises(error, match=rf"images must be uint8 \(N, 3, [HS], [WS]\), got .*{got}"):
                take(images)


class Patches(Encoder):
    """A minimal plug-in."""

    dim = 12

    def forward(self, images: Tensor) -> Tensor:
        return functional.pixel_unshuffle(images.float() / 255, 2)

    def provenance(self) -> dict:
        return {"encoder": "Patches"}


class Own(Patches):
    """A plug-in whose methods read the images themselves."""

    def pooled(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": images.float().amax(dim=(2, 3))}


class Backbone(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


class Mixed(Backbone, Encoder):
    """A plug-in that gets its features from a class outside the library."""

    dim = 3

    def provenance(self) -> dict:
        return {"encoder": "Mixed"}


class Halves(Autoencoder):
    channels, downsample = 3, 2

    def moments(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images.float(), 2)

    def latents(self, moments: Tensor, randn=torch.randn) -> Tensor:
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents, scale_factor=2).to(torch.uint8)

    def provenance(self) -> dict:
        return {"autoencoder": "Halves"}


class Shifted(Reducer):
    """A plug-in with its own fit."""

    def __init__(self, *, rank: int = 2):
        super().__init__(rank=rank)
        self.register_buffer("mean", None)

    @property
    def fitted(self) -> bool:
        return self.mean is not None

    def fit(self, batches) -> None:
        self.mean = torch.cat(list(batches)).mean(dim=(0, 2, 3))

    def project(self, features: Tensor) -> Tensor:
        return features - self.mean[:, None, None]

    def fit_settings(self) -> dict:
        return {"reducer": "Shifted"}

    def provenance(self) -> dict:
        return self.fit_settings()


@pytest.mark.parametrize("encoder_class", [*encoders.values(), Patches, Own, Mixed])
def test_every_method_of_every_encoder_that_takes_images_refuses_others(encoder_class):
    encoder = encoder_class()  # without weights, which are not needed
    inputs = [encoder.inputs] if hasattr(encoder, "inputs") else []
    for take in (encoder, encoder.forward, encoder.pooled, encoder.metric_features, *inputs):
        refuses(take)
        refuses(lambda images, take=take: take(images=images))
        with pytest.raises(ValueError, match=r"uint8 \(N, 3, S, S\), got \(2, 3, 8, 4\): crop them"):
            take(IMAGES[..., :4])


@pytest.mark.parametrize("autoencoder_class", [*autoencoders.values(), Halves])
def test_every_autoencoder_refuses_other_images_and_bytes_for_latents(autoencoder_class):
    autoencoder = autoencoder_class()
    refuses(autoencoder.moments)
    refuses(JointCodec(autoencoder=autoencoder).precompute)
    refuses(JointCodec(autoencoder=autoencoder).encode)
    with pytest.raises(TypeError, match=r"latents must be floating-point \(N, C, H, W\), got torch.uint8"):
        autoencoder.decode(IMAGES)
    with pytest.raises(ValueError, match=r"latents must be floating-point \(N, C, H, W\), got \(3, 8, 8\)"):
        autoencoder.decode(UNIT[0])


def test_what_is_not_refused_is_what_a_plug_in_makes_of_it():
    assert torch.equal(Patches()(IMAGES), functional.pixel_unshuffle(UNIT, 2))
    assert torch.equal(Own().metric_features(images=IMAGES)["pooled"], IMAGES.float().amax(dim=(2, 3)))
    assert torch.equal(Mixed()(IMAGES), IMAGES.float()) and Mixed().pooled(IMAGES).shape == (2, 3)
    assert torch.equal(Halves().moments(IMAGES[..., :4]), functional.avg_pool2d(IMAGES[..., :4].float(), 2))


@pytest.mark.parametrize("reducer_class", [PCA, Shifted])
def test_reducers_take_features_and_no_images(reducer_class):
    reducer, features = reducer_class(rank=2), Patches()(IMAGES)
    with pytest.raises(TypeError, match="latents must be floating-point .* got torch.uint8: encode images"):
        reducer.fit([features, IMAGES])
    reducer.fit([features])
    for take in (reducer, reducer.project):
        with pytest.raises(TypeError, match="got torch.uint8"):
            take(IMAGES)
        with pytest.raises(ValueError, match=r"floating-point \(N, C, H, W\), got \(12, 4, 4\)"):
            take(features[0])


def test_the_library_refuses_other_images_wherever_they_go_in():
    reducer = PCA(rank=2)
    reducer.fit([Patches()(IMAGES)])
    representation = Representation(encoder=Patches(), reducer=reducer)
    refuses(representation)
    refuses(JointCodec(representations=[representation]).encode)
    refuses(lambda images: thumbnails(images, like=IMAGES))
    for images in (UNIT, IMAGES.movedim(1, 3)):
        with pytest.raises((TypeError, ValueError), match="images must be uint8"):
            features_of(Own(), images, 0)


def test_images_are_no_joint_state():
    codec, channels = JointCodec(), Channels(image=3, z=1)
    with pytest.raises(TypeError, match="joint state of dtype torch.uint8: must be floating-point; use JointCodec"):
        codec.decode(IMAGES)
    with pytest.raises(TypeError, match=r"given\['image'\] must be floating-point .* got torch.uint8: encode images"):
        check_given({"image": IMAGES}, channels, (2, 8, 8))
    check_given({"image": codec.encode(IMAGES)}, channels, (2, 8, 8))


class Floats(Dataset):
    """A plug-in whose images are not bytes, or not (H, W, 3)."""

    def __init__(self, image: np.ndarray):
        super().__init__(names=["first"], labels=np.zeros(1, int), class_names=["all"])
        self.image = image

    def load(self, index: int) -> np.ndarray:
        return self.image

    def provenance(self) -> dict:
        return {}


@pytest.mark.parametrize(
    ("image", "error", "got"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, r"float32 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"uint8 \(3, 8, 8\)"),
        (np.zeros((8, 8), np.uint8), ValueError, r"uint8 \(8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), TypeError, r"torch.uint8 .*8, 8, 3.*"),
        (Image.new("RGB", (8, 8)), TypeError, r"Image \(8, 8, 3\)"),
    ],
)
def test_a_data_set_of_other_images_is_refused_with_its_name_and_the_images(image, error, got, tmp_path):
    for use in (lambda data: data.batch([0]), JointCodec().encode_sample, lambda data: reference_features(data, Own())):
        with pytest.raises(error, match=rf"Floats.load returned {got} for first, but must return uint8 \(H, W, 3\)"):
            use(Floats(image))
    with pytest.raises(ValueError, match=rf"Floats.load returns {got} for first"):
        audit(Floats(image), batch_size=1)


class Tokens(Patches):
    """A plug-in that does not reshape its tokens to the grid."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2).mT  # (N, P, E)


def test_an_encoder_without_a_grid_is_refused_by_name(tmp_path):
    codec = JointCodec(alignment=Tokens())
    with pytest.raises(ValueError, match=r"features of Tokens must be floating-point \(N, C, H, W\), got \(2, 16"):
        codec.precompute(IMAGES)
    with pytest.raises(ValueError, match="features of Tokens must be floating-point"):
        sample = {"num_images": 4, "seed": 0, "batch_size": 2, "device": torch.device("cpu")}
        fit_reducer(tmp_path, PCA(rank=2), Tokens(), Digits(split="held_out"), **sample)


# The advice


@pytest.mark.parametrize("case", ["one image", "channels last", "one, channels last", "transparent", "grey"])
def test_what_a_refusal_of_a_shape_advises_makes_images_of_it(case):
    images, expected = WRONG_SHAPES[case], IMAGES[:1] if case.startswith("one") else IMAGES
    with pytest.raises(ValueError, match=r"take images.*") as caught:
        check_images(images)
    (code,) = re.findall(r"take (images.*)", str(caught.value))
    expected = expected[:, :1].repeat(1, 3, 1, 1) if case == "grey" else expected
    assert torch.equal(check_images(eval(code, {"images": images})), expected)


BYTES = {"from 0 to 1": "255 * images", "from -1 to 1": "127.5 * images + 127.5", "from 0 to 255": "images"}


@pytest.mark.parametrize("case", BYTES)
def test_what_a_refusal_of_floats_advises_makes_the_bytes_of_them(case):
    images, begin = WRONG_DTYPES[case], BYTES[case]
    with pytest.raises(TypeError, match=rf"(take \(|with ){re.escape(begin)}") as caught:
        check_images(images)
    (code,) = re.findall(r"take (\(255 \* images\)[^;]*);", str(caught.value))
    assert torch.equal(eval(code.replace("255 * images", begin), {"torch": torch, "images": images}), IMAGES)
