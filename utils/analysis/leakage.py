"""Find persons of the test set who also took part in training, correction or calibration."""

import re
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from utils.analysis.gap_correction import Correction
from utils.analysis.gap_report import Section
from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.data.subjects import person_of, trained_persons

SHOWN = 20  # names per line


@dataclass
class Seen:
    """Persons that networks were trained or validated on, by a description of the network."""

    training: dict[str, set[str]] = field(default_factory=dict)
    validation: dict[str, set[str]] = field(default_factory=dict)  # who determined the epoch or the learning rate
    age_ranges: list[tuple[float, float]] = field(default_factory=list)  # years, of each training set
    warnings: list[str] = field(default_factory=list)  # checkpoints that do not record these persons


def seen_by_checkpoints(checkpoints: Sequence[Path]) -> Seen:
    """Read which persons the networks of checkpoints, of one stage or both, have seen."""
    seen = Seen()
    for path in checkpoints:
        content = load_checkpoint(path)
        if "train_subjects" not in content:
            seen.warnings.append(f"{path} does not record its training subjects, so leakage from it cannot be excluded")
            continue
        stage = {1: "first stage's ", 2: "second stage's "}.get(content.get("network", {}).get("stage"), "")
        seen.training[f"the {stage}training of {path}"] = set(trained_persons(content))
        validation = set(trained_persons(content, "valid"))
        if validation:
            seen.validation[f"the {stage}validation of {path}"] = validation
        ages = content.get("train_ages", [])
        if ages:
            seen.age_ranges.append((min(ages), max(ages)))
    return seen


def seen_by_weights(folder: Path, manifest: Mapping[str, Any]) -> Seen:
    """Return which persons the networks in a folder of weights, with this manifest, were trained on."""
    low, high = manifest["age_range"]
    return Seen({f"the training of {folder}": set(manifest["training_persons"])}, age_ranges=[(low, high)])


def names_of(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return the names of each person: that in the table, and those that the subject ids contain."""
    names: dict[str, set[str]] = {}
    for person, subject_id in zip(table["person"], table["subject_id"], strict=True):
        names.setdefault(person, {person}).add(person_of(subject_id))
    return names


def plain_person(name: str) -> str:
    """Return a person's name without case, punctuation and leading zeros.

    >>> plain_person("sub-HOSP_007"), plain_person("hosp7"), plain_person("1_23")
    ('hosp-7', 'hosp-7', '1-23')
    """
    parts = re.findall(r"\d+|[^\W\d_]+", name.lower().removeprefix("sub-"))
    return "-".join(part.lstrip("0") or "0" for part in parts)


def find_leaks(tested: Mapping[str, set[str]], others: Mapping[str, Collection[str]], tested_name: str) -> list[str]:
    """Return one line for each set of names, by its description, that has one of the names of a tested person.

    >>> find_leaks({"sub-1": {"sub-1"}, "sub-2": {"sub-2"}}, {"the fit": {"sub-2", "sub-3"}}, "the test set")
    ['1 person of the test set is in the fit too: sub-2']
    """
    lines = []
    for name, known in others.items():
        shared = [person for person, names in tested.items() if not names.isdisjoint(known)]
        if shared:
            be = "is" if len(shared) == 1 else "are"
            persons = "person" if len(shared) == 1 else "persons"
            lines.append(f"{len(shared)} {persons} of {tested_name} {be} in {name} too: {shortened(shared)}")
    return lines


def suspect_leaks(tested: Mapping[str, set[str]], others: Mapping[str, Collection[str]]) -> list[str]:
    """Return one line for each set with persons whose names are nearly those of tested persons."""
    known = set().union(*others.values())
    remaining = {person: set(map(plain_person, names)) for person, names in tested.items() if names.isdisjoint(known)}
    lines = find_leaks(remaining, {name: set(map(plain_person, own)) for name, own in others.items()}, "the test set")
    return [f"Names that are nearly the same: {line}. If they are the same persons, this is leakage." for line in lines]


def shortened(names: Collection[str]) -> str:
    """List the first names in order, and count the rest."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def leakage_section(
    args: Namespace, tables: dict[str, pd.DataFrame], corrections: Sequence[Correction], shipped: Seen
) -> tuple[Section, list[tuple[float, float]]]:
    """Compare persons between sets, with those of the shipped weights; also return the training age ranges.

    Raises
    ------
    InputError
        If there is leakage and ``--allow_leakage`` is not set.
    """
    seen = seen_by_checkpoints(args.checkpoints)
    names = {role: names_of(table) for role, table in tables.items()}
    if args.correction_file:
        names["fit"] = {person: {person} for c in corrections for person in c.persons}
    others: dict[str, set[str]] = {f"the fit of {c.kind}": set(c.persons) for c in corrections}
    if names["calibration"]:
        others["the calibration set"] = set().union(*names["calibration"].values())
    others |= seen.training | seen.validation | shipped.training
    leaks = find_leaks(names["test"], others, "the test set")
    warnings = [*seen.warnings, *suspect_leaks(names["test"], others)]
    if not args.checkpoints and not args.weights_dir:
        warnings.append(
            "The training subjects of the networks are unknown (--checkpoints, --weights_dir), so leakage from "
            "training cannot be excluded."
        )
    for role, what in (("fit", "the correction's fit"), ("calibration", "the calibration set")):
        leaks += find_leaks(names[role], seen.training, what)
        # Out-of-fold brain ages of the training subjects of ready weights may serve for both.
        warnings += [
            f"{line}. Their brain ages must come from networks that never saw them (out of fold)."
            for line in find_leaks(names[role], shipped.training, what)
        ]
        unknown = (tables[role]["diagnosis"] == "").sum()
        if unknown:
            warnings.append(f"{unknown} scans of {what} have no diagnosis; they are taken to be of healthy subjects.")
    if leaks and not args.allow_leakage:
        raise InputError([f"leakage: {leak}; remove them, or accept it with --allow_leakage true" for leak in leaks])
    text = "No person of the test set may have taken part in training, correction or calibration. "
    text += f"Compared with the test set: {'; '.join(others)}." if others else "There was nothing to compare with."
    alarms = [f"LEAKAGE, allowed by --allow_leakage: {leak}. Results that depend on it are too good." for leak in leaks]
    headlines = ["No leakage was found in the sets that were compared"] if others and not leaks else []
    return Section("leakage", "Leakage", text, headlines, warnings, alarms), [*seen.age_ranges, *shipped.age_ranges]
