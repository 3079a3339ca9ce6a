"""Discretized ages: what the second stage gets from the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.conventions import discretize_age
from utils.common.errors import InputError
from utils.common.files import replacing

AGE_TABLE = (  # the id takes the length that it needs
    ("subject_id", "U"),
    ("brain_age", "f4"),
    ("discretized_age", "f4"),
    ("age_interval", "f4"),
    ("out_of_fold", "?"),
    ("first_stage_sha256", "U64"),
)


def write_discretized_ages(
    path: Path,
    subject_ids: Sequence[str],
    brain_age: np.ndarray,
    age_interval: float,
    first_stage_sha256: str,
    out_of_fold: np.ndarray,
) -> None:
    """Write the table of one split as ``.npy``, without pickled objects.

    Parameters
    ----------
    path : Path
    subject_ids : sequence of N str
    brain_age : (N,) float array, years, of the first stage
    age_interval : float, years
    first_stage_sha256 : str
        Of the checkpoint that made the ages.
    out_of_fold : (N,) bool array
        Whether each age comes from a network that was not trained on the
        subject.
    """
    ids = np.array(subject_ids, dtype=str)
    table = np.zeros(len(ids), [(name, ids.dtype if name == "subject_id" else kind) for name, kind in AGE_TABLE])
    table["subject_id"] = ids
    table["brain_age"] = brain_age
    table["discretized_age"] = discretize_age(brain_age, age_interval)
    table["age_interval"] = age_interval
    table["out_of_fold"] = out_of_fold
    table["first_stage_sha256"] = first_stage_sha256
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, table, allow_pickle=False)


def read_discretized_ages(
    path: Path, subject_ids: Sequence[str], age_interval: float, first_stage_sha256: str
) -> np.ndarray:
    """Read the rows of the given subjects, in their order.

    Parameters
    ----------
    path : Path
    subject_ids : sequence of N str
    age_interval : float, years
        The interval that the ages must have been rounded to.
    first_stage_sha256 : str
        Of the checkpoint that must have made them.

    Returns
    -------
    (N,) structured array, fields of `AGE_TABLE`

    Raises
    ------
    InputError
        If the file is missing or no such table, lacks a subject, has one
        twice, or was made with another interval or another first stage.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such table of discretized ages; run test_first_stage.py on that split, "
            "or finish the training of the first stage"
        )
    try:
        table = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises many types
        reason = "it holds Python objects, or is of another kind" if "pickle" in str(error) else error
        raise InputError(f"{path}: not a readable .npy table ({reason}); run test_first_stage.py again") from error
    if not isinstance(table, np.ndarray) or table.ndim != 1 or not _has_columns(table.dtype):
        raise InputError(f"{path}: not a table of discretized ages; run test_first_stage.py again")
    problems = []
    other = table["age_interval"][table["age_interval"] != np.float32(age_interval)]
    if other.size:
        problems.append(
            f"{path}: made with an age interval of {other[0]:g} years; expected {age_interval:g}; "
            "run test_first_stage.py with that --age_interval, or use the table's"
        )
    if (table["first_stage_sha256"] != first_stage_sha256).any():
        problems.append(
            f"{path}: was made by another first stage than the checkpoint given; run test_first_stage.py "
            "with that checkpoint, or give the one that made the table"
        )
    rows: dict[str, int] = {}
    for index, subject_id in enumerate(table["subject_id"].tolist()):
        if subject_id in rows:
            problems.append(f"{path}: has {subject_id} twice; run test_first_stage.py again")
        rows[subject_id] = index
    problems += [
        f"{path}: lacks {subject_id}; run test_first_stage.py on that split"
        for subject_id in subject_ids
        if subject_id not in rows
    ]
    if not problems and not np.isfinite(table["brain_age"]).all():
        problems.append(f"{path}: holds ages that are not finite; run test_first_stage.py again")
    if not problems and (table["discretized_age"] != discretize_age(table["brain_age"], age_interval)).any():
        problems.append(f"{path}: its discretized ages are not the brain ages rounded; run test_first_stage.py again")
    if problems:
        raise InputError(problems)
    return table[[rows[subject_id] for subject_id in subject_ids]]


def _has_columns(dtype: np.dtype[Any]) -> bool:
    """Tell whether a type has the fields of `AGE_TABLE`, in their order, of any length of text."""
    found = [(name, dtype[name].kind) for name in dtype.names or ()]
    return found == [(name, np.dtype(kind).kind) for name, kind in AGE_TABLE]
