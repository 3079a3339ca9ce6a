"""Read brain ages and what is known about the persons from any table, and check everything at once."""

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from utils.common.errors import InputError
from utils.data.subjects import person_of
from utils.data.tables import (
    COLUMN_NAMES,
    MISSING,
    OLDEST_AGE,
    plain_name,
    read_cells,
    read_sex,
    subject_id_of,
    to_age,
    to_number,
)

ROLES: dict[str, tuple[str, ...]] = {  # meaning of a column: the names by which it is found
    "subject_id": COLUMN_NAMES["subject_id"],
    "person": ("person", "person_id"),
    "session": ("session", "session_id", "visit"),
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
FEWEST_PERSONS = 10
DIFFERS_BETWEEN_TABLES = ("subject_id", "chronological_age")  # a name given by a flag does not exclude the known ones
NO_COLUMN = "none"  # given as the name of a column: do not read it
SCAN = ["subject_id", "session"]


def ages_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return chronological and brain ages, (N,) float64 arrays, years."""
    return table["chronological_age"].to_numpy(np.float64), table["brain_age"].to_numpy(np.float64)


def session_of(text: str) -> str:
    """Return a session's name in the form that is compared between tables.

    >>> session_of("ses-01"), session_of("1.0"), session_of("M12")
    ('1', '1', 'M12')
    """
    return re.sub(r"^0+(?=\d)", "", re.sub(r"\.0+$", "", re.sub(r"^ses-", "", text)))


def _column(names: Sequence[str], role: str, wanted: str | None) -> int | None:
    """Return the position of a role's column; a name given by the user comes before the known ones."""
    if wanted == NO_COLUMN:
        return None
    known = [plain_name(wanted)] if wanted else []
    if not wanted or role in DIFFERS_BETWEEN_TABLES:
        known += ROLES[role]
    return next((names.index(name) for name in known if name in names), None)


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
        places = {role: _column(names, role, self.columns.get(role)) for role in ROLES}
        lacking = [role for role in needed if places[role] is None]
        if lacking:
            self.problems += [
                f"{path}: has no column for the {role.replace('_', ' ')} (found {', '.join(names)}); name it "
                f"{ROLES[role][0]}, or set --{role}_column"
                for role in lacking
            ]
            return pd.DataFrame(columns=SCAN)
        cells = cells.iloc[1:].apply(lambda column: column.str.strip())
        cells = cells[(cells != "").any(axis=1)]
        if "status" in names:  # written by predict.py
            failed = cells.iloc[:, names.index("status")] == "failed"
            if failed.any():
                print(f"note: {path}: left out {failed.sum()} scans that failed (column status)")
            cells = cells[~failed]
        table = pd.DataFrame({role: cells.iloc[:, place] for role, place in places.items() if place is not None})
        missing = table.apply(lambda column: column.str.lower()).isin(MISSING) & (table != self.healthy_label)
        table = table.mask(missing, "")
        table["subject_id"] = table["subject_id"].map(subject_id_of)
        if "session" not in table:
            table["session"] = table["subject_id"].str.extract(r"_ses-([A-Za-z0-9]+)", expand=False).fillna("")
        table["session"] = table["session"].map(session_of)
        table["where"] = [f"{path}, row {index + 1}" for index in table.index]
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
            text, what = table[role], "a number of years"
            table[role] = text.map(to_number).astype(np.float64)
            wrong = table[role].isna()
            if role == "chronological_age":
                wrong, what = text.map(to_age).isna(), f"{what} between 0 and {OLDEST_AGE:g}"
            wrong &= (text != "") | (role in NEEDED)
            self.problems += [
                f"{row.where}: {role.replace('_', ' ')} '{text[row.Index]}' of {row.subject_id} is not {what}; correct "
                f"or remove the row, or name the column (--{role}_column)"
                for row in table[wrong].itertuples()
            ]
        sex = table["sex"].map(read_sex)
        self.problems += [
            f"{row.where}: sex '{row.sex}' of {row.subject_id} is neither F nor M (0 nor 1); correct it, or ignore the "
            f"column (--sex_column {NO_COLUMN})"
            for row in table[sex.isna() & (table["sex"] != "")].itertuples()
        ]
        table["sex"] = ["" if pd.isna(code) else "FM"[int(code)] for code in sex]


def read_tables(
    groups: Mapping[str, Sequence[Path]],
    label_table: Path | None,
    columns: Mapping[str, str | None],
    healthy_label: str = "HC",
) -> dict[str, pd.DataFrame]:
    """Read tables of predictions and add what a label table knows about each scan.

    A row of the label table belongs to the scan with its subject id and
    session, otherwise to all scans of the person with that id. Where both
    tables have a value, that of the predictions is taken.

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
    known = {(row["subject_id"], row["session"]): row for row in labels.to_dict("records")}
    needed = ["subject_id", *(role for role in NEEDED if role not in labels)]
    tables = {}
    for group, paths in groups.items():
        parts = [pd.DataFrame(columns=SCAN), *(reader.read(path, needed) for path in paths)]
        table = pd.concat(parts, ignore_index=True).reindex(columns=["where", *ROLES]).astype(object).fillna("")
        found: list[dict[Hashable, str]] = [
            next((known[key] for key in product((name, person_of(name)), (session, "")) if key in known), {})
            for name, session in zip(table["subject_id"], table["session"], strict=True)
        ]
        label = pd.DataFrame(found, index=table.index, columns=table.columns).astype(object).fillna("")
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
    return tables


def sorted_scans(table: pd.DataFrame) -> pd.DataFrame:
    """Return scans ordered by age, and by session (2 before 10) where ages are equal."""
    padded = table["session"].str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)
    order = pd.DataFrame({"age": table["chronological_age"], "session": padded})
    return table.loc[order.sort_values(["age", "session"], kind="stable").index]


def one_scan_each(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the scan at the youngest age of each person, so that persons count once."""
    first = sorted_scans(table).drop_duplicates("person").index
    return table.loc[table.index.isin(first)].reset_index(drop=True)


def check_test_set(
    table: pd.DataFrame, healthy_label: str, patient_labels: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the healthy subjects of the test set, one scan each, and the patient labels (default: all) to compare.

    Raises
    ------
    InputError
        If there are too few persons, all gaps are equal, or a diagnosis is missing.
    """
    persons = one_scan_each(table)
    problems = []
    if len(persons) < FEWEST_PERSONS:
        problems.append(
            f"--predictions: hold {len(persons)} persons; at least {FEWEST_PERSONS} are needed for meaningful figures"
        )
    gap = table["brain_age"] - table["chronological_age"]
    for name, values in (("brain-age gap", gap), ("brain age", table["brain_age"])):
        if len(values) and np.ptp(values) < 1e-6:
            problems.append(
                f"--predictions: every {name} is {values.iloc[0]:.2f} years, so there is nothing to analyse; check "
                "that --brain_age_column names the model's estimates"
            )
    diagnosed = bool((table["diagnosis"] != "").any())
    labels = sorted(set(persons["diagnosis"]) - {"", healthy_label})
    if diagnosed:
        spellings = pd.Series([healthy_label, *patient_labels, *table["diagnosis"]]).drop_duplicates()
        alike = sorted(spellings[spellings.str.lower().duplicated(keep=False)])
        if alike:
            problems.append(f"diagnoses {', '.join(alike)}: differ in case only; spell them alike")
        problems += [
            f"{row.where}: {row.subject_id} has no diagnosis, but others have; fill it in, or remove the row"
            for row in table[table["diagnosis"] == ""].itertuples()
        ]
        if healthy_label not in set(persons["diagnosis"]):
            problems.append(
                f"--healthy_label {healthy_label}: no subject has this diagnosis (found {', '.join(labels)}); give the "
                "label of the healthy subjects"
            )
        problems += [
            f"--patient_labels {label}: no subject has this diagnosis (found {', '.join([healthy_label, *labels])}), "
            "so there is one class only"
            for label in patient_labels
            if label not in labels
        ]
    elif patient_labels:
        problems.append(
            f"--patient_labels {','.join(patient_labels)}: no table has a diagnosis; give --label_table or "
            "--diagnosis_column"
        )
    if problems:
        raise InputError(problems)
    healthy = persons[persons["diagnosis"] == healthy_label].reset_index(drop=True) if diagnosed else persons
    return healthy, list(patient_labels) or labels


def check_healthy(table: pd.DataFrame, healthy_label: str, flag: str) -> list[str]:
    """Return one problem for each patient in a table that must hold healthy subjects only."""
    ill = table[(table["diagnosis"] != "") & (table["diagnosis"] != healthy_label)]
    if len(ill) > 1 and len(ill) == len(table):
        return [
            f"{flag}: nobody has the diagnosis {healthy_label} (found {', '.join(sorted(set(ill['diagnosis'])))}); it "
            "must hold healthy subjects only, so give others, or use the same label in all tables"
        ]
    return [
        f"{row.where}: {row.subject_id} has the diagnosis {row.diagnosis}; {flag} must hold healthy subjects only "
        f"(--healthy_label {healthy_label}), so remove the row"
        for row in ill.itertuples()
    ]
