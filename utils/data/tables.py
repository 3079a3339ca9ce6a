"""Find the row of a scan in a table, and read what it says: person, age, sex and site."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError
from utils.data.cells import read_cells
from utils.data.columns import (
    COLUMN_NAMES,
    MISSING,
    SEXES,
    Age,
    plain_name,
    read_age,
    read_sex,
    session_of,
    sex_codes,
)
from utils.data.names import (
    RowIndex,
    name_and_session,
    names_of_scan,
    person_in_row,
    scan_name,
    subject_id_of,
    unusable_name,
)
from utils.data.subjects import person_of

NO_SESSION = "is not given for its session; add a row with the session"


@dataclass(frozen=True)
class LabelRow:
    """What a table says about a scan.

    Parameters
    ----------
    where : str
        The file and the row.
    subject_id : str
    session : str
        From a column; empty where there is none.
    person : str
        From a column; empty where there is none.
    age_cell, sex_cell : str
    age : Age
    sex : int, 0 female, 1 male, -1 unknown
    site : str
        The scanner or center, if a column was named.
    sex_note : str
        How codes of the sex were read, if that is not certain.
    problems : tuple of str
        What makes the row unusable; matters only where a scan needs it.
    """

    where: str
    subject_id: str
    session: str
    person: str
    age_cell: str
    age: Age
    sex_cell: str
    sex: int
    site: str
    sex_note: str = ""
    problems: tuple[str, ...] = ()

    @property
    def sex_complaint(self) -> str:
        """What is wrong with the sex; empty if nothing is."""
        advice = self.sex_note if self.sex_cell.isdigit() and self.sex_note else "add it"
        complaint = f"{self.where}: sex '{self.sex_cell}' of {self.subject_id} is not one of 0/1, F/M, female/male"
        return f"{complaint}; {advice}" if self.sex == UNKNOWN_SEX else ""

    @property
    def age_complaint(self) -> str:
        """What is wrong with the age; empty if nothing is."""
        complaint = self.age.complaint
        return complaint and f"{self.where}: age '{self.age_cell}' of {self.subject_id} {complaint}"


@dataclass
class LabelTable:
    """The rows of a label table.

    Parameters
    ----------
    path : Path
    rows : list of LabelRow
    site_column : str
        The column that every scan must have; empty: none.
    complaint : str
        Not empty if the table has no age column at all.
    sex_complaint : str
        The same of the sex.
    sex_note : str
        How codes of the sex were read, if that is not certain.
    """

    path: Path
    rows: list[LabelRow]
    site_column: str = ""
    complaint: str = ""
    sex_complaint: str = ""
    sex_note: str = ""
    index: RowIndex = field(init=False)

    def __post_init__(self) -> None:
        self.index = RowIndex((row.subject_id for row in self.rows), (row.session for row in self.rows))

    def find(self, file_name: str) -> LabelRow | None:
        """Return what the table says about a scan, by the name of its file; None if nothing.

        What its own row leaves open is taken from the person's row without
        session, except the age.
        """
        own, shared = ([self.rows[number] for number in numbers] for numbers in self.index.find(file_name))
        if not own and not shared:
            return None
        name, problems = scan_name(file_name), [problem for row in (*own, *shared) for problem in row.problems]
        problems += [
            f"{rows[1].where}: {rows[0].subject_id} stands in {rows[0].where.rpartition(', ')[2]} already; keep one row"
            for rows in (own, shared)
            if len(rows) > 1
        ]
        row = own[0] if own else replace(shared[0], age_cell="", age=Age(math.nan, NO_SESSION, unknown=True))
        person = next((row.person for row in (*own[:1], *shared) if row.person), "")
        if row.session or not own or row.subject_id not in names_of_scan(file_name):
            row, person = replace(row, subject_id=name), person or person_in_row(row.subject_id, row.session, name)
        for other in shared:
            row = replace(
                row, site=row.site or other.site, sex_cell=row.sex_cell or other.sex_cell,
                sex=other.sex if row.sex == UNKNOWN_SEX else row.sex,
            )  # fmt: skip
        if self.site_column and not row.site:
            problems.append(f"{row.where}: {row.subject_id} has no {self.site_column}; add it")
        return replace(row, person=person, problems=tuple(problems))

    @cached_property
    def by_plain(self) -> dict[str, str]:
        """The subject ids by their `_plain` names."""
        return {_plain(row.subject_id): row.subject_id for row in self.rows}

    def why_not(self, file_name: str) -> str:
        """Say why a scan has no row: what was looked for, and what is nearly the same."""
        names = list(dict.fromkeys(names_of_scan(file_name)))
        tried = [name for name in names if not (name.endswith("_T1w") and name != subject_id_of(file_name))]
        looked = f"no row of {self.path} has the subject {' or '.join(dict.fromkeys(tried[::-1]))}"
        sessions = self.index.sessions_of(file_name)
        if sessions:
            own = name_and_session(file_name)[1]
            return (
                f"{self.path} has rows for the session{'s' if len(sessions) > 1 else ''} {', '.join(sessions)} of "
                f"{person_of(scan_name(file_name))}, and "
                + (f"none for {own}; add it" if own else "the scan's name gives no session; add it, as in sub-01_ses-2")
            )
        alike = " and ".join(dict.fromkeys(self.by_plain[key] for key in map(_plain, tried) if key in self.by_plain))
        return f"{looked}; {f'it has {alike}: write it as in the name of the scan' if alike else 'add one'}"


def _plain(name: str) -> str:
    """Return a name without what is easily mistaken: case, punctuation, ``sub-`` and leading zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)|[\W_]", "", name.lower().removeprefix("sub-"))


