"""The baseline of ridge regression on the folds of a cross-validation."""

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks import ridge_baseline


def test_ridge_learns_a_line() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(80, 50))
    ages = 50 + voxels[:, :5] @ np.full(5, 5.0)
    predicted = ridge_baseline.ridge().fit(voxels[:60], ages[:60]).predict(voxels[60:])
    assert np.corrcoef(predicted, ages[60:])[0, 1] > 0.8


def test_networks_that_guess_lose_against_ridge(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(150, 50))
    ages = 50 + voxels[:, :5] @ np.full(5, 5.0)
    folds = [f"sub-{number:03d},{age},{number % 3 + 1},scan.nii,sub-{number:03d}" for number, age in enumerate(ages)]
    (tmp_path / "folds.csv").write_text("\n".join(["subject_id,age,fold,scan,person", *folds]))
    guesses = [f"sub-{number:03d},{rng.uniform(20, 80)}" for number in range(150)]
    (tmp_path / "predictions.csv").write_text("\n".join(["subject_id,brain_age", *guesses]))
    monkeypatch.setattr(ridge_baseline, "voxels_of", lambda paths, scaling: voxels)
    monkeypatch.setattr(sys, "argv", ["ridge", "--scan_folder", str(Path()), "--cross_validation", str(tmp_path)])
    ridge_baseline.main()
    written = json.loads((tmp_path / "ridge.json").read_text())
    assert written["pearson"] > 0.8
    assert written["network_gain"]["high"] < 0
