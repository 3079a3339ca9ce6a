"""Repeated scans against published numbers and by hand."""

import numpy as np
import pandas as pd
import pytest

from utils.analysis.repeats import bland_altman, intraclass_correlation, retest_pairs, yearly_slopes

# Shrout and Fleiss, "Intraclass correlations", Psychological Bulletin 1979, table 2.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_published_ratings() -> None:
    """ICC(2,1) of the article; interval as published for these ratings by R's psych package."""
    found = intraclass_correlation(RATINGS)
    assert found["icc"] == pytest.approx(0.29, abs=0.005)
    assert (found["icc_low"], found["icc_high"]) == (pytest.approx(0.019, abs=0.001), pytest.approx(0.761, abs=0.001))


def test_a_shift_lowers_agreement() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(50, 10, 200)
    other = one + rng.normal(0, 1, 200)
    shifted = intraclass_correlation(np.column_stack([one, other + 5]))
    assert intraclass_correlation(np.column_stack([one, other]))["icc"] > 0.99 > 0.95 > shifted["icc"]
    assert shifted["icc_low"] < shifted["icc"] < shifted["icc_high"]
    limits = bland_altman(one, other + 5)
    assert limits["bias"] == pytest.approx((other + 5 - one).mean())
    assert limits["upper_limit"] - limits["bias"] == pytest.approx(1.96 * (other - one).std(ddof=1))
    within = np.var(np.column_stack([one, other + 5]), axis=1, ddof=1).mean()
    assert limits["within_subject_sd"] == pytest.approx(np.sqrt(within))


def test_equal_repeats_agree_perfectly() -> None:
    found = intraclass_correlation(np.repeat(np.arange(10.0)[:, None], 2, axis=1))
    assert found["icc"] == pytest.approx(1)
    assert found["icc_low"] == pytest.approx(1, abs=1e-6)


def test_pairs_and_slopes() -> None:
    scans = pd.DataFrame({
        "person": ["a", "b", "b", "c", "a", "a"],  # as `sorted_scans` returns them
        "chronological_age": [60.0, 60.2, 63.2, 63.5, 64.0, 64.5],
        "brain_age": [62.0, 70.0, 76.0, 50.0, 66.0, 68.0],
    })  # fmt: skip
    assert retest_pairs(scans, 1.0).tolist() == [[4, 5]]  # the closest two of three
    assert sorted(retest_pairs(scans, 4.0).tolist()) == [[1, 2], [4, 5]]
    assert retest_pairs(scans, 0.1).tolist() == []
    expected = [np.polyfit([60.0, 64.0, 64.5], [62.0, 66.0, 68.0], 1)[0], 2.0]
    assert yearly_slopes(scans, 1.0).tolist() == [pytest.approx(slope) for slope in expected]
    assert yearly_slopes(scans, 5.0).tolist() == []
