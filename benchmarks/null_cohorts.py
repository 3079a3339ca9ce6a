"""Compare groups without any difference: how often do the intervals of the AUC contain 0.5, and is p uniform?

python -m benchmarks.null_cohorts
"""

import numpy as np
from scipy import stats

from utils.analysis.diagnosis import auc_interval, classify, permutation_p_value

COHORTS = 1000
PATIENTS = 30  # and as many healthy subjects
GAP_SD = 3.0  # years
REPEATS = 1
PERMUTATIONS = 19  # p-values are multiples of 1/20


def main() -> None:
    patient = np.arange(2 * PATIENTS) % 2 == 0
    aucs, p_values, covered = [], [], 0
    for seed in range(COHORTS):
        gap = np.random.default_rng(1000 + seed).normal(0, GAP_SD, len(patient))
        aucs.append(classify(gap[:, None], patient, "ours", REPEATS, seed, rising=True)["auc"])
        low, high = auc_interval(gap, patient, seed)
        covered += low <= 0.5 <= high
        p_values.append(permutation_p_value(gap, patient, "ours", PERMUTATIONS, seed))
    fifths = np.histogram(p_values, bins=np.arange(6) / 5 + 0.001)[0]
    print(f"{COHORTS} null cohorts of {PATIENTS} patients and as many healthy subjects")
    print(f"AUC: mean {np.mean(aucs):.3f}, SD {np.std(aucs):.3f}")
    print(f"95 % intervals that contain 0.5: {covered}")
    print(f"p-values in fifths: {', '.join(map(str, fifths))}; chi-square p {stats.chisquare(fifths).pvalue:.2f}")
    print(f"p of 0.05: {sum(p <= 0.05 for p in p_values)}")


if __name__ == "__main__":
    main()
