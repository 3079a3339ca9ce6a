"""Read label tables: subject, age and sex from CSV, TSV or Excel files."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from utils.common.errors import InputError
from utils.data.subjects import person_of

COLUMN_NAMES = {
    "subject_id": (
        "subject_id",
        "subjectid",
        "participant_id",
        "subject",
        "id",
        "filename",
        "file_name",
        "file",
        "name",
    ),
    "age": ("age", "chronological_age", "age_years"),
    "sex": ("sex", "gender", "male"),
}
SEXES = {"0": 0, "f": 0, "female": 0, "1": 1, "m": 1, "male": 1}
OLDEST_AGE = 130.0  # years
MISSING = ("", "na", "n/a", "nan", "none", "null")
TABLE_KINDS = (".csv", ".tsv", ".txt", ".xlsx", ".xls")


@dataclass
class LabelTable:
    """The usable content of a label table, and what is wrong with the rest.

    Parameters
    ----------
    path : Path
    ages : dict of subject_id to float, years
    sexes : dict of subject_id to int, 0 female, 1 male
    problems : dict of subject_id to list of str
        What is wrong with a subject's rows; matters only where a scan needs
        the row.
    missing_ages : dict of subject_id to str
        The same of ages that are not given; no problem where none is needed.
    sites : dict of subject_id to str
        The scanner or center, if a column was named.
    complaint : str
        Not empty if the table has no age column at all.
    """

    path: Path
    ages: dict[str, float] = field(default_factory=dict)
    sexes: dict[str, int] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    missing_ages: dict[str, str] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    complaint: str = ""

    def find(self, file_name: str) -> str | None:
        """Return the key of the row that belongs to a scan, by the scan's file name.

        That is the first of these names found in the table: the file's, the
        same without ``_T1w``, and the person's, without session and run.
        """
        name = scan_name(file_name)
        candidates = (subject_id_of(file_name), name, f"{name}_T1w", person_of(name))
        return next((candidate for candidate in candidates if candidate in self.problems), None)


def subject_id_of(file_name: str) -> str:
    """Return a file's name without folder and the extension of an image.

    >>> subject_id_of("data/sub-0001.nii.gz")
    'sub-0001'
    """
    return re.sub(r"(?i)\.(nii(\.gz)?|mg[zh])$", "", file_name.replace("\\", "/").rsplit("/", 1)[-1].strip())


def scan_name(file_name: str) -> str:
    """Return the name of a scan: that of its file or FSL folder, without what only says that it is T1-weighted.

    >>> scan_name("sub-01_ses-2_T1w.nii.gz"), scan_name("sub-01_T1w.anat")
    ('sub-01_ses-2', 'sub-01')
    """
    return subject_id_of(file_name).removesuffix(".anat").removesuffix("_T1w")


def read_label_table(path: Path, site_column: str = "") -> LabelTable:
    """Read subjects, ages and sexes.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv`` or ``.txt`` (commas, semicolons or tabs), ``.xlsx``
        or ``.xls``. With a header row,
        the columns are found by name; without one they are subject or file
        name, age, sex.
    site_column : str
        Name of the column that tells the scanner or center; empty: none is read.

    Raises
    ------
    InputError
        If the file is missing or unreadable, or has no subject column or
        not the site column.
    """
    cells = read_cells(path)
    if cells.empty:
        raise InputError(f"{path}: holds no rows; expected subject, age and sex")
    names = [plain_name(name) for name in cells.iloc[0]]
    columns = {
        role: next((names.index(name) for name in known if name in names), None) for role, known in COLUMN_NAMES.items()
    }
    has_header = any(column is not None for column in columns.values())
    if not has_header:
        if cells.shape[1] < 2:
            raise InputError(f"{path}: has one column; expected subject, age and sex")
        columns = {"subject_id": 0, "age": 1, "sex": 2 if cells.shape[1] > 2 else None}
    if columns["subject_id"] is None:
        raise InputError(f"{path}: has no subject column (found {', '.join(names)}); name it subject_id")
    if site_column and plain_name(site_column) not in names:
        raise InputError(f"{path}: has no column {site_column} (found {', '.join(names)}); correct SITE_COLUMN")
    table = LabelTable(path)
    if columns["age"] is None:
        table.complaint = f"{path}: has no age column (found {', '.join(names)}); name it age"
    first_row: dict[str, int] = {}
    for number, row in enumerate(cells.itertuples(index=False), start=1):
        if (number == 1 and has_header) or not any(str(cell).strip() for cell in row):
            continue
        subject_id = subject_id_of(str(row[columns["subject_id"]]))
        where = f"{path}, row {number}"
        problems = table.problems.setdefault(subject_id, [])
        if subject_id in first_row:
            problems.append(f"{where}: {subject_id} stands in row {first_row[subject_id]} already; keep one row")
            continue
        first_row[subject_id] = number
        age_cell = "" if columns["age"] is None else str(row[columns["age"]]).strip()
        age = to_age(age_cell)
        if age is not None:
            table.ages[subject_id] = age
        else:
            complaint = (
                f"{where}: age '{age_cell}' of {subject_id} is not a number of years between 0 and "
                f"{OLDEST_AGE:g}; correct or remove the row"
            )
            if age_cell.lower() in MISSING:
                table.missing_ages[subject_id] = complaint
            else:
                problems.append(complaint)
        if columns["sex"] is not None:
            sex = read_sex(str(row[columns["sex"]]))
            if sex is not None:
                table.sexes[subject_id] = sex
        if site_column:
            table.sites[subject_id] = str(row[names.index(plain_name(site_column))]).strip()
            if table.sites[subject_id].lower() in MISSING:
                problems.append(f"{where}: {subject_id} has no {site_column}; add it")
    return table


def plain_name(name: object) -> str:
    """Return a column's name in lower case, with underscores.

    >>> plain_name("Subject-ID ")
    'subject_id'
    """
    return re.sub(r"[\s\-]+", "_", str(name).lower().strip("\ufeff \t"))


def read_sex(cell: str) -> int | None:
    """Return 0 for female, 1 for male, None for anything else."""
    return SEXES.get(re.sub(r"\.0+$", "", cell.strip().lower()))


def read_cells(path: Path) -> pd.DataFrame:
    """Read every cell as text; nothing is taken for a header or a missing value."""
    options: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False}
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such table; set LABEL_TABLE (--label_table) or the flag that names it")
    if suffix not in TABLE_KINDS:
        raise InputError(f"{path}: '{suffix}' is no kind of table known here; use {', '.join(TABLE_KINDS)}")
    try:
        if suffix.startswith(".xls"):
            return pd.read_excel(path, **options).fillna("")
        with path.open(encoding="utf-8-sig") as file:
            first_line = file.readline()
        separator = max("\t,;", key=first_line.count)
        return pd.read_csv(path, sep=separator, skip_blank_lines=False, encoding="utf-8-sig", **options).fillna("")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except Exception as error:  # the readers of pandas raise dozens of types
        raise InputError(f"{path}: cannot be read as {suffix} ({error}); save it again") from error


def to_age(cell: str) -> float | None:
    """Return a usable age in years, or None."""
    age = to_number(cell)
    return age if 0 < age < OLDEST_AGE else None


def to_number(cell: str) -> float:
    """Return the number in a cell, NaN if there is none; a comma may stand for the point.

    >>> to_number(" 76,7 "), to_number("1e2"), to_number("76 years")
    (76.7, 100.0, nan)
    """
    try:
        value = float(re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", cell.strip()))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
