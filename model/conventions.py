"""Facts that the networks and everything around them share; importing this module costs nothing."""

from typing import TypeVar

MODELS = ("scaledense", "scaledense_paper")
LOSSES = ("mse", "mae")
RANKERS = ("soft", "sodeep", "none")
SORTER_TYPES = ("lstm", "lstmla")
NORMALIZATIONS = ("brain", "legacy", "tissue")
UNKNOWN_SEX = -1  # beside 0 female, 1 male

Ages = TypeVar("Ages")  # float, NumPy array or torch tensor


def discretize_age(age: Ages, age_interval: float) -> Ages:
    """Round ages to the nearest multiple of an interval, halves up.

    Parameters
    ----------
    age : float, array or tensor, years
    age_interval : float, years

    References
    ----------
    Cheng et al. 2021, section III-C.

    >>> discretize_age(62.4, 5), discretize_age(62.5, 5)
    (60.0, 65.0)
    """
    return (age / age_interval + 0.5) // 1 * age_interval  # type: ignore[operator, no-any-return, return-value]
