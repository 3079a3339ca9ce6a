"""Look for a disease where there is none: how often do the intervals hold 0.5, and is p uniform?

python -m benchmarks.null_cohorts
"""

import numpy as np
from scipy import stats
from tqdm import tqdm

from utils.analysis.diagnosis import PROTOCOLS, classify, permutation_p_value

COHORTS = 200
PATIENTS = 30  # and as many healthy subjects
GAP_SD = 3.0  # years
REPEATS = 10
PERMUTATIONS = 19  # p-values are multiples of 1/20


def main() -> None:
    patient = np.arange(2 * PATIENTS) % 2 == 0
    aucs, p_values, held = [], [], {True: 0, False: 0}
    for seed in tqdm(range(COHORTS), "null cohorts", disable=None, leave=False):
        gap = np.random.default_rng(1000 + seed).normal(0, GAP_SD, len(patient))
        for rising in held:
            result = classify(gap[:, None], patient, PROTOCOLS["ours"], REPEATS, seed, rising)
            low, high = result.auc_interval(seed)
            held[rising] += low <= 0.5 <= high
            if rising:
                aucs.append(result.auc())
        p_values.append(permutation_p_value(gap, patient, PROTOCOLS["ours"], PERMUTATIONS, seed))
    fifths = np.histogram(p_values, bins=np.arange(6) / 5 + 0.001)[0]
    print(f"{COHORTS} null cohorts of {PATIENTS} patients and as many healthy subjects")
    print(f"AUC: mean {np.mean(aucs):.3f}, SD {np.std(aucs):.3f}")
    print(f"95 % intervals that hold 0.5: {held[True]}; of machines that learn the direction too: {held[False]}")
    print(f"p-values in fifths: {', '.join(map(str, fifths))}; chi-square p {stats.chisquare(fifths).pvalue:.2f}")
    print(f"p of 0.05: {sum(p <= 0.05 for p in p_values)}")


if __name__ == "__main__":
    main()
