"""Subjects: a scan and what is known of the person."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    r"^(\d{7})_\d{4,6}_\d_\d+(?:_|$)",  # UK Biobank: person, field, instance, array
    r"^(HC[AD]\d{7})_",
    r"^(NACC\d{6})_",
    r"^[A-Za-z]\w*_(005\d{4})(?:_|$)",  # ABIDE: Pitt_0050003
)
# What visits of one person end with, where no standard says so: P001_V1, P001_ses-2, P001_T2.
VISIT = re.compile(
    r"^(.*\d.*?)[_.-](?:(?:v|visit|ses|session|t|tp|time|timepoint|wave|scan|m|month|y|year)[_-]?\d{1,2}|bl|baseline|\d_\d)$",
    re.IGNORECASE,
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
    person : str
        Whose scan it is; by default what `person_of` says.
    """

    subject_id: str
    path: Path
    chronological_age: float = UNKNOWN_AGE
    sex: int = UNKNOWN_SEX
    first_stage_age: float = UNKNOWN_AGE
    discretized_age: float = UNKNOWN_AGE
    out_of_fold: bool = False
    site: str = ""
    person: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", self.person or person_of(self.subject_id))

    @property
    def names(self) -> set[str]:
        """The names of the person: that of the table, and that in the subject id."""
        return {self.person, person_of(self.subject_id)}


def person_of(subject_id: str) -> str:
    """Return whose scan it is, by the naming of BIDS and of the public data sets.

    >>> person_of("sub-01_ses-2"), person_of("IXI012-HH-1211"), person_of("OAS1_0004_MR2")
    ('sub-01', 'IXI012', 'OAS1_0004')
    >>> person_of("ADNI_002_S_0295_MR_20070319"), person_of("OAS30001_MR_d0129"), person_of("brain_7")
    ('002_S_0295', 'OAS30001', 'brain_7')
    >>> person_of("1000011_20252_2_0"), person_of("HCA6002236_V1_MR"), person_of("Pitt_0050003")
    ('1000011', 'HCA6002236', '0050003')
    """
    for pattern in PERSON_PATTERNS:
        found = re.search(pattern, subject_id)
        if found:
            return found[1]
    return subject_id


def named_persons(scans: Iterable[Any]) -> dict[str, str]:
    """Return the persons whom a table names, by the names in their scans' subject ids.

    They hold for scans of the same name for which the table is silent, too.
    """
    return {person_of(scan.subject_id): scan.person for scan in scans if scan.person != person_of(scan.subject_id)}


def trained_persons(checkpoint: Mapping[str, Any], role: str = "train") -> list[str]:
    """Return the names of the persons whom a network was trained on.

    Parameters
    ----------
    checkpoint : mapping
    role : {"train", "valid"}
        ``valid`` returns those who chose its epoch or its learning rate.
    """
    ids = [
        *checkpoint.get(f"{role}_subjects", ()),
        *(checkpoint.get("initial_subjects", ()) if role == "train" else ()),
    ]
    return sorted({*map(person_of, ids), *checkpoint.get(f"{role}_persons", ())})


def suspected_visits(persons: Iterable[str]) -> str:
    """Return a warning if names of different persons look like visits of one; empty otherwise.

    >>> suspected_visits(["P001_V1", "P001_V2", "P002_V1", "brain_1_0", "brain_2_0"])[:58]
    'names such as P001_V1 and P001_V2 look like visits of one '
    """
    visits: dict[str, list[str]] = {}
    for person in sorted(set(persons)):
        name = person
        while found := VISIT.match(name):
            name = found[1]
        visits.setdefault(name, []).append(person)
    several = [names for names in visits.values() if len(names) > 1]
    if not several:
        return ""
    return (
        f"names such as {several[0][0]} and {several[0][1]} look like visits of one person, but count as different "
        "people; if they are not, add a column person to the label table"
    )
