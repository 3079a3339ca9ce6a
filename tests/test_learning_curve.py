"""The learning curve finds the law that made it."""

import numpy as np
import pytest

from benchmarks.learning_curve import scans_needed


def test_scans_needed() -> None:
    sizes = np.array([40.0, 80.0, 120.0])
    pearson = np.sqrt(1 - 0.8 * sizes**-0.4)
    assert scans_needed(sizes, pearson, np.sqrt(1 - 0.8 * 300**-0.4)) == pytest.approx(300)
    assert scans_needed(sizes, pearson[::-1], 0.99) == np.inf  # more scans, worse
