"""The base class of reducers that are trained by gradient descent: autoencoders of standardised features."""

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.models.reducers import Reducer
from redi.models.reducers.moments import Moments, require_finite
from redi.models.reducers.pca import PCA
from redi.runtime.progress import progress
from redi.runtime.ranges import check_choice

log = logging.getLogger(__name__)


class TrainedReducer(Reducer):
    """An autoencoder of standardised features f with R code channels, trained with AdamW and a one-cycle schedule.

    The code is centred and divided by one number, so that its mean square is 1. Its channels are not ordered by
    importance, so a cache serves one rank only. A subclass implements `_build`; it may extend `_start` and override
    `_code`, `_loss` and `settings`.

    Args:
        rank, hidden: R, the number of code channels, and hidden channels.
        num_steps, batch_size, learning_rate: training settings.
        max_images: size of the random sample of images whose features are held in memory (0.8 MB each at 16x16x768).
            A tenth is held out to measure the explained variance.
        patience: stop when the explained variance of the held-out images, measured 20 times, has not improved this
            many times in succession; keep the best weights (it is then slightly optimistic). None: take all steps.
        scale: 'raw' leaves the code as it is.
        seed: seed of the sample, the weights and the batches. On the CPU the fit is bit-reproducible.
        path: folder of a fit written by `save`, loaded instead of fitting.

    Examples:
        >>> class Linear(TrainedReducer):  # without a hidden layer
        ...     def _build(self, width):
        ...         self.encode, self.decode = nn.Conv2d(width, self.rank, 1), nn.Conv2d(self.rank, width, 1)
        >>> reducer = Linear(rank=4, hidden=1, num_steps=5)
        >>> reducer.fit([torch.randn(8, 16, 4, 4)])
        >>> reducer(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 4, 4, 4])
    """

    weights_sha256: str | None = None  # of published weights: `fit` measures, but does not train (see `Compressor`)
    settings: tuple[str, ...] = ("rank", "hidden", "num_steps", "batch_size", "learning_rate", "max_images", "seed")
    mean: Tensor  # (E,)
    std: Tensor  # (E,)
    code_mean: Tensor  # (R,)
    code_rms: Tensor  # () or (R,)
    explained: Tensor  # (2,) share of the held-out images' variance that this reducer and PCA explain
    encode: nn.Module  # None before a fit, as `decode`
    decode: nn.Module

    def __init__(
        self, rank: int = 8, *, hidden: int = 256, num_steps: int = 2000, batch_size: int = 32,
        learning_rate: float = 1e-3, max_images: int = 2048, patience: int | None = None,
        scale: Literal["unit_rms", "raw"] = "unit_rms", seed: int = 0, path: str | None = None,
    ):  # fmt: skip
        super().__init__(rank=rank)
        name = type(self).__name__
        check_choice(f"{name}.scale", scale, ("unit_rms", "raw"))
        self.hidden, self.num_steps, self.batch_size = hidden, num_steps, batch_size
        self.learning_rate, self.max_images, self.seed = learning_rate, max_images, seed
        self.patience, self.scale = patience, str(scale)  # "statistics": of a published code, see `Compressor`
        for argument, least in {"hidden": 1, "num_steps": 1, "batch_size": 1, "patience": 1, "max_images": 2}.items():
            if (value := getattr(self, argument)) is not None and value < least:
                raise ValueError(f"{name}.{argument} = {value}: must be at least {least}")
        buffers = {"mean": torch.empty(0), "std": torch.empty(0), "code_mean": torch.zeros(rank)}
        for buffer, value in (buffers | {"code_rms": torch.ones(()), "explained": torch.zeros(2)}).items():
            self.register_buffer(buffer, value)
        self.encode = self.decode = None  # type: ignore[assignment]  # a fit builds them
        self.register_load_state_dict_pre_hook(_take_networks)
        if path is not None:
            self.restore(path)

    @abstractmethod
    def _build(self, width: int) -> None:
        """Set `encode` and `decode` for features of this width E."""

    def _start(self, pca: PCA) -> None:
        """Set the initial weights, given a PCA of the same rank and features."""

    def _code(self, features: Tensor) -> Tensor:
        """Return the unscaled code (N, R, h, w) of standardised features (N, E, h, w)."""
        return self.encode(features)

    def _loss(self, features: Tensor) -> Tensor:
        """Return the training loss () of standardised features (N, E, h, w)."""
        return functional.mse_loss(self.decode(self._code(features)), features)

    @property
    def fitted(self) -> bool:
        return self.mean.numel() > 0 and self.code_rms.numel() > 0

    @property
    def width(self) -> int | None:  # type: ignore[override]  # a plug-in may set the attribute
        """E of the features of the fit; None before a fit."""
        return len(self.mean) or None

    def train(self, mode: bool = True) -> "TrainedReducer":
        return super().train(False)  # frozen: batch norms stay in evaluation mode

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.forget_fit()
        if self.weights_sha256 is None:
            self.mean = self.mean.new_empty(0)  # an earlier fit does not restrict the width
        sample, device = self._sample(batches), self.mean.device
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(self.seed))
        test, train = order.tensor_split([max(1, len(order) // 10)])
        moments = Moments()
        for part in train.split(self.batch_size):
            moments.add(sample[part].to(device))
        pca = PCA(rank=self.rank, scale="raw", standardize=True)
        pca.solve(moments)
        if self.scale != "statistics":
            self.code_mean, self.code_rms = torch.zeros_like(self.code_mean), torch.ones((), device=device)
        if self.weights_sha256 is None:
            self.mean, self.std = pca.mean, pca.std
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._build(len(pca.mean))
                self._start(pca)
                self._optimise(sample, train, test)
            self.eval().requires_grad_(False)
        if self.scale == "unit_rms":
            self._scale_code(sample, train)
        shares = [self._explained_variance_of(reducer, sample, test) for reducer in (self, pca)]
        self.explained = torch.tensor(shares).to(device)
        name = type(self).__name__
        text = "%s rank %d of %d explains %.1f %% of the variance of %d held-out images, PCA %.1f %%"
        log.info(text, name, self.rank, len(self.mean), 100 * shares[0], len(test), 100 * shares[1])
        if shares[0] < shares[1]:
            advice = "fit to more images, or lower its num_steps or hidden"
            log.warning("%s overfits, or was trained too briefly to reach PCA: %s", name, advice)

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
            name = type(self).__name__
            needs = f"needs more than {self.rank} feature vectors of at least 2 images, but got {vectors} of {seen}"
            raise ValueError(f"{name}.rank = {self.rank} {needs}: fit to more images or lower {name}.rank")
        return sample[:seen]

    def _optimise(self, sample: Tensor, train: Tensor, test: Tensor) -> None:
        networks = nn.ModuleList([self.encode, self.decode]).train()
        optimizer = torch.optim.AdamW(networks.parameters(), lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=self.num_steps)
        every, best, best_state, misses = max(1, self.num_steps // 20), float("-inf"), {}, 0
        bar = progress(range(1, self.num_steps + 1), desc="training the reducer")
        for step in bar:
            loss = self._loss(self._standardised(sample[train[torch.randint(len(train), (self.batch_size,))]]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if self.patience is None or step % every:
                continue
            networks.eval()
            share = self._explained_variance_of(self, sample, test)
            networks.train()
            bar.set_postfix_str(f"{100 * share:.1f} % of the variance", refresh=False)
            misses += 1
            if share > best:
                best, best_state, misses = share, copy.deepcopy(networks.state_dict()), 0
            if misses == self.patience:
                log.info("%s: no improvement since step %d of %d", type(self).__name__, step - misses * every, step)
                break
        if best_state:
            networks.load_state_dict(best_state)

    @torch.no_grad()
    def _scale_code(self, sample: Tensor, train: Tensor) -> None:
        codes = Moments()
        for part in train.split(self.batch_size):
            codes.add(self._code(self._standardised(sample[part])))
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
        return (self._code(self._standardised(features)) - self.code_mean[:, None, None]) / self.code_rms.view(-1, 1, 1)

    def inverse(self, reduced: Tensor) -> Tensor:
        self.require_fit()
        code = reduced.float() * self.code_rms.view(-1, 1, 1) + self.code_mean[:, None, None]
        return self.decode(code) * self.std[:, None, None] + self.mean[:, None, None]

    @property
    def explained_variance(self) -> float:
        """Share of the standardised features' variance that `inverse` reconstructs, on held-out images."""
        return float(self.explained[0])

    def fit_settings(self) -> dict:
        settings = {"reducer": type(self).__name__} | {name: getattr(self, name) for name in self.settings}
        others = {"patience": self.patience, "scale": self.scale, "weights_sha256": self.weights_sha256}
        defaults = (None, "unit_rms")  # left out, as fits of ConvBottleneck by earlier versions have none of these keys
        return settings | {name: value for name, value in others.items() if value not in defaults}

    def provenance(self) -> dict:
        settings = self.fit_settings() | ({"fitted_on": self.fitted_on} if self.fitted_on else {})
        # Published weights may not have been measured.
        return settings | ({"explained_variance": self.explained_variance} if self.explained.any() else {})

    def report(self) -> dict:
        return {"explained_variance_of_pca": float(self.explained[1])}


def _take_networks(reducer: TrainedReducer, *_) -> None:
    """Build the networks of the stored width before loading, or remove them if the stored reducer is not fitted."""
    if reducer.fitted:
        with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
            reducer._build(len(reducer.mean))
    else:
        reducer.encode = reducer.decode = None  # type: ignore[assignment]  # a fit builds them
    reducer.eval().requires_grad_(False)
