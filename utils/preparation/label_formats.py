"""Find the person, age and sex of a scan, by its name, in the tables of public data sets."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError
from utils.data.cells import read_cells
from utils.data.columns import COLUMN_NAMES, DAYS, SEXES, plain_name, read_age, session_of, sex_codes, to_number
from utils.data.names import RowIndex, person_in_row, scan_name
from utils.data.tables import find_column

SEX_CODES = {**SEXES, "1": 1, "2": 0}  # male and female, in some data sets
SEX_COLUMNS = (*COLUMN_NAMES["sex"], "gender_text", "gender_code")
NUMBER = "(row)"  # column of the number of a row in its file
ADNI_DATE_TOLERANCE = 183  # days between a scan and the nearest visit
Row = dict[str, str]  # cells by lower-case column


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
    row: Row = field(repr=False)


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
        In lower case.

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
    columns = [name.lower() for name in header]
    table.columns = pd.Index(columns)
    table[NUMBER] = [str(index + 1) for index in table.index]
    names = [plain_name(name) for name in header]
    places = {role: find_column(path, names, known) for role, known in COLUMN_NAMES.items()}
    own = {role: table.iloc[:, place] for role, place in places.items() if place is not None}
    table = table.loc[:, ~table.columns.duplicated()].copy()
    for role in own.keys() & {"session", "person"}:
        table[role] = own[role]
    for known in FORMATS:
        if set(known.columns) <= set(columns):
            repeated = [name for name in known.columns if columns.count(name) > 1]
            if repeated:
                raise InputError(f"{path}: has several columns {repeated[0]}; keep one, or rename the others")
            return known.name, known.make(table), columns
    if {"subject_id", "age"} <= own.keys():
        return "plain", _plain("subject_id")(table.assign(**own)), columns
    raise InputError(
        f"{path}: its columns ({', '.join(header[:12])}) are of no known form; give the table of IXI, "
        "OASIS, ADNI, Cam-CAN or BIDS, or one with the columns subject_id, age, sex"
    )


def _sex(row: Row, columns: Sequence[str], codes: Mapping[str, int]) -> int:
    """Return the sex from the first column that gives one."""
    texts = (re.sub(r"\.0+$", "", row.get(column, "").lower()) for column in columns)
    return next((codes[text] for text in texts if text in codes), UNKNOWN_SEX)


def _rows_by(table: pd.DataFrame, key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group rows by a key."""
    groups: dict[str, list[Row]] = {}
    for row in table.to_dict("records"):
        groups.setdefault(key(row), []).append(row)
    return groups


def _age(row: Row) -> float:
    """Return the age of a row, years; NaN if it has none."""
    return read_age(row["age"]).years


def _label(person: str, rows: Sequence[Row], sex: int, age: Callable[[Row], float] = _age) -> Label | str:
    """Make a label from rows, whose ages must agree."""
    ages = {value for value in map(age, rows) if not np.isnan(value)}
    if max(ages, default=0.0) - min(ages, default=0.0) > 1:
        return f"{person} has {len(rows)} rows with different ages ({', '.join(f'{a:g}' for a in sorted(ages))})"
    return Label(person, min(ages, default=np.nan), sex, rows[0])


def _by_key(
    row_key: Callable[[Row], str],
    scan_keys: Callable[[str], tuple[str, list[str]]],
    sex_columns: Sequence[str],
    codes: Mapping[str, int] = SEXES,
) -> Callable[[pd.DataFrame], Find]:
    """Make a reader of tables in which a scan's name gives its person, and the keys its row may have."""

    def make(table: pd.DataFrame) -> Find:
        groups = _rows_by(table, row_key)

        def find(name: str) -> Label | str:
            person, keys = scan_keys(name)
            rows = next((groups[key] for key in keys if key in groups), None)
            if rows is None:
                return f"there is no row for {keys[0] if len(keys) == 1 else person}"
            return _label(person, rows, _sex(rows[0], sex_columns, codes))

        return find

    return make


def _plain(id_column: str, codes: dict[str, int] | None = None) -> Callable[[pd.DataFrame], Find]:
    """Make a reader of tables with a row for each scan or each person, such as those of BIDS and Cam-CAN."""

    def make(table: pd.DataFrame) -> Find:
        index, rows = RowIndex(table[id_column], table.get("session", ())), table.to_dict("records")
        sexes = [name for name in SEX_COLUMNS if name in table]
        known, note = (codes, "") if codes else sex_codes(table[sexes].to_numpy(str).ravel())
        if note:
            print(f"note: {note}")

        def find(name: str) -> Label | str:
            own, shared = ([rows[number] for number in numbers] for numbers in index.find(name))
            if not own:
                there = index.sessions_of(name)
                return f"there is no row for {name}" + (f", but for session {', '.join(there)}" if there else "")
            row = {column: cell or (shared[0][column] if shared else "") for column, cell in own[0].items()}
            session = session_of(row.get("session", ""))
            person = row.get("person") or person_in_row(row[id_column], session, scan_name(name))
            label = _label(person, own, _sex(row, sexes, known))
            return label if isinstance(label, str) else replace(label, row=row)

        return find

    return make


