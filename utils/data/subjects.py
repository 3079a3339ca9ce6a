"""Subjects: a scan and what is known of the person."""

import re
from dataclasses import dataclass
from pathlib import Path

from model.conventions import UNKNOWN_SEX

SEX_NAMES = {0: "F", 1: "M", UNKNOWN_SEX: ""}
UNKNOWN_AGE = float("nan")
AGE_FIELDS = ("chronological_age", "first_stage_age", "discretized_age")

PERSON_PATTERNS = (
    r"^(sub-[A-Za-z0-9]+)_",
    r"^(IXI\d{3})-",
    r"^(OAS[12]_\d{4})_MR\d",
    r"^(OAS3\d{4})_",
    r"(?:^|_)(\d{3}_S_\d{4,5})(?:_|$)",
    r"^(CC\d{6})_",
)


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
    out_of_fold : bool
        Whether these ages come from a network that never saw the person.
    site : str
        Where the person was scanned; empty where nobody asks.
    """

    subject_id: str
    path: Path
    chronological_age: float = UNKNOWN_AGE
    sex: int = UNKNOWN_SEX
    first_stage_age: float = UNKNOWN_AGE
    discretized_age: float = UNKNOWN_AGE
    out_of_fold: bool = False
    site: str = ""


def person_of(subject_id: str) -> str:
    """Return whose scan it is, by the naming of BIDS and of the public data sets.

    >>> person_of("sub-01_ses-2"), person_of("IXI012-HH-1211"), person_of("OAS1_0004_MR2")
    ('sub-01', 'IXI012', 'OAS1_0004')
    >>> person_of("ADNI_002_S_0295_MR_20070319"), person_of("OAS30001_MR_d0129"), person_of("brain_7")
    ('002_S_0295', 'OAS30001', 'brain_7')
    """
    for pattern in PERSON_PATTERNS:
        found = re.search(pattern, subject_id)
        if found:
            return found[1]
    return subject_id
