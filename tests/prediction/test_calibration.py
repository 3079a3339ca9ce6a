"""Calibration to a scanner: what many people tell is found, few people are trusted little, intervals hold."""

import numpy as np
import pytest

from utils.prediction.calibration import (
    LARGEST_FLATTENING,
    LEAST_AGE_SD,
    SLOPE_SD,
    Calibration,
    fit_calibration,
    prior_of,
)

OFFSET_SD, RESIDUAL_SD = 3.0, 5.0  # years


def healthy(
    rng: np.random.Generator, people: int, offset: float = 0.0, slope: float = 0.0, ages: tuple[int, int] = (20, 80)
) -> tuple[np.ndarray, np.ndarray]:
    """Ages, and brain ages whose gap is the offset at 50 years and grows by the slope."""
    age = rng.uniform(*ages, people)
    return age, age + offset + slope * (age - 50) + rng.normal(0, RESIDUAL_SD, people)


def test_many_people_tell_offset_and_slope() -> None:
    age, brain_age = healthy(np.random.default_rng(0), 4000, offset=4.0, slope=-0.15)
    calibration = fit_calibration(age, brain_age, OFFSET_SD, RESIDUAL_SD)
    assert calibration.people == 4000
    assert calibration.offset == pytest.approx(4.0 - 0.15 * (age.mean() - 50), abs=0.3)
    assert calibration.slope == pytest.approx(-0.15, abs=0.015)
    assert calibration.residual_sd == pytest.approx(RESIDUAL_SD, rel=0.05)
    gap = calibration.apply(brain_age)[0] - age
    assert gap.mean() == pytest.approx(0, abs=0.2)
    assert np.polyfit(age, gap, 1)[0] == pytest.approx(0, abs=0.02)  # nobody is pulled towards the mean


def test_few_people_are_trusted_little() -> None:
    offsets = []
    for people in (10, 100, 10000):
        age = np.linspace(30, 70, people)
        gap = 6.0 + np.resize([5.0, -5.0], people)
        offsets.append(fit_calibration(age, age + gap, OFFSET_SD, RESIDUAL_SD).offset)
    assert 1 < offsets[0] < offsets[1] < offsets[2] < 6
    assert offsets[0] < 5
    assert offsets[2] == pytest.approx(6, abs=0.1)


def test_people_of_like_age_tell_no_slope() -> None:
    rng = np.random.default_rng(0)
    for ages, told in (((45, 55), False), ((20, 80), True)):
        calibration = fit_calibration(*healthy(rng, 200, slope=0.3, ages=ages), OFFSET_SD, RESIDUAL_SD)
        assert (calibration.slope != 0) == told


def test_a_scanner_without_a_difference_is_changed_less_than_by_its_mean_gap() -> None:
    rng = np.random.default_rng(0)
    changes, mean_gaps = [], []
    for _ in range(200):
        age, brain_age = healthy(rng, 10, ages=(30, 50))
        changes.append(fit_calibration(age, brain_age, OFFSET_SD, RESIDUAL_SD).apply(np.array([40.0]))[0][0] - 40)
        mean_gaps.append((brain_age - age).mean())
    assert np.std(changes) < 0.85 * np.std(mean_gaps)
    assert np.std(changes) < 1.5  # years
    assert np.mean(changes) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("people", [10, 40])
def test_intervals_hold_the_age_of_nine_in_ten(people) -> None:
    """Of new people on scanners that differ as the prior says."""
    rng = np.random.default_rng(people)
    inside = []
    for _ in range(600):
        own = {"offset": OFFSET_SD * rng.standard_normal(), "slope": SLOPE_SD * rng.standard_normal()}
        calibration = fit_calibration(*healthy(rng, people, **own), OFFSET_SD, RESIDUAL_SD)
        age, brain_age = healthy(rng, 30, **own)
        calibrated, radius = calibration.apply(brain_age)
        inside.append((np.abs(calibrated - age) <= radius).mean())
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("ages", [(20, 35), (45, 55), (20, 60)])
def test_intervals_hold_for_people_far_older_than_those_of_the_calibration(ages) -> None:
    """Also where these are too alike to tell the slope, which then stays as uncertain as it was before."""
    rng = np.random.default_rng(0)
    inside, told = [], []
    for _ in range(600):
        own = {"offset": OFFSET_SD * rng.standard_normal(), "slope": SLOPE_SD * rng.standard_normal()}
        calibration = fit_calibration(*healthy(rng, 20, ages=ages, **own), OFFSET_SD, RESIDUAL_SD)
        told.append(calibration.slope != 0)
        age, brain_age = healthy(rng, 30, ages=(75, 90), **own)
        calibrated, radius = calibration.apply(brain_age)
        inside.append((np.abs(calibrated - age) <= radius).mean())
    assert np.mean(told) == pytest.approx(float(np.ptp(ages) / np.sqrt(12) > LEAST_AGE_SD), abs=0.2)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("slope", "end"), [(0.0, ""), (-0.125, ", -0.12 per year of age")])
def test_a_calibration_is_told_in_one_sentence(slope, end) -> None:
    calibration = Calibration(2.34, slope, 51.7, np.zeros((2, 2)), 5.0, 20.0, 12)
    said = "calibrated by 12 people: the estimated gap of healthy people is +2.3 years at the age of 52"
    assert str(calibration) == said + end


def test_brain_ages_that_do_not_follow_the_ages_are_not_stretched_without_limit() -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, 400)
    calibration = fit_calibration(age, 50 + rng.normal(0, RESIDUAL_SD, 400), OFFSET_SD, RESIDUAL_SD)
    assert calibration.slope == -LARGEST_FLATTENING
    calibrated, radius = calibration.apply(np.array([1.0, 50.0]))
    assert (calibrated >= 0).all()
    assert np.isfinite(radius).all()


def test_what_is_known_before_comes_from_the_level_and_the_spread_of_other_scanners() -> None:
    offset_sd, residual_sd = prior_of([np.array([4.0, 6.0, 2.0]), np.array([-9.0, -3.0])])
    assert offset_sd == pytest.approx(np.sqrt((4**2 + 6**2) / 2))
    assert residual_sd == pytest.approx(np.sqrt((2 * 2**2 + 2 * 3**2) / 5))


def test_intervals_are_wider_where_nobody_was_measured() -> None:
    calibration = fit_calibration(*healthy(np.random.default_rng(0), 20, ages=(20, 60)), OFFSET_SD, RESIDUAL_SD)
    near, far = calibration.apply(np.array([40.0, 85.0]))[1]
    assert far > 1.1 * near > 1.1 * 1.645 * calibration.residual_sd
