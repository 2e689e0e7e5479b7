"""VA-VAE's files against an autoencoder written here in float64, in the layout of CompVis."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from redi.models.autoencoders.va_vae import VAVAE

HALF = 2**-11  # the relative rounding error of float16


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, c_in, eps=1e-6), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, c_out, eps=1e-6), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (N, C, HW)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(dim=-1)  # (N, HW of q, HW of k)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Middle(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Residual(c, c), Attention(c), Residual(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def level(c_in: int, c_out: int, blocks: int, attends: bool) -> nn.Module:
    module = nn.Module()
    module.block = nn.ModuleList(Residual(c_out if j else c_in, c_out) for j in range(blocks))
    module.attn = nn.ModuleList(Attention(c_out) for _ in range(blocks if attends else 0))
    return module


def through(level: nn.Module, x: Tensor) -> Tensor:
    for j, block in enumerate(level.block):
        x = block(x)
        x = level.attn[j](x) if len(level.attn) else x
    return x


class Encoder(nn.Module):
    def __init__(self, widths: list[int], z: int, blocks: int, attends: set[int]):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before = [widths[0], *widths]
        self.down = nn.ModuleList(level(before[i], c, blocks, i in attends) for i, c in enumerate(widths))
        for i, c in enumerate(widths[:-1]):
            self.down[i].downsample = nn.Module()
            self.down[i].downsample.conv = nn.Conv2d(c, c, 3, stride=2)
        self.mid, self.norm_out = Middle(widths[-1]), nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for one in self.down:
            x = through(one, x)
            x = one.downsample.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(one, "downsample") else x
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: list[int], z: int, blocks: int, attends: set[int]):
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(z, widths[-1], 3, padding=1), Middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(level(before[i], c, blocks + 1, i in attends) for i, c in enumerate(widths))
        for i, c in enumerate(widths[1:], 1):
            self.up[i].upsample = nn.Module()
            self.up[i].upsample.conv = nn.Conv2d(c, c, 3, padding=1)
        self.norm_out, self.conv_out = nn.GroupNorm(32, widths[0], eps=1e-6), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for one in reversed(self.up):  # level 0 has the full resolution
            x = through(one, x)
            x = one.upsample.conv(F.interpolate(x, scale_factor=2.0)) if hasattr(one, "upsample") else x
        return self.conv_out(swish(self.norm_out(x)))


class Reference(nn.Module):
    """f4: widths 32, 64, 64, attention at the last level, 8 latent channels."""

    def __init__(self, widths=(32, 64, 64), z: int = 8, blocks: int = 1, attends=(2,)):
        super().__init__()
        self.encoder = Encoder(list(widths), z, blocks, set(attends))
        self.decoder = Decoder(list(widths), z, blocks, set(attends))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def random_network(**settings) -> Reference:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Reference(**settings)
        for name, parameter in network.named_parameters():
            if "norm" in name:  # as it is initialised, a norm's affine map does nothing
                nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return network.double().requires_grad_(False)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return random_network()


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


def moments_of(network: Reference) -> Tensor:
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
def test_the_shapes_decide_the_architecture(settings, tmp_path):
    network = random_network(**settings)
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


def test_files_of_other_kinds_are_refused(vae_folders, tmp_path, monkeypatch):
    diffusers = vae_folders["StableVAE"] / "diffusion_pytorch_model.safetensors"
    grey = state_of(random_network()) | {"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"VAVAE.weights: .*bind @autoencoders.StableVAE\(\) for files of diffusers"):
        VAVAE(weights=str(diffusers))
    with pytest.raises(ValueError, match="has 1 image channels .*: must be 3"):
        VAVAE(weights=saved(grey, tmp_path / "grey.pt"))
    with pytest.raises(ValueError, match="VAVAE.weights: .*nowhere.pt"):
        VAVAE(weights=str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match="vavae-imagenet256-f16d32-dinov2.pt of hustvl/vavae-imagenet256-f16d32"):
        VAVAE().load()


def test_the_published_architecture_has_the_layout_of_the_sheet(tmp_path):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        reference = Reference(widths=(128, 128, 256, 256, 512), z=32, blocks=2, attends=(4,))
        network = AutoencoderKL.from_config(VAVAE().config)
    count = [sum(p.numel() for p in module.parameters()) for module in (reference, network)]
    assert count[0] == count[1]
    assert reference.state_dict()["encoder.down.4.attn.1.q.weight"].shape == (512, 512, 1, 1)
