"""Take out of the brain-age gap what age alone explains, by a fit on healthy subjects outside the test set."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.common.errors import InputError
from utils.common.files import sha256_of
from utils.data.subjects import person_of

FEWEST_FOR_A_FIT = 10
FEWEST_AGES = 3  # that differ; a square is fitted
FEWEST_FOR_TRUST = 40
FLATTEST = 0.05  # years of brain age per year; an inverted fit that is flatter than this is noise


COEFFICIENTS = {  # of each kind; a covariate may have the sex too
    "linear-gap": {"alpha", "beta"},
    "linear-prediction": {"a", "b"},
    "covariate": {"centre", "intercept", "age", "age_squared"},
}


@dataclass(frozen=True)
class Correction:
    """A fitted correction, and what it was fitted on.

    Parameters
    ----------
    kind : {"linear-gap", "linear-prediction", "covariate"}
    coefficients : dict of str to float
    n : int, healthy subjects of the fit
    age_min, age_max : float, years
    persons : list of str
        All their names.
    files : dict of path to SHA-256
    """

    kind: str
    coefficients: dict[str, float]
    n: int
    age_min: float
    age_max: float
    persons: list[str]
    files: dict[str, str]

    @property
    def gives_ages(self) -> bool:
        """Whether there is a corrected brain age too, not only a gap for comparing groups."""
        return self.kind != "covariate"

    def corrected_gap(self, table: pd.DataFrame) -> np.ndarray:
        """Correct the gap of other subjects.

        Parameters
        ----------
        table : DataFrame with ``chronological_age``, ``brain_age`` (years), ``sex`` (``F``, ``M``)

        Returns
        -------
        (N,) float64 array, years

        Raises
        ------
        InputError
            If the fit knew the sex, and a subject's is not known.
        """
        age, brain_age = (table[name].to_numpy(np.float64) for name in ("chronological_age", "brain_age"))
        c = self.coefficients
        if self.kind == "linear-gap":
            return brain_age - age - (c["alpha"] * age + c["beta"])
        if self.kind == "linear-prediction":
            return (brain_age - c["a"]) / c["b"] - age
        if "sex" in c and (table["sex"] == "").any():
            raise InputError(
                f"--correction covariate: was fitted with the sex, which is not known of {(table['sex'] == '').sum()} "
                "subjects; add it to --label_table, or leave it out of the fit"
            )
        design = _covariates(table, c["centre"], "sex" in c)
        return brain_age - age - sum(c[name] * values for name, values in design.items())


def _covariates(table: pd.DataFrame, centre: float, with_sex: bool) -> dict[str, np.ndarray]:
    """Return the columns that the gap is regressed on, by name."""
    age = table["chronological_age"].to_numpy(np.float64) - centre
    columns = {"intercept": np.ones(len(age)), "age": age, "age_squared": age**2}
    return columns | ({"sex": (table["sex"] == "M").to_numpy(np.float64)} if with_sex else {})


def fit_correction(kind: str, healthy: pd.DataFrame, files: Sequence[Path], with_sex: bool = False) -> Correction:
    """Fit a correction on healthy subjects that are not tested.

    Parameters
    ----------
    kind : {"linear-gap", "linear-prediction", "covariate"}
    healthy : DataFrame with ``person``, ``subject_id``, ``chronological_age``, ``brain_age`` (years), ``sex``
        One scan of each person.
    files : sequence of Path
        Where they come from.
    with_sex : bool
        Whether the covariates hold the sex, which must be known of all.

    Notes
    -----
    linear-gap, as the released code: gap = alpha age + beta; corrected brain
    age = brain age - (alpha age + beta). It needs the age of those it is
    applied to, so its errors say nothing of how well a new subject's age is told.

    linear-prediction: brain age = a + b age; corrected = (brain age - a) / b.

    covariate: gap on age, its square, and sex; what is left over serves to compare groups, and there is no corrected brain age.

    References
    ----------
    Cole et al., NeuroImage 2017, and Molecular Psychiatry 2018 (linear-prediction);
    Smith et al., "Estimation of brain age delta from brain imaging", NeuroImage 2019;
    de Lange and Cole, "Commentary: Correction procedures in brain-age prediction",
    NeuroImage: Clinical 2020.

    Raises
    ------
    InputError
        If there are too few subjects, or their ages or estimates do not allow a fit.
    """
    age, brain_age = (healthy[name].to_numpy(np.float64) for name in ("chronological_age", "brain_age"))
    if len(age) < FEWEST_FOR_A_FIT or len(np.unique(age)) < FEWEST_AGES:
        raise InputError(
            f"--fit_predictions: {len(age)} healthy persons of {len(np.unique(age))} ages do not allow a fit; give at "
            f"least {FEWEST_FOR_A_FIT} of different ages, better {FEWEST_FOR_TRUST}"
        )
    if kind == "linear-gap":
        alpha, beta = np.polyfit(age, brain_age - age, 1)
        coefficients = {"alpha": float(alpha), "beta": float(beta)}
    elif kind == "linear-prediction":
        b, a = np.polyfit(age, brain_age, 1)
        if b < FLATTEST:
            raise InputError(
                f"--correction linear-prediction: brain age rises by {b:.3f} years per year of age in the fit, too flat to "
                "be inverted; the estimates hardly tell the age"
            )
        coefficients = {"a": float(a), "b": float(b)}
    else:
        centre = float(age.mean())
        design = _covariates(healthy, centre, with_sex)
        solution = np.linalg.lstsq(np.column_stack(list(design.values())), brain_age - age, rcond=None)[0]
        coefficients = {"centre": centre, **dict(zip(design, solution.tolist(), strict=True))}
    return Correction(
        kind, coefficients, len(age), float(age.min()), float(age.max()), sorted({*healthy["person"], *map(person_of, healthy["subject_id"])}),
        {str(path): sha256_of(path) for path in files},
    )  # fmt: skip


def doubts(correction: Correction, test_age: np.ndarray) -> list[str]:
    """Return warnings about a correction that rests on too little."""
    warnings = []
    if correction.n < FEWEST_FOR_TRUST:
        warnings.append(
            f"The correction was fitted on {correction.n} healthy subjects; below {FEWEST_FOR_TRUST} its slope is "
            "uncertain, and so is everything corrected."
        )
    outside = (test_age < correction.age_min) | (test_age > correction.age_max)
    if outside.any():
        warnings.append(
            f"The correction was fitted on ages {correction.age_min:.1f} to {correction.age_max:.1f}; "
            f"{outside.sum()} of {len(test_age)} test subjects are outside, where it extrapolates."
        )
    return warnings


def describe_corrections(corrections: Sequence[Correction]) -> str:
    """Return coefficients and what they were fitted on, for later data, as JSON."""
    return json.dumps([asdict(correction) for correction in corrections], indent=2)


def load_corrections(path: Path) -> list[Correction]:
    """Read what `describe_corrections` gave.

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    try:
        content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        corrections = [Correction(**fields) for fields in content]
        if not corrections or any(not COEFFICIENTS[c.kind] <= c.coefficients.keys() for c in corrections):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path}: holds no corrections ({type(error).__name__}); give the corrections.json of an earlier analysis"
        ) from error
    return corrections
