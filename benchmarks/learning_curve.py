"""How many scans are needed? Ridge regression on the voxels, trained on ever more of a cohort.

python -m benchmarks.learning_curve --scan_folder preprocessed --label_table labels.csv
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.ridge_baseline import ridge, voxels_of
from utils.common.errors import InputError, run_command
from utils.data.cohort import load_cohort, resolve_normalization, split_into_folds
from utils.evaluation.metrics import BOOTSTRAP_RESAMPLES, accuracy, correlation

FOLDS = 5
SHARES = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # of those outside the tested fold
SEEDS = 8
FEWEST = 50  # scans
FIGURES = ("mae", "rmse", "pearson")


def scans_needed(sizes: np.ndarray, pearson: np.ndarray, wanted: float) -> np.ndarray:
    """Tell how many training scans a correlation takes, by a power law: 1 - r^2 falls as n^-b.

    Parameters
    ----------
    sizes : (S,) float array
        Training scans.
    pearson : (S, R) float array
        Found with as many, in R resamples.
    wanted : float

    Returns
    -------
    (R,) float array
        Infinite where more scans bring nothing.

    Notes
    -----
    The law has no floor: if even endless scans leave an error, it takes more.
    """
    slope, start = np.polyfit(np.log(sizes), np.log(1 - np.maximum(pearson, 0) ** 2), 1)
    with np.errstate(over="ignore", divide="ignore"):
        return np.where(slope < 0, np.exp((np.log(1 - wanted**2) - start) / slope), np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan_folder", type=Path, required=True, help="prepared scans, one of each person")
    parser.add_argument("--label_table", type=Path, required=True, help="subject, age in years")
    parser.add_argument(
        "--normalization",
        choices=("brain", "local_sd", "registered_sd"),
        default="local_sd",
        help="what of the scans; see train_first_stage.py",
    )
    parser.add_argument("--pearson", type=float, default=0.94, help="the correlation to ask about")
    args = parser.parse_args()
    subjects = load_cohort({"scan": args.scan_folder}, args.label_table, None, use_sex=False)["scan"]
    if len(subjects) < FEWEST or not 0 < args.pearson < 1:
        raise InputError(
            f"{len(subjects)} scans and --pearson {args.pearson:g}: a curve takes {FEWEST} scans or more, "
            "and a correlation between 0 and 1"
        )
    normalization = resolve_normalization(args.normalization, [args.scan_folder])
    voxels = voxels_of([subject.path for subject in subjects], normalization)
    ages = np.array([subject.chronological_age for subject in subjects])
    predicted = np.empty((len(SHARES), SEEDS, len(ages)))
    sizes = np.empty(len(SHARES))
    for index, share in enumerate(tqdm(SHARES, "shares", disable=None, leave=False)):
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            for rest, part in split_into_folds(subjects, FOLDS, seed):
                taken = rng.permutation(rest)[: round(share * len(rest))]
                predicted[index, seed, part] = ridge().fit(voxels[taken], ages[taken]).predict(voxels[part])
        sizes[index] = len(taken)
    print(
        f"ridge on the voxels, normalization {args.normalization}; {FOLDS} folds, {SEEDS} draws: mean (least to most)"
    )
    found = accuracy(ages, predicted)
    for index, size in enumerate(sizes):
        rows = {name: found[name][index] for name in FIGURES}
        cells = [f"{name} {row.mean():.3f} ({row.min():.3f} to {row.max():.3f})" for name, row in rows.items()]
        print(f"  {size:4.0f} scans: " + ", ".join(cells))
    draws = np.random.default_rng(0).integers(0, len(ages), (BOOTSTRAP_RESAMPLES, len(ages)))
    resampled = np.array([[correlation(own[draws], ages[draws]) for own in row] for row in predicted]).mean(1)
    needed = float(scans_needed(sizes, found["pearson"].mean(1)[:, None], args.pearson)[0])
    low, high = np.quantile(scans_needed(sizes, resampled, args.pearson), (0.025, 0.975), method="inverted_cdf")
    print(
        f"if 1 - r^2 goes on falling as a power of n, a Pearson correlation of {args.pearson:g} takes {needed:.0f} "
        f"(95 % interval, bootstrap over the people tested: {low:.0f} to {high:.0f}); more if it does not fall to 0"
    )


if __name__ == "__main__":
    run_command(main)
