"""The report's section on patients and healthy subjects."""

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from utils.analysis import diagnosis
from utils.analysis import gap_figures as figures
from utils.analysis.gap_correction import UNCORRECTED, Correction, gaps_of
from utils.analysis.gap_report import Section, Table, cell, number
from utils.analysis.gap_tables import ages_of, one_scan_each
from utils.common.errors import InputError
from utils.evaluation.metrics import interval_of_mean

FEWEST_FOR_INTERVALS = 30  # of a class; with fewer, bootstrap intervals of an AUC are too narrow
LARGEST_AGE_DIFFERENCE = 0.25  # standardized; more is called an imbalance
GAP = "the gap, "
PROTOCOLS = {
    "ours": "Linear support vector machine, C = 1, balanced class weights; repeated stratified 5-fold cross-validation "
    "over persons. A larger gap always indicates a patient; the machine learns the threshold.",
    "paper": "The protocol of the authors' released script: support vector machine with RBF kernel, C = 10, balanced "
    "class weights, three stratified shuffle splits with a third for testing. The released script printed the AUC of "
    "hard labels, which is not an AUC of scores; both are shown.",
}


def diagnosis_section(
    args: Namespace, test: pd.DataFrame, patient_labels: Sequence[str], corrections: Sequence[Correction]
) -> Section:
    """Compare each group of patients with the healthy subjects.

    Raises
    ------
    InputError
        If a group named by ``--patient_labels`` has too few subjects.
    """
    persons = one_scan_each(test)
    section = Section(
        "diagnosis",
        "Diagnosis",
        f"{PROTOCOLS[args.protocol]}{' Pairs matched by age.' if args.match_ages else ''} AUC: mean over the test "
        "sets. In brackets: 95 % intervals by the bootstrap over persons, for scores whose direction is not learned. "
        f"p: share of {args.permutations} permutations of the labels with at least this AUC. Compare the gap with age "
        "and sex alone, which are shown in the direction that fits best.",
    )
    rows: list[dict[str, Any]] = []
    for label, pair in _pairs(args, persons, patient_labels, section).items():
        comparison = f"{label} against {args.healthy_label}"
        found = list(_compare_scores(args, section, pair, label, corrections))
        rows += [{"comparison": comparison, **row} for row in found]
        how = ", the released script's protocol" if args.protocol == "paper" else ""
        section.headlines.append(
            f"{comparison}{how}, AUC of the gap: "
            + "; ".join(
                f"{row['score'].removeprefix(f'SVM on {GAP}')} {cell(row, 'auc')}, p {cell(row, 'p_value')}"
                for row in found
                if GAP in row["score"]
            )
        )
    if rows:
        section.tables["diagnosis"] = Table("Patients against healthy subjects", pd.DataFrame(rows))
    everybody = " (all persons, not matched)" if args.match_ages else ""
    groups: list[dict[str, Any]] = []
    boxes: dict[str, np.ndarray] = {}
    for name, gap in gaps_of(persons, corrections).items():
        parts = {label: gap[persons["diagnosis"] == label] for label in (args.healthy_label, *patient_labels)}
        groups += [
            {"gap": name, "group": label, "n": len(own), **_describe(own, parts[args.healthy_label], args.seed)}
            for label, own in parts.items()
        ]
        boxes |= {f"{label}, {name}": own for label, own in parts.items()}
    section.figures["gap_by_diagnosis"] = figures.plot_groups(boxes), f"Gap of each group{everybody}."
    caption = f"Gap of each group{everybody}, years, and difference from the healthy subjects (Welch's test)"
    section.tables["group_gaps"] = Table(caption, pd.DataFrame(groups))
    return section


