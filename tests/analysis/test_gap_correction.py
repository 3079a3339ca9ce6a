"""Corrections remove the dependence on age, and can be saved and refused."""

import json

import numpy as np
import pandas as pd
import pytest

from utils.analysis.gap_correction import describe_corrections, fit_correction, load_corrections
from utils.common.errors import InputError


def cohort(seed=0, n=300):
    """Brain ages that lean towards 50, and rise by 2 years in men."""
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 80, n)
    sex = np.where(rng.random(n) < 0.5, "M", "F")
    true_gap = rng.normal(0, 3, n)
    brain_age = 50 + 0.8 * (age - 50) + 2 * (sex == "M") + true_gap
    names = [f"s{i}" for i in range(n)]
    return pd.DataFrame({"person": names, "subject_id": names, "chronological_age": age, "brain_age": brain_age,
                         "sex": sex,
                         "true_gap": true_gap})  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "valid.csv"
    path.write_text("here")
    return path


@pytest.mark.parametrize("kind", ["linear-gap", "linear-prediction", "covariate"])
def test_the_gap_no_longer_depends_on_age(kind, file) -> None:
    fitted, new = cohort(), cohort(seed=1)
    correction = fit_correction(kind, fitted, [file], with_sex=True)
    before = np.polyfit(new["chronological_age"], new["brain_age"] - new["chronological_age"], 1)[0]
    after = np.polyfit(new["chronological_age"], correction.corrected_gap(new), 1)[0]
    assert before == pytest.approx(-0.2, abs=0.04)
    assert after == pytest.approx(0, abs=0.04)
    own = correction.corrected_gap(fitted)  # of least squares on its own subjects, exactly nothing is left
    assert np.corrcoef(own, fitted["chronological_age"])[0, 1] == pytest.approx(0, abs=1e-9)
    assert own.mean() == pytest.approx(0, abs=1e-9)
    truth = np.corrcoef(correction.corrected_gap(new), new["true_gap"])[0, 1]
    assert truth > (0.99 if kind == "covariate" else 0.94)  # the covariate knows the sex


def test_equations(file) -> None:
    table = cohort()
    age, brain_age = table["chronological_age"], table["brain_age"]
    gap = fit_correction("linear-gap", table, [file])
    alpha, beta = gap.coefficients["age"], gap.coefficients["intercept"]
    assert np.allclose(gap.corrected_gap(table) + age, brain_age - (alpha * age + beta))
    cole = fit_correction("linear-prediction", table, [file])
    b, a = np.polyfit(age, brain_age, 1)
    assert (a, b) == (pytest.approx(beta), pytest.approx(alpha + 1))  # one line, used in two ways
    assert np.allclose(cole.corrected_gap(table) + age, (brain_age - a) / b)


def test_saved_and_applied_later(tmp_path, file) -> None:
    fitted = [fit_correction(kind, cohort(), [file], with_sex=True) for kind in ("linear-gap", "covariate")]
    (tmp_path / "c.json").write_text(describe_corrections(fitted))
    assert load_corrections(tmp_path / "c.json") == fitted
    content = json.loads((tmp_path / "c.json").read_text())[0]
    assert (content["n"], len(content["persons"]), list(content["files"])) == (300, 300, [str(file)])
    with pytest.raises(InputError, match="sex, which is unknown for 2 subjects"):
        fitted[1].corrected_gap(cohort(n=2).assign(sex=""))


LACKING = {"kind": "covariate", "coefficients": {"intercept": 50.0}, "n": 50, "age_min": 20.0, "age_max": 80.0,
           "persons": [],
           "files": {}}  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"kind": "magic"}]', "[3]", json.dumps([LACKING])])
def test_a_file_that_holds_none(tmp_path, text) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="holds no corrections"):
        load_corrections(tmp_path / "c.json")


def test_a_fit_that_cannot_be(file) -> None:
    with pytest.raises(InputError, match="do not allow a fit"):
        fit_correction("linear-gap", cohort(n=9), [file])
    with pytest.raises(InputError, match="too flat to be inverted"):
        fit_correction("linear-prediction", cohort().assign(brain_age=50.0), [file])
