"""Reducers: from encoder width to a few channels, and the registry of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from redi.core.registry import Registry, discover


class Reducer(nn.Module, ABC):
    """Maps encoder features (N, E, h, w) to (N, R, h, w). What it learns are buffers: they travel in checkpoints.

    Args:
        rank: R, the channels that remain.
    """

    def __init__(self, *, rank: int = 8):
        super().__init__()
        if rank < 1:
            raise ValueError(f"{type(self).__name__}.rank = {rank}: at least 1 is needed")
        self.rank = rank

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether `fit` or `load_state_dict` has happened."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Learns from batches of features (N, E, h, w), in one pass and in memory independent of their number."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """(N, E, h, w) -> (N, R, h, w), float32."""

    def inverse(self, reduced: Tensor) -> Tensor:
        """(N, R, h, w) -> (N, E, h, w), as near to the features as R channels allow."""
        raise TypeError(f"{type(self).__name__} has no inverse")

    @abstractmethod
    def fit_settings(self) -> dict:
        """What `fit` depends on beside the features, as JSON: the key under which fits are shared."""

    @abstractmethod
    def provenance(self) -> dict:
        """What this reducer is and how well it keeps the features, as JSON."""


reducers = Registry("reducers", Reducer)
register = reducers.register
discover(__name__, reducers)