def _ixi_number(row: Row) -> str:
    """Return how the name of a scan shows the number of a person in IXI.xls."""
    number = to_number(row["ixi_id"])
    return f"IXI{int(number):03d}" if number > 0 else ""


def _ixi_keys(name: str) -> tuple[str, list[str]]:
    found = re.search(r"IXI\d{3}", name)
    return found[0] if found else name, [found[0] if found else name]


def _oasis_keys(name: str) -> tuple[str, list[str]]:
    """Return person and session in OASIS-1 and -2, whose scans are named like their sessions."""
    found = re.search(r"(OAS[12])_?(\d{4})_?(?:ses-)?(MR\d+)", name)
    return (f"{found[1]}_{found[2]}", [f"{found[1]}_{found[2]}_{found[3]}"]) if found else (name, [name])


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
            sex = _sex(rows[0], ("gender", "m/f", "sex"), SEX_CODES)
            if age_column == "ageatentry":
                return _label(person, rows, sex, lambda row: read_age(row[age_column]).years + day / DAYS)
            sessions = [row for row in rows if re.search(rf"_d{day:04d}$", row[id_column])]
            if not sessions:
                return f"there is no row for day {day} of {person}"
            return _label(person, sessions, sex)

        return find

    return make


def _adni(table: pd.DataFrame) -> Find:
    """Read ADNIMERGE.csv: a row for each visit; AGE is the age at the first."""
    groups = _rows_by(table, lambda row: row["ptid"].upper())

    def age(row: Row) -> float:
        years = to_number(row.get("years_bl", ""))
        months = 0.0 if row["viscode"] == "bl" else to_number(row["viscode"].lower().removeprefix("m"))
        return _age(row) + (months / 12 if np.isnan(years) else years)

    def find(name: str) -> Label | str:
        found = re.search(r"(\d{3})_?S_?(\d{4,5})", name)
        person = f"{found[1]}_S_{found[2]}" if found else name
        rows = groups.get(person)
        if found is None or rows is None:
            return f"there is no row for {person}"
        sex = _sex(rows[0], ("ptgender",), SEXES)
        rest = name[found.end() :]
        visit = re.search(r"_(?:ses-)?(bl|sc|m\d{1,3})(?:_|$)", rest, re.IGNORECASE)
        date = re.search(r"_(?:ses-)?((?:19|20)\d{2})-?(\d{2})-?(\d{2})", rest)
        if visit:
            month = 0 if visit[1].lower() in ("bl", "sc") else int(visit[1][1:])
            code = "bl" if month == 0 else f"m{month:02d}"
            chosen = [row for row in rows if row["viscode"].lower() == code]
            if not chosen:
                return f"there is no row for visit {code} of {person}"
            return _label(person, chosen, sex, age)
        if date:
            day = pd.to_datetime("-".join(date.groups()), errors="coerce")
            exams = [pd.to_datetime(row.get("examdate"), errors="coerce") for row in rows]
            distances = [abs((exam - day).days) for exam in exams]
            nearest = int(np.nanargmin(distances)) if not np.isnan(distances).all() else 0
            if not distances[nearest] <= ADNI_DATE_TOLERANCE:
                return f"{person} has no visit within {ADNI_DATE_TOLERANCE} days of the scan"
            row = rows[nearest]
            return Label(person, age(row) + (day - exams[nearest]).days / DAYS, sex, row)
        if len(rows) == 1:
            return _label(person, rows, sex, age)
        return f"{name} names neither visit (bl, m12, ses-M12) nor date (20070319), and {person} has {len(rows)} visits"

    return find


# The first form whose columns all exist is taken.
FORMATS = (
    Format("ADNI", ("ptid", "viscode", "age", "ptgender"), _adni),
    Format("IXI", ("ixi_id", "age"), _by_key(_ixi_number, _ixi_keys, ("sex_id (1=m, 2=f)", "sex_id"), SEX_CODES)),
    Format("OASIS-2", ("mri id", "age", "m/f"), _by_key(itemgetter("mri id"), _oasis_keys, ("m/f",))),
    Format("OASIS-1", ("id", "age", "m/f", "cdr"), _by_key(itemgetter("id"), _oasis_keys, ("m/f",))),
    Format("OASIS-3", ("oasisid", "ageatentry"), _oasis3("oasisid", "ageatentry")),
    Format("OASIS-3", ("mr id", "subject", "age"), _oasis3("mr id", "age")),
    Format("Cam-CAN", ("ccid", "age"), _plain("ccid", SEX_CODES)),
    Format("Cam-CAN", ("observations", "age"), _plain("observations", SEX_CODES)),
    Format("Cam-CAN", ("participant_id", "age", "gender_code"), _plain("participant_id", SEX_CODES)),
    Format("BIDS", ("participant_id", "age"), _plain("participant_id")),
)
