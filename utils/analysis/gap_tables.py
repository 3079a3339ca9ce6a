"""Read brain ages beside what is known of the persons, from any table, and check all of it at once."""

import re
from collections.abc import Mapping, Sequence
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

ROLES: dict[str, tuple[str, ...]] = {  # what a column tells: the names it is found by
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
NUMBERS = ("chronological_age", "brain_age", "first_stage_age", "true_brain_age")
NEEDED = ("chronological_age", "brain_age")
FEWEST_PERSONS = 10
CALLED_OTHERWISE = ("subject_id", "chronological_age")
NO_COLUMN = "none"  # a column's name that means: do not read it
SESSION_PATTERN = r"_ses-([A-Za-z0-9]+)"


def _column(names: Sequence[str], role: str, wanted: str | None) -> int | None:
    """Return the place of a role's column; a name that the user gave comes before those we know."""
    if wanted == NO_COLUMN:
        return None
    # Tables may differ in how they call subject and age; anything else has the name that was given, or is not there.
    known = [
        *([plain_name(wanted)] if wanted else []),
        *(ROLES[role] if not wanted or role in CALLED_OTHERWISE else []),
    ]
    return next((names.index(name) for name in known if name in names), None)


def session_of(text: str) -> str:
    """Return a session as all tables shall call it.

    >>> session_of("ses-01"), session_of("1.0"), session_of("M12")
    ('1', '1', 'M12')
    """
    return re.sub(r"^0+(?=\d)", "", re.sub(r"\.0+$", "", re.sub(r"^ses-", "", text)))


def _read_rows(
    path: Path, columns: Mapping[str, str | None], healthy_label: str, found: set[str], problems: list[str]
) -> list[dict[str, str]]:
    """Read a table's rows as text by role, with the ``where`` of each; note its columns, and if it has no subjects."""
    cells = read_cells(path)
    if cells.empty or len(cells) == 1:
        problems.append(f"{path}: holds no rows; expected a header row and a row for each scan")
        return []
    names = [plain_name(name) for name in cells.iloc[0]]
    found |= set(names)
    places = {role: _column(names, role, columns.get(role)) for role in ROLES}
    if places["subject_id"] is None:
        problems.append(
            f"{path}: has no subject column (found {', '.join(names)}); name it subject_id, or set --subject_id_column"
        )
        return []
    rows, failed = [], 0
    for number, cell_row in enumerate(cells.iloc[1:].itertuples(index=False), start=2):
        texts = [str(cell).strip() for cell in cell_row]
        if not any(texts):
            continue
        if "status" in names and texts[names.index("status")] == "failed":  # of predict.py
            failed += 1
            continue
        row = {role: texts[place] for role, place in places.items() if place is not None}
        row = {role: "" if text.lower() in MISSING and text != healthy_label else text for role, text in row.items()}
        row["subject_id"] = subject_id_of(row["subject_id"])
        session = re.search(SESSION_PATTERN, row["subject_id"])
        row["session"] = session_of(row.get("session", session[1] if session else ""))
        row["where"] = f"{path}, row {number}"
        rows.append(row)
    if failed:
        print(f"note: {path}: {failed} scans that failed (column status) are left out")
    return rows


def _called(subject_id: str, session: str) -> str:
    """Name a scan."""
    return f"{subject_id}, session {session}," if session else subject_id


def _label_rows(
    path: Path, columns: Mapping[str, str | None], healthy_label: str, found: set[str], problems: list[str]
) -> dict[tuple[str, str], dict[str, str]]:
    """Return a label table's rows by subject and session."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in _read_rows(path, columns, healthy_label, found, problems):
        key = (row["subject_id"], row["session"])
        if key in rows:
            problems.append(
                f"{row['where']}: {_called(*key)} stands in {rows[key]['where']} already; keep one row, or add a "
                "session column"
            )
        rows.setdefault(key, row)
    return rows


def read_tables(
    groups: Mapping[str, Sequence[Path]],
    label_table: Path | None,
    columns: Mapping[str, str | None],
    healthy_label: str = "HC",
) -> dict[str, pd.DataFrame]:
    """Read tables of predictions and join to each row what a label table tells.

    A row of the label table belongs to the scan with its subject id and
    session; else to all scans of the person with that id. What a table of
    predictions tells itself comes first.

    Parameters
    ----------
    groups : mapping of str to sequence of Path
        Files that are read one below the other, by what they are for.
    label_table : Path or None
    columns : mapping of role in `ROLES` to str or None
        Names of columns; None: one of the known names.
    healthy_label : str
        A diagnosis, whatever it is, even if it reads like a missing value.

    Returns
    -------
    dict of str to DataFrame
        For each group a row for each scan: ``subject_id``, ``person``,
        ``session``, ``diagnosis``, ``site``, ``sex`` (``F``, ``M``) as text,
        empty where unknown; the ages as float, years, NaN where unknown;
        ``label_age``, that of the label table, and ``labelled``, whether it
        has a row for the scan.

    Raises
    ------
    InputError
        With every problem of every table.
    """
    problems: list[str] = []
    found: set[str] = set()
    labels = _label_rows(label_table, columns, healthy_label, found, problems) if label_table else {}
    tables = {}
    labelled_roles = {role for row in labels.values() for role in row}
    for group, paths in groups.items():
        records: list[dict[str, object]] = []
        for path in paths:
            rows = _read_rows(path, columns, healthy_label, found, problems)
            lacking = [role for role in NEEDED if rows and role not in labelled_roles | rows[0].keys()]
            problems += [
                f"{path}: has no column for the {role.replace('_', ' ')} (found "
                f"{', '.join(map(str, read_cells(path).iloc[0]))}); name it {ROLES[role][0]}, or set --{role}_column"
                for role in lacking
            ]
            for row in rows if not lacking else []:
                subject_id, session = row["subject_id"], row["session"]
                keys = [(name, visit) for name in (subject_id, person_of(subject_id)) for visit in (session, "")]
                label = next((labels[key] for key in keys if key in labels), {})
                joined = label | {role: text for role, text in row.items() if text}
                typed = _typed(joined, problems)
                records.append(typed | {
                    "labelled": bool(label), "label_age": to_number(label.get("chronological_age", "")),
                })  # fmt: skip
        tables[group] = pd.DataFrame(records, columns=["where", *ROLES, "labelled", "label_age"])
        twice = tables[group][tables[group].duplicated(["subject_id", "session"])]
        problems += [
            f"{row.where}: {_called(row.subject_id, row.session)} stands in an earlier row already; keep one, or name the "
            "column that tells the scans apart (--session_column)"
            for row in twice.itertuples()
        ]
    problems += [
        f"--{role}_column {name}: no table has such a column"
        for role, name in columns.items()
        if name not in (None, NO_COLUMN) and plain_name(name) not in found
    ]
    first, other = (next(iter(ids), "") for ids in (tables["test"]["subject_id"], (name for name, _ in labels)))
    if labels and first and not any(table["labelled"].any() for table in tables.values()):
        problems.append(
            f"{label_table}: has a row for none of the subjects of the predictions ({other} there, {first} here); compare "
            "the subject ids, or name the column (--subject_id_column)"
        )
    if problems:
        raise InputError(problems)
    return tables


def _typed(row: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    """Turn a row of text into values; note what is missing or wrong."""
    typed: dict[str, object] = {role: row.get(role, "") for role in ("where", *ROLES)}
    typed["person"] = row.get("person") or person_of(row["subject_id"])
    for role in NUMBERS:
        text = row.get(role, "")
        value = to_number(text)
        wrong = (to_age(text) is None) if role == "chronological_age" else np.isnan(value)
        if wrong if text else role in NEEDED:
            kind = (
                f"a number of years between 0 and {OLDEST_AGE:g}"
                if role == "chronological_age"
                else "a number of years"
            )
            problems.append(
                f"{row['where']}: {role.replace('_', ' ')} '{text}' of {row['subject_id']} is not {kind}; correct or remove "
                f"the row, or name the column (--{role}_column)"
            )
        typed[role] = value
    text = row.get("sex", "")
    sex = read_sex(text)
    if text and sex is None:
        problems.append(
            f"{row['where']}: sex '{text}' of {row['subject_id']} is neither F nor M (0 nor 1); correct it, or do without "
            f"(--sex_column {NO_COLUMN})"
        )
    typed["sex"] = "" if sex is None else "FM"[sex]
    return typed


def _in_order(column: pd.Series) -> pd.Series:
    """Let sessions sort by their numbers: 2 before 10."""
    if column.name != "session":
        return column
    return column.str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)


def sorted_scans(table: pd.DataFrame) -> pd.DataFrame:
    """Return scans by age, and those of one age by session."""
    return table.sort_values(["chronological_age", "session"], kind="stable", key=_in_order)


def one_scan_each(table: pd.DataFrame) -> pd.DataFrame:
    """Keep each person's first scan, by age, so that persons count once."""
    first = sorted_scans(table).drop_duplicates("person").index
    return table.loc[table.index.isin(first)].reset_index(drop=True)


def check_test_set(
    table: pd.DataFrame, healthy_label: str, patient_labels: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the healthy subjects of the test set, one scan each, and the patient labels to compare them with.

    Parameters
    ----------
    table : DataFrame of `read_tables`
    healthy_label : str
    patient_labels : sequence of str
        Empty: every other diagnosis that occurs.

    Raises
    ------
    InputError
        If there are too few persons, their gaps are all the same, or a
        diagnosis is missing.
    """
    persons = one_scan_each(table)
    problems = []
    if len(persons) < FEWEST_PERSONS:
        problems.append(
            f"--predictions: hold {len(persons)} persons; at least {FEWEST_PERSONS} are needed for figures that mean "
            "anything"
        )
    gap = table["brain_age"] - table["chronological_age"]
    for name, values in (("brain-age gap", gap), ("brain age", table["brain_age"])):
        if len(values) and np.ptp(values) < 1e-6:
            problems.append(
                f"--predictions: every {name} is {values.iloc[0]:.2f} years, which nothing can be learned from; check that "
                "--brain_age_column names the model's estimates"
            )
    labels = sorted(set(persons["diagnosis"]) - {"", healthy_label})
    spellings = pd.Series([healthy_label, *patient_labels, *table["diagnosis"]]).drop_duplicates()
    alike = spellings[spellings.str.lower().duplicated(keep=False)]
    if len(alike):
        problems.append(f"diagnoses {', '.join(sorted(alike))}: differ in case alone; spell them alike")
    if not patient_labels and not (table["diagnosis"] != "").any():
        if problems:
            raise InputError(problems)
        return persons, []
    without = table[table["diagnosis"] == ""]
    if not (table["diagnosis"] != "").any():
        problems.append(
            f"--patient_labels {','.join(patient_labels)}: no table tells a diagnosis; give --label_table or "
            "--diagnosis_column"
        )
    else:
        problems += [
            f"{row.where}: {row.subject_id} has no diagnosis, though others have; fill it in, or remove the row"
            for row in without.itertuples()
        ]
    if not (persons["diagnosis"] == healthy_label).any():
        problems.append(
            f"--healthy_label {healthy_label}: no subject has this diagnosis (found {', '.join(labels) or 'none'}); "
            "name the label of the healthy subjects"
        )
    problems += [
        f"--patient_labels {label}: no subject has this diagnosis (found {', '.join([healthy_label, *labels])}), so "
        "there is one class only"
        for label in patient_labels
        if label not in labels
    ]
    if problems:
        raise InputError(problems)
    return persons[persons["diagnosis"] == healthy_label].reset_index(drop=True), list(patient_labels) or labels


def check_healthy(table: pd.DataFrame, healthy_label: str, flag: str) -> list[str]:
    """Return a problem for each row of a table for fitting that is of a patient."""
    ill = table[(table["diagnosis"] != "") & (table["diagnosis"] != healthy_label)]
    if len(ill) > 1 and len(ill) == len(table):
        return [
            f"{flag}: nobody has the diagnosis {healthy_label} (found {', '.join(sorted(set(ill['diagnosis'])))}); it must "
            "hold healthy subjects alone, so give others, or call them alike"
        ]
    return [
        f"{row.where}: {row.subject_id} has the diagnosis {row.diagnosis}; {flag} must hold healthy subjects alone "
        f"(--healthy_label {healthy_label}), so remove the row"
        for row in ill.itertuples()
    ]
