"""Distinguish patients from healthy subjects by the brain-age gap, beside what age and sex alone can do."""

import numpy as np
from scipy import optimize, stats
from sklearn.metrics import make_scorer, recall_score, roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import trange

from utils.evaluation.metrics import BOOTSTRAP_RESAMPLES, LARGEST_PART

FOLDS = 5
FEWEST_OF_A_CLASS = 2 * FOLDS
MOST_TO_LEARN_FROM = 1500  # subjects of a class; the training time of a support vector machine grows with their square
MATCHED_WITHIN = 3.0  # years, between the two subjects of a pair
SPECIFICITY = make_scorer(recall_score, pos_label=0)
SCORES = {"auc": "roc_auc", "accuracy": "accuracy", "sensitivity": "recall", "specificity": SPECIFICITY}


class RisingSVC(SVC):
    """A linear machine of one feature whose larger values always indicate a patient."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Return scores that rise with the feature, (N,) float array."""
        return super().decision_function(X) * np.sign(self.coef_[0, 0])

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Return who is a patient, (N,) bool array."""
        return self.decision_function(X) > 0


def classify(
    features: np.ndarray, patient: np.ndarray, protocol: str, repeats: int = 10, seed: int = 0, rising: bool = False
) -> dict[str, float]:
    """Train and test a support vector machine by cross-validation.

    Parameters
    ----------
    features : (N, F) float array
        Standardized within each training set.
    patient : (N,) bool array
    protocol : {"ours", "paper"}
        A linear machine, repeated stratified folds; or that of the authors'
        released script: RBF kernel, C = 10, three shuffle splits.
    repeats, seed : int
    rising : bool
        For one feature and a linear machine: larger values indicate a patient.
        A machine that learns the direction gets it wrong by chance where
        there is nothing to learn, and its AUC then falls below 0.5.

    Returns
    -------
    dict
        Means over the test sets: ``auc`` (of scores), ``accuracy``,
        ``sensitivity``, ``specificity``, and ``hard_label_auc``, the AUC of
        predicted labels that the released script printed.
    """
    if protocol == "paper":
        splitter = StratifiedShuffleSplit(n_splits=3, test_size=1 / 3, random_state=seed)
        machine = SVC(kernel="rbf", C=10, class_weight="balanced")
    else:
        splitter = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=seed)
        machine = (RisingSVC if rising else SVC)(kernel="linear", C=1, class_weight="balanced")
    rng = np.random.default_rng(seed)
    splits = []
    for train, test in splitter.split(features, patient):
        classes = [rng.permutation(train[patient[train] == ill])[:MOST_TO_LEARN_FROM] for ill in (False, True)]
        splits.append((np.concatenate(classes), test))
    found = cross_validate(
        make_pipeline(StandardScaler(), machine), features, patient, cv=splits, scoring=SCORES, error_score="raise"
    )
    result = {name: float(found[f"test_{name}"].mean()) for name in SCORES}
    return result | {"hard_label_auc": (result["sensitivity"] + result["specificity"]) / 2}


def _auc(ill: np.ndarray, well: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the AUC of the scores of patients (..., N) and healthy subjects (..., M) along the last axis."""
    n, m = ill.shape[axis], well.shape[axis]
    ranks = stats.rankdata(np.concatenate([ill, well], axis), axis=axis)
    return (ranks[..., :n].sum(axis) - n * (n + 1) / 2) / (n * m)


def auc_interval(score: np.ndarray, patient: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a score's AUC by the bootstrap over the subjects of each group."""
    ill, well = score[patient], score[~patient]
    options = {"n_resamples": BOOTSTRAP_RESAMPLES, "batch": max(1, LARGEST_PART // len(score))}
    low, high = stats.bootstrap((ill, well), _auc, method="percentile", rng=seed, **options).confidence_interval
    # If all pairs are ranked correctly, all resamples are too: take the AUC with which as many independent pairs are
    # all ranked correctly in one of 40 samples.
    return float(low if ill.min() <= well.max() else 0.025 ** (1 / min(len(ill), len(well)))), float(high)


def permutation_p_value(gap: np.ndarray, patient: np.ndarray, protocol: str, permutations: int, seed: int = 0) -> float:
    """Return the share of shuffled labels that are classified as well as the true ones, which count as one of them.

    Notes
    -----
    A linear machine with a given direction keeps the order of the gap, so the
    statistic is the AUC of the gap itself. For the paper's protocol it is the
    cross-validated AUC.

    References
    ----------
    Ojala and Garriga, "Permutation tests for studying classifier performance", JMLR 2010, test 1.
    """
    if protocol == "ours":
        options = {"n_resamples": permutations, "batch": max(1, LARGEST_PART // len(gap))}
        groups = gap[patient], gap[~patient]
        return float(stats.permutation_test(groups, _auc, alternative="greater", rng=seed, **options).pvalue)
    rng = np.random.default_rng(seed)
    observed = classify(gap[:, None], patient, protocol, seed=seed)["auc"]
    as_good = 1
    for _ in trange(permutations, desc="permutations", disable=None, leave=False):
        as_good += classify(gap[:, None], rng.permutation(patient), protocol, seed=seed)["auc"] >= observed
    return as_good / (permutations + 1)


def score_alone(score: np.ndarray, patient: np.ndarray, seed: int) -> dict[str, float]:
    """Return the AUC of a quantity without any classifier, in the direction above 0.5, and its interval."""
    score = score if roc_auc_score(patient, score) >= 0.5 else -score
    low, high = auc_interval(score, patient, seed)
    return {"auc": float(roc_auc_score(patient, score)), "auc_low": low, "auc_high": high}


def match_by_age(age: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Choose as many pairs of a patient and a healthy subject as possible within `MATCHED_WITHIN` years of age.

    Among all such choices, the total difference of ages is the smallest.

    Returns
    -------
    (M,) int array, the indices kept, in order
    """
    ill, well = np.flatnonzero(patient), np.flatnonzero(~patient)
    difference = np.abs(age[ill][:, None] - age[well][None])
    cost = np.where(difference <= MATCHED_WITHIN, difference, 1e6)
    rows, columns = optimize.linear_sum_assignment(cost)
    close = difference[rows, columns] <= MATCHED_WITHIN
    return np.sort(np.concatenate([ill[rows[close]], well[columns[close]]]))


def compare_groups(own: np.ndarray, healthy: np.ndarray) -> dict[str, float]:
    """Compare the means of two groups: difference with its 95 % interval, Cohen's d, p of Welch's test."""
    n, m = len(own), len(healthy)
    test = stats.ttest_ind(own, healthy, equal_var=False)
    low, high = test.confidence_interval(0.95)
    difference = float(own.mean() - healthy.mean())
    pooled = np.sqrt(((n - 1) * own.var(ddof=1) + (m - 1) * healthy.var(ddof=1)) / (n + m - 2))
    result = {"difference": difference, "difference_low": float(low), "difference_high": float(high)}
    return result | {"cohens_d": float(difference / pooled) if pooled else 0.0, "p_value": float(test.pvalue)}
