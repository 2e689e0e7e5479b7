import copy
import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.autoencoders.tiny_vae import TinyVAE
from redi.models.codec import JointCodec, Representation
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.identity import Identity
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection
from redi.sampling.networks import differing_groups


class PatchEncoder(Encoder):
    """The pixels of every patch as its features: an encoder without weights."""

    def __init__(self, patch_size: int = 2):
        super().__init__()
        self.patch_size = patch_size
        self.dim = 3 * patch_size**2

    def forward(self, images: Tensor) -> Tensor:
        return functional.pixel_unshuffle(images.float() / 255, self.patch_size)

    def provenance(self) -> dict:
        return {"encoder": "PatchEncoder", "patch_size": self.patch_size}


def images(n: int = 4, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


def representation(reducer=None, *, patch_size: int = 2, fit: bool = True, **settings) -> Representation:
    made = Representation(encoder=PatchEncoder(patch_size), reducer=reducer or PCA(rank=4), **settings)
    if fit:
        made.reducer.fit([made.encoder(images(32, seed=9))])
    return made


def two() -> JointCodec:
    """image 1, b 5 and a 2 channels, in this order."""
    return JointCodec(
        autoencoder=Pixels(channels=1),
        representations=[
            representation(GaussianRandomProjection(rank=5), name="b", patch_size=4),
            representation(PCA(rank=2), name="a"),
        ],
    )


def test_channels_are_the_image_and_then_the_representations_in_the_order_given():
    assert dict(two().channels) == {"image": 1, "b": 5, "a": 2}
    assert list(two().channels) == ["image", "b", "a"]


def test_a_codec_without_arguments_is_colour_pixels_alone():
    codec = JointCodec()
    assert dict(codec.channels) == {"image": 3}
    assert codec.fitted
    assert torch.equal(codec.decode(codec.encode(images())), images())


def test_a_representation_is_called_as_its_encoder_by_default():
    assert dict(JointCodec(representations=[representation()]).channels) == {"image": 3, "patch": 4}


def test_encode_gives_the_joint_state_in_float32_on_the_latent_grid():
    x = two().encode(images())
    assert x.shape == (4, 8, *two().grid(8))
    assert x.dtype == torch.float32


def test_encode_is_precompute_then_join():
    codec = two()
    assert torch.equal(codec.encode(images()), codec.join(codec.precompute(images())))


def test_join_reads_the_stored_tensors_alone():
    stored = two().precompute(images())
    other = two()
    for name in ("a", "b"):
        other.representations[name].encoder.forward = None  # would fail if it were called
    assert torch.equal(other.join(stored), two().encode(images()))


def test_decoding_the_encoded_gives_the_image_back():
    codec = JointCodec(representations=[representation()])
    assert torch.equal(codec.decode(codec.encode(images())), images())


def test_decode_reads_only_the_image_group():
    codec = JointCodec(representations=[representation()])
    x = codec.encode(images())
    x[:, 3:] = torch.nan
    assert torch.equal(codec.decode(x), images())


def test_the_image_group_is_the_autoencoders_latents():
    expected = Pixels(channels=1).latents(Pixels(channels=1).moments(images()))
    assert torch.equal(two().encode(images())[:, :1], expected)


def test_stored_representations_are_float16_on_the_encoders_own_grid():
    stored = two().precompute(images())
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        "image": ((4, 1, 8, 8), torch.uint8),
        "b": ((4, 5, 2, 2), torch.float16),
        "a": ((4, 2, 4, 4), torch.float16),
    }


def test_stored_representations_are_the_reduced_features():
    codec = two()
    for name, own in codec.representations.items():
        expected = own.reducer.project(own.encoder(images()))
        torch.testing.assert_close(codec.precompute(images())[name].float(), expected, rtol=2**-11, atol=1e-6)


