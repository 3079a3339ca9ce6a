"""Read brain ages and what is known about the persons from any table, and check everything at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError
from utils.data.cells import read_cells
from utils.data.columns import (
    COLUMN_NAMES,
    MISSING,
    plain_name,
    read_age,
    read_sex,
    session_of,
    sex_codes,
    to_number,
)
from utils.data.names import RowIndex, name_and_session, person_in_row, subject_id_of, unusable_name
from utils.data.preparations import ORIGIN
from utils.data.subjects import SEX_NAMES, person_of, suspected_visits
from utils.data.tables import find_column

ROLES: dict[str, tuple[str, ...]] = {  # meaning of a column: the names by which it is found
    "subject_id": COLUMN_NAMES["subject_id"],
    "person": COLUMN_NAMES["person"],
    "session": COLUMN_NAMES["session"],
    "chronological_age": COLUMN_NAMES["age"],
    "brain_age": ("brain_age", "predicted_age"),
    "first_stage_age": ("first_stage_age",),
    "true_brain_age": ("true_brain_age",),
    "sex": COLUMN_NAMES["sex"],
    "diagnosis": ("diagnosis", "dx", "group"),
    "site": ("site", "scanner", "center", "centre"),
}
NEEDED = ("chronological_age", "brain_age")
NUMBERS = (*NEEDED, "first_stage_age", "true_brain_age")
NAMES = ("subject_id", "person", "session", "diagnosis", "site")  # are written into tables
CONSTANT = ("person", "sex", "diagnosis", "site")  # a row without session says these of all sessions
DIFFERS_BETWEEN_TABLES = ("subject_id", "chronological_age")  # a name given by a flag does not exclude the known ones
NO_COLUMN = "none"  # given as the name of a column: do not read it
SCAN = ["subject_id", "session"]


def ages_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return chronological and brain ages, (N,) float64 arrays, years."""
    return table["chronological_age"].to_numpy(np.float64), table["brain_age"].to_numpy(np.float64)


def _column(path: Path, names: Sequence[str], role: str, wanted: str | None) -> int | None:
    """Return the position of a role's column; a name given by the user comes before the known ones."""
    if wanted == NO_COLUMN:
        return None
    known = [plain_name(wanted)] if wanted else []
    if not wanted or role in DIFFERS_BETWEEN_TABLES:
        known += ROLES[role]
    return find_column(path, names, known)


class _Reader:
    """Read tables one after the other; remember the names of their columns and their problems."""

    def __init__(self, columns: Mapping[str, str | None], healthy_label: str) -> None:
        self.columns = columns
        self.healthy_label = healthy_label
        self.found: set[str] = set()
        self.problems: list[str] = []

    def read(self, path: Path, needed: Sequence[str]) -> pd.DataFrame:
        """Return the text of each column with a role, and ``where`` each row stands."""
        cells = read_cells(path)
        if len(cells) < 2:
            self.problems.append(f"{path}: holds no rows; expected a header row and one row per scan")
            return pd.DataFrame(columns=SCAN)
        names = [plain_name(name) for name in cells.iloc[0]]
        self.found |= set(names)
        places = {role: _column(path, names, role, self.columns.get(role)) for role in ROLES}
        lacking = [role for role in needed if places[role] is None]
        if lacking:
            self.problems += [
                f"{path}: has no column for the {role.replace('_', ' ')} (found {', '.join(names)}); name it "
                f"{ROLES[role][0]}, or set --{role}_column"
                for role in lacking
            ]
            return pd.DataFrame(columns=SCAN)
        cells = cells.iloc[1:].apply(lambda column: column.str.strip())
        if "status" in names:  # written by predict.py
            failed = cells.iloc[:, names.index("status")] == "failed"
            if failed.any():
                print(f"note: {path}: left out {failed.sum()} scans that failed (column status)")
            cells = cells[~failed]
        table = pd.DataFrame({role: cells.iloc[:, place] for role, place in places.items() if place is not None})
        for name in ORIGIN:
            table[name] = cells.iloc[:, names.index(name)] if name in names else ""
        missing = table.apply(lambda column: column.str.lower()).isin(MISSING) & (table != self.healthy_label)
        missing["subject_id"] = False
        table = table.mask(missing, "")
        table["subject_id"] = table["subject_id"].map(subject_id_of)
        named = [name_and_session(name)[1] for name in table["subject_id"]]
        table["session"] = [
            session_of(text) or own for text, own in zip(table.get("session", named), named, strict=True)
        ]
        table["where"] = [f"{path}, row {index + 1}" for index in table.index]
        for role in table.columns.intersection(NAMES):
            unusable = table[role].map(unusable_name)
            self.problems += [f"{row.where}: {unusable[row.Index]}" for row in table[unusable != ""].itertuples()]
        return table

    def check_duplicates(self, table: pd.DataFrame) -> None:
        """Note scans that stand in a table twice."""
        for row in table[table.duplicated(SCAN)].itertuples():
            session = f", session {row.session}," if row.session else ""
            self.problems.append(
                f"{row.where}: {row.subject_id}{session} is in an earlier row already; keep one row, or name the "
                "column that distinguishes the scans (--session_column)"
            )

    def convert(self, table: pd.DataFrame) -> None:
        """Turn ages into numbers and the sex into F or M, in place; note what is missing or wrong."""
        for role in NUMBERS:
            text = table[role]
            table[role] = text.map(to_number).astype(np.float64)
            complaints = pd.Series("is not a number of years; correct or remove the row", table.index)
            complaints = complaints.where(table[role].isna(), "")
            if role == "chronological_age":
                complaints = text.map(lambda cell: read_age(cell).complaint)
            wrong = (complaints != "") & ((text != "") | (role in NEEDED))
            self.problems += [
                f"{row.where}: {role.replace('_', ' ')} '{text[row.Index]}' of {row.subject_id} {complaints[row.Index]}"
                f", or name the column (--{role}_column)"
                for row in table[wrong].itertuples()
            ]
        codes, note = sex_codes(table["sex"])
        if note:
            print(f"note: {note}")
        sex = table["sex"].map(lambda cell: read_sex(cell, codes))
        self.problems += [
            f"{row.where}: sex '{row.sex}' of {row.subject_id} is neither F nor M (0 nor 1); correct it, or ignore the "
            f"column (--sex_column {NO_COLUMN})"
            for row in table[(sex == UNKNOWN_SEX) & (table["sex"] != "")].itertuples()
        ]
        table["sex"] = [SEX_NAMES[code] for code in sex]


