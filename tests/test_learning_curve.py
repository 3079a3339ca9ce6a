"""The learning curve finds the law that made it, and tells it of a cohort."""

import sys

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from benchmarks import learning_curve
from benchmarks.learning_curve import scans_needed
from utils.common.errors import InputError


def test_scans_needed() -> None:
    sizes = np.array([40.0, 80.0, 120.0])
    pearson = np.sqrt(1 - 0.8 * sizes**-0.4)
    both = np.stack([pearson, pearson[::-1]], 1)  # the second: worse with more scans
    np.testing.assert_allclose(scans_needed(sizes, both, np.sqrt(1 - 0.8 * 300**-0.4)), [300, np.inf])


def test_the_curve_of_a_cohort(synthetic_cohort, monkeypatch, capsys) -> None:
    monkeypatch.setattr(learning_curve, "voxels_of", lambda paths, _: np.arange(len(paths))[:, None] / 1.0)
    monkeypatch.setattr(learning_curve, "ridge", LinearRegression)
    monkeypatch.setattr(learning_curve, "SEEDS", 2)
    monkeypatch.setattr(learning_curve, "FEWEST", 12)
    folder = synthetic_cohort / "train"
    flags = ["--scan_folder", folder, "--label_table", synthetic_cohort / "labels.csv", "--pearson", 0.5]
    monkeypatch.setattr(sys, "argv", ["learning_curve", *map(str, flags)])
    learning_curve.main()
    printed = capsys.readouterr().out
    monkeypatch.setattr(learning_curve, "FEWEST", 13)
    with pytest.raises(InputError, match="takes 13 scans or more"):
        learning_curve.main()
    sizes = [int(line.split()[0]) for line in printed.splitlines() if " scans: " in line]
    assert sizes == sorted(sizes)
    assert len(sizes) == len(learning_curve.SHARES)
    assert "a Pearson correlation of 0.5 takes" in printed
    pearson = [float(line.split("pearson ")[1].split()[0]) for line in printed.splitlines() if "pearson " in line]
    assert pearson[-1] == pytest.approx(1, abs=0.05)  # ages rise with the number of the subject