def bilinear(grid: Tensor, height: int, width: int) -> Tensor:
    """(h, w) -> (height, width): pixel centres aligned, edges repeated; one output at a time."""
    h, w = grid.shape
    out = torch.empty(height, width, dtype=grid.dtype)
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - x + left) + grid[bottom, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("name", ["a", "b"])
def test_representations_are_resized_bilinearly_to_the_latent_grid(name):
    codec = two()
    stored = codec.precompute(images(1))
    own = codec.channels.split(codec.join(stored))[name][0]
    scaled = codec.representations[name].reducer.finish(stored[name])[0]
    for channel, grid in zip(own, scaled.double(), strict=True):
        torch.testing.assert_close(channel.double(), bilinear(grid, 8, 8), rtol=1e-5, atol=1e-5)


def test_a_representation_on_the_latent_grid_is_not_resized():
    codec = JointCodec(representations=[representation(PCA(rank=2), patch_size=1)])
    stored = codec.precompute(images())
    assert torch.equal(codec.join(stored)[:, 3:], codec.representations["patch"].reducer.finish(stored["patch"]))


def test_encoding_takes_no_gradient_and_trains_nothing():
    codec = two()
    codec.train()
    assert not any(module.training for module in codec.modules())
    assert not codec.encode(images()).requires_grad


def test_a_codec_is_fitted_when_all_its_parts_are():
    unfitted = representation(fit=False)
    codec = JointCodec(representations=[representation(name="ready"), unfitted])
    assert not codec.fitted
    unfitted.reducer.fit([unfitted.encoder(images(32))])
    assert codec.fitted


# What was learned


def digits_codec(*, fit: bool, width: int = 16, **settings) -> JointCodec:
    encoder = DomainEncoder(width=width, depth=1, image_size=8, num_steps=2, **settings)
    made = Representation(encoder=encoder, reducer=PCA(rank=4))
    if fit:
        encoder.fit(Digits(split="held_out"))
        made.reducer.fit([encoder(images(32))])
    return JointCodec(representations=[made])


def test_learned_state_round_trip_restores_encoder_and_reducer():
    codec, other = digits_codec(fit=True), digits_codec(fit=False)
    other.load_learned_state(codec.learned_state())
    assert other.fitted
    assert torch.equal(other.encode(images()), codec.encode(images()))
    assert other.fingerprint() == codec.fingerprint()


def test_learned_state_has_no_weights_of_an_encoder_that_does_not_learn():
    assert {key.split(".")[1] for key in two().learned_state()} == {"reducer"}
    assert {key.split(".")[1] for key in digits_codec(fit=True).learned_state()} == {"encoder", "reducer"}


def test_learned_state_survives_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    codec, other = digits_codec(fit=True), digits_codec(fit=False)
    save_file(codec.learned_state(), tmp_path / "codec.safetensors")
    other.load_learned_state(load_file(tmp_path / "codec.safetensors"))
    assert torch.equal(other.encode(images()), codec.encode(images()))


def test_state_of_a_codec_with_other_representations_is_refused():
    message = r"stored codec has \['a.reducer', 'b.reducer'\], but the configured one has \['patch"
    with pytest.raises(ValueError, match=message):
        JointCodec(representations=[representation()]).load_learned_state(two().learned_state())


def test_state_of_an_encoder_of_another_width_is_refused():
    state = digits_codec(fit=True, width=16).learned_state()
    with pytest.raises(ValueError, match=r"(?s)does not match the configured one.*domain.encoder"):
        digits_codec(fit=False, width=24).load_learned_state(state)


# Fingerprint


def test_fingerprint_is_the_same_for_the_same_codec():
    assert two().fingerprint() == two().fingerprint()


def test_provenance_is_json():
    for codec in (two(), digits_codec(fit=False), JointCodec()):
        assert json.loads(json.dumps(codec.provenance())) == codec.provenance()


@pytest.mark.parametrize(
    "other",
    [
        lambda: JointCodec(representations=[representation(PCA(rank=3))]),
        lambda: JointCodec(representations=[representation(PCA(rank=4, scale="raw"))]),
        lambda: JointCodec(representations=[representation(GaussianRandomProjection(rank=4))]),
        lambda: JointCodec(representations=[representation(patch_size=4)]),
        lambda: JointCodec(representations=[representation(name="other")]),
        lambda: JointCodec(representations=[representation(fit=False)]),
        lambda: JointCodec(representations=[representation()], autoencoder=Pixels(channels=1)),
        lambda: JointCodec(representations=[representation(), representation(name="second")]),
        lambda: JointCodec(),
    ],
    ids=["rank", "scale", "reducer", "encoder", "name", "fit", "autoencoder", "second", "none"],
)
def test_fingerprint_changes_with(other):
    assert other().fingerprint() != JointCodec(representations=[representation()]).fingerprint()


@pytest.mark.parametrize("part", ["encoder", "reducer"])
def test_fingerprint_changes_with_one_learned_weight(part):
    codec = digits_codec(fit=True)
    changed = copy.deepcopy(codec)
    state = getattr(changed.representations["domain"], part).state_dict()
    next(t for t in state.values() if t.ndim > 1).view(-1)[0] += 1e-3
    assert changed.fingerprint() != codec.fingerprint()


def changed(name: str, reducer, seed: int = 9) -> JointCodec:
    """The codec `two` with another reducer of the group `name`, fitted to the images of `seed`."""
    codec = two()
    reducer.fit([codec.representations[name].encoder(images(32, seed=seed))])
    codec.representations[name].reducer = reducer
    return codec


# Joint states


@pytest.mark.parametrize(
    ("other", "groups"),
    [
        (two, []),
        (lambda: JointCodec(Pixels(channels=1), list(two().representations.values()), alignment=PatchEncoder()), []),
        (lambda: JointCodec(Pixels(channels=1), list(two().representations.values()), precision="tf32"), []),
        (lambda: JointCodec(Pixels(channels=3), list(two().representations.values())), ["image"]),
        (lambda: changed("a", PCA(rank=2, scale="raw")), ["a"]),
        (lambda: changed("a", PCA(rank=2), seed=3), ["a"]),
        (lambda: JointCodec(Pixels(channels=1), [representation(PCA(rank=2), name="a", fit=False)]), []),
    ],
    ids=["same", "alignment", "precision", "autoencoder", "scale", "fit", "not fitted"],
)
def test_codecs_differ_in_the_groups_that_they_compute_differently(other, groups):
    assert differing_groups(two(), other()) == groups and differing_groups(other(), two()) == groups


def test_a_fit_of_images_that_have_moved_is_the_same():
    here, there = two(), two()
    for codec, path in ((here, "images"), (there, "disk/images")):
        encoder = codec.representations["a"].encoder.provenance()
        codec.representations["a"].reducer.record_fit(encoder=encoder, sample={"path": path})
    assert here.fingerprint() != there.fingerprint() and differing_groups(here, there) == []
    there.representations["a"].reducer.record_fit(encoder={"encoder": "another"}, sample={})
    assert differing_groups(here, there) == ["a"]


# Precision of the networks


class Smoothing(Encoder):
    """A convolution, of which autocast makes one in bfloat16; notes under which settings it ran."""

    def __init__(self):
        super().__init__()
        self.dim = 8
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        generator = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(self.convolution.weight, std=0.2, generator=generator)
        self.matmul = None

    def forward(self, images: Tensor) -> Tensor:
        self.matmul = torch.get_float32_matmul_precision()
        return self.convolution(images.float() / 255)

    def provenance(self) -> dict:
        return {"encoder": "Smoothing"}


def smooth_codec(**settings) -> JointCodec:
    made = Representation(encoder=Smoothing(), reducer=PCA(rank=4))
    made.reducer.fit([made.encoder(images(32, seed=9))])
    return JointCodec(representations=[made], alignment=Smoothing(), **settings)


def test_in_float32_the_networks_run_as_they_are():
    codec = smooth_codec()
    own = codec.representations["smoothing"]
    stored = codec.precompute(images())
    assert torch.equal(stored["smoothing"], own.reducer.project(own.encoder(images())).half())
    assert torch.equal(stored["alignment"], codec.alignments["alignment"](images()).half())


def test_bfloat16_gives_nearly_what_float32_gives():
    exact, rough = smooth_codec().precompute(images()), smooth_codec(precision="bfloat16").precompute(images())
    assert {name: (t.shape, t.dtype) for name, t in rough.items()} == {n: (t.shape, t.dtype) for n, t in exact.items()}
    for name in ("smoothing", "alignment"):
        a, b = exact[name].float(), rough[name].float()
        assert 0 < (a - b).norm() < 2**-7 * a.norm()  # inputs, weights and outputs are rounded by at most 2^-9 each


@pytest.mark.parametrize(("precision", "matmul"), [("float32", "highest"), ("tf32", "high"), ("bfloat16", "high")])
def test_float32_products_may_be_rounded_in_the_networks_alone(precision, matmul):
    codec = smooth_codec(precision=precision)
    codec.precompute(images())
    assert codec.representations["smoothing"].encoder.matmul == codec.alignments["alignment"].matmul == matmul
    assert torch.get_float32_matmul_precision() == "highest"


def test_reducers_run_in_float32_whatever_the_networks_do():
    codec = smooth_codec(precision="bfloat16")
    own = codec.representations["smoothing"]
    with torch.autocast("cpu", torch.bfloat16):
        features = own.encoder(images()).float()
    assert torch.equal(codec.precompute(images())["smoothing"], own.reducer.project(features).half())


def test_a_pretrained_autoencoder_follows_the_codec(tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    sizes |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    AutoencoderTiny(**sizes).save_pretrained(tmp_path)
    moments = {
        precision: JointCodec(autoencoder=TinyVAE(weights=str(tmp_path)), precision=precision).precompute(images())
        for precision in ("float32", "tf32", "bfloat16")
    }
    own = TinyVAE(weights=str(tmp_path), precision="bfloat16").moments(images())
    assert torch.equal(moments["bfloat16"]["image"], own)
    assert torch.equal(moments["float32"]["image"], TinyVAE(weights=str(tmp_path)).moments(images()))
    assert not torch.equal(moments["float32"]["image"], own)


def test_every_precision_has_caches_of_its_own_and_float32_those_that_there_were():
    codecs = [smooth_codec(**{"precision": precision}) for precision in ("float32", "tf32", "bfloat16")]
    assert len({codec.cache_fingerprint() for codec in codecs}) == len({codec.fingerprint() for codec in codecs}) == 3
    assert "precision" not in codecs[0].provenance() and "precision" not in codecs[0].cache_provenance()
    assert codecs[2].cache_provenance()["precision"] == "bfloat16"


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="JointCodec.precision = 'fp16': must be 'float32', 'tf32' or 'bfloat16'"):
        JointCodec(precision="fp16")


# Refusals


@pytest.mark.parametrize("names", [["a", "a"], ["image"], ["b", "image"]])
def test_groups_of_the_same_name_are_refused(names):
    with pytest.raises(ValueError, match="must differ from each other, image and alignment_<encoder>"):
        JointCodec(representations=[representation(name=name) for name in names])


@pytest.mark.parametrize("name", ["loss", "labels", "images", "keys", "dino.v2", "two words", "learning_rate"])
def test_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(ValueError, match=f"Representation.name = '{name}': must be an identifier .*such as 'patch'"):
        representation(name=name)


def test_a_rank_above_the_encoders_width_is_refused():
    with pytest.raises(ValueError, match="PCA.rank = 13 exceeds the encoder width 12 of PatchEncoder"):
        representation(PCA(rank=13), fit=False)


def test_a_reducer_given_as_encoder_is_refused():
    with pytest.raises(ValueError, match="Representation.encoder must be one of encoders .* got .*PCA"):
        Representation(encoder=PCA(), reducer=PCA())


def test_an_encoder_given_as_representation_is_refused():
    with pytest.raises(ValueError, match="JointCodec.representations holds .*: must be Representation objects"):
        JointCodec(representations=[PatchEncoder()])


def test_the_class_of_an_autoencoder_is_refused():
    with pytest.raises(ValueError, match="JointCodec.autoencoder must be one of autoencoders .* got the class Pixels"):
        JointCodec(autoencoder=Pixels)


def test_an_image_size_that_the_autoencoder_cannot_divide_is_refused():
    codec = JointCodec()
    codec.autoencoder.downsample = 8
    assert codec.grid(24) == (3, 3)
    message = "Pixels cannot encode images of 20 pixels: set Preprocessing.image_size to a multiple of 8"
    with pytest.raises(ValueError, match=message):
        codec.grid(20)


def test_a_state_with_other_channels_cannot_be_decoded():
    with pytest.raises(ValueError, match=r"joint state of shape .*: must be \(N, 8, H, W\)"):
        two().decode(torch.zeros(1, 3, 8, 8))


def test_an_upgrade_of_a_library_makes_no_other_codec():
    class Versioned(PatchEncoder):
        version = "1.0"

        def provenance(self) -> dict:
            return super().provenance() | {"timm": self.version}

    encoder, reducer = Versioned(), PCA(rank=2)
    reducer.fit([encoder(images(32))])
    codec = JointCodec(representations=[Representation(encoder=encoder, reducer=reducer)])
    before = codec.fingerprint(), codec.cache_fingerprint(), codec.provenance()
    encoder.version = "2.0"
    assert (codec.fingerprint(), codec.cache_fingerprint()) == before[:2]
    assert codec.provenance() != before[2]  # but the record says it


# Encoders of REPA


def test_one_alignment_encoder_gives_the_same_codec_alone_and_in_a_list():
    alone, listed, named = (
        JointCodec(alignment=part) for part in (PatchEncoder(), [PatchEncoder()], {"a": PatchEncoder()})
    )
    assert list(alone.precompute(images())) == ["image", "alignment"]
    assert alone.provenance()["alignment"] == PatchEncoder().provenance()
    assert alone.fingerprint() == listed.fingerprint() == named.fingerprint()
    assert JointCodec(alignment=[]).fingerprint() == JointCodec().fingerprint()


def test_each_of_several_alignment_encoders_is_stored_and_part_of_the_fingerprint():
    codec = JointCodec(alignment={"fine": PatchEncoder(2), "coarse": PatchEncoder(4)})
    stored = codec.precompute(images())
    assert {name: tuple(t.shape) for name, t in stored.items() if name != "image"} == {
        "alignment_fine": (4, 12, 4, 4), "alignment_coarse": (4, 48, 2, 2)
    }  # fmt: skip
    assert list(codec.precompute(images(), alignment=False)) == ["image"]
    fingerprints = {JointCodec(alignment=part).cache_fingerprint() for part in (None, PatchEncoder(2), PatchEncoder(4))}
    assert len(fingerprints | {codec.cache_fingerprint()}) == 4


class Unused(PatchEncoder):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the joint state does not need these features")


def test_the_joint_state_is_encoded_without_the_alignment_encoders():
    codec, plain = (JointCodec(representations=[representation()], alignment=part) for part in (Unused(), None))
    assert torch.equal(codec.encode(images()), plain.encode(images()))
    assert torch.equal(codec.encode_sample(Digits(), 8), plain.encode_sample(Digits(), 8))


def test_alignment_encoders_of_one_name_and_of_other_kinds_are_refused():
    with pytest.raises(
        ValueError, match=r"JointCodec\.alignment has encoders named \['patch', 'patch'\].*bind \{'small'"
    ):
        JointCodec(alignment=[PatchEncoder(2), PatchEncoder(4)])
    with pytest.raises(ValueError, match=r"JointCodec\.alignment must be one of encoders"):
        JointCodec(alignment=[PatchEncoder(2), PCA(rank=2)])
    with pytest.raises(ValueError, match="must differ from each other, image and alignment_<encoder>"):
        parts = {"a": PatchEncoder(2), "b": PatchEncoder(4)}
        JointCodec(representations=[representation(name="alignment_b")], alignment=parts)


# Vectors


class WithToken(PatchEncoder):
    """The mean and the spread of the patches as class token."""

    has_class_token = True

    def class_token(self, images: Tensor) -> Tensor:
        features = self(images)
        return torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)[:, : self.dim]


