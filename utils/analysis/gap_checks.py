"""Check that tables of brain ages allow an analysis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.analysis.gap_tables import one_scan_each
from utils.common.errors import InputError

FEWEST_PERSONS = 10


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
