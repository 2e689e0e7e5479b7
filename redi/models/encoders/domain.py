"""A small encoder that is trained on the user's own images, without any download."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.models.encoders import Encoder, register
from redi.runtime.checksums import tensors_sha256
from redi.runtime.progress import progress
from redi.runtime.ranges import check_choice

log = logging.getLogger(__name__)


@register
class DomainEncoder(Encoder):
    """A residual network of stride 4 that `fit` trains on the data set, in well under a minute, and then freezes.

    The loss is the cross-entropy of labels, or the contrastive loss of SimCLR (Chen et al., arXiv 2002.05709).

    Args:
        width: E, the width of the features.
        depth: number of residual blocks at the final resolution.
        image_size: size in pixels that images are resized to (antialiased bilinear); h = w = image_size / 4.
        objective: 'labels', 'contrastive', or 'auto': labels if the data set has at least two classes.
        num_steps, batch_size, learning_rate, seed: training settings (AdamW, one-cycle schedule).
        max_images: size of the random sample of images to train on.

    Examples:
        >>> from redi.data.datasets import Digits
        >>> encoder = DomainEncoder(width=8, num_steps=2, max_images=64)
        >>> encoder.fit(Digits())
        >>> encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 8, 8, 8])
    """

    learns_from_data = True
    trained: Tensor  # () bool

    def __init__(
        self, *, width: int = 64, depth: int = 2, image_size: int = 32,
        objective: Literal["auto", "labels", "contrastive"] = "auto", num_steps: int = 300, batch_size: int = 128,
        learning_rate: float = 4e-3, max_images: int = 20_000, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"DomainEncoder.image_size = {image_size}: must be a multiple of 4, the network's stride")
        check_choice("DomainEncoder.objective", objective, ("auto", "labels", "contrastive"))
        self.dim, self.depth, self.image_size, self.objective = width, depth, image_size, objective
        self.num_steps, self.batch_size, self.learning_rate = num_steps, batch_size, learning_rate
        self.max_images, self.seed = max_images, seed
        self.register_buffer("trained", torch.tensor(False))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(
                _convolution(3, width // 2, stride=2), _convolution(width // 2, width, stride=2),
                *(_Residual(width) for _ in range(depth)),
            )  # fmt: skip
            self.head: nn.Module = nn.Identity()  # `fit` replaces it by a classifier or a contrastive projection
        self.register_load_state_dict_pre_hook(_take_head_shape)
        self.eval().requires_grad_(False)

    @property
    def fitted(self) -> bool:  # type: ignore[override]  # a plug-in may set the attribute
        return bool(self.trained)

    def train(self, mode: bool = True) -> "DomainEncoder":
        return super().train(False)  # frozen: the batch norms stay in evaluation mode

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if not self.fitted:
            raise ValueError("this DomainEncoder has not been trained: call fit(dataset) or prepare() first")
        return self.trunk(self.resized(images.to(self.trained.device)).float() / 127.5 - 1)

    def metric_name(self, metric: str) -> str:
        return f"{metric}_domain_network"  # each data set trains its own network: not comparable to published numbers

    def logits(self, images: Tensor) -> Tensor:
        """Return class logits (N, K) of uint8 images (N, 3, S, S). Raises ValueError if trained without labels."""
        if not self.is_classifier:
            what = "this DomainEncoder has no class logits because it was trained without labels"
            raise ValueError(f"{what}: set DomainEncoder.objective = 'labels' and train it again")
        return self.head(self.pooled(images))

    @property
    def is_classifier(self) -> bool:
        """Whether the encoder was trained on labels, so that `logits` works."""
        return self.fitted and isinstance(self.head, nn.Linear)

    def fit(self, dataset: Any) -> None:
        with_labels = self.objective == "labels" or self.objective == "auto" and dataset.num_classes > 1
        if with_labels and dataset.num_classes < 2:
            what = f"DomainEncoder.objective = 'labels' needs at least two classes, not {dataset.num_classes}"
            raise ValueError(f"{what}: set DomainEncoder.objective = 'contrastive'")
        images, labels = self._load(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for layer in self.trunk.modules():  # a second fit starts from new weights
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
            self.head = _head(self.dim, dataset.num_classes if with_labels else None).to(images.device)
            self.requires_grad_(True)
            super().train(True)
            self._optimise(images, labels if with_labels else None)
        self.eval().requires_grad_(False)
        self.trained.fill_(True)
        if with_labels:
            predictions = torch.cat([self.logits(part).argmax(dim=1) for part in images.split(256)])
            accuracy = (predictions == labels).float().mean()
            log.info("DomainEncoder: %.1f %% accuracy on its training images", 100 * accuracy)

    def _load(self, dataset: Any) -> tuple[Tensor, Tensor]:
        device = self.trained.device
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))[: self.max_images]
        pairs = (dataset[int(i)] for i in progress(order, desc="reading images for the encoder"))
        images, labels = zip(*((self.resized(image[None].to(device)), label) for image, label in pairs), strict=True)
        return torch.cat(images), torch.tensor(labels, device=device)

    def _optimise(self, images: Tensor, labels: Tensor | None) -> None:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=self.num_steps)
        batch_size = min(self.batch_size, len(images))
        bar = progress(range(self.num_steps), desc="training the encoder")
        for _ in bar:
            chosen = torch.randint(len(images), (batch_size,)).to(images.device)
            views = images[chosen].float() / 127.5 - 1
            if labels is not None:
                outputs = self.head(self.trunk(_random_view(views, shift=0.1)).mean(dim=(2, 3)))
                loss = functional.cross_entropy(outputs, labels[chosen], label_smoothing=0.05)
            else:
                both = torch.cat([_random_view(views, shift=0.3), _random_view(views, shift=0.3)])
                loss = contrastive_loss(self.head(self.trunk(both).mean(dim=(2, 3))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)

    def resized(self, images: Tensor) -> Tensor:
        """Return uint8 images (N, 3, S, S) resized to (N, 3, image_size, image_size)."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def fit_settings(self) -> dict:
        names = ("depth", "image_size", "objective", "num_steps", "batch_size", "learning_rate", "max_images", "seed")
        return {"encoder": "DomainEncoder", "width": self.dim} | {name: getattr(self, name) for name in names}

    def provenance(self) -> dict:
        return self.fit_settings() | {"weights_sha256": tensors_sha256(self.state_dict()) if self.fitted else None}


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _head(width: int, num_classes: int | None) -> nn.Module:
    if num_classes is not None:
        return nn.Linear(width, num_classes)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))