def _pairs(
    args: Namespace, persons: pd.DataFrame, patient_labels: Sequence[str], section: Section
) -> dict[str, pd.DataFrame]:
    """Return patients and healthy subjects for each comparison; leave out groups that are too small."""
    pairs, too_few = {}, []
    for label in patient_labels:
        pair = persons[persons["diagnosis"].isin([args.healthy_label, label])]
        if args.match_ages:
            pair = pair.iloc[diagnosis.match_by_age(ages_of(pair)[0], (pair["diagnosis"] == label).to_numpy())]
        counts = {name: int((pair["diagnosis"] == name).sum()) for name in (label, args.healthy_label)}
        if min(counts.values()) >= diagnosis.FEWEST_OF_A_CLASS:
            pairs[label] = pair
        too_few += [
            f"{label}: {count} persons with {name}{' after matching by age' if args.match_ages else ''}; at least "
            f"{diagnosis.FEWEST_OF_A_CLASS} are needed for a cross-validation"
            for name, count in counts.items()
            if count < diagnosis.FEWEST_OF_A_CLASS
        ]
    if too_few and args.patient_labels:
        raise InputError([f"--patient_labels {line}; leave this label out, or add subjects" for line in too_few])
    section.warnings += [f"Left out, {line}." for line in too_few]
    return pairs


def _describe(own: np.ndarray, healthy: np.ndarray, seed: int) -> dict[str, float]:
    """Return a group's mean gap, years, and its difference from the healthy subjects, each with its interval."""
    row = {"mean_gap": float(own.mean())}
    if min(len(own), len(healthy)) > 1:
        row["mean_gap_low"], row["mean_gap_high"] = interval_of_mean(own, seed)
        row |= diagnosis.compare_groups(own, healthy) if own is not healthy else {}
    return row


def _compare_scores(
    args: Namespace, section: Section, pair: pd.DataFrame, label: str, corrections: Sequence[Correction]
) -> Iterator[dict[str, Any]]:
    """Give one row for each score that may distinguish the two groups; add the figure and warnings."""
    age, _ = ages_of(pair)
    patient = (pair["diagnosis"] == label).to_numpy()
    title = f"{label} against {args.healthy_label}"
    counts = {"n_patients": int(patient.sum()), "n_healthy": int((~patient).sum())}

    def machine(name: str, *columns: np.ndarray) -> dict[str, Any]:
        rising = len(columns) == 1
        found = diagnosis.classify(np.column_stack(columns), patient, args.protocol, args.repeats, args.seed, rising)
        if args.protocol != "paper":
            del found["hard_label_auc"]
        return {"score": f"SVM on {name}", **counts, **found}

    gaps = gaps_of(pair, corrections)
    for name, gap in gaps.items():
        row = machine(f"{GAP}{name}", gap)
        if args.protocol == "ours":
            row["auc_low"], row["auc_high"] = diagnosis.auc_interval(gap, patient, args.seed)
        yield row | {
            "p_value": diagnosis.permutation_p_value(gap, patient, args.protocol, args.permutations, args.seed)
        }
    baselines = {"age": age}
    if (pair["sex"] != "").all():
        baselines["sex"] = (pair["sex"] == "M").to_numpy(np.float64)
    else:
        section.warnings.append(f"{title}: the sex of some subjects is unknown, so it is not used as a baseline.")
    for name, values in baselines.items():
        yield {"score": f"{name} alone", **counts, **diagnosis.score_alone(values, patient, args.seed)}
    yield machine(" and ".join(baselines), *baselines.values())
    yield machine(f"{', '.join(baselines)} and gap, uncorrected", *baselines.values(), gaps[UNCORRECTED])
    # The number distinguishes labels that differ only in punctuation.
    section.figures[re.sub(r"\W+", "_", f"roc_{len(section.figures) + 1}_{label}")] = (
        figures.plot_roc(patient, {f"gap, {name}": gap for name, gap in gaps.items()} | {"age": age}, title),
        f"ROC curves of the gaps and of age, without a classifier, for {title}.",
    )
    if min(counts.values()) < FEWEST_FOR_INTERVALS:
        section.warnings.append(
            f"{title}: with {counts['n_patients']} and {counts['n_healthy']} persons the AUC intervals are too narrow."
        )
    ages = diagnosis.compare_groups(age[patient], age[~patient])
    years = ages["difference"]
    if abs(ages["cohens_d"]) > LARGEST_AGE_DIFFERENCE:
        advice = "The pairs still differ." if args.match_ages else "Match by age (--match_ages true)."
        section.warnings.append(
            f"{title}: on average the patients are {abs(years):.1f} years {'older' if years > 0 else 'younger'} "
            f"({ages['cohens_d']:+.2f} SD, p {number(ages['p_value'], 'p_value')}), so the gap's dependence on age is "
            f"confounded with the disease. {advice}"
        )
