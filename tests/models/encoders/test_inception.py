"""Inception: against clean-fid's and torch-fidelity's own pipelines with the same weights, which are random."""

import hashlib
import os
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cleanfid.fid
import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from redi.models.encoders import fid_inception
from redi.models.encoders.fid_inception import STATE_DICT, TORCHSCRIPT, tensorflow_bilinear
from redi.models.encoders.inception import Inception

MODES = ["clean", "legacy_tensorflow", "legacy_pytorch"]


def noise_images(n: int, side: int) -> Tensor:
    """Smooth in parts, so that resizing rules differ, but not in noise alone."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (255 * (0.7 * smooth + 0.3 * torch.rand(n, 3, side, side, generator=generator))).to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tiny_encoder) -> str:
    return tiny_encoder("Inception").weights


@pytest.fixture(scope="module")
def encoders(weights) -> dict[str, Inception]:
    return {mode: Inception(mode=mode, weights=weights) for mode in MODES}


@pytest.fixture(scope="module")
def theirs(weights) -> nn.Module:
    """clean-fid's feature extractor of the mode legacy_pytorch, as it builds it after its download."""
    state = torch.load(weights)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
        extract = build_feature_extractor("legacy_pytorch", torch.device("cpu"), use_dataparallel=False)
    return extract.__closure__[0].cell_contents


# The pipelines


def by_clean_fid(network: nn.Module, images: Tensor, mode: str, folder: Path) -> np.ndarray:
    """From PNG files, with the preprocessing of its data loader and, for 'clean', of its TorchScript wrapper."""
    files = [folder / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)

    def clean(x):
        assert x.shape[2:] == (299, 299)
        return network(((x - 128) / 128 + 1) / 2)[0].flatten(1)  # the network maps [0, 1] to [-1, 1]

    model = clean if mode == "clean" else lambda x: network(x / 255)[0].flatten(1)
    with warnings.catch_warnings():
        options = {"num_workers": 0, "batch_size": len(files), "device": "cpu", "verbose": False}
        return cleanfid.fid.get_files_features(files, model, mode=mode, **options)


@pytest.mark.parametrize("side", [64, 400])
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_features_are_those_of_clean_fid(mode, side, encoders, theirs, tmp_path):
    images = noise_images(1, side)
    expected = by_clean_fid(theirs, images, mode, tmp_path)
    # The same convolutions of the same inputs, up to the rounding of the normalisation.
    np.testing.assert_allclose(encoders[mode].pooled(images), expected, rtol=1e-4, atol=1e-5)
    other = "legacy_pytorch" if mode == "clean" else "clean"
    assert not np.allclose(encoders[other].pooled(images), expected, rtol=1e-4, atol=1e-5)


def test_features_and_logits_of_tensorflows_mode_are_those_of_torch_fidelity(encoders, weights):
    images = noise_images(1, 64)
    extract = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    pooled, logits = extract(images)
    found = encoders["legacy_tensorflow"].metric_features(images)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(encoders["clean"].pooled(images), pooled, rtol=1e-4, atol=1e-5)


def test_spatial_features_are_seven_channels_of_the_branch_with_the_channels_last(encoders, theirs):
    images, branch = noise_images(2, 64), []
    inputs = encoders["clean"].inputs(images)
    handle = theirs.blocks[2][6].branch1x1.register_forward_hook(lambda _, __, output: branch.append(output))
    with torch.no_grad():
        theirs((inputs + 1) / 2)
    handle.remove()
    assert branch[0].shape == (2, 192, 17, 17)
    expected = branch[0].numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1)  # TensorFlow's order, as ADM flattens it
    spatial = encoders["clean"].metric_features(images)["spatial"]
    assert spatial.shape == (2, 2023)
    np.testing.assert_allclose(spatial, expected, rtol=1e-4, atol=1e-5)


