"""Remove from the brain-age gap what age alone explains, by a fit on healthy subjects outside the test set."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.analysis.gap_tables import ages_of, one_scan_each
from utils.common.checkpoints import is_number, is_text, list_of
from utils.common.choices import CORRECTIONS
from utils.common.errors import InputError
from utils.common.files import read_json, sha256_of
from utils.data.subjects import person_of

UNCORRECTED = "uncorrected"
COVARIATE = "covariate"  # gives no corrected brain age, only a gap for comparing groups
FEWEST_FOR_A_FIT = 10
FEWEST_AGES = 3  # different ones; a quadratic term is fitted
FEWEST_FOR_TRUST = 40
FLATTEST = 0.05  # years of brain age per year; a line flatter than this cannot be inverted


@dataclass(frozen=True)
class Correction:
    """A linear model of the gap, and the healthy subjects it was fitted on."""

    kind: str  # one of `CORRECTIONS`
    coefficients: dict[str, float]  # by the name of the regressor
    n: int  # subjects
    age_min: float  # years
    age_max: float
    persons: list[str]  # all names of these subjects
    files: dict[str, str]  # SHA-256 of each

    def corrected_gap(self, table: pd.DataFrame) -> np.ndarray:
        """Return the corrected gap of other subjects, (N,) float64 array, years.

        Raises
        ------
        InputError
            If the fit included the sex, and that of a subject is unknown.
        """
        unknown = (table["sex"] == "").sum()
        if "sex" in self.coefficients and unknown:
            raise InputError(
                f"--correction {self.kind}: was fitted with the sex, which is unknown for {unknown} subjects; add it "
                "to --label_table, or leave it out of the fit"
            )
        age, brain_age = ages_of(table)
        regressors = _regressors(table)
        residual = brain_age - age - sum(value * regressors[name] for name, value in self.coefficients.items())
        return residual / (1 + self.coefficients["age"]) if self.kind == "linear-prediction" else residual


def gaps_of(table: pd.DataFrame, corrections: Sequence[Correction]) -> dict[str, np.ndarray]:
    """Return the uncorrected gap, followed by each corrected one, (N,) float64 arrays, years."""
    age, brain_age = ages_of(table)
    return {UNCORRECTED: brain_age - age} | {c.kind: c.corrected_gap(table) for c in corrections}


def _regressors(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return all possible regressors of the gap by name."""
    age, _ = ages_of(table)
    sex = (table["sex"] == "M").to_numpy(np.float64)
    return {"intercept": np.ones(len(age)), "age": age, "age_squared": age**2, "sex": sex}


def fit_correction(kind: str, healthy: pd.DataFrame, files: Sequence[Path], with_sex: bool = False) -> Correction:
    """Fit a correction on healthy subjects outside the test set.

    Parameters
    ----------
    kind : one of `CORRECTIONS`
    healthy : DataFrame of `read_tables`, one scan of each person
    files : sequence of Path, the tables they were read from
    with_sex : bool, whether covariate includes the sex

    Notes
    -----
    linear-gap, as in the released code: gap = alpha age + beta; corrected
    brain age = brain age - (alpha age + beta). It uses the chronological age
    of each subject, so its error says nothing about the accuracy in a new subject.

    linear-prediction: brain age = a + b age, which is the same line with
    a = beta and b = 1 + alpha; corrected brain age = (brain age - a) / b, so
    that its gap is that of linear-gap divided by b.

    covariate: residual of the gap after regression on age, its square and sex.

    References
    ----------
    Cole et al., Molecular Psychiatry 2018 (linear-prediction);
    Smith et al., NeuroImage 2019 (covariate);
    de Lange and Cole, NeuroImage: Clinical 2020 (comparison).

    Raises
    ------
    InputError
        If there are too few subjects or ages, or the line cannot be inverted.
    """
    age, brain_age = ages_of(healthy)
    if len(age) < FEWEST_FOR_A_FIT or len(np.unique(age)) < FEWEST_AGES:
        raise InputError(
            f"--fit_predictions: {len(age)} healthy persons of {len(np.unique(age))} ages do not allow a fit; give at "
            f"least {FEWEST_FOR_A_FIT} of different ages, better {FEWEST_FOR_TRUST}"
        )
    names = ["intercept", "age"] + (["age_squared"] if kind == COVARIATE else [])
    names += ["sex"] if kind == COVARIATE and with_sex else []
    regressors = _regressors(healthy)
    solution = np.linalg.lstsq(np.column_stack([regressors[name] for name in names]), brain_age - age, rcond=None)[0]
    coefficients = dict(zip(names, solution.tolist(), strict=True))
    slope = 1 + coefficients["age"]
    if kind == "linear-prediction" and slope < FLATTEST:
        raise InputError(
            f"--correction linear-prediction: brain age rises by {slope:.3f} years per year of age in the fit, which "
            "is too flat to be inverted; these estimates hardly depend on age"
        )
    persons = sorted({*healthy["person"], *map(person_of, healthy["subject_id"])})
    hashes = {str(path): sha256_of(path) for path in files}
    return Correction(kind, coefficients, len(age), float(age.min()), float(age.max()), persons, hashes)


def prepare_corrections(
    kinds: Sequence[str], fit: pd.DataFrame, files: Sequence[Path], file: Path | None, test: pd.DataFrame
) -> list[Correction]:
    """Fit the corrections, with the sex if it is known for everybody; or read those of an earlier analysis.

    Raises
    ------
    InputError
        If a fit is not possible, or the file lacks a correction.
    """
    if file is None:
        with_sex = set(fit["sex"]) == {"F", "M"} and bool((test["sex"] != "").all())
        return [fit_correction(kind, one_scan_each(fit), files, with_sex) for kind in kinds]
    saved = load_corrections(file)
    missing = set(kinds) - {c.kind for c in saved}
    if missing:
        raise InputError(f"{file}: holds no {', '.join(sorted(missing))}; leave --correction out")
    return [c for c in saved if not kinds or c.kind in kinds]


def describe_corrections(corrections: Sequence[Correction]) -> str:
    """Return corrections as JSON, to be applied to later data."""
    return json.dumps([asdict(correction) for correction in corrections], indent=2)


def load_corrections(path: Path) -> list[Correction]:
    """Read the file made by `describe_corrections`.

    Raises
    ------
    InputError
        If the file is missing or of another kind.
    """
    try:
        corrections = [Correction(**fields) for fields in read_json(path, list)]
        names = {"intercept", "age", "age_squared", "sex"}
        if not corrections or not all(
            c.kind in CORRECTIONS
            and {"intercept", "age"} <= c.coefficients.keys() <= names
            and all(map(is_number, [c.n, c.age_min, c.age_max, *c.coefficients.values()]))
            and list_of(is_text)(c.persons)
            for c in corrections
        ):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: holds no corrections ({type(error).__name__}); give the corrections.json of an earlier analysis"
        ) from error
    return corrections
