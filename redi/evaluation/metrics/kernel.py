"""The kernel distance (KID) between two sets of features."""

import numpy as np
from torch import Tensor

from redi.evaluation.metrics.features import Features, both


def kernel_distance(
    *, samples: Features, reference: Features, num_subsets: int = 100, max_subset_size: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return the unbiased squared MMD with the kernel (x.y / P + 1)^3 (Bińkowski et al., arXiv 1801.01401).

    It is computed by clean-fid in float64, as the mean over random subsets of at most `max_subset_size` images of each
    set. For equal distributions the unbiased estimate is negative about half of the time. Raises ValueError like
    `features.both`.
    """
    from cleanfid.fid import kernel_distance as by_clean_fid

    ours, theirs = both(samples, reference)
    state = np.random.get_state()  # clean-fid draws from the global generator
    try:
        np.random.seed(seed)
        value = by_clean_fid(_Rows(theirs), _Rows(ours), num_subsets, max_subset_size)
    finally:
        np.random.set_state(state)
    return {"kernel_distance": value}


class _Rows:
    """Wraps features for clean-fid, converting only the requested rows to float64."""

    def __init__(self, features: Tensor):
        self.features, self.shape = features, features.shape

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return self.features[positions].double().numpy()