def token(reducer=None, encoder=None, **settings) -> Representation:
    made = Representation(encoder or WithToken(), reducer or PCA(rank=7), **{"vector": "class"} | settings)
    made.reducer.fit([made.features(images(32, seed=9))])
    return made


def test_a_vector_is_the_reduced_class_token_or_pooled_vector():
    encoder = WithToken()
    codec = JointCodec(
        representations=[representation(), token(encoder=encoder), token(encoder=encoder, vector="pooled")]
    )
    x = codec.encode(images())
    channels = codec.channels
    assert channels.vectors == {"withtoken_class": 7, "withtoken_pooled": 7} and x.shape == (4, 3 + 4 + 1 + 1, 8, 8)
    for name, features in (("withtoken_class", encoder.class_token), ("withtoken_pooled", encoder.pooled)):
        reducer = codec.representations[name].reducer
        stored = reducer.project(features(images())[:, :, None, None]).half()
        assert torch.equal(channels.unpadded(x)[name], reducer.finish(stored))
    assert torch.equal(x, channels.trim(x))
    stored = codec.precompute(images())
    assert {name: tuple(t.shape) for name, t in stored.items()}["withtoken_class"] == (4, 7, 1, 1)


def test_a_vector_changes_no_other_group():
    plain, more = (
        JointCodec(representations=[representation()]),
        JointCodec(representations=[representation(), token()]),
    )
    assert torch.equal(more.encode(images())[:, :7], plain.encode(images()))
    assert plain.channels.trim(x := plain.encode(images())) is x


