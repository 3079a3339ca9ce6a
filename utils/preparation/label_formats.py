"""Find the person, age and sex of a scan, by its name, in the tables of public data sets."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError
from utils.data.subjects import person_of
from utils.data.tables import SEXES, read_cells, subject_id_of, to_age

DAYS = 365.25  # in a year
SEX_CODES = {"1": 1, "2": 0}  # male and female, in some data sets
ADNI_DATE_TOLERANCE = 183  # days between a scan and the nearest visit


@dataclass(frozen=True)
class Label:
    """What a table says about a scan.

    Parameters
    ----------
    person : str
    age : float, years, at the scan; NaN if unknown
    sex : int, 0 female, 1 male, -1 unknown
    row : dict of column to str
        The row of the table.
    """

    person: str
    age: float
    sex: int
    row: dict[str, str] = field(repr=False)


Find = Callable[[str], Label | str]  # from the name of a scan to its label, or to the reason why it has none


@dataclass(frozen=True)
class Format:
    """A known form of table.

    Parameters
    ----------
    name : str
    columns : tuple of str
        Lower-case columns by which the form is recognized.
    make : callable
        Turns a table into a function from scan names to labels.
    """

    name: str
    columns: tuple[str, ...]
    make: Callable[[pd.DataFrame], Find]


def open_labels(path: Path) -> tuple[str, Find, list[str]]:
    """Read a table and recognize its form.

    Parameters
    ----------
    path : Path

    Returns
    -------
    name : str
        Name of the form.
    find : callable
        Maps the name of a scan to its `Label`, or to the reason, a str, why
        it has none.
    columns : list of str

    Raises
    ------
    InputError
        If the table cannot be read, or its form is unknown.
    """
    cells = read_cells(path)
    if len(cells) < 2:
        raise InputError(f"{path}: holds no rows below its header; expected subjects with age and sex")
    header = [str(name).strip().strip("\ufeff") for name in cells.iloc[0]]
    table = cells.iloc[1:].astype(str).apply(lambda column: column.str.strip())
    table.columns = pd.Index([name.lower() for name in header])
    for known in FORMATS:
        if set(known.columns) <= set(table.columns):
            return known.name, known.make(table), list(table.columns)
    raise InputError(
        f"{path}: its columns ({', '.join(header[:12])}) are of no known form; give the table of IXI, "
        "OASIS, ADNI, Cam-CAN or BIDS, or one with the columns subject_id, age, sex"
    )


def _years(text: str) -> float:
    """Return an age, NaN if it is unusable."""
    age = to_age(text)
    return np.nan if age is None else age


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _sex(row: dict[str, str], *columns: str, codes: dict[str, int] | None = None) -> int:
    """Return the sex from the first column that gives one."""
    for column in columns:
        text = re.sub(r"\.0+$", "", row.get(column, "").lower())
        sex = (SEXES if codes is None else {**SEXES, **codes}).get(text)
        if sex is not None:
            return sex
    return UNKNOWN_SEX


def _rows_by(table: pd.DataFrame, key: Callable[[dict[str, str]], str]) -> dict[str, list[dict[str, str]]]:
    """Group rows by a key."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in table.to_dict("records"):
        groups.setdefault(key(row), []).append(row)
    return groups


def _only(person: str, rows: list[dict[str, str]], age: Callable[[dict[str, str]], float], sex: int) -> Label | str:
    """Make a label from rows, whose ages must agree."""
    ages = {value for value in map(age, rows) if not np.isnan(value)}
    if max(ages, default=0.0) - min(ages, default=0.0) > 1:
        return f"{person} has {len(rows)} rows with different ages ({', '.join(f'{a:g}' for a in sorted(ages))})"
    return Label(person, min(ages, default=np.nan), sex, rows[0])


def _plain(id_column: str) -> Callable[[pd.DataFrame], Find]:
    """Make a reader of tables with a row for each scan or each person, such as those of BIDS and Cam-CAN."""

    def make(table: pd.DataFrame) -> Find:
        codes = SEX_CODES if "gender_code" in table.columns or id_column in ("ccid", "observations") else None

        def key(row: dict[str, str]) -> str:
            session = row.get("session_id", "")
            return _bare(row[id_column]) + (f"_{session}" if session else "")

        groups = _rows_by(table, key)

        def find(name: str) -> Label | str:
            session = re.search(r"_(ses-[A-Za-z0-9]+)", name)
            person = person_of(name)
            keys = [_bare(name), *([f"{_bare(person)}_{session[1]}"] if session else []), _bare(person)]
            rows = next((groups[key] for key in keys if key in groups), None)
            if rows is None:
                return f"there is no row for {person}"
            sex = _sex(rows[0], "sex", "gender", "gender_text", "gender_code", codes=codes)
            return _only(person, rows, lambda row: _years(row["age"]), sex)

        return find

    return make


def _bare(subject_id: str) -> str:
    """Return an identifier without BIDS's ``sub-`` and without extension."""
    return subject_id_of(subject_id).removeprefix("sub-")


def _ixi(table: pd.DataFrame) -> Find:
    """Read IXI.xls, which numbers the persons and codes sex as 1 male, 2 female."""
    groups = _rows_by(table, lambda row: f"IXI{int(_number(row['ixi_id']) if _number(row['ixi_id']) > 0 else 0):03d}")
    sex_column = next((name for name in table.columns if name.startswith("sex_id")), "")

    def find(name: str) -> Label | str:
        found = re.search(r"IXI(\d{3})", name)
        person = f"IXI{found[1]}" if found else name
        if person not in groups:
            return f"there is no row for {person}"
        sex = _sex(groups[person][0], sex_column, codes=SEX_CODES)
        return _only(person, groups[person], lambda row: _years(row["age"]), sex)

    return find


