"""What label tables say about the scans that are predicted: age, sex, person, and who calibrates."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError, shortened
from utils.data.subjects import suspected_visits
from utils.data.tables import LabelTable, given_sex, read_label_table
from utils.prediction.calibration import FEWEST_PEOPLE
from utils.prediction.scan_ages import PredictedScan


def add_labels(scans: Sequence[PredictedScan], label_table: Path | None, sex_of_all: str | None) -> None:
    """Set ages, sexes and persons from a label table; an age that cannot be used leaves a warning.

    Parameters
    ----------
    scans : sequence of PredictedScan, changed in place
    label_table : Path or None
    sex_of_all : str or None
        ``F`` or ``M``, for scans whose sex the table does not give.

    Raises
    ------
    InputError
        If the table cannot be read, or a scan's row has problems.
    """
    table = read_label_table(label_table) if label_table else None
    if table and table.complaint:
        print(f"WARNING: {table.complaint}; so there are no gaps")
    if table and table.sex_note:
        print(f"note: {table.path}: {table.sex_note}")
    problems: list[str] = []
    with_age: Counter[str] = Counter()  # scans, by their row
    for scan in scans:
        scan.sex = given_sex(sex_of_all)
        row = table.find(scan.table_key) if table else None
        if row:
            problems += row.problems
            scan.chronological_age, scan.person = row.age.years, row.person
            with_age[row.where] += np.isfinite(row.age.years)
            scan.sex = scan.sex if row.sex == UNKNOWN_SEX else row.sex
            if row.age_cell and row.age_complaint:
                scan.warnings.append(f"its age is not known, so there is no gap: {row.age_complaint}")
            if row.sex_cell and row.sex_complaint:
                scan.warnings.append(row.sex_complaint)
        elif table:
            scan.warnings.append(table.why_not(scan.table_key))
    if problems:
        raise InputError(problems)
    shared = [where for where, count in with_age.items() if count > 1]
    if shared:
        print(
            f"WARNING: the ages of {len(shared)} rows are taken for several scans each, such as {shared[0]}; if these "
            "are years apart, give each session its own row"
        )


def add_averaging(scans: Sequence[PredictedScan], uses_sex: bool) -> None:
    """Warn of scans of unknown sex, for which networks that use the sex give the mean of both."""
    for scan in scans:
        if uses_sex and scan.sex == UNKNOWN_SEX:
            scan.warnings.append("its sex is not known; the brain age is the mean of those for a woman and for a man")


def add_training(scans: Sequence[PredictedScan], training_persons: Sequence[str]) -> None:
    """Warn of persons on whom the networks were trained."""
    known = set(training_persons)
    for scan in scans:
        if not known.isdisjoint(scan.subject.names):
            scan.warnings.append("is of a training subject; the networks know the age, so the gap means nothing")


class Candidate(NamedTuple):
    """A scan that may calibrate, whose it is, and the age in years."""

    scan: PredictedScan
    person: str
    age: float


def find_candidates(
    scans: Sequence[PredictedScan], labels: LabelTable, training_persons: Sequence[str]
) -> list[Candidate]:
    """Return the scans of the people of a table.

    Parameters
    ----------
    scans : sequence of PredictedScan
    labels : LabelTable
        Of healthy people.
    training_persons : sequence of str
        Who cannot calibrate, because the networks know their ages.

    Raises
    ------
    InputError
        If a row has problems.
    """
    found: list[Candidate] = []
    problems = [labels.complaint] if labels.complaint else []
    unknown: list[str] = []
    known_to_networks = set(training_persons)
    left_out = 0
    for scan in scans:
        row = labels.find(scan.table_key)
        if not row:
            continue
        problems += row.problems
        if row.age_complaint:
            (unknown if row.age.unknown else problems).append(row.age_complaint)
        elif known_to_networks.isdisjoint({*scan.subject.names, row.person}):
            found.append(Candidate(scan, row.person or scan.subject.person, row.age.years))
        else:
            left_out += 1
    if problems:
        raise InputError(problems)
    if unknown:
        print("\n  ".join([f"WARNING: {len(unknown)} scans of {labels.path} do not calibrate:", *shortened(unknown)]))
    if left_out:
        print(f"WARNING: {left_out} scans of {labels.path} are of training subjects and do not calibrate")
    visits = suspected_visits(candidate.person for candidate in found)
    if visits:
        print(f"WARNING: {labels.path}: {visits}")
    return found


def calibration_people(candidates: Sequence[Candidate], label_table: Path) -> list[Candidate]:
    """Return one usable scan of each person.

    Raises
    ------
    InputError
        If they are fewer than `FEWEST_PEOPLE`.
    """
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        if not candidate.scan.failure:
            found.setdefault(candidate.person, candidate)
    if len(found) < FEWEST_PEOPLE:
        raise InputError(
            f"{label_table}: {len(found)} of its people have a usable scan here; calibration needs at least "
            f"{FEWEST_PEOPLE} healthy people of the same scanner, whose scans are part of INPUT"
        )
    return list(found.values())
