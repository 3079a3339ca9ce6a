"""Classification against scikit-learn, on cohorts with and without a raised gap."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit
from sklearn.svm import SVC

from utils.analysis.diagnosis import (
    auc_interval,
    classify,
    compare_groups,
    match_by_age,
    permutation_p_value,
    score_alone,
)


def cohort(raised, n=60, seed=0):
    rng = np.random.default_rng(seed)
    patient = np.arange(n) % 2 == 0
    return rng.normal(0, 3, n) + raised * patient, patient


def test_our_machine_is_that_of_scikit_learn() -> None:
    gap, patient = cohort(2, n=61)
    patient &= np.arange(61) % 4 == 0  # unbalanced
    result = classify(gap[:, None], patient, "ours", repeats=2, seed=3)
    expected = []
    for train, test in RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=3).split(gap, patient):
        mean, sd = gap[train].mean(), gap[train].std()
        machine = SVC(kernel="linear", C=1, class_weight="balanced").fit((gap[train, None] - mean) / sd, patient[train])
        scores, ill = machine.decision_function((gap[test, None] - mean) / sd), patient[test]
        expected.append([roc_auc_score(ill, scores), (scores > 0)[ill].mean(), (scores <= 0)[~ill].mean()])
    assert [result[name] for name in ("auc", "sensitivity", "specificity")] == pytest.approx(np.mean(expected, axis=0))


def test_a_given_direction_keeps_the_order_of_the_gap() -> None:
    """So that the AUC is that of the gap in each test set, even where the training set suggests the opposite."""
    gap, patient = cohort(-0.5)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=1, random_state=0).split(gap, patient)
    own = np.mean([roc_auc_score(patient[test], gap[test]) for _, test in folds])
    assert own < 0.5
    assert classify(gap[:, None], patient, "ours", 1, rising=True)["auc"] == pytest.approx(own)


def test_large_cohorts_are_learned_from_in_part(monkeypatch) -> None:
    """Which changes the threshold, and not the order of the scores."""
    gap, patient = cohort(3)
    whole = classify(gap[:, None], patient, "ours", 1, rising=True)
    monkeypatch.setattr("utils.analysis.diagnosis.MOST_TO_LEARN_FROM", 3)
    part = classify(gap[:, None], patient, "ours", 1, rising=True)
    assert part["auc"] == pytest.approx(whole["auc"])
    assert part["accuracy"] != whole["accuracy"]


def test_the_papers_protocol() -> None:
    gap, patient = cohort(4, n=90)
    result = classify(gap[:, None], patient, "paper", repeats=7, seed=3)
    hard, soft = [], []
    for train, test in StratifiedShuffleSplit(3, test_size=1 / 3, random_state=3).split(gap, patient):
        machine = SVC(C=10, class_weight="balanced").fit(gap[train, None], patient[train])
        hard.append(roc_auc_score(patient[test], machine.predict(gap[test, None])))
        soft.append(roc_auc_score(patient[test], machine.decision_function(gap[test, None])))
    assert result["hard_label_auc"] == pytest.approx(np.mean(hard))
    assert result["auc"] == pytest.approx(np.mean(soft))
    assert result["auc"] != pytest.approx(result["hard_label_auc"], abs=0.005)


def test_an_auc_and_its_interval() -> None:
    gap, patient = cohort(2)
    gap = gap.round()  # ties
    found, turned = score_alone(gap, patient, 0), score_alone(-gap, patient, 0)
    assert found["auc"] == turned["auc"] == pytest.approx(roc_auc_score(patient, gap))
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert found == turned
    rng = np.random.default_rng(0)
    ill, well = np.flatnonzero(patient), np.flatnonzero(~patient)
    draws = [np.concatenate([rng.choice(group, len(group)) for group in (ill, well)]) for _ in range(500)]
    low, high = np.percentile([roc_auc_score(patient[draw], gap[draw]) for draw in draws], [2.5, 97.5])
    assert (found["auc_low"], found["auc_high"]) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_a_perfect_separation_is_no_certainty() -> None:
    patient = np.arange(20) % 2 == 0
    low, high = auc_interval(patient * 5.0 + np.linspace(0, 1, 20), patient, 0)
    assert (low, high) == (pytest.approx(0.025**0.1), 1.0)  # ten independent pairs


def test_intervals_of_null_cohorts_contain_one_half() -> None:
    held = 0
    for seed in range(100):
        low, high = auc_interval(*cohort(0, seed=seed), seed)
        held += low <= 0.5 <= high
    assert stats.binom.ppf(1e-3, 100, 0.95) <= held < 100


def test_permutation_p_values() -> None:
    """Uniform where there is nothing to find, small where there is, 1 where all gaps are equal."""
    p = np.array([permutation_p_value(*cohort(0, 40, seed), "ours", 4, seed) for seed in range(200)])
    counts = np.histogram(p, bins=[0, 0.201, 0.401, 0.601, 0.801, 1.001])[0]
    assert stats.chisquare(counts).pvalue > 0.001, counts
    assert permutation_p_value(*cohort(8), "ours", 19) == 0.05
    assert permutation_p_value(*cohort(8), "paper", 3) == 0.25
    assert permutation_p_value(np.zeros(40), np.arange(40) % 2 == 0, "ours", 19) == 1


def test_matching_by_age() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat([False, True], [100, 30])
    age = np.where(patient, rng.uniform(60, 90, 130), rng.uniform(20, 85, 130))
    kept = match_by_age(age, patient)
    assert patient[kept].sum() == (~patient[kept]).sum() >= 10
    before = compare_groups(age[patient], age[~patient])
    assert before["cohens_d"] > 1
    assert before["p_value"] < 0.001
    assert before["difference_low"] < before["difference"] < before["difference_high"]
    ill, well = np.sort(age[kept][patient[kept]]), np.sort(age[kept][~patient[kept]])
    assert abs(compare_groups(ill, well)["cohens_d"]) < 0.25
    assert np.abs(ill - well).max() <= 3
