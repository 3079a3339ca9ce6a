"""Say of weights what a user must know before trusting them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.files import origins
from utils.data.subjects import DESCRIPTION, Subject, person_of
from utils.evaluation.metrics import INTERVAL_COVERAGE, Predictions, interval_radius

CARD = """# Model card: brain age from a T1-weighted MRI

{remark}{cascades}: {network}, {voxel_size} mm, normalization `{normalization}`.

## Training data

{notice}

{n} scans of {persons} persons, {age_min:.1f} to {age_max:.1f} years (mean {age_mean:.1f}); {sexes}. Prepared by: {preprocessing}.

## How well they estimate

{folds}-fold cross-validation over these subjects, each estimated by networks that never saw the person:

| N | MAE, years (95 % interval) | RMSE | Pearson | Spearman | mean gap | Spearman of gap and age |
| --- | --- | --- | --- | --- | --- | --- |
| {n} | {mae:.2f} ({mae_low:.2f} to {mae_high:.2f}) | {rmse:.2f} | {pearson:.3f} | {spearman:.3f} | {mean_gap:.2f} | {gap_age_spearman:.2f} |

The first stage alone: MAE {first_mae:.2f}. The {coverage:.0f} % interval is the estimate plus and minus {radius:.1f} years, from the errors of that
cross-validation; it held for {covered:.0f} % of the subjects there, each fold's radius taken from the other folds. On scans of another scanner, protocol, population or
preparation the errors are larger, and nothing here says by how much.

## Intended use

Research on groups of people of {age_min:.0f} to {age_max:.0f} years, by T1-weighted scans that were prepared as above. Compare people of like age
and scanner: the gap depends on the age (Spearman correlation {gap_age_spearman:.2f} above; below 0, the young are estimated too old and the old too young).

## Not for

- **Diagnosis, or any decision about a person.** A gap of a few years is within the error.
- Ages outside the range above: there are no estimates beyond what was seen.
- Kinds of scans that the training data above do not have, such as other contrasts, contrast agent, large lesions or surgery.
"""


def describe_weights(
    subjects: Sequence[Subject],
    predictions: Predictions,
    metrics: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    members: int,
    folds: int,
    notice: str,
    remark: str,
) -> tuple[dict[str, Any], str]:
    """Collect the manifest and write the model card of weights trained on everybody.

    Parameters
    ----------
    subjects : sequence of N Subject
    predictions : dict of str to (N,) float array
        Of the cross-validation.
    metrics : mapping
        Of `utils.evaluation.reports.write_report`.
    checkpoint : mapping
        Of a first stage.
    members, folds : int
    notice : str
        Name, source and licence of the data.
    remark : str
        A paragraph for the top of the card; empty: none.

    Returns
    -------
    manifest : dict of plain values
        ``age_range``, ``out_of_fold_errors``, ``training_persons``, ``preprocessing``, ``cross_validation``,
        ``data``, ``remark``.
    card : str, Markdown
    """
    ages = np.array([subject.chronological_age for subject in subjects])
    errors = np.abs(predictions["brain_age"] - predictions["chronological_age"])
    preprocessing: list[dict[str, str] | None] = []
    for subject in subjects:
        made = preparation_of(subject.path)
        if made not in preprocessing:
            preprocessing.append(made)
    one_of_each = {person_of(subject.subject_id): subject for subject in subjects}
    manifest = {
        "age_range": [float(ages.min()), float(ages.max())],
        "out_of_fold_errors": [round(float(error), 4) for error in errors],
        "training_persons": sorted(one_of_each),
        "preprocessing": preprocessing,
        "cross_validation": dict(metrics),
        "data": notice,
        "remark": remark,
    }
    sexes = Counter({0: "female", 1: "male"}.get(subject.sex, "of unknown sex") for subject in one_of_each.values())
    numbers = {name: np.nan if value is None else value for name, value in metrics.items()}
    card = CARD.format(
        network=describe_network(checkpoint["network"]),
        **{name: checkpoint[name] for name in ("voxel_size", "normalization")},
        **{name: numbers[name] for name in ("n", "age_min", "age_max", "mae", "mae_low", "mae_high", "rmse", "pearson",
                                            "spearman", "mean_gap", "gap_age_spearman")},
        persons=len(one_of_each),
        cascades="One cascade of two stages" if members == 1 else f"{members} cascades of two stages, whose estimates are averaged",
        folds=folds,
        remark=f"**{remark}**\n\n" if remark else "",
        notice=notice or "Not stated (`--data_notice`).",
        age_mean=ages.mean(),
        sexes=", ".join(f"{count} {name}" for name, count in sorted(sexes.items())),
        preprocessing="; ".join(map(_describe_preparation, preprocessing)),
        first_mae=metrics["first_stage"]["mae"],
        coverage=100 * INTERVAL_COVERAGE,
        radius=interval_radius(errors, INTERVAL_COVERAGE),
        covered=100 * metrics["coverage"],
    )  # fmt: skip
    return manifest, card


def describe_network(network: Mapping[str, Any]) -> str:
    """Name a network of this configuration and its size."""
    return f"`{network['model']}`, {network['blocks']} blocks of {network['filters']} filters"


def preparation_of(scan: Path) -> dict[str, str] | None:
    """Tell how ``preprocess.py`` made a scan, or the file that it links to; None if it did not."""
    return next(filter(None, (_preparation_in(file.parent) for file in origins(scan))), None)


@cache
def _preparation_in(folder: Path) -> dict[str, str] | None:
    """Read the description of a folder."""
    try:
        made = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["GeneratedBy"][0]
        return {"fingerprint": made["Fingerprint"], "registration": made["Parameters"]["registration"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _describe_preparation(made: Mapping[str, str] | None) -> str:
    """Name the tools."""
    if made is None:
        return "other tools"
    return f"`preprocess.py`, {made['registration']} registration, fingerprint `{made['fingerprint']}`"
