"""Inception v3, the network behind FID, KID, sFID and the Inception Score."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from redi.models.encoders import Encoder, check_square, register
from redi.models.encoders import fid_inception as fid
from redi.models.pretrained_network import PretrainedNetwork
from redi.runtime.checksums import sha256
from redi.runtime.paths import local_path

MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")
NAMES = {"frechet_distance": "fid", "kernel_distance": "kid", "spatial_frechet_distance": "sfid"}


@register
class Inception(PretrainedNetwork, Encoder):
    """The Inception v3 network of FID (Heusel et al., arXiv 1706.08500), as in clean-fid (Parmar et al., 2104.11222).

    As an encoder it gives the feature maps of the last block, (N, 2048, 8, 8).

    Args:
        mode: how images are resized to 299 pixels. 'clean': bicubic, antialiased, in float; 'legacy_tensorflow':
            bilinear as in TensorFlow 1 and ADM's evaluation, not antialiased; 'legacy_pytorch': bilinear as in PyTorch
            and pytorch-fid, not antialiased. Distances of different modes are not comparable.
        weights: pt_inception-2015-12-05-6726825d.pth (from the releases of pytorch-fid), or a folder with it; default:
            clean-fid's download of that file. The first two modes also accept inception-2015-12-05.pt, NVIDIA's
            TorchScript file, which has only the pooled features. Its code is run, so its hash is checked.
        weights_sha256: expected SHA-256 of the tensors (or of the TorchScript file); other weights raise an error.

    Examples:
        >>> inception = Inception(mode="legacy_tensorflow")  # weights are read at first use
        >>> inception.inputs(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).shape
        torch.Size([1, 3, 299, 299])
        >>> inception.metric_name("frechet_distance")
        'fid_legacy_tensorflow'
    """

    dim = 2048

    def __init__(
        self, mode: Literal["clean", "legacy_tensorflow", "legacy_pytorch"] = "clean", *, weights: str | None = None,
        weights_sha256: str | None = None,
    ):  # fmt: skip
        super().__init__(weights=weights, weights_sha256=weights_sha256, precision="float32")
        if mode not in MODES:
            raise ValueError(f"{self._binding('mode')} = {mode!r}: must be one of {', '.join(MODES)}")
        self.mode = mode

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps of the last block (N, 2048, 8, 8) float32 of uint8 images (N, 3, S, S)."""
        if self._is_torchscript():
            what = f"{self._binding('weights')} is TorchScript, which has pooled features but no feature maps"
            raise ValueError(f"{what}: set it to {fid.STATE_DICT}")
        return self._maps(images)[0]

    def pooled(self, images: Tensor) -> Tensor:
        return self.metric_features(images)["pooled"]

    @torch.no_grad()
    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the float32 features of uint8 images (N, 3, S, S) that FID, sFID and the Inception Score use.

        "pooled": (N, 2048). "spatial": (N, 2023) for sFID (Nash et al., arXiv 2103.03841), the first 7 channels of the
        first branch of Mixed_6d at 17 x 17 positions, in ADM's order. "logits": (N, 1008) without bias, as in ADM's
        Inception Score. With TorchScript weights only "pooled".
        """
        if self._is_torchscript():
            images = images.to(self.anchor.device)
            inputs = images.float() if self.mode == "legacy_tensorflow" else fid.resized(images, self.mode)
            with self._autocast():
                return {"pooled": self.network(inputs)}
        maps, spatial = self._maps(images)
        with self._autocast():
            pooled = self.network.avgpool(maps).flatten(1)
            return {"pooled": pooled, "spatial": spatial, "logits": pooled @ self.network.fc.weight.T}

    def metric_name(self, metric: str) -> str:
        return f"{NAMES.get(metric, metric)}_{self.mode}"

    @torch.no_grad()
    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of the last block (N, 2048, 8, 8), and the spatial features of `metric_features`."""
        x = self.inputs(images)
        with self._autocast():
            for name, layer in self.network.named_children():
                if name == "Mixed_6d":
                    branch = layer.branch1x1(x)[:, :7]  # the layer computes it again: 0.7 % of the network's cost
                if name == "avgpool":
                    break
                x = layer(x)
        return x, branch.permute(0, 2, 3, 1).flatten(1)

    def inputs(self, images: Tensor) -> Tensor:
        """Return the network's input (N, 3, 299, 299) float32 from uint8 images (N, 3, S, S)."""
        pixels = fid.resized(check_square(images).to(self.anchor.device), self.mode)
        return 2 * (pixels / 255) - 1 if self.mode == "legacy_pytorch" else (pixels - 128) / 128

    def provenance(self) -> dict:
        kind = "TorchScript" if self._is_torchscript() else "state dict"
        settings = {"encoder": type(self).__name__, "mode": self.mode, "format": kind}
        return settings | {"weights_sha256": self._sha256()}

    def _is_torchscript(self) -> bool:
        """Whether the weights file has the name of NVIDIA's TorchScript file. Only such a file is run."""
        if self.weights is None:
            return False
        path = local_path(self.weights)
        return (self._weights_path() if path.is_dir() else path).name == fid.TORCHSCRIPT

    def _weights_path(self) -> Path:
        return fid.find_weights(self.weights, self._binding("weights"))

    def _tensors_and_sha256(self, path: Path) -> tuple[dict[str, Tensor], str]:
        if path.name != fid.TORCHSCRIPT:
            return super()._tensors_and_sha256(path)
        binding, digest = self._binding("weights"), sha256(path)
        if self.mode == "legacy_pytorch":
            raise ValueError(f"{binding}: Inception.mode = 'legacy_pytorch' needs {fid.STATE_DICT}, not TorchScript")
        if digest != fid.TORCHSCRIPT_SHA256:
            raise ValueError(
                f"{binding}: {path} has the SHA-256 {digest}. TorchScript runs code, so only NVIDIA's file with the "
                f"SHA-256 {fid.TORCHSCRIPT_SHA256} is accepted: use it, or {fid.STATE_DICT}, which holds no code"
            )
        return {}, digest

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        return fid.build(path, tensors, self._binding("weights"), resize_inside=self.mode == "legacy_tensorflow")
