"""A subject: one scan and what is known of the person."""

import re
from dataclasses import dataclass
from pathlib import Path

UNKNOWN_SEX = -1
UNKNOWN_AGE = float("nan")
AGE_FIELDS = ("chronological_age", "first_stage_age", "discretized_age")


@dataclass(frozen=True)
class Subject:
    """One scan and what is known of the person.

    Parameters
    ----------
    subject_id : str
    path : Path to the scan
    chronological_age : float, years; NaN where unknown
    sex : int, 0 female, 1 male, -1 unknown
    first_stage_age, discretized_age : float, years
        From the first stage; NaN before it has run.
    """

    subject_id: str
    path: Path
    chronological_age: float = UNKNOWN_AGE
    sex: int = UNKNOWN_SEX
    first_stage_age: float = UNKNOWN_AGE
    discretized_age: float = UNKNOWN_AGE


def person_of(subject_id: str) -> str:
    """Return whose scan it is: all scans of one BIDS subject are one person's.

    >>> person_of("sub-01_ses-2")
    'sub-01'
    """
    bids = re.match(r"(sub-[A-Za-z0-9]+)_", subject_id)
    return bids[1] if bids else subject_id