def test_class_token_and_pooled_vector_have_fingerprints_of_their_own():
    codecs = [JointCodec(representations=[token(vector=vector, name="z")]) for vector in ("class", "pooled")]
    assert codecs[0].fingerprint() != codecs[1].fingerprint()
    assert codecs[0].cache_fingerprint() != codecs[1].cache_fingerprint()
    assert differing_groups(*codecs) == ["z"]


def test_representations_may_share_an_encoder():
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2)
    encoder.fit(Digits(split="held_out"))
    parts = [Representation(encoder, PCA(rank=2)), Representation(encoder, PCA(rank=3), vector="pooled")]
    for part in parts:
        part.reducer.fit([part.features(images(32))])
    state = JointCodec(representations=parts).learned_state()
    pointers = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    assert len(pointers) == sum(tensor.numel() > 0 for tensor in state.values())  # safetensors refuses shared memory


def test_channels_of_a_vector_need_the_size_of_the_images():
    codec = JointCodec(representations=[token()])
    with pytest.raises(ValueError, match=r"depend on the size of the images, because withtoken_class is a vector"):
        codec.channels  # noqa: B018
    assert codec.for_image_size(4).channels.record() == {"image": 3, "withtoken_class": {"length": 7, "channels": 1}}


def test_images_of_another_size_are_refused_if_a_vector_has_other_channels_there():
    codec = JointCodec(representations=[token()]).for_image_size(4)
    assert codec.encode(images(side=8)).shape == (4, 4, 8, 8)  # one channel, too
    message = r"images of 2 pixels, but .* images of 4 pixels: Channels\(.*channels=2\)\) instead of .*channels=1"
    with pytest.raises(ValueError, match=message):
        codec.encode(images(side=2))
    assert JointCodec(representations=[representation()]).for_image_size(4).for_image_size(2).channels.total == 7


def test_a_class_token_of_an_encoder_without_one_is_refused():
    with pytest.raises(
        ValueError, match="Representation.vector = 'class': PatchEncoder has no class token; bind 'pooled'"
    ):
        Representation(PatchEncoder(), PCA(rank=4), vector="class")
    with pytest.raises(ValueError, match="PatchEncoder has no class token: must be an encoder that has one"):
        PatchEncoder().class_token(images())
    with pytest.raises(ValueError, match="Representation.vector = 'token': must be 'class', 'pooled' or None"):
        Representation(PatchEncoder(), PCA(rank=4), vector="token")


def test_two_vectors_of_one_name_and_reducers_of_another_width_are_refused():
    with pytest.raises(
        ValueError, match=r"names \['withtoken_class', 'withtoken_class'\]: must differ from each other"
    ):
        JointCodec(representations=[token(), token()])
    with pytest.raises(ValueError, match="PCA.rank = 13 exceeds the encoder width 12 of WithToken"):
        Representation(WithToken(), PCA(rank=13), vector="class")
    with pytest.raises(ValueError, match="Identity.rank = 6: must be the encoder width 12 of WithToken"):
        Representation(WithToken(), Identity(rank=6), vector="class")