def _take_head_shape(encoder: DomainEncoder, state: dict, prefix: str, *_) -> None:
    """Build the head that fits the stored weights, before they are loaded."""
    weight = state.get(prefix + "head.weight")
    if weight is None and prefix + "head.0.weight" not in state:
        return
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: keep the caller's random state
        encoder.head = _head(encoder.dim, None if weight is None else len(weight)).to(encoder.trained.device)
    encoder.requires_grad_(False)


def _random_view(images: Tensor, shift: float) -> Tensor:
    """Return shifted, scaled and noisy copies of images in [-1, 1]. Mirroring is left out: it would reverse text."""
    n = len(images)
    theta = torch.zeros(n, 2, 3, device=images.device)
    scale = 1 + shift * (2 * torch.rand(n, 2, device=images.device) - 1)
    theta[:, 0, 0], theta[:, 1, 1] = scale[:, 0], scale[:, 1]
    theta[:, :, 2] = shift * (2 * torch.rand(n, 2, device=images.device) - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = 1 + shift * (2 * torch.rand(n, 1, 1, 1, device=images.device) - 1)
    return moved * contrast + 0.1 * shift * torch.randn_like(moved)


def contrastive_loss(projections: Tensor, temperature: float = 0.2) -> Tensor:
    """Return the NT-Xent loss of 2N projections (2N, D); rows i and N + i are two views of the same image."""
    normed = functional.normalize(projections, dim=1)
    similarity = normed @ normed.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(normed), device=normed.device).roll(len(normed) // 2)
    return functional.cross_entropy(similarity, partner)
