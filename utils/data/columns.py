"""What the columns of tables are called, and what their cells mean: ages, sexes, sessions."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from model.conventions import UNKNOWN_SEX

COLUMN_NAMES = {
    "subject_id": (
        "subject_id", "subjectid", "participant_id", "subject", "id", "filename", "file_name", "file", "name",
    ),
    "session": ("session_id", "session", "ses", "visit"),
    "person": ("person", "person_id"),
    "age": ("age", "chronological_age", "age_years"),
    "sex": ("sex", "gender", "male"),
}  # fmt: skip
SEXES = {"0": 0, "f": 0, "female": 0, "1": 1, "m": 1, "male": 1}
OLDEST_AGE = 130.0  # years
DAYS = 365.25  # in a year
MISSING = ("", "na", "n/a", "n.a.", "nan", "none", "null", "#n/a", "unknown", "missing", "-", "--", ".", "?")
CENSORED = re.compile(r"^(?:[<>]=?|≥|≤)\s*[\d.,]+$|^[\d.,]+\s*(?:\+|and over|or older)$")
DATE = re.compile(r"^(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(?:[ T]00:00(?::00)?)?$")
FORMULA = re.compile(r"^(?:[=@]|[+-](?![\w .+-]*$))")  # -01 and +x call nothing


class Age(NamedTuple):
    """What a cell says of an age.

    Parameters
    ----------
    years : float
        NaN if it cannot be used.
    complaint : str
        Why not, to follow the words "age 'CELL' of SUBJECT".
    unknown : bool
        Whether the table says so on purpose; no mistake where no age is needed.
    """

    years: float
    complaint: str = ""
    unknown: bool = False


def plain_name(name: object) -> str:
    """Return a column's name in lower case, with underscores.

    >>> plain_name("Subject-ID ")
    'subject_id'
    """
    return re.sub(r"[\s\-]+", "_", str(name).lower().strip("\ufeff \t"))


def to_number(cell: str) -> float:
    """Return the number in a cell, NaN if there is none; a comma may stand for the point.

    >>> to_number(" 76,7 "), to_number("1e2"), to_number("76 years")
    (76.7, 100.0, nan)
    """
    text = re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", cell.strip())
    try:
        value = math.nan if "_" in text else float(text)  # Python would read 1_000
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def read_age(cell: str) -> Age:
    """Read an age in years.

    >>> read_age("61,5").years, read_age("89+").unknown, read_age("-").unknown, read_age("-3").unknown
    (61.5, True, True, False)
    """
    text, years = cell.strip(), to_number(cell)
    if 0 < years < OLDEST_AGE:
        return Age(years)
    complaint = f"is not a number of years between 0 and {OLDEST_AGE:g}; correct or remove the row"
    if CENSORED.match(text.lower()):
        return Age(math.nan, "is a bound, so the age is unknown; give the age, or remove the row", True)
    if DATE.match(text):
        complaint = "is a date; give the age at the scan, in years"
    elif FORMULA.match(text):
        complaint = "is a formula whose value was not saved; save the table again with a spreadsheet program"
    elif years >= OLDEST_AGE:
        complaint = complaint.replace("; correct", " (days, months or a year of birth?); correct")
    return Age(math.nan, complaint, text.lower() in MISSING)


def sex_codes(cells: Iterable[str]) -> tuple[dict[str, int], str]:
    """Return how the codes of a column of sexes are read, and a note if that is not certain.

    Notes
    -----
    1 is male in all usual codes, and either 0 or 2 female (2 in ISO/IEC 5218).
    A column with both leaves open what they mean; its numbers are not read.
    """
    found, words = {_sex_code(cell) for cell in cells}, {code: sex for code, sex in SEXES.items() if not code.isdigit()}
    if "2" not in found or (found & set(words) and "0" not in found):
        return SEXES, ""
    if "0" not in found:
        return {**SEXES, "2": 0}, "the sex is coded 1 and 2, read as 1 male, 2 female; if that is wrong, write M and F"
    return words, "the sex is coded with both 0 and 2, so that numbers are not read; write M and F"


def read_sex(cell: str, codes: dict[str, int] | None = None) -> int:
    """Return 0 for female, 1 for male, -1 for anything else; `codes` are those of `sex_codes`."""
    return (codes or SEXES).get(_sex_code(cell), UNKNOWN_SEX)


def _sex_code(cell: str) -> str:
    """Return a code of the sex as `SEXES` has it."""
    return re.sub(r"\.0+$", "", cell.strip().lower())


def session_of(text: str) -> str:
    """Return a session's name in the form that is compared between tables.

    >>> session_of("ses-01"), session_of("1.0"), session_of("M12"), session_of("n/a")
    ('1', '1', 'M12', '')
    """
    if not text:
        return ""  # for large tables
    name = re.sub(r"^0+(?=\d)", "", re.sub(r"\.0+$", "", re.sub(r"^ses-", "", text.strip())))
    return "" if name.lower() in MISSING else name


def is_formula(text: str) -> bool:
    """Tell whether a spreadsheet program would run a text as a formula.

    >>> [is_formula(text) for text in ("=cmd()", "@SUM(A1)", "-2+3+cmd|' /C calc'!A0", "-01", "sub-1", "+x")]
    [True, True, True, False, False, False]
    """
    return bool(FORMULA.match(text))
