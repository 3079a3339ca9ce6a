"""Find the label of each preprocessed scan in a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError, shortened
from utils.data.columns import MISSING, read_age
from utils.data.names import unusable_name
from utils.data.subjects import named_persons, suspected_visits
from utils.preparation.label_formats import NUMBER, open_labels


@dataclass(frozen=True)
class LabelledScan:
    """A preprocessed scan with its label.

    Parameters
    ----------
    subject_id : str
    path : Path
    person : str
    age : float, years
    sex : int, 0 female, 1 male, -1 unknown
    site : str
    split : str
        ``train``, ``valid`` or ``test``; empty until it is chosen.
    """

    subject_id: str
    path: Path
    person: str
    age: float
    sex: int
    site: str
    split: str = ""


def label_scans(
    scans: dict[str, Path],
    label_table: Path,
    *,
    person_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    where: Sequence[tuple[str, frozenset[str]]] = (),
    skip_unlabelled: bool = False,
) -> list[LabelledScan]:
    """Find the label of each scan.

    Parameters
    ----------
    scans : dict of subject id to Path
    label_table : Path
    person_column, site_column, split_column : str or None
        Columns of the table that hold the person, the site, and a given split.
    where : sequence of (column, values)
        Scans whose row has another value are left out.
    skip_unlabelled : bool
        Leave out scans without a row or an age, instead of refusing them.

    Raises
    ------
    InputError
        With every scan that has no label; or if a column is missing.
    """
    form, find, columns = open_labels(label_table)
    for column in filter(None, (person_column, site_column, split_column, *(name for name, _ in where))):
        if columns.count(column.lower()) != 1:
            what = "no" if column.lower() not in columns else "several columns"
            raise InputError(f"{label_table}: has {what} column {column} (found {', '.join(columns)})")
    found, problems, others = [], [], 0
    for subject_id, path in scans.items():
        label = find(subject_id)
        if isinstance(label, str):
            problems.append(f"{path}: {label} in {label_table}")
        elif any(label.row[name.lower()] not in values for name, values in where):
            others += 1
        elif np.isnan(label.age):
            cell = label.row.get("age", "")
            why = read_age(cell).complaint or "is not known at the scan; correct or remove the row"
            problems.append(f"{label_table}, row {label.row[NUMBER]}: age '{cell}' of {subject_id} {why}")
        else:
            person, site, split = (
                label.row.get(name.lower(), "") if name else ""
                for name in (person_column or "person", site_column, split_column)
            )
            person = label.person if person.lower() in MISSING else person
            problems += [f"{path}: {wrong}" for wrong in map(unusable_name, (subject_id, person, site)) if wrong]
            found.append(LabelledScan(subject_id, path, person, label.age, label.sex, site, split))
    if problems and not skip_unlabelled:
        raise InputError([*problems, "correct the table, or leave these scans out with --skip_unlabelled true"])
    if not found:
        why = f"--where selects none of {others} scans" if others else "no scan has an age"
        raise InputError([f"{label_table}: {why}", *problems])
    print(f"{label_table}: read as a table of the form {form}")
    repeated = Counter((scan.person, scan.age) for scan in found)
    same_age = len({person for (person, _), count in repeated.items() if count > 1})
    named = named_persons(found)
    found = [replace(scan, person=named.get(scan.person, scan.person)) for scan in found]
    visits = suspected_visits(scan.person for scan in found)
    if visits:
        print(f"WARNING: {visits}")
    if problems:
        print("\n  ".join([f"note: {len(problems)} scans without a label are left out:", *shortened(problems)]))
    for count, what in (
        (others, "scans that --where does not select are left out"),
        (sum(scan.sex == UNKNOWN_SEX for scan in found), "scans lack the sex; add it, or train with USE_SEX=false"),
        (same_age, "persons have several scans at the same age; if these are years apart, give each its own row"),
    ):
        if count:
            print(f"note: {count} {what}")
    return found
