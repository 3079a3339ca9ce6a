"""Tell patients from healthy subjects by the brain-age gap, beside what age and sex alone can tell."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import (
    BaseCrossValidator,
    BaseShuffleSplit,
    RepeatedStratifiedKFold,
    StratifiedShuffleSplit,
)
from sklearn.svm import SVC

from utils.evaluation.metrics import BOOTSTRAP_RESAMPLES, in_parts

FOLDS = 5
FEWEST_OF_A_CLASS = 2 * FOLDS
MOST_TO_LEARN_FROM = 3000  # subjects; the time that a support vector machine takes grows with their square
MATCHED_WITHIN = 3.0  # years, between the two of a pair
LARGEST_AGE_DIFFERENCE = 0.25  # standardized; more is called an imbalance
ROC_GRID = np.linspace(0, 1, 101)  # false positive rates


@dataclass(frozen=True)
class Protocol:
    """How the classifier is trained and tested.

    Parameters
    ----------
    kernel : str
    penalty : float, C of the support vector machine
    splitter : callable
        Makes the splits, from the number of repeats and the seed.
    text : str
        What the report says of it.
    """

    kernel: str
    penalty: float
    splitter: Callable[[int, int], BaseCrossValidator | BaseShuffleSplit]
    text: str


PROTOCOLS = {
    "ours": Protocol(
        "linear",
        1.0,
        lambda repeats, seed: RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=seed),
        f"Linear support vector machine, C = 1, balanced class weights; repeated stratified {FOLDS}-fold "
        "cross-validation, each person once in every repeat. A larger gap speaks for the patient; the machine chooses the threshold.",
    ),
    "paper": Protocol(
        "rbf",
        10.0,
        lambda repeats, seed: StratifiedShuffleSplit(n_splits=3, test_size=1 / 3, random_state=seed),
        "The protocol of the authors' released script: support vector machine with RBF kernel, C = 10, balanced class "
        "weights, three stratified shuffle splits with a third for testing. That script printed the AUC of hard labels, "
        "which is no AUC of scores; both stand here, each by its name.",
    ),
}


@dataclass(frozen=True)
class Classification:
    """Test scores of every split.

    Parameters
    ----------
    patient : (N,) bool array
    splits : list of (indices, scores, labels)
        Of the subjects tested: (M,) int, float and bool arrays.
    direction_given : bool
        Whether the scores' direction was fixed before seeing the subjects.
    """

    patient: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    direction_given: bool

    def aucs(self, weights: np.ndarray) -> np.ndarray:
        """Return the area under the ROC curve, from scores, with weighted subjects.

        Scores of different splits are never compared, since each comes from
        a machine of its own.

        Parameters
        ----------
        weights : (R, N) float array
            How often each subject counts, R times over.

        Returns
        -------
        (R,) float array
        """
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for indices, scores, _ in self.splits:
            order = np.argsort(scores, kind="stable")
            ill = self.patient[indices[order]]
            own = weights[:, indices[order]]
            healthy = np.cumsum(np.where(ill, 0.0, own), axis=1)
            below = np.concatenate([np.zeros((len(weights), 1)), healthy], axis=1)
            first, last = (np.searchsorted(scores[order], scores[order][ill], side) for side in ("left", "right"))
            right += (own[:, ill] * (below[:, first] + below[:, last]) / 2).sum(1)
            pairs += own[:, ill].sum(1) * healthy[:, -1]
        return right / pairs

    def auc(self) -> float:
        """Return the area under the ROC curve, from scores."""
        return float(self.aucs(np.ones((1, len(self.patient))))[0])

    def auc_interval(self, seed: int) -> tuple[float, float]:
        """Return the 95 % interval of the AUC by the bootstrap over the subjects of each group.

        It knows of the chance in the test scores alone, so it means little
        where the machine has learned the direction too (see `classify`).
        Where every pair is ranked rightly, resamples are too, and the lower
        end is that at which as many pairs that share nobody would all be
        ranked rightly in one of 40 samples.
        """
        rng = np.random.default_rng(seed)
        groups = [np.flatnonzero(group) for group in (self.patient, ~self.patient)]
        parts = []
        for count in in_parts(BOOTSTRAP_RESAMPLES, len(self.patient)):
            weights = np.zeros((count, len(self.patient)))
            for group in groups:
                weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), count)
            parts.append(self.aucs(weights))
        values = np.concatenate(parts)
        low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
        if self.auc() == 1:
            low = 0.025 ** (1 / min(map(len, groups)))
        return float(low), float(high)

    def hard_label_auc(self) -> float:
        """Return the mean over splits of what the released script printed: the AUC of labels, not of scores."""
        return float(np.mean([roc_auc_score(self.patient[i], labels) for i, _, labels in self.splits]))

    def rates(self) -> dict[str, float]:
        """Return accuracy, sensitivity and specificity with 95 % intervals (Wilson's, over persons)."""
        right, times = np.zeros(len(self.patient)), np.zeros(len(self.patient))
        for indices, _, labels in self.splits:
            right[indices] += labels == self.patient[indices]
            times[indices] += 1
        result: dict[str, float] = {}
        for name, group in (("accuracy", times > 0), ("sensitivity", self.patient), ("specificity", ~self.patient)):
            share = right[group & (times > 0)] / times[group & (times > 0)]
            interval = stats.binomtest(round(share.sum()), len(share)).proportion_ci(method="wilson")
            result |= {name: float(share.mean()), f"{name}_low": interval.low, f"{name}_high": interval.high}
        return result

    def roc_curves(self) -> np.ndarray:
        """Return the true positive rate of each split at `ROC_GRID`, (splits, 101)."""
        curves = []
        for indices, scores, _ in self.splits:
            false_rate, true_rate, _ = roc_curve(self.patient[indices], scores)
            curves.append(np.interp(ROC_GRID, false_rate, true_rate))
        return np.where(ROC_GRID > 0, curves, 0.0)


def classify(
    features: np.ndarray,
    patient: np.ndarray,
    protocol: Protocol,
    repeats: int = 10,
    seed: int = 0,
    rising: bool = False,
) -> Classification:
    """Train and test a support vector machine over the splits of a protocol.

    Parameters
    ----------
    features : (N, F) float array
        Standardized within each training set.
    patient : (N,) bool array
    protocol : Protocol
    repeats : int
        Of the folds; the paper's protocol has its own number.
    seed : int
        Of the splits.
    rising : bool
        For one feature and a linear machine: a higher value speaks for the
        patient, whatever the training set says, and the machine only chooses
        the threshold. A machine that may turn the direction around does so
        by chance where there is nothing to learn, and what a training set
        has too much of, its test set lacks: AUCs pile up below 0.5, and
        their intervals, which know nothing of that, miss it too often.

    Notes
    -----
    Of more than `MOST_TO_LEARN_FROM` subjects a machine learns from a random
    part. With `rising`, the scores rise with the feature, so that their AUC
    is that of the feature itself within each test part, and what the machine
    adds is the threshold.
    """
    results = []
    direction_given = rising and protocol.kernel == "linear"
    rng = np.random.default_rng(seed)
    for train, test in protocol.splitter(repeats, seed).split(features, patient):
        if len(train) > MOST_TO_LEARN_FROM:
            train = rng.choice(train, MOST_TO_LEARN_FROM, replace=False)
        mean, sd = features[train].mean(0), features[train].std(0)
        scaled = (features - mean) / np.where(sd > 0, sd, 1)
        machine = SVC(kernel=protocol.kernel, C=protocol.penalty, class_weight="balanced")
        machine.fit(scaled[train], patient[train])
        scores = machine.decision_function(scaled[test])
        if direction_given:
            scores = scores * np.sign(machine.coef_[0, 0])
        results.append((test, scores, scores > 0))
    return Classification(patient, results, direction_given)


def without_classifier(score: np.ndarray, patient: np.ndarray) -> Classification:
    """Take a quantity itself as the score: nothing is learned, so everybody is tested at once."""
    return Classification(patient, [(np.arange(len(score)), score, score > 0)], True)


def permutation_p_value(
    gap: np.ndarray,
    patient: np.ndarray,
    protocol: Protocol,
    permutations: int,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> float:
    """Test whether the classifier does better than on labels that are shuffled.

    Parameters
    ----------
    gap : (N,) float array, years
    patient : (N,) bool array
    protocol : Protocol
    permutations : int
    seed : int
    progress : callable
        Called after each permutation.

    Notes
    -----
    The statistic is the AUC of one repeat of the whole cross-validation, the
    same for the true and for the shuffled labels. Where the direction is
    given, that AUC is the gap's own in each test part, and no machine is trained.

    References
    ----------
    Ojala and Garriga, "Permutation tests for studying classifier
    performance", JMLR 2010, test 1; the true labels count as one permutation.
    """
    rng = np.random.default_rng(seed)

    def statistic(labels: np.ndarray) -> float:
        if protocol.kernel != "linear":
            return classify(gap[:, None], labels, protocol, 1, seed).auc()
        splits = protocol.splitter(1, seed).split(gap, labels)
        return Classification(labels, [(test, gap[test], gap[test] > 0) for _, test in splits], True).auc()

    observed = statistic(patient)
    as_good = 1
    for _ in range(permutations):
        as_good += statistic(rng.permutation(patient)) >= observed
        progress()
    return as_good / (permutations + 1)


def match_by_age(age: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Choose pairs of a patient and a healthy subject of nearly the same age.

    Pairs are chosen so that as many as possible lie within `MATCHED_WITHIN`
    years, and then for the least total difference.

    Parameters
    ----------
    age : (N,) float array, years
    patient : (N,) bool array

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


def age_imbalance(age: np.ndarray, patient: np.ndarray) -> tuple[float, float, float]:
    """Compare the ages of patients and healthy subjects.

    Returns
    -------
    difference : float, years, of the means
    standardized : float, the same in pooled standard deviations
    p_value : float, of Welch's test
    """
    ill, well = age[patient], age[~patient]
    difference = float(ill.mean() - well.mean())
    pooled = float(np.sqrt((ill.var(ddof=1) + well.var(ddof=1)) / 2))
    return difference, difference / pooled if pooled else 0.0, float(stats.ttest_ind(ill, well, equal_var=False).pvalue)
