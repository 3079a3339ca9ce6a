"""Analyse brain ages: the sections of the report in their order, and the table of subjects."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from utils.analysis.accuracy import (
    accuracy_row,
    accuracy_section,
    correction_section,
    fit_interval,
    uncertainty_section,
)
from utils.analysis.diagnosis_section import diagnosis_section
from utils.analysis.gap_checks import check_healthy
from utils.analysis.gap_correction import COVARIATE, UNCORRECTED, Correction, gaps_of, prepare_corrections
from utils.analysis.gap_report import Section, Table
from utils.analysis.gap_tables import ages_of, one_scan_each
from utils.analysis.leakage import Seen, leakage_section, seen_by_weights, shortened
from utils.analysis.repeats import repeats_section
from utils.common.errors import InputError
from utils.common.provenance import command_line, describe_run
from utils.data.preparations import each_origin

LARGEST_LABEL_DIFFERENCE = 1.0  # years, between the ages that two tables give for a scan
UNLIKELY = 0.05  # p below which site and diagnosis count as associated


def data_section(
    test: pd.DataFrame, healthy: pd.DataFrame, age_ranges: Sequence[tuple[float, float]], with_labels: bool
) -> Section:
    """Describe the test set and what is unusual about it."""
    persons = one_scan_each(test)
    section = Section(
        "data",
        "Subjects",
        "Each person counts once, with the first scan. Accuracy is measured on the healthy subjects, or on everybody "
        "if no diagnosis is known. Gap: brain age minus chronological age.",
        [f"{len(persons)} persons, {len(test)} scans; accuracy on {len(healthy)}"],
    )
    groups = persons.groupby(persons["diagnosis"].replace("", "all").rename("group"), sort=False)
    described = groups.agg(
        persons=("person", "size"),
        age_mean=("chronological_age", "mean"),
        age_sd=("chronological_age", "std"),
        age_min=("chronological_age", "min"),
        age_max=("chronological_age", "max"),
        share_of_women=("sex", lambda sex: (sex[sex != ""] == "F").mean()),
        sex_unknown=("sex", lambda sex: (sex == "").sum()),
    )
    section.tables["data"] = Table("Test set", described.reset_index())
    diagnosed = bool((persons["diagnosis"] != "").any())
    if diagnosed and (persons["site"] != "").any():
        counts = pd.crosstab(persons["site"].replace("", "unknown"), persons["diagnosis"])
        section.tables["sites"] = Table("Persons of each site", counts.reset_index())
        if min(counts.shape) > 1 and stats.chi2_contingency(counts).pvalue < UNLIKELY:
            section.warnings.append(
                "Diagnoses differ between sites, so differences between scanners may look like disease. Compare "
                "patients with healthy subjects of the same site."
            )
    if diagnosed and persons["diagnosis"].nunique() == 1:
        section.warnings.append("There is only one diagnosis, so patients and healthy subjects cannot be compared.")
    changed = test[test["diagnosis"] != ""].groupby("person")["diagnosis"].nunique()
    differ = test[(test["label_age"] - test["chronological_age"]).abs() > LARGEST_LABEL_DIFFERENCE]
    outside = persons[outside_training(persons, age_ranges)]
    for found, what in (
        (changed[changed > 1].index, "persons have a diagnosis that changes; that of the first scan is used"),
        (
            outside["subject_id"],
            "persons are outside the age range of the training set; their brain ages are extrapolated",
        ),
        (test["subject_id"][~test["labelled"]] if with_labels else [], "scans have no row in the label table"),
        (differ["subject_id"], "scans have another age in the label table; that of the predictions is used"),
    ):
        if len(found):
            section.warnings.append(f"{len(found)} {what}: {shortened(found)}.")
    return section


def outside_training(table: pd.DataFrame, age_ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return who is outside the age range of the training set of any network, (N,) bool array."""
    age, _ = ages_of(table)
    return np.any([(age < low) | (age > high) for low, high in age_ranges] or [age < 0], axis=0)


def analyse(
    args: Namespace,
    tables: dict[str, pd.DataFrame],
    healthy: pd.DataFrame,
    patient_labels: Sequence[str],
    manifest: Mapping[str, Any] | None = None,
) -> tuple[list[Section], pd.DataFrame, list[Correction]]:
    """Run the whole analysis; nothing is written.

    Parameters
    ----------
    args : Namespace of `utils.options.analysis.parse_gap_flags`
    tables : dict of str to DataFrame, of `read_tables`
    healthy, patient_labels : of `check_test_set`
    manifest : mapping or None, of the weights in `args.weights_dir`

    Returns
    -------
    sections, subjects (one row per scan of the test set), corrections
    """
    problems = check_healthy(tables["fit"], args.healthy_label, "--fit_predictions")
    problems += check_healthy(tables["calibration"], args.healthy_label, "--calibration_predictions")
    if problems:
        raise InputError(problems)
    test, calibration = tables["test"], one_scan_each(tables["calibration"])
    corrections = prepare_corrections(args.correction, tables["fit"], args.fit_predictions, args.correction_file, test)
    shipped = seen_by_weights(args.weights_dir, manifest) if manifest else Seen()
    leakage, age_ranges = leakage_section(args, tables, corrections, shipped)
    radius = fit_interval(calibration, args.coverage) if args.calibration_predictions else None
    uncorrected = accuracy_row(*ages_of(healthy), args.seed)
    sections = [
        leakage,
        data_section(test, healthy, age_ranges, args.label_table is not None),
        accuracy_section(healthy, uncorrected, args.seed),
        correction_section(healthy, tables, corrections, uncorrected, args.seed),
        diagnosis_section(args, test, patient_labels, corrections) if patient_labels else None,
        uncertainty_section(healthy, radius, len(calibration), args.coverage) if radius is not None else None,
        repeats_section(test, args.healthy_label, corrections, args.retest_years, args.seed),
    ]
    subjects = _subjects(test, corrections, radius, age_ranges)
    return [section for section in sections if section], subjects, corrections


def _subjects(
    test: pd.DataFrame,
    corrections: Sequence[Correction],
    radius: float | None,
    age_ranges: Sequence[tuple[float, float]],
) -> pd.DataFrame:
    """Return what is known about each scan, the uncorrected gap first."""
    age, brain_age = ages_of(test)
    columns = ["subject_id", "person", "session", "diagnosis", "site", "sex", "chronological_age", "brain_age"]
    subjects = test[columns].copy()
    for name, gap in gaps_of(test, corrections).items():
        subjects["brain_age_gap" if name == UNCORRECTED else f"brain_age_gap_{name}"] = gap
    for correction in corrections:
        if correction.kind != COVARIATE:
            subjects[f"brain_age_{correction.kind}"] = age + subjects[f"brain_age_gap_{correction.kind}"]
    if radius is not None:
        subjects["interval_low"], subjects["interval_high"] = brain_age - radius, brain_age + radius
    if age_ranges:
        subjects["outside_training_ages"] = outside_training(test, age_ranges)
    return subjects


def provenance_of(test: pd.DataFrame) -> dict[str, str]:
    """Describe how the analysis was made, and where the brain ages of the test set come from."""
    run = describe_run()
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    ages = {f"{name} of the predictions": ", ".join(values) for name, values in each_origin(test).items() if values}
    return {"command": command_line(), "software_version": run["software_version"], "versions": versions, **ages}