def read_label_table(path: Path, site_column: str = "") -> LabelTable:
    """Read subjects, ages and sexes.

    Parameters
    ----------
    path : Path
        As `read_cells` takes it. With a header row, the columns are found by
        name; without one they are subject or file name, age, sex.
    site_column : str
        Name of the column that tells the scanner or center; empty: none is read.

    Raises
    ------
    InputError
        If the file is missing or unreadable, or has no subject column or
        not the site column.
    """
    cells = read_cells(path)
    names = [plain_name(name) for name in cells.iloc[0]] if len(cells) else []
    columns = {role: find_column(path, names, known) for role, known in COLUMN_NAMES.items()}
    has_header = any(column is not None for column in columns.values())
    body = cells.iloc[int(has_header) :]
    if body.empty:
        raise InputError(f"{path}: holds no rows{' below its header' * has_header}; expected subject, age and sex")
    if not has_header:
        _check_no_header(path, cells)
        columns |= {"subject_id": 0, "age": 1, "sex": 2 if len(names) > 2 else None}
    if columns["subject_id"] is None:
        raise InputError(f"{path}: has no subject column (found {', '.join(names)}); name it subject_id")
    if site_column and plain_name(site_column) not in names:
        raise InputError(f"{path}: has no column {site_column} (found {', '.join(names)}); correct SITE_COLUMN")
    columns["site"] = find_column(path, names, (plain_name(site_column),)) if site_column else None
    codes, note = sex_codes(body[columns["sex"]] if columns["sex"] is not None else ())
    table = LabelTable(path, list(_read_rows(path, body, columns, codes, note)), site_column)
    if columns["age"] is None:
        table.complaint = f"{path}: has no age column (found {', '.join(names)}); name it age"
    if columns["sex"] is None:
        table.sex_complaint = f"{path}: has no sex column (found {', '.join(names)}); name it sex"
    table.sex_note = note
    return table


def _check_no_header(path: Path, cells: pd.DataFrame) -> None:
    """Refuse a table whose first row is no header if it is no row of data either."""
    if cells.shape[1] < 2:
        raise InputError(f"{path}: has one column; expected subject, age and sex")
    for index, row in zip(cells.index, cells.itertuples(index=False), strict=True):
        names = set(map(plain_name, row))
        if not names.isdisjoint(COLUMN_NAMES["subject_id"]) and not names.isdisjoint(COLUMN_NAMES["age"]):
            raise InputError(f"{path}: row {index + 1} names the columns; remove the rows above it")
    first = read_age(cells.iloc[0, 1])
    if first.complaint and not first.unknown and not any(cell.isdigit() for cell in cells.iloc[0, 1]):
        raise InputError(
            f"{path}: no column has a known name (found {', '.join(cells.iloc[0])}), and the first row holds "
            "no age; name the columns subject_id, age, sex"
        )


def find_column(path: Path, names: Sequence[str], known: Iterable[str]) -> int | None:
    """Return the position of the first known name among the columns; None if there is none.

    Raises
    ------
    InputError
        If two columns have that name.
    """
    name = next((name for name in known if name in names), None)
    if name is not None and names.count(name) > 1:
        raise InputError(f"{path}: has {names.count(name)} columns {name}; keep one, or rename the others")
    return None if name is None else names.index(name)


def _read_rows(
    path: Path, body: pd.DataFrame, columns: dict[str, int | None], codes: dict[str, int], note: str
) -> Iterator[LabelRow]:
    """Yield the rows of a table; those that do not name a subject belong to no scan."""
    for index, cells in zip(body.index, body.itertuples(index=False), strict=True):
        text = {role: "" if column is None else str(cells[column]) for role, column in columns.items()}
        text |= {role: "" for role in ("person", "site") if text[role].lower() in MISSING}
        if not text["subject_id"]:
            continue
        where, subject_id = f"{path}, row {index + 1}", subject_id_of(text["subject_id"])
        if body.index.has_duplicates and text["session"]:  # a row of the file holds several visits
            where += f", instance {text['session']}"
        problems = [
            f"{where}: {wrong}" for wrong in map(unusable_name, (subject_id, text["person"], text["site"])) if wrong
        ]
        session, named = session_of(text["session"]), name_and_session(subject_id)[1]
        if session and named and session != named:
            problems.append(f"{where}: session {text['session']} is not that of {subject_id}; correct one of them")
        yield LabelRow(
            where, subject_id, session, text["person"], text["age"], read_age(text["age"]), text["sex"],
            read_sex(text["sex"], codes), text["site"], note, tuple(problems),
        )  # fmt: skip


def given_sex(sex_of_all: str | None) -> int:
    """Return the sex that a flag gives for all scans, such as ``F``; -1 without one."""
    return SEXES[sex_of_all.lower()] if sex_of_all else UNKNOWN_SEX
