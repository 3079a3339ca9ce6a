"""Figures of each site: how well it was estimated where its people, or the whole site, were held out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.common.files import replacing
from utils.data.subjects import Subject
from utils.evaluation.metrics import Predictions, correlation

Folds = dict[str, np.ndarray]  # what is held out, and the fold of each subject
EVERYBODY = "all sites"


def seen_ages(age: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Tell whose age lies in the range of the ages that the networks of their fold were trained on, (N,) bool array.

    A site that is held out may be older than all others. What networks make
    of ages that they never saw says little of those that are trained on everybody.
    """
    seen = np.zeros(len(age), bool)
    for name in set(fold):
        others = age[fold != name]
        seen |= (fold == name) & (age >= others.min()) & (age <= others.max())
    return seen


def describe_sites(
    subjects: Sequence[Subject], predictions: Mapping[str, Predictions], folds: Folds
) -> list[dict[str, Any]]:
    """Return a row of figures for each site and each way of holding out.

    Parameters
    ----------
    subjects : sequence of N Subject
    predictions : mapping of {"people", "sites"} to the predictions of `pool`
    folds : dict of (N,) str arrays
        Of `assign_folds`.

    Returns
    -------
    list of dict
        ``held_out``, ``site``, ``n``, ``mae``, ``mean_gap``, ``pearson``
        (None if undefined), ``coverage`` of the intervals, and ``n`` and the
        first two for those of `seen_ages`. The last row of each way pools everybody.
    """
    sites = np.array([subject.site for subject in subjects])
    rows = []
    for held_out, own in predictions.items():
        age, seen = own["chronological_age"], seen_ages(own["chronological_age"], folds[held_out])
        gap = own["brain_age"] - age
        covered = (own["interval_low"] <= age) & (age <= own["interval_high"])
        for site in (*sorted(set(sites)), EVERYBODY):
            chosen = np.full(len(age), True) if site == EVERYBODY else sites == site
            pearson = float(correlation(age[chosen], own["brain_age"][chosen])) if chosen.sum() > 2 else np.nan
            row = {"held_out": held_out, "site": site, "n": int(chosen.sum()), "mae": np.abs(gap[chosen]).mean(),
                   "mean_gap": gap[chosen].mean(), "pearson": pearson, "coverage": covered[chosen].mean(),
                   "n_seen_ages": int((chosen & seen).sum())}  # fmt: skip
            if (chosen & seen).any():
                row |= {"mae_seen_ages": np.abs(gap[chosen & seen]).mean(),
                        "mean_gap_seen_ages": gap[chosen & seen].mean()}  # fmt: skip
            rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows


def announce_sites(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of `describe_sites` as a table, and print them."""
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4f")
    print(f"figures by site: {path}")
    print(
        f"  {'held out':<9} {'site':<14} {'n':>5} {'MAE':>6} {'mean gap':>9} {'Pearson':>8} {'90 % interval holds':>20}"
    )
    for row in rows:
        print(
            f"  {row['held_out']:<9} {row['site'][:14]:<14} {row['n']:>5} {row['mae']:>6.2f} {row['mean_gap']:>+9.2f} "
            f"{row['pearson']:>8.3f} {100 * row['coverage']:>18.0f} %"
        )