def test_pooled_is_the_mean_of_the_last_maps(encoders):
    images = noise_images(1, 64)
    maps = encoders["clean"](images)
    assert maps.shape == (1, 2048, 8, 8)
    torch.testing.assert_close(encoders["clean"].pooled(images), maps.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
    assert not maps.requires_grad


def test_metrics_are_named_after_the_mode(encoders):
    assert encoders["clean"].metric_name("frechet_distance") == "fid_clean"
    assert encoders["legacy_tensorflow"].metric_name("kernel_distance") == "kid_legacy_tensorflow"
    assert encoders["legacy_pytorch"].metric_name("spatial_frechet_distance") == "sfid_legacy_pytorch"
    assert encoders["clean"].metric_name("precision") == "precision_clean"


# Images to inputs


def tensorflow_by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """(S, S) -> (side, side), a pixel at a time."""
    size, out = len(image), np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * size / side, j * size / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            dy, dx = y - top, x - left
            above = image[top, left] * (1 - dx) + image[top, right] * dx
            below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            out[i, j] = above * (1 - dy) + below * dy
    return out


@pytest.mark.parametrize("size", [1, 7, 32, 70])
def test_the_bilinear_rule_of_tensorflow_is_the_written_out_one(size):
    image = noise_images(1, 70)[:, :1, :size, :size].float()
    expected = tensorflow_by_hand(image[0, 0].double().numpy(), 45)
    np.testing.assert_allclose(tensorflow_bilinear(image, 45)[0, 0], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", [32, 256, 299, 512])
def test_the_bilinear_rule_of_tensorflow_is_torch_fidelitys(size):
    images = noise_images(1, size).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    torch.testing.assert_close(tensorflow_bilinear(images, 299), expected, rtol=0, atol=2e-3)  # of 255


@pytest.mark.parametrize("mode", MODES)
def test_inputs_do_not_depend_on_the_batch(mode, encoders):
    images = noise_images(3, 40)
    inputs = encoders[mode].inputs(images)
    assert inputs.shape == (3, 3, 299, 299) and inputs.dtype == torch.float32
    assert inputs.min() >= -1 and inputs.max() <= 1
    assert torch.equal(encoders[mode].inputs(images[1:2]), inputs[1:2])


def test_resizing_leaves_the_warnings_of_the_process_alone(encoders):
    before = list(warnings.filters)
    encoders["legacy_pytorch"].inputs(noise_images(1, 16))
    assert warnings.filters == before


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32), noise_images(1, 32)[:, :, :16], noise_images(1, 32)[0]])
def test_other_than_square_byte_images_are_refused(images, encoders):
    with pytest.raises((TypeError, ValueError), match="images must be uint8"):
        encoders["clean"].metric_features(images)


# TorchScript


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 2048, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(nn.functional.max_pool2d(x, 16)).square().mean(dim=[2, 3])