def _oasis(id_column: str) -> Callable[[pd.DataFrame], Find]:
    """Make a reader of the tables of OASIS-1 and -2: a row for each session, named like its scans."""

    def make(table: pd.DataFrame) -> Find:
        groups = _rows_by(table, lambda row: row[id_column])

        def find(name: str) -> Label | str:
            found = re.search(r"(OAS[12])_?(\d{4})_?(?:ses-)?(MR\d+)", name)
            session = f"{found[1]}_{found[2]}_{found[3]}" if found else name
            if session not in groups:
                return f"there is no row for {session}"
            row = groups[session][0]
            return _only(f"{found[1]}_{found[2]}" if found else session, groups[session],
                         lambda row: _years(row["age"]), _sex(row, "m/f"))  # fmt: skip

        return find

    return make


def _oasis3(id_column: str, age_column: str) -> Callable[[pd.DataFrame], Find]:
    """Make a reader of the tables of OASIS-3: a row for each person or session; sessions count days since entry."""

    def make(table: pd.DataFrame) -> Find:
        groups = _rows_by(table, lambda row: row[id_column].split("_")[0])

        def find(name: str) -> Label | str:
            found = re.search(r"(OAS3\d{4})_(?:MR_|ses{1,2}-)?d(\d{4,})(?!\d)", name)
            if not found:
                return f"{name} does not name person and day, as OAS30001_MR_d0129 does"
            person, day = found[1], int(found[2])
            rows = groups.get(person)
            if rows is None:
                return f"there is no row for {person}"
            sex = _sex(rows[0], "gender", "m/f", "sex", codes=SEX_CODES)
            if age_column == "ageatentry":
                return _only(person, rows, lambda row: _years(row[age_column]) + day / DAYS, sex)
            sessions = [row for row in rows if re.search(rf"_d{day:04d}$", row[id_column])]
            if not sessions:
                return f"there is no row for day {day} of {person}"
            return _only(person, sessions, lambda row: _years(row[age_column]), sex)

        return find

    return make


def _adni(table: pd.DataFrame) -> Find:
    """Read ADNIMERGE.csv: a row for each visit; AGE is the age at the first."""
    groups = _rows_by(table, lambda row: row["ptid"].upper())

    def age(row: dict[str, str]) -> float:
        years = _number(row.get("years_bl", ""))
        months = 0.0 if row["viscode"] == "bl" else _number(row["viscode"].lower().removeprefix("m"))
        return _years(row["age"]) + (months / 12 if np.isnan(years) else years)

    def find(name: str) -> Label | str:
        found = re.search(r"(\d{3})_?S_?(\d{4,5})", name)
        person = f"{found[1]}_S_{found[2]}" if found else name
        rows = groups.get(person)
        if found is None or rows is None:
            return f"there is no row for {person}"
        rest = name[found.end() :]
        visit = re.search(r"_(?:ses-)?(bl|sc|m\d{1,3})(?:_|$)", rest, re.IGNORECASE)
        date = re.search(r"_(?:ses-)?((?:19|20)\d{2})-?(\d{2})-?(\d{2})", rest)
        if visit:
            month = 0 if visit[1].lower() in ("bl", "sc") else int(visit[1][1:])
            code = "bl" if month == 0 else f"m{month:02d}"
            chosen = [row for row in rows if row["viscode"].lower() == code]
            if not chosen:
                return f"there is no row for visit {code} of {person}"
            return _only(person, chosen, age, _sex(chosen[0], "ptgender"))
        if date:
            day = pd.to_datetime("-".join(date.groups()), errors="coerce")
            distances = [abs((pd.to_datetime(row["examdate"], errors="coerce") - day).days) for row in rows]
            nearest = int(np.nanargmin(distances)) if not np.isnan(distances).all() else 0
            if not distances[nearest] <= ADNI_DATE_TOLERANCE:
                return f"{person} has no visit within {ADNI_DATE_TOLERANCE} days of the scan"
            row = rows[nearest]
            years = (day - pd.to_datetime(row["examdate"])).days / DAYS
            return Label(person, age(row) + years, _sex(row, "ptgender"), row)
        if len(rows) == 1:
            return _only(person, rows, age, _sex(rows[0], "ptgender"))
        return f"{name} names neither visit (bl, m12, ses-M12) nor date (20070319), and {person} has {len(rows)} visits"

    return find


# The first form whose columns all exist is taken.
FORMATS = (
    Format("ADNI", ("ptid", "viscode", "age", "ptgender"), _adni),
    Format("IXI", ("ixi_id", "age"), _ixi),
    Format("OASIS-2", ("mri id", "age", "m/f"), _oasis("mri id")),
    Format("OASIS-1", ("id", "age", "m/f", "cdr"), _oasis("id")),
    Format("OASIS-3", ("oasisid", "ageatentry"), _oasis3("oasisid", "ageatentry")),
    Format("OASIS-3", ("mr id", "subject", "age"), _oasis3("mr id", "age")),
    Format("Cam-CAN", ("ccid", "age"), _plain("ccid")),
    Format("Cam-CAN", ("observations", "age"), _plain("observations")),
    Format("BIDS", ("participant_id", "age"), _plain("participant_id")),
    Format("plain", ("subject_id", "age"), _plain("subject_id")),
)
