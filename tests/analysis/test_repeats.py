"""Repeated scans against published numbers and by hand."""

import numpy as np
import pandas as pd
import pytest

from utils.analysis.repeats import bland_altman, describe_slopes, intraclass_correlations, retest_pairs, yearly_slopes

# Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", Psychological Bulletin 1979, table 2.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_published_ratings() -> None:
    """Values of the article; intervals as published for these ratings by R's psych package."""
    found = intraclass_correlations(RATINGS)
    assert found["icc_2_1"]["value"] == pytest.approx(0.29, abs=0.005)
    assert found["icc_3_1"]["value"] == pytest.approx(0.71, abs=0.006)
    assert (found["icc_2_1"]["low"], found["icc_2_1"]["high"]) == (
        pytest.approx(0.019, abs=0.001),
        pytest.approx(0.761, abs=0.001),
    )
    assert (found["icc_3_1"]["low"], found["icc_3_1"]["high"]) == (
        pytest.approx(0.342, abs=0.001),
        pytest.approx(0.946, abs=0.001),
    )


def test_a_shift_counts_for_agreement_alone() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(50, 10, 200)
    other = one + 5 + rng.normal(0, 1, 200)
    found = intraclass_correlations(np.column_stack([one, other]))
    assert found["icc_3_1"]["value"] > 0.99 > 0.95 > found["icc_2_1"]["value"]
    for figure in found.values():
        assert figure["low"] < figure["value"] < figure["high"]
    limits = bland_altman(one, other)
    assert limits["bias"] == pytest.approx((other - one).mean())
    assert limits["limit_high"] - limits["bias"] == pytest.approx(1.96 * (other - one).std(ddof=1))
    assert limits["within_subject_sd"] == pytest.approx(
        np.sqrt(np.var(np.column_stack([one, other]), axis=1, ddof=1).mean())
    )


def test_repeats_that_are_the_same_agree_wholly() -> None:
    values = np.repeat(np.arange(10.0)[:, None], 2, axis=1)
    for figure in intraclass_correlations(values).values():
        assert figure["value"] == pytest.approx(1)
        assert figure["low"] == pytest.approx(1, abs=1e-6)


def test_pairs_and_slopes() -> None:
    scans = pd.DataFrame({
        "person": ["a", "a", "a", "b", "b", "c"], "session": ["1", "2", "3", "1", "2", "1"],
        "chronological_age": [60.5, 60.0, 64.0, 70.0, 73.0, 50.0], "brain_age": [61.0, 62.0, 68.0, 70.0, 76.0, 50.0],
    })  # fmt: skip
    pairs = retest_pairs(scans, 1.0)
    assert pairs.tolist() == [[1, 0]]  # by age, not by row
    assert retest_pairs(scans, 4.0).tolist() == [[1, 0], [3, 4]]
    later = scans.assign(chronological_age=[60.0, 63.0, 63.1, 70.0, 73.0, 50.0])
    assert retest_pairs(later, 1.0).tolist() == [[1, 2]]  # the closest, not the first
    slopes = yearly_slopes(scans, 1.0)
    assert slopes["person"].tolist() == ["a", "b"]
    assert slopes["slope"].tolist() == [
        pytest.approx(np.polyfit([60.5, 60, 64], [61, 62, 68], 1)[0]),
        pytest.approx(2.0),
    ]
    assert describe_slopes(np.array([1.0, 2.0, 3.0]))["slope"] == 2
