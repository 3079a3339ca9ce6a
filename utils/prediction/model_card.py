"""Describe weights for their users: where they come from, how accurate they are, what they are not for."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.data.preparations import preparations_of
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, Predictions, interval_radius

CARD = """---
library_name: pytorch
tags: [brain-age, mri, t1-weighted, regression]
metrics: [mae, pearsonr]
---

# Model card: brain age from a T1-weighted MRI

{remark}{cascades} of two stages: {network}, {voxel_size} mm, normalization `{normalization}`.

## Training data

{notice}

{n} scans of {persons} persons aged {age_min:.1f} to {age_max:.1f} years (mean {age_mean:.1f}); {sexes}.
Prepared by: {preprocessing}.

## Accuracy

{folds}-fold cross-validation on these subjects; each was estimated by networks that never saw the person:

| N | MAE, years (95 % interval) | RMSE | Pearson | Spearman | mean gap | Spearman of gap and age |
| --- | --- | --- | --- | --- | --- | --- |
| {n} | {mae:.2f} ({mae_low:.2f} to {mae_high:.2f}) | {rmse:.2f} | {pearson:.3f} | {spearman:.3f} | {mean_gap:.2f} | \
{gap_age_spearman:.2f} |

The first stage alone has an MAE of {first_mae:.2f} years. The {interval:.0f} % interval on the training scanners is the
estimate plus and minus {radius:.1f} years, from the errors of this cross-validation. With each fold's radius taken from
the other folds, it held the age of {covered:.0f} % of these subjects.

**These figures hold for the scanners of the training subjects only**, and for people scanned and prepared as they
were. {elsewhere}

## Intended use

Research on groups of people aged {age_min:.0f} to {age_max:.0f} years whose scans were prepared as above.
Compare people of similar age, scanned on the same scanner: the gap depends on age. Its Spearman correlation with age
is {gap_age_spearman:.2f}; if that is negative, young brains are estimated too old and old brains too young.

## Not for

- **Diagnosis, or any decision about an individual.** A gap of a few years is within the error.
- Ages outside the training range: estimates hardly go beyond it.
- Scans unlike the training data, such as other contrasts, contrast agent, large lesions or surgery.
"""


NO_OTHER_SITE = """On another scanner, protocol or population, or after another preparation, errors can be several
times as large, and all estimates can be shifted in one direction. Test the weights on healthy people from your scanner
before you use them."""


def make_manifest(
    subjects: Sequence[Subject], predictions: Predictions, metrics: Mapping[str, Any], notice: str, remark: str
) -> dict[str, Any]:
    """Return what prediction and the model card must know of the training of weights.

    Parameters
    ----------
    subjects : sequence of N Subject
    predictions : dict of str to (N,) float array, years
        Of the cross-validation.
    metrics : mapping
        Of `utils.evaluation.reports.write_report`.
    notice : str
        Name, source and licence of the data.
    remark : str
        A paragraph for the top of the card; empty: none.
    """
    ages = [float(subject.chronological_age) for subject in subjects]
    errors = np.abs(predictions["brain_age"] - predictions["chronological_age"])
    return {
        "age_range": [min(ages), max(ages)],
        "out_of_fold_errors": [round(float(error), 4) for error in errors],
        "training_persons": sorted(set().union(*(subject.names for subject in subjects))),
        "preprocessing": preparations_of(subject.path for subject in subjects),
        "cross_validation": dict(metrics),
        "data": notice,
        "remark": remark,
    }


def make_card(
    manifest: Mapping[str, Any],
    subjects: Sequence[Subject],
    checkpoint: Mapping[str, Any],
    members: int,
    folds: int,
    site_rows: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the model card, Markdown.

    Parameters
    ----------
    manifest : mapping
        Of `make_manifest`.
    subjects : sequence of Subject
    checkpoint : mapping
        Of a first stage.
    members, folds : int
    site_rows : sequence of mapping
        Of `utils.prediction.cross_validation.describe_sites`.
    """
    metrics, errors = manifest["cross_validation"], manifest["out_of_fold_errors"]
    sex_of = {subject.person: subject.sex for subject in subjects}
    sexes = Counter({0: "female", 1: "male"}.get(sex, "of unknown sex") for sex in sex_of.values())
    values = {name: np.nan if value is None else value for name, value in metrics.items()} | {
        "remark": f"{manifest['remark']}\n\n" if manifest["remark"] else "",
        "cascades": "One cascade" if members == 1 else f"The mean of {members} cascades",
        "network": "`{model}`, {blocks} blocks of {filters} filters".format(**checkpoint["network"]),
        "voxel_size": checkpoint["voxel_size"],
        "normalization": checkpoint["normalization"],
        "notice": manifest["data"] or "Not stated (`--data_notice`).",
        "persons": len(sex_of),
        "age_mean": np.mean([subject.chronological_age for subject in subjects]),
        "sexes": ", ".join(f"{count} {name}" for name, count in sorted(sexes.items())),
        "preprocessing": "; ".join(map(_describe_preparation, manifest["preprocessing"])),
        "folds": folds,
        "first_mae": metrics["first_stage"]["mae"],
        "interval": 100 * INTERVAL_COVERAGE,
        "radius": interval_radius(errors, INTERVAL_COVERAGE),
        "covered": 100 * metrics["coverage"],
    }
    values["elsewhere"] = NO_OTHER_SITE
    if "unseen_site_gaps" in manifest:
        gaps = np.concatenate(list(manifest["unseen_site_gaps"].values()))
        values["elsewhere"] = _describe_sites(site_rows, interval_radius(np.abs(gaps), INTERVAL_COVERAGE))
    return CARD.format(**values)


def _describe_sites(rows: Sequence[Mapping[str, Any]], radius: float) -> str:
    """Return the figures by site as Markdown."""
    lines = [
        "On other scanners errors are larger, and all estimates can be shifted in one direction. Each site",
        "was therefore held out once, and its people were estimated by networks that never saw its scanner (held out:",
        "sites; the rows of people are from the cross-validation above). The last three columns are for the people whose",
        "ages the networks had seen at other sites:",
        "",
        "| held out | site | N | MAE, years | mean gap | Pearson | 90 % intervals hold | N of ages that training saw | \
MAE | mean gap |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seen = f"{row['mae_seen_ages']:.2f} | {row['mean_gap_seen_ages']:+.2f}" if row["n_seen_ages"] else " | "
        lines.append(
            f"| {row['held_out']} | {_cell(row['site'])} | {row['n']} | {row['mae']:.2f} | {row['mean_gap']:+.2f} | "
            f"{row['pearson']:.2f} | {100 * row['coverage']:.0f} % | {row['n_seen_ages']} | {seen} |"
        )
    return "\n".join([
        *lines, "",
        f"For a scan of a scanner that training never saw, `bash_predict.sh` takes plus and minus {radius:.1f} years, from",
        "the errors on held-out sites.",
    ])  # fmt: skip


def _cell(name: str) -> str:
    """Return a name as the text of a cell of a Markdown table."""
    return html.escape(" ".join(name.split())).replace("|", "\\|")


def _describe_preparation(made: Mapping[str, str] | None) -> str:
    """Return a preparation in words."""
    if made is None:
        return "other tools"
    return f"`preprocess.py`, {made['registration']} registration, fingerprint `{made['fingerprint']}`"
