"""How many scans are needed? Ridge regression on the voxels, trained on ever more of a cohort.

python -m benchmarks.learning_curve --scan_folder preprocessed --label_table labels.csv
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.ridge_baseline import ridge, voxels_of
from utils.cohort import load_cohort, resolve_normalization, split_into_folds
from utils.errors import run_command
from utils.metrics import accuracy

FOLDS = 5
SHARES = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # of those outside the tested fold
SEEDS = 8
FIGURES = ("mae", "rmse", "pearson")


def scans_needed(sizes: np.ndarray, pearson: np.ndarray, wanted: float) -> float:
    """Tell how many training scans a correlation takes, by a power law: 1 - r^2 falls as n^-b.

    Parameters
    ----------
    sizes : (S,) float array
        Training scans.
    pearson : (S,) float array
        Found with as many.
    wanted : float

    Returns
    -------
    float
        Infinite if more scans bring nothing.
    """
    slope, start = np.polyfit(np.log(sizes), np.log(1 - pearson**2), 1)
    return float(np.exp((np.log(1 - wanted**2) - start) / slope)) if slope < 0 else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan_folder", type=Path, required=True, help="prepared scans")
    parser.add_argument("--label_table", type=Path, required=True, help="subject, age in years")
    parser.add_argument("--normalization", choices=("brain", "local_sd"), default="local_sd", help="what of the scans")
    parser.add_argument("--pearson", type=float, default=0.94, help="the correlation to ask about")
    args = parser.parse_args()
    subjects = load_cohort({"scan": args.scan_folder}, args.label_table, None, use_sex=False)["scan"]
    normalization = resolve_normalization(args.normalization, [args.scan_folder])
    voxels = voxels_of([subject.path for subject in subjects], normalization)
    ages = np.array([subject.chronological_age for subject in subjects])
    figures = np.empty((len(SHARES), SEEDS, len(FIGURES)))
    sizes = np.empty(len(SHARES))
    for index, share in enumerate(tqdm(SHARES, "shares", disable=None, leave=False)):
        for seed in range(SEEDS):
            predicted = np.empty(len(ages))
            rng = np.random.default_rng(seed)
            for rest, part in split_into_folds(subjects, FOLDS, seed):
                taken = rng.permutation(rest)[: round(share * len(rest))]
                predicted[part] = ridge().fit(voxels[taken], ages[taken]).predict(voxels[part])
            found = accuracy(ages, predicted)
            figures[index, seed] = [found[name] for name in FIGURES]
        sizes[index] = len(taken)
    mean, low, high = figures.mean(1), figures.min(1), figures.max(1)
    print(
        f"ridge on the voxels, normalization {args.normalization}; {FOLDS} folds, {SEEDS} draws: mean (least to most)"
    )
    for size, *row in zip(sizes, mean, low, high, strict=True):
        cells = [f"{name} {m:.3f} ({a:.3f} to {b:.3f})" for name, m, a, b in zip(FIGURES, *row, strict=True)]
        print(f"  {size:4.0f} scans: " + ", ".join(cells))
    needed = scans_needed(sizes, mean[:, FIGURES.index("pearson")], args.pearson)
    print(f"if 1 - r^2 goes on falling as a power of n, a Pearson correlation of {args.pearson:g} takes {needed:.0f}")


if __name__ == "__main__":
    run_command(main)
