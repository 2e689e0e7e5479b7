"""A learned reducer: a small convolutional autoencoder of the features."""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.models.reducers import Reducer, register
from redi.models.reducers.moments import Moments, require_finite
from redi.models.reducers.pca import PCA
from redi.runtime.progress import progress

log = logging.getLogger(__name__)


@register
class ConvBottleneck(Reducer):
    """PCA plus a learned convolutional correction: an autoencoder of the features with R code channels.

    The encoder computes linear(f) + correction(f) from standardised features f; the decoder has the same form. The
    linear maps start as PCA, the corrections at zero. The code is centred and divided by one number, so that its mean
    square is 1. The channels are not ordered by importance, so a cache serves one rank only.

    Args:
        rank: R, the number of code channels.
        hidden: hidden channels of the corrections.
        num_steps, batch_size, learning_rate: training settings (AdamW, one-cycle schedule, mean squared error).
        max_images: size of the random sample of images whose features are held in memory (0.8 MB each at 16x16x768).
            A tenth is held out to measure the explained variance.
        seed: seed of the sample, the weights and the batches. On the CPU the fit is bit-reproducible.
        path: folder of a fit written by `save`, loaded instead of fitting.

    Examples:
        >>> features = torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> reducer = ConvBottleneck(rank=4, hidden=8, num_steps=5)
        >>> reducer.fit([features])
        >>> reducer(features).shape, reducer.inverse(reducer(features)).shape
        (torch.Size([8, 4, 4, 4]), torch.Size([8, 16, 4, 4]))
    """

    mean: Tensor  # (E,)
    std: Tensor  # (E,)
    code_mean: Tensor  # (R,)
    code_rms: Tensor  # ()
    explained: Tensor  # (2,) share of the held-out images' variance that this reducer and PCA explain
    encode: "_Corrected"  # None before a fit, as `decode`
    decode: "_Corrected"

    def __init__(
        self, rank: int = 8, *, hidden: int = 256, num_steps: int = 2000, batch_size: int = 32,
        learning_rate: float = 1e-3, max_images: int = 2048, seed: int = 0, path: str | None = None,
    ):  # fmt: skip
        super().__init__(rank=rank)
        for name, value in (("hidden", hidden), ("num_steps", num_steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"ConvBottleneck.{name} = {value}: must be at least 1")
        if max_images < 2:
            raise ValueError(f"ConvBottleneck.max_images = {max_images}: must be at least 2, to train and to test")
        self.hidden, self.num_steps, self.batch_size = hidden, num_steps, batch_size
        self.learning_rate, self.max_images, self.seed = learning_rate, max_images, seed
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("code_mean", torch.zeros(rank))
        self.register_buffer("code_rms", torch.ones(()))
        self.register_buffer("explained", torch.zeros(2))
        self.encode = self.decode = None  # type: ignore[assignment]  # a fit builds them
        self.register_load_state_dict_pre_hook(_take_networks)
        if path is not None:
            self.restore(path)

    @property
    def fitted(self) -> bool:
        return self.mean.numel() > 0

    @property
    def width(self) -> int | None:  # type: ignore[override]  # a plug-in may set the attribute
        """E of the features of the fit; None before a fit."""
        return len(self.mean) or None

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.forget_fit()
        self.mean = self.mean.new_empty(0)  # an earlier fit does not restrict the width
        sample, device = self._sample(batches), self.mean.device
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(self.seed))
        test, train = order.tensor_split([max(1, len(order) // 10)])
        moments = Moments()
        for part in train.split(self.batch_size):
            moments.add(sample[part].to(device))
        pca = PCA(rank=self.rank, scale="raw", standardize=True)
        pca.solve(moments)
        self.mean, self.std = pca.mean, pca.std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._build(len(pca.mean))
            rows = pca.components[: self.rank]  # (R, E), orthonormal
            with torch.no_grad():
                self.encode.linear.weight.copy_(rows[:, :, None, None])
                self.decode.linear.weight.copy_(rows.T[:, :, None, None])
            self._optimise(sample, train)
        self.requires_grad_(False)
        self._scale_code(sample, train)
        shares = [self._explained_variance_of(reducer, sample, test) for reducer in (self, pca)]
        self.explained = torch.tensor(shares).to(device)
        log.info(
            "ConvBottleneck rank %d of %d explains %.1f %% of the variance of %d held-out images, PCA %.1f %%",
            self.rank, len(self.mean), 100 * shares[0], len(test), 100 * shares[1],
        )  # fmt: skip
        if shares[0] < shares[1]:
            log.warning("ConvBottleneck overfits: fit to more images, or lower its num_steps or hidden")

    def _sample(self, batches: Iterable[Tensor]) -> Tensor:
        """Draw a uniform sample of the images' features (at most max_images, E, h, w): algorithm R of Vitter (1985)."""
        generator, sample, seen, vectors = torch.Generator().manual_seed(self.seed), torch.empty(0), 0, 0
        for number, features in enumerate(batches):
            self.check_width(features.shape[1])
            require_finite(features, number)
            vectors += features[:, 0].numel()
            if not seen:  # the system provides this memory only as it is written
                sample = torch.empty(self.max_images, *features.shape[1:])
            for image in features.detach():
                place = seen if seen < self.max_images else int(torch.randint(seen + 1, (), generator=generator))
                if place < self.max_images:
                    sample[place] = image
                seen += 1
        if vectors <= self.rank or seen < 2:
            needs = f"needs more than {self.rank} feature vectors of at least 2 images, but got {vectors} of {seen}"
            advice = "fit to more images or lower ConvBottleneck.rank"
            raise ValueError(f"ConvBottleneck.rank = {self.rank} {needs}: {advice}")
        return sample[:seen]

    def _build(self, width: int) -> None:
        self.encode = _Corrected(width, self.rank, self.hidden).to(self.mean.device)
        self.decode = _Corrected(self.rank, width, self.hidden).to(self.mean.device)

    def _optimise(self, sample: Tensor, train: Tensor) -> None:
        parameters = [*self.encode.parameters(), *self.decode.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=self.num_steps)
        for _ in progress(range(self.num_steps), desc="training the reducer"):
            features = self._standardised(sample[train[torch.randint(len(train), (self.batch_size,))]])
            loss = functional.mse_loss(self.decode(self.encode(features)), features)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def _scale_code(self, sample: Tensor, train: Tensor) -> None:
        codes = Moments()
        for part in train.split(self.batch_size):
            codes.add(self.encode(self._standardised(sample[part])))
        self.code_mean = codes.mean.float()
        self.code_rms = codes.covariance.diagonal().mean().sqrt().float()

    @torch.no_grad()
    def _explained_variance_of(self, reducer: Reducer, sample: Tensor, test: Tensor) -> float:
        """Return the share of the standardised features' variance that a reducer reconstructs."""
        lost = total = 0.0
        for part in test.split(self.batch_size):
            features = sample[part].to(self.mean.device)
            standardised = self._standardised(features)
            restored = self._standardised(reducer.inverse(reducer(features)))
            lost += (restored - standardised).double().square().sum().item()
            total += standardised.double().square().sum().item()
        return 1 - lost / total

    def _standardised(self, features: Tensor) -> Tensor:
        features = features.to(self.mean.device).float()
        return (features - self.mean[:, None, None]) / self.std[:, None, None]

    def project(self, features: Tensor) -> Tensor:
        self.require_fit()
        self.check_width(features.shape[1])
        return (self.encode(self._standardised(features)) - self.code_mean[:, None, None]) / self.code_rms

    def inverse(self, reduced: Tensor) -> Tensor:
        self.require_fit()
        code = reduced.float() * self.code_rms + self.code_mean[:, None, None]
        return self.decode(code) * self.std[:, None, None] + self.mean[:, None, None]

    @property
    def explained_variance(self) -> float:
        """Share of the standardised features' variance that `inverse` reconstructs, on held-out images."""
        return float(self.explained[0])

    def fit_settings(self) -> dict:
        names = ("rank", "hidden", "num_steps", "batch_size", "learning_rate", "max_images", "seed")
        return {"reducer": "ConvBottleneck"} | {name: getattr(self, name) for name in names}

    def provenance(self) -> dict:
        settings = self.fit_settings() | ({"fitted_on": self.fitted_on} if self.fitted_on else {})
        return settings | ({"explained_variance": self.explained_variance} if self.fitted else {})

    def report(self) -> dict:
        return {"explained_variance_of_pca": float(self.explained[1])}


class _Corrected(nn.Module):
    """Map (N, I, h, w) to (N, O, h, w) by a linear map per position plus a convolutional correction."""

    def __init__(self, inputs: int, outputs: int, hidden: int):
        super().__init__()
        self.linear = nn.Conv2d(inputs, outputs, 1)
        self.correction = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.GELU(),
            nn.Conv2d(hidden, outputs, 1),
        )  # fmt: skip
        for parameter in (self.linear.get_parameter("bias"), *self.correction[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.correction(x)


def _take_networks(reducer: ConvBottleneck, *_) -> None:
    """Build the networks of the stored width before loading, or remove them if the stored reducer is not fitted."""
    if reducer.fitted:
        with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
            reducer._build(len(reducer.mean))
    else:
        reducer.encode = reducer.decode = None  # type: ignore[assignment]  # a fit builds them
    reducer.requires_grad_(False)
