"""VA-VAE's files against an autoencoder written in float64, in the layout of CompVis."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from redi.models.autoencoders.va_vae import VAVAE

HALF = 2**-11  # the relative rounding error of float16


@pytest.fixture(scope="module")
def reference(compvis) -> nn.Module:
    return compvis["random_network"]()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in network.state_dict().items()}


def saved(state: dict, path: Path) -> str:
    torch.save(state, path)
    return str(path)


@pytest.fixture
def file(reference, tmp_path) -> str:
    return saved(state_of(reference), tmp_path / "vae.pt")


def images(n: int = 2, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def moments_of(network: nn.Module) -> Tensor:
    return network.quant_conv(network.encoder(images().double() / 127.5 - 1))


def same_images(decoded: Tensor, x: Tensor) -> None:
    expected = (127.5 * x + 128).clamp(0, 255).floor()
    difference = (decoded.double() - expected).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 1e-3  # float32 against float64, near a byte
    assert decoded.float().std() > 1


def test_moments_and_images_are_those_of_the_reference(reference, file):
    vae = VAVAE(weights=file)
    assert (vae.channels, vae.downsample) == (8, 4)
    torch.testing.assert_close(vae.moments(images()).double(), moments_of(reference), rtol=2 * HALF, atol=1e-5)
    z = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    same_images(vae.decode(z), reference.decoder(reference.post_quant_conv(z.double())))


@pytest.mark.parametrize(
    "settings", [{"widths": (32, 64), "attends": ()}, {"widths": (32, 32), "blocks": 2, "attends": (0,), "z": 4}]
)
def test_the_shapes_decide_the_architecture(compvis, settings, tmp_path):
    network = compvis["random_network"](**settings)
    vae = VAVAE(weights=saved({"state_dict": state_of(network)}, tmp_path / "vae.ckpt"), posterior="mean")
    expected = moments_of(network)[:, : vae.channels]
    torch.testing.assert_close(vae.latents(vae.moments(images())).double(), expected, rtol=2 * HALF, atol=1e-5)
    same_images(vae.decode(expected.float()), network.decoder(network.post_quant_conv(expected)))


def test_a_file_without_quantisation_layers_loads(reference, tmp_path):
    state = {name: tensor for name, tensor in state_of(reference).items() if "quant_conv" not in name}
    vae = VAVAE(weights=saved(state, tmp_path / "vae.pt"))
    expected = reference.encoder(images().double() / 127.5 - 1)
    torch.testing.assert_close(vae.moments(images()).double(), expected, rtol=2 * HALF, atol=1e-5)


def test_parts_for_training_are_ignored_and_not_hashed(reference, file, tmp_path):
    extra = {
        "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2, 2),
        "foundation_model.model.cls_token": torch.zeros(1, 1, 4), "linear_proj.weight": torch.zeros(4, 8, 1, 1),
    }  # fmt: skip
    full = saved({"state_dict": state_of(reference) | extra, "global_step": 3}, tmp_path / "full.ckpt")
    assert VAVAE(weights=full).provenance() == VAVAE(weights=file).provenance()


def test_the_prefix_of_a_larger_model_is_removed(reference, file, tmp_path):
    state = {f"first_stage_model.{name}": tensor for name, tensor in state_of(reference).items()}
    save_file(state, tmp_path / "vae.safetensors")
    vae = VAVAE(weights=str(tmp_path / "vae.safetensors"))
    assert torch.equal(vae.moments(images()), VAVAE(weights=file).moments(images()))


def test_averaged_weights_are_preferred(reference, file, tmp_path):
    averaged = state_of(reference)
    raw = {name: tensor + 1 for name, tensor in averaged.items()}
    lit = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averaged.items()}
    for i, content in enumerate([{"state_dict": raw | lit}, {"model": raw, "ema": averaged}]):
        vae = VAVAE(weights=saved(content, tmp_path / f"{i}.pt"))
        assert torch.equal(vae.moments(images()), VAVAE(weights=file).moments(images()))


def test_a_bound_hash_identifies_the_weights(file):
    digest = VAVAE(weights=file).provenance()["weights_sha256"]
    assert VAVAE(weights=file, weights_sha256=digest).moments(images()).isfinite().all()
    with pytest.raises(ValueError, match="VAVAE.weights: .* have the SHA-256"):
        VAVAE(weights=file, weights_sha256="0" * 64).load()


def test_wrong_tensors_are_named(reference, tmp_path):
    state = state_of(reference)
    lacking = {name: tensor for name, tensor in state.items() if name != "decoder.up.2.attn.1.v.weight"}
    with pytest.raises(ValueError, match=r"VAVAE.weights: .* lacks decoder.up.2.attn.1.v.weight: choose"):
        VAVAE(weights=saved(lacking, tmp_path / "lacking.pt")).load()
    surplus = state | {"encoder.down.0.block.0.temb_proj.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"has unknown tensors: encoder.down.0.block.0.temb_proj.weight: choose"):
        VAVAE(weights=saved(surplus, tmp_path / "surplus.pt")).load()
    with pytest.raises(ValueError, match=r"has unknown tensors \(quantize.embedding.weight\): remove them"):
        VAVAE(weights=saved(state | {"quantize.embedding.weight": torch.zeros(1)}, tmp_path / "vq.pt"))
    other = state | {"decoder.mid.block_1.norm1.weight": torch.zeros(32)}
    with pytest.raises(ValueError, match=r"has other shapes in decoder.mid.block_1.norm1.weight"):
        VAVAE(weights=saved(other, tmp_path / "other.pt")).load()


def test_files_of_other_kinds_are_refused(reference, vae_folders, tmp_path, monkeypatch):
    diffusers = vae_folders["StableVAE"] / "diffusion_pytorch_model.safetensors"
    grey = state_of(reference) | {"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"VAVAE.weights: .*bind @autoencoders.StableVAE\(\) for files of diffusers"):
        VAVAE(weights=str(diffusers))
    with pytest.raises(ValueError, match="has 1 image channels .*: must be 3"):
        VAVAE(weights=saved(grey, tmp_path / "grey.pt"))
    with pytest.raises(ValueError, match="VAVAE.weights: .*nowhere.pt"):
        VAVAE(weights=str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match="vavae-imagenet256-f16d32-dinov2.pt of hustvl/vavae-imagenet256-f16d32"):
        VAVAE().load()


def test_the_published_architecture_has_the_layout_of_the_sheet(compvis):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        reference = compvis["Reference"](widths=(128, 128, 256, 256, 512), z=32, blocks=2, attends=(4,))
        network = AutoencoderKL.from_config(VAVAE().config)
    count = [sum(p.numel() for p in module.parameters()) for module in (reference, network)]
    assert count[0] == count[1]
    assert reference.state_dict()["encoder.down.4.attn.1.q.weight"].shape == (512, 512, 1, 1)
