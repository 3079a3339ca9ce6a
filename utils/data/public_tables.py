"""Bring tables of UK Biobank, ABIDE, HCP and NACC into the plain form: subject_id, session, age, sex."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils.common.errors import InputError
from utils.data.columns import plain_name, to_number

SEX, AGE = 31, 21003  # fields of UK Biobank
TITLES = {"sex": SEX, "age when attended assessment centre": AGE}  # of these fields
FIRST_IMAGING = 2  # instance of UK Biobank; nobody was scanned before
# p21003_i2 of the Research Analysis Platform, 21003-2.0 and f.21003.2.0 of the older converters; - is _ here.
FIELD = re.compile(r"^p(\d+)(?:_i(\d+))?(?:_a(\d+))?$|^(?:f\.)?(\d+)[_.](\d+)\.(\d+)$")
CENSORED_MONTHS = 1200  # HCP-Aging gives everybody above 90 years this age


def as_plain(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """Rename the columns of a known table, and convert what they hold; return any other table as it is.

    Parameters
    ----------
    path : Path
        Named in errors.
    cells : DataFrame of str
        The first row is the header.

    Raises
    ------
    InputError
        If a table of UK Biobank has no age at an imaging visit.
    """
    if len(cells) < 2:
        return cells
    names = [plain_name(name).removeprefix("participant.") for name in cells.iloc[0]]
    for known, read in READERS.items():
        if set(known) <= set(names) and "subject_id" not in names:
            return read(path, cells, names)
    return cells


def _renamed(cells: pd.DataFrame, names: list[str], roles: dict[str, str]) -> pd.DataFrame:
    """Give columns the names of their roles."""
    cells = cells.copy()
    cells.iloc[0] = [roles.get(name, name) for name in names]
    return cells


def _uk_biobank(path: Path, cells: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Make a row of each imaging visit with an age; further fields of the visit are called ``p<field>``."""
    fields = [_field_of(name) for name in names]
    ages = {instance: place for place, (field, instance) in enumerate(fields) if field == AGE}
    visits = sorted(instance for instance in ages if instance >= FIRST_IMAGING)
    if not visits:
        raise InputError(
            f"{path}: is a table of UK Biobank without the age at an imaging visit; add the field {AGE} of the "
            "instances 2 and 3 (p21003_i2, 21003-2.0)"
        )
    person = next(place for place, name in enumerate(names) if name in UK_BIOBANK_IDS)
    sex = next((place for place, (field, _) in enumerate(fields) if field == SEX), None)
    other = {field for field, instance in fields if field not in (None, SEX, AGE) and instance >= FIRST_IMAGING}
    rest = [place for place, (field, _) in enumerate(fields) if field is None and place != person]
    body = cells.iloc[1:].apply(lambda column: column.str.strip())
    parts = []
    for instance in visits:
        places = {field: place for place, (field, own) in reversed(list(enumerate(fields))) if own == instance}
        part = pd.DataFrame({"subject_id": body.iloc[:, person], "session": str(instance)}, index=body.index)
        part["age"] = body.iloc[:, ages[instance]]
        part["sex"] = "" if sex is None else body.iloc[:, sex]
        columns = {f"p{field}": body.iloc[:, places[field]] if field in places else "" for field in sorted(other)}
        parts.append(part.assign(**columns, **{names[place]: body.iloc[:, place] for place in rest}))
    table = pd.concat(parts)
    table = table[table["age"] != ""].sort_index(kind="stable")  # most of half a million people were never scanned
    table = pd.concat([pd.DataFrame([table.columns], index=cells.index[:1], columns=table.columns), table])
    table.columns = pd.RangeIndex(table.shape[1])
    return table


def _field_of(name: str) -> tuple[int | None, int]:
    """Return the field and the instance that a column holds; arrays after the first and other columns have no field.

    >>> _field_of("p21003_i2"), _field_of("f.21003.3.0"), _field_of("31_0.0"), _field_of("p3_i2_a1"), _field_of("dx")
    ((21003, 2), (21003, 3), (31, 0), (None, 0), (None, 0))
    """
    title, _, instance = name.replace("_", " ").partition(" | instance ")
    if title in TITLES:
        return TITLES[title], int(instance) if instance.isdigit() else 0
    found = FIELD.match(name)
    if not found or int(found[3] or found[6] or 0):
        return None, 0
    return int(found[1] or found[4]), int(found[2] or found[5] or 0)


def _abide(path: Path, cells: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Pad the numbers of ABIDE I to seven digits, as the names of its scans have them."""
    cells = _renamed(cells, names, {"sub_id": "subject_id", "age_at_scan": "age"})
    place = names.index("sub_id")
    cells.iloc[1:, place] = [re.sub(r"^5\d{4}$", r"00\g<0>", cell.strip()) for cell in cells.iloc[1:, place]]
    return cells


def _nda(path: Path, cells: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Turn months into years, and drop the second header row, which describes the columns."""
    cells = _renamed(cells, names, {"src_subject_id": "subject_id", "interview_age": "age"})
    place = names.index("interview_age")
    months = [to_number(cell) for cell in cells.iloc[1:, place]]
    cells.iloc[1:, place] = [
        cell if number != number else "90+" if number == CENSORED_MONTHS else f"{number / 12:.6g}"
        for cell, number in zip(cells.iloc[1:, place], months, strict=True)
    ]
    described = " " in cells.iloc[1, names.index("src_subject_id")].strip()
    return cells.drop(index=cells.index[1]) if described else cells


def _nacc(path: Path, cells: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return _renamed(cells, names, {"naccid": "subject_id", "naccvnum": "session", "naccage": "age"})


UK_BIOBANK_IDS = ("eid", "f.eid", "participant_id")
READERS: dict[tuple[str, ...], Callable[[Path, pd.DataFrame, list[str]], pd.DataFrame]] = {
    ("eid",): _uk_biobank,
    ("f.eid",): _uk_biobank,
    ("participant_id", "age_when_attended_assessment_centre_|_instance_2"): _uk_biobank,
    ("sub_id", "age_at_scan"): _abide,
    ("src_subject_id", "interview_age"): _nda,
    ("naccid", "naccage"): _nacc,
}
