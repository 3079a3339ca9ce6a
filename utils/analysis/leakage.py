"""Find persons who stand on both sides of a line that must part them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from utils.common.checkpoints import load_checkpoint
from utils.data.subjects import person_of

SHOWN = 20  # names in a line


@dataclass
class Seen:
    """Whom networks have seen.

    Parameters
    ----------
    training, validation : dict of str to set of str
        Persons, by the network in words. Of the validation only those that
        chose the epoch or the learning rate.
    age_ranges : list of (float, float), years, of each network's training
    warnings : list of str
        Of networks that do not say whom they have seen.
    """

    training: dict[str, set[str]] = field(default_factory=dict)
    validation: dict[str, set[str]] = field(default_factory=dict)
    age_ranges: list[tuple[float, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def seen_by_checkpoints(checkpoints: Sequence[Path]) -> Seen:
    """Read whom the networks of checkpoints, of one stage or both, have seen."""
    seen = Seen()
    for path in checkpoints:
        content = load_checkpoint(path)
        if "train_subjects" not in content:
            seen.warnings.append(f"{path} does not record its training subjects, so leakage from it cannot be seen")
            continue
        stage = {1: "first stage's ", 2: "second stage's "}.get(content.get("network", {}).get("stage"), "")
        seen.training[f"the {stage}training of {path}"] = set(map(person_of, content["train_subjects"]))
        chose = set(map(person_of, content.get("valid_subjects", [])))
        if chose:
            seen.validation[f"the {stage}validation of {path}"] = chose
        ages = content.get("train_ages", [])
        if ages:
            seen.age_ranges.append((min(ages), max(ages)))
    return seen


def seen_by_weights(folder: Path, manifest: Mapping[str, Any]) -> Seen:
    """Return whom the networks in a folder of weights, with this manifest, have seen."""
    low, high = manifest["age_range"]
    return Seen({f"the training of {folder}": set(manifest["training_persons"])}, age_ranges=[(low, high)])


def names_of(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return all names of each person of a table: that which the table gives, and that of the naming of scans."""
    names: dict[str, set[str]] = {}
    for person, subject_id in zip(table["person"], table["subject_id"], strict=True):
        names.setdefault(person, {person}).add(person_of(subject_id))
    return names


def plain_person(name: str) -> str:
    """Return a person's name without what is often written in two ways.

    >>> plain_person("sub-HOSP_007"), plain_person("hosp7"), plain_person("1_23")
    ('hosp7', 'hosp7', '1-23')
    """
    plain = re.sub(r"(?<!\d)0+(?=\d)", "", name.lower().removeprefix("sub-"))
    return re.sub(r"(?<=\d)[\W_]+(?=\d)", "-", re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", plain))


def find_leaks(
    tested: Mapping[str, Collection[str]], others: Mapping[str, Collection[str]], tested_name: str
) -> list[str]:
    """Return a line for each set of persons that shares some with the tested ones, with their names.

    Parameters
    ----------
    tested : mapping of str to collection of str
        All names of each person.
    others : mapping of str to collection of str
        Names of persons, by what they are.
    tested_name : str

    >>> find_leaks({"sub-1": {"sub-1"}, "sub-2": {"sub-2"}}, {"the fit": {"sub-2", "sub-3"}}, "the test set")
    ['1 person of the test set is in the fit too: sub-2']
    """
    lines = []
    for name, known in ((name, set(known)) for name, known in others.items()):
        shared = sorted(person for person, names in tested.items() if not known.isdisjoint(names))
        if shared:
            be = "is" if len(shared) == 1 else "are"
            lines.append(f"{_count(shared)} of {tested_name} {be} in {name} too: {_list(shared)}")
    return lines


def suspect_leaks(tested: Mapping[str, Collection[str]], others: Mapping[str, Collection[str]]) -> list[str]:
    """Return a line for each set with persons whose names are not, but nearly, those of tested ones."""
    lines = []
    for name, known in ((name, set(known)) for name, known in others.items()):
        plain = {plain_person(other) for other in known} - {""}
        alike = sorted(
            person for person, names in tested.items()
            if known.isdisjoint(names) and not plain.isdisjoint(map(plain_person, names))
        )  # fmt: skip
        if alike:
            have = "has" if len(alike) == 1 else "have"
            lines.append(
                f"{_count(alike)} of the test set {have} nearly the same name as one in {name}: {_list(alike)}. If "
                "they are the same, the figures are too good: spell names alike."
            )
    return lines


def _count(persons: Sequence[str]) -> str:
    """Say how many persons."""
    return f"{len(persons)} person{'' if len(persons) == 1 else 's'}"


def _list(persons: Sequence[str]) -> str:
    """Name persons, not too many."""
    more = f" and {len(persons) - SHOWN} more" if len(persons) > SHOWN else ""
    return ", ".join(persons[:SHOWN]) + more
