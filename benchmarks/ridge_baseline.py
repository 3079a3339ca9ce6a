"""Ridge regression of age on voxels, on the folds of a cross-validation: a baseline for the networks.

python -m benchmarks.ridge_baseline --scan_folder preprocessed --cross_validation runs/cross_validation
python -m benchmarks.ridge_baseline ... --held_out sites --scaling tissue
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from utils.common.errors import InputError, run_command
from utils.common.files import write_json
from utils.data.images import GRAY, coarsen_volume, find_tissue_means, read_image, scale_by_tissue
from utils.evaluation.metrics import compare_errors, evaluate_ages
from utils.evaluation.reports import describe_metrics
from utils.preparation.template import load_template

ALPHAS = np.logspace(2, 7, 11)
SMOOTHING = 1.0  # voxels of 2 mm


def z_scores(volume: np.ndarray) -> np.ndarray:
    """Give the brain mean 0 and standard deviation 1."""
    inside = volume[volume > 0]
    return np.where(volume > 0, (volume - inside.mean()) / inside.std(), 0)


def by_percentiles(volume: np.ndarray) -> np.ndarray:
    """Map the 1st and the 99th percentile of the brain to 0 and 1."""
    low, high = np.percentile(volume[volume > 0], [1, 99])
    return np.where(volume > 0, (volume - low) / (high - low), 0)


def gray_map(volume: np.ndarray) -> np.ndarray:
    """Return how gray each voxel is: 1 at the mean of gray matter, falling to 0 at those of fluid and white matter."""
    return np.interp(scale_by_tissue(volume), [0, GRAY, 1], [0, 1, 0])


SCALINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brain": z_scores,
    "percentiles": by_percentiles,
    "white": lambda volume: volume / find_tissue_means(volume)[2],
    "tissue": scale_by_tissue,
    "gray_map": gray_map,
}
HELD_OUT = {"people": ("fold", ""), "sites": ("site", "unseen_sites")}  # column of folds.csv, folder of predictions


def ridge() -> Any:
    """Return the regression; its penalty is chosen on the training subjects by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS))


def voxels_of(paths: Sequence[Path], scaling: str) -> np.ndarray:
    """Read the brain voxels of scans: scaled, smoothed, averaged to 4 mm.

    Parameters
    ----------
    paths : sequence of N Path
    scaling : str, one of `SCALINGS`

    Returns
    -------
    (N, V) float64 array
    """
    inside = coarsen_volume(load_template().brain.astype(float), 2) > 0.5
    rows = []
    for path in tqdm(paths, "reading", leave=False, disable=None):
        volume = SCALINGS[scaling](read_image(path, 2))
        rows.append(coarsen_volume(ndimage.gaussian_filter(volume, SMOOTHING), 2)[inside])
    return np.stack(rows).astype(np.float64)


def read_columns(path: Path, *names: str) -> dict[str, list[str]]:
    """Read columns of a table that cross-validation wrote."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; give --cross_validation the OUTPUT_DIR of bash_cross_validate.sh")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan_folder", type=Path, required=True, help="the scans that were cross-validated")
    parser.add_argument("--cross_validation", type=Path, required=True, help="OUTPUT_DIR of bash_cross_validate.sh")
    parser.add_argument("--held_out", choices=tuple(HELD_OUT), default="people", help="folds of people, or sites")
    parser.add_argument("--scaling", choices=tuple(SCALINGS), default="brain", help="of the intensities")
    args = parser.parse_args()
    column, folder = HELD_OUT[args.held_out]
    table = read_columns(args.cross_validation / "folds.csv", "subject_id", "age", "scan", "person", column)
    if not all(table[column]):
        raise InputError(f"{args.cross_validation}: holds no folds of {args.held_out}; set HOLD_OUT=both")
    voxels = voxels_of([args.scan_folder / name for name in table["scan"]], args.scaling)
    ages, folds = np.array(table["age"], float), np.array(table[column])
    predicted = np.zeros(len(ages))
    for fold in np.unique(folds):
        predicted[folds == fold] = (
            ridge().fit(voxels[folds != fold], ages[folds != fold]).predict(voxels[folds == fold])
        )
    persons = np.array(table["person"])
    metrics = evaluate_ages(ages, predicted, persons=persons)
    print("ridge regression on voxels\n  " + "\n  ".join(describe_metrics(metrics)))
    for site in sorted(set(folds)) if args.held_out == "sites" else ():
        gap, own_ages = (predicted - ages)[folds == site], ages[folds == site]
        pearson = np.corrcoef(predicted[folds == site], own_ages)[0, 1]
        print(
            f"  {site}: n {len(gap)}, MAE {np.abs(gap).mean():.2f}, mean gap {gap.mean():+.2f}, Pearson {pearson:.3f}"
        )
    own = read_columns(args.cross_validation / folder / "predictions.csv", "subject_id", "brain_age")
    brain_ages = dict(zip(own["subject_id"], map(float, own["brain_age"]), strict=True))
    network = np.array([brain_ages[subject_id] for subject_id in table["subject_id"]])
    difference = compare_errors(ages, network, predicted, persons=persons)
    print(
        f"the networks' MAE is {difference['difference']:.2f} years lower (95 % interval, paired bootstrap: "
        f"{difference['low']:.2f} to {difference['high']:.2f})"
    )
    write_json(args.cross_validation / "ridge.json", {**metrics, "network_gain": difference})


if __name__ == "__main__":
    run_command(main)
