"""Which samples of a batch lose their label, and which their representations."""

from typing import NamedTuple

import torch
from torch import Tensor


class TrainedWith(NamedTuple):
    """The dropout probabilities of a training, which decide what guidance can ask of the model.

    Examples:
        >>> unlabelled, dropped = TrainedWith(0.0, 0.0, joint_dropout=0.5).draw(100, "cpu")
        >>> bool((unlabelled == dropped).all()), 20 < int(dropped.sum()) < 80
        (True, True)
    """

    label_dropout: float
    representation_dropout: float
    joint_dropout: float = 0.0

    def check(self) -> None:
        """Raise ValueError, naming the binding, if a probability is not in [0, 1)."""
        for name, value in self._asdict().items():
            if not 0 <= value < 1:
                raise ValueError(f"JointObjective.{name} = {value}: must be in [0, 1)")

    def draw(self, num_samples: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Draw the samples without label and those without representations, both (num_samples,) bool."""
        dropped = torch.rand(num_samples, device=device) < self.representation_dropout
        unlabelled = torch.rand(num_samples, device=device) < self.label_dropout
        if self.joint_dropout:  # last, and only if it is on: the other numbers are the same without it
            both = torch.rand(num_samples, device=device) < self.joint_dropout
            unlabelled, dropped = unlabelled | both, dropped | both
        return unlabelled, dropped