class Scripted(nn.Module):
    """With the interface of the published file, and as small as that allows."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("script") / TORCHSCRIPT
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")  # torch.jit's, about itself
        torch.jit.script(Scripted()).save(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid_inception, "TORCHSCRIPT_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        yield path


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_a_torchscript_file_gives_what_clean_fid_makes_of_it(mode, script, tmp_path):
    images = noise_images(2, 48)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = InceptionV3W(str(script.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    expected = cleanfid.fid.get_files_features(files, network, 0, 2, "cpu", mode, verbose=False)
    for weights in (script, script.parent):
        found = Inception(mode=mode, weights=str(weights)).metric_features(images)
        assert set(found) == {"pooled"}
        np.testing.assert_allclose(found["pooled"], expected, rtol=1e-5, atol=1e-6)


def test_a_torchscript_file_has_no_maps_and_no_legacy_pytorch(script):
    with pytest.raises(ValueError, match=f"Inception.weights is TorchScript, .* set it to {STATE_DICT}"):
        Inception(weights=str(script))(noise_images(1, 32))
    with pytest.raises(ValueError, match=f"'legacy_pytorch' needs {STATE_DICT}, not TorchScript"):
        Inception(mode="legacy_pytorch", weights=str(script)).load()


def test_a_torchscript_file_is_hashed_whole(script):
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    provenance = Inception(weights=str(script)).provenance()
    assert (provenance["format"], provenance["weights_sha256"]) == ("TorchScript", digest)
    Inception(weights=str(script), weights_sha256=digest).load()
    with pytest.raises(ValueError, match="have the SHA-256 .*, not 00: .* or change Inception.weights_sha256"):
        Inception(weights=str(script), weights_sha256="00").load()


def test_another_program_under_that_name_is_not_run(script):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="only NVIDIA's file with the SHA-256"):
        patch.setattr(fid_inception, "TORCHSCRIPT_SHA256", "f58cb9b6")
        patch.setattr(fid_inception, "build", lambda *_, **__: pytest.fail("it was run"))
        Inception(weights=str(script)).load()


@pytest.mark.filterwarnings("ignore:.*TorchScript archive")
def test_executable_files_of_other_names_are_not_run(script, tmp_path):
    for name in ("weights.pt", "weights.pth"):
        path = tmp_path / name
        path.write_bytes(script.read_bytes())
        with pytest.raises(ValueError, match=f"Inception.weights: {path} is truncated or not a file of tensors"):
            Inception(weights=str(path)).load()


# Weights


def test_wrong_weights_are_refused(tmp_path, weights, tiny_timm):
    state = torch.load(weights)
    del state["fc.weight"]
    for wrong in ({"x": torch.zeros(2)}, state):
        path = tiny_timm.save(wrong, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=f"Inception.weights: {path} does not hold the weights of FID"):
            Inception(weights=str(path)).load()
    (tmp_path / TORCHSCRIPT).write_text("<html>")
    with pytest.raises(ValueError, match=f"{TORCHSCRIPT} has the SHA-256 .*only NVIDIA's file"):
        Inception(weights=str(tmp_path / TORCHSCRIPT)).load()


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"the folder must hold {STATE_DICT} or {TORCHSCRIPT}"):
        Inception(weights=str(tmp_path)).load()
    with pytest.raises(ValueError, match="Inception.weights = .* does not exist: set it to the file"):
        Inception(weights=str(tmp_path / "x.pth")).load()
    with pytest.raises(ValueError, match="Inception.mode = 'tf': must be one of clean, legacy_tensorflow"):
        Inception(mode="tf")


def test_building_draws_no_random_numbers_and_leaves_clean_fid_as_it_was(weights):
    before, loader = torch.get_rng_state(), cleanfid.inception_pytorch.load_state_dict_from_url
    Inception(weights=weights).load()
    assert torch.equal(torch.get_rng_state(), before)
    assert cleanfid.inception_pytorch.load_state_dict_from_url is loader


@pytest.fixture
def empty_hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "checkpoints"


def message_for(monkeypatch, url: str) -> str:
    monkeypatch.setattr(cleanfid.inception_pytorch, "FID_WEIGHTS_URL", url)
    with pytest.raises(ValueError) as caught:
        Inception().load()
    return str(caught.value)


def test_offline_the_message_says_which_file_whence_where_to_and_the_binding(empty_hub, monkeypatch):
    message = message_for(monkeypatch, "http://127.0.0.1:9/weights.pth")  # the discard port: nobody listens
    for part in (STATE_DICT, "clean-fid", "pytorch-fid", str(empty_hub), "set Inception.weights = 'the path"):
        assert part in message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in message_for(monkeypatch, "http://127.0.0.1:9/weights.pth")


def test_weights_are_downloaded_once_into_clean_fids_place_and_compared_with_their_hash(
    empty_hub, monkeypatch, weights, tmp_path
):
    served = tmp_path / "served"
    served.mkdir()
    os.link(weights, served / "weights.pth")
    quiet = partial(SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    try:
        assert "invalid hash value" in message_for(monkeypatch, url)  # these are random weights
        assert list(empty_hub.iterdir()) == []
        name = f"pt_inception-{hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8]}.pth"
        monkeypatch.setattr(fid_inception, "STATE_DICT", name)
        assert Inception().provenance() == Inception(weights=weights).provenance()
    finally:
        server.shutdown()
        server.server_close()
    assert [path.name for path in empty_hub.iterdir()] == [name]
    Inception().load()  # without the server
