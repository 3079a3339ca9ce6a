"""What users choose from; here, so that --help need not import the code behind it."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

AUGMENTATIONS = (
    "flip", "rotation", "scaling", "blur", "erosion", "gain", "gamma", "contrast", "bias_field", "noise",
)  # fmt: skip
CORRECTIONS = ("linear-gap", "linear-prediction", "covariate")  # of the brain-age gap
PATIENT_GAPS = {"MCI": 5.0, "AD": 10.0}  # years, mean true gap of simulated patients; 0 in healthy subjects


class Shard(NamedTuple):
    """One of several equal shares of a list of work, counted from 1."""

    part: int = 1
    parts: int = 1

    def of(self, work: Sequence[T]) -> Sequence[T]:
        """Return its share: every `parts`-th item."""
        return work[self.part - 1 :: self.parts]


WHOLE = Shard()
