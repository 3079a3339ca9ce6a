"""Ridge regression of age on voxels, on the folds of a cross-validation: a baseline for the networks.

python benchmarks/ridge_baseline.py --scan_folder preprocessed --cross_validation runs/cross_validation
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy import ndimage
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from utils.common.errors import InputError, run_command
from utils.common.files import write_json
from utils.data.images import coarsen_volume, read_image
from utils.data.subjects import person_of
from utils.evaluation.metrics import compare_errors, evaluate_ages
from utils.evaluation.reports import describe_metrics
from utils.preparation.template import load_template

ALPHAS = np.logspace(2, 7, 11)
SMOOTHING = 1.0  # voxels of 2 mm


def ridge() -> Any:
    """Return the regression; its penalty is chosen on the training subjects by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS))


def voxels_of(paths: Sequence[Path]) -> np.ndarray:
    """Read the brain voxels of scans: z-scored, smoothed, averaged to 4 mm.

    Parameters
    ----------
    paths : sequence of N Path

    Returns
    -------
    (N, V) float64 array
    """
    inside = coarsen_volume(load_template().brain.astype(float), 2) > 0.5
    rows = []
    for path in tqdm(paths, "reading", leave=False, disable=None):
        volume = read_image(path, 2)[0]
        volume = np.where(volume > 0, (volume - volume[volume > 0].mean()) / volume[volume > 0].std(), 0)
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
    args = parser.parse_args()
    table = read_columns(args.cross_validation / "folds.csv", "subject_id", "age", "fold", "scan")
    voxels = voxels_of([args.scan_folder / name for name in table["scan"]])
    if not all(table["fold"]):
        raise InputError(f"{args.cross_validation}: holds no folds of people; use HOLD_OUT=people or both")
    ages, folds = np.array(table["age"], float), np.array(table["fold"])
    predicted = np.zeros(len(ages))
    for fold in np.unique(folds):
        predicted[folds == fold] = (
            ridge().fit(voxels[folds != fold], ages[folds != fold]).predict(voxels[folds == fold])
        )
    persons = np.array([person_of(name) for name in table["subject_id"]])
    metrics = evaluate_ages(ages, predicted, persons=persons)
    print("ridge regression on voxels\n  " + "\n  ".join(describe_metrics(metrics)))
    own = read_columns(args.cross_validation / "predictions.csv", "subject_id", "brain_age")
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
