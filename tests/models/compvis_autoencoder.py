"""The autoencoder of latent diffusion in float64, with the parameter names of CompVis: a reference for VAVAE."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in network.state_dict().items()}
