"""Random numbers that do not depend on how processes divide a batch."""

from collections.abc import Sequence

import numpy as np

from utils.common.distributed import Share


class Draws:
    """Draws for every subject of a joint batch, and gives those of one process's subjects.

    Parameters
    ----------
    seed : sequence of int
    share : Share
        Of B subjects.
    """

    def __init__(self, seed: Sequence[int], share: Share) -> None:
        self.rng = np.random.default_rng(seed)
        self.share = share

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Return (B, *shape) numbers between two others."""
        return self.rng.uniform(low, high, (self.share.total, *shape))[self.share.own]

    def normal(self, deviation: float, *shape: int) -> np.ndarray:
        """Return (B, *shape) normal numbers about 0."""
        return self.rng.normal(0, deviation, (self.share.total, *shape))[self.share.own]

    def integers(self, end: int) -> np.ndarray:
        """Return (B,) integers from 0 on, below another one."""
        return self.rng.integers(end, size=self.share.total)[self.share.own]