def read_tables(
    groups: Mapping[str, Sequence[Path]],
    label_table: Path | None,
    columns: Mapping[str, str | None],
    healthy_label: str = "HC",
) -> dict[str, pd.DataFrame]:
    """Read tables of predictions and add what a label table knows about each scan.

    A scan has the row of the label table that `utils.data.names.RowIndex`
    finds, and what that leaves open from the person's row without session.
    Where both tables have a value, that of the predictions is taken, except
    the person, whom predictions may have only guessed from the name.

    Parameters
    ----------
    groups : mapping of str to sequence of Path
        The files of each group (``test``, ``fit``, ``calibration``).
    label_table : Path or None
    columns : mapping of role in `ROLES` to str or None
        Names of columns; None: one of the known names.
    healthy_label : str
        Always read as a diagnosis, even if it looks like a missing value.

    Returns
    -------
    dict of str to DataFrame
        For each group one row per scan: `ROLES`, ages as float in years, NaN
        where unknown, and text (``sex``: ``F``, ``M``), empty where unknown;
        ``label_age`` and ``labelled``: what the label table has for the scan.

    Raises
    ------
    InputError
        With every problem of every table.
    """
    reader = _Reader(columns, healthy_label)
    labels = reader.read(label_table, ["subject_id"]) if label_table else pd.DataFrame(columns=SCAN)
    reader.check_duplicates(labels)
    label_of = _finder(labels)
    needed = ["subject_id", *(role for role in NEEDED if role not in labels)]
    tables = {}
    for group, paths in groups.items():
        parts = [pd.DataFrame(columns=SCAN), *(reader.read(path, needed) for path in paths)]
        table = (
            pd.concat(parts, ignore_index=True).reindex(columns=["where", *ROLES, *ORIGIN]).astype(object).fillna("")
        )
        found = [label_of(*scan) for scan in zip(table["subject_id"], table["session"], strict=True)]
        label = pd.DataFrame(found, index=table.index, columns=table.columns).astype(object).fillna("")
        table["person"] = label["person"].where(label["person"] != "", table["person"])
        table = table.where(table != "", label)
        table["person"] = table["person"].where(table["person"] != "", table["subject_id"].map(person_of))
        table["labelled"] = list(map(bool, found))
        table["label_age"] = label["chronological_age"].map(to_number).astype(np.float64)
        reader.check_duplicates(table)
        reader.convert(table)
        tables[group] = table
    problems = reader.problems + [
        f"--{role}_column {name}: no table has such a column"
        for role, name in columns.items()
        if name not in (None, NO_COLUMN) and plain_name(name) not in reader.found
    ]
    subjects = tables["test"]["subject_id"]
    if len(labels) and len(subjects) and not any(table["labelled"].any() for table in tables.values()):
        problems.append(
            f"{label_table}: has no row for any subject of the predictions (it has {labels['subject_id'].iloc[0]}, "
            f"they have {subjects.iloc[0]}); compare the subject ids, or name the column (--subject_id_column)"
        )
    if problems:
        raise InputError(problems)
    visits = suspected_visits(person for table in tables.values() for person in table["person"])
    if visits:
        print(f"WARNING: {visits}")
    return tables


def _finder(labels: pd.DataFrame) -> Callable[[str, str], dict[Hashable, str]]:
    """Return a function that gives what a label table knows of the scan with a subject id and a session."""
    rows = labels.to_dict("records")
    index = RowIndex(labels["subject_id"], labels["session"])

    def find(subject_id: str, session: str) -> dict[Hashable, str]:
        own, shared = index.find(subject_id, session)
        values: dict[Hashable, str] = {}
        for row in (rows[number] for number in shared[:1]):
            values |= {role: row[role] for role in CONSTANT if role in row}
        for row in (rows[number] for number in own[:1]):
            values |= {role: value for role, value in row.items() if value}
            person = person_in_row(row["subject_id"], row["session"], subject_id)
            if person != person_of(subject_id) and not values.get("person"):
                values["person"] = person
        return values

    return find


def sorted_scans(table: pd.DataFrame) -> pd.DataFrame:
    """Return scans ordered by age, and by session (2 before 10) where ages are equal."""
    padded = table["session"].str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)
    order = pd.DataFrame({"age": table["chronological_age"], "session": padded})
    return table.loc[order.sort_values(["age", "session"], kind="stable").index]


def one_scan_each(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the scan at the youngest age of each person, so that persons count once."""
    first = sorted_scans(table).drop_duplicates("person").index
    return table.loc[table.index.isin(first)].reset_index(drop=True)
