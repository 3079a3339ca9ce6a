"""Simulated brains: repeatable, visibly ageing, not trivial, and never mistaken for persons."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict

from tests.conftest import run_script
from utils.common.errors import InputError
from utils.data.images import model_grid, read_image
from utils.preparation.simulation import SimulatedSubject, draw_subjects, load_anatomy, simulate_volume, write_cohort

SUBJECT = SimulatedSubject("simulated-0001", 50.0, 50.0, 0, "HC", "train")


def test_ageing_shows_in_the_same_person() -> None:
    """The same draw of everything individual at six ages: fluid replaces tissue around the ventricles."""
    box = tuple(slice(a, b) for a, b in ((30, 61), (40, 75), (32, 53)))
    fractions = []
    for age in (25, 38, 51, 64, 77, 88):
        volume = simulate_volume(replace(SUBJECT, age=age, true_brain_age=float(age)), seed=0).astype(float)
        middle = ndimage.gaussian_filter(volume, 1)[box]
        fractions.append((middle < 0.5 * np.percentile(volume[volume > 0], 90)).mean())
    assert stats.spearmanr(range(6), fractions).statistic > 0.9
    assert fractions[-1] > 1.5 * fractions[0]


def test_a_volume_depends_on_seed_and_subject_alone() -> None:
    first = simulate_volume(SUBJECT, seed=3, voxel_size=4)
    assert first.dtype == np.uint8
    assert first.shape == model_grid(4).shape
    np.testing.assert_array_equal(first, simulate_volume(SUBJECT, seed=3, voxel_size=4))
    assert (first != simulate_volume(SUBJECT, seed=4, voxel_size=4)).mean() > 0.2
    assert (first != simulate_volume(replace(SUBJECT, subject_id="simulated-0002"), seed=3, voxel_size=4)).mean() > 0.2


def intensity_statistics(volume: np.ndarray) -> list[float]:
    inside = volume[volume > 0].astype(float)
    levels = np.percentile(inside, [1, 5, 10, 25, 50, 75, 90, 95, 99])
    return [inside.mean(), inside.std(), *levels, volume.mean(), volume.std(), (volume > 0).mean()]


def test_intensity_statistics_alone_explain_less_than_half_of_age() -> None:
    subjects = draw_subjects(100, seed=1)
    ages = np.array([subject.age for subject in subjects])
    features = np.array([intensity_statistics(simulate_volume(subject, 1, 4)) for subject in subjects])
    folds = KFold(10, shuffle=True, random_state=0)
    estimates = cross_val_predict(LinearRegression(), features, ages, cv=folds)
    assert r2_score(ages, estimates) < 0.5
    # In-sample, a linear regression can only look better than it is.
    assert LinearRegression().fit(features, ages).score(features, ages) < 0.65


def test_subjects_are_spread_over_splits_ages_and_sexes() -> None:
    subjects = draw_subjects(200, patients=40, seed=5)
    frame = pd.DataFrame([vars(s) for s in subjects])
    assert frame["subject_id"].is_unique
    assert frame["split"].value_counts().to_dict() == {"train": 140, "valid": 30, "test": 30, "patients": 80}
    healthy = frame[frame["diagnosis"] == "HC"]
    assert healthy["age"].between(20, 90).all()
    for _, split in healthy.groupby("split"):
        assert split["age"].max() - split["age"].min() > 50
    assert frame["sex"].mean() == pytest.approx(0.5, abs=0.12)
    gaps = (frame["true_brain_age"] - frame["age"]).groupby(frame["diagnosis"]).mean()
    for diagnosis, gap in {"HC": 0, "MCI": 5, "AD": 10}.items():
        assert gaps[diagnosis] == pytest.approx(gap, abs=1.5)
    null = draw_subjects(200, 40, 5, patient_gaps={"MCI": 0, "AD": 0})
    assert [s.age for s in null] == [s.age for s in subjects]
    assert np.mean([s.true_brain_age - s.age for s in null[200:]]) == pytest.approx(0, abs=1)


def test_the_script_writes_a_cohort_that_says_what_it_is(tmp_path) -> None:
    flags = ["--output_dir", tmp_path / "data", "--subjects", 7, "--patients", 1, "--voxel_size", 4, "--num_workers", 1]
    assert "9 simulated brains written" in run_script("make_demo_cohort.py", *flags).stdout
    assert "SIMULATED" in (tmp_path / "data" / "README.txt").read_text()
    assert json.loads((tmp_path / "data" / "cohort.json").read_text())["simulated"] is True
    table = pd.read_csv(tmp_path / "data" / "labels.csv")
    assert table["subject_id"].str.startswith("simulated-").all()
    for subject in table.itertuples():
        path = tmp_path / "data" / subject.split / f"{subject.subject_id}.nii.gz"
        assert b"SIMULATED" in nibabel.load(path).header["descrip"].item()
        assert read_image(path, 4)[0].max() > 0
    assert "are already in" in run_script("make_demo_cohort.py", *flags).stdout
    other = run_script("make_demo_cohort.py", *flags, "--seed", 1, status=2).stderr
    assert "holds other files already" in other
    assert "multiple of 2" in run_script("make_demo_cohort.py", "--voxel_size", 3, status=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failed_cohort_leaves_nothing(tmp_path) -> None:
    broken = replace(SUBJECT, subject_id="simulated-x")
    with pytest.raises(ValueError):
        write_cohort(tmp_path / "data", [broken], 0, 4, 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        write_cohort(tmp_path / "mine", [SUBJECT], 0, 4, 1)


def test_anatomy_lies_on_the_grid_of_mni152() -> None:
    anatomy = load_anatomy()
    assert anatomy.brain.shape == (91, 109, 91)
    litres = anatomy.brain.sum() * 8 / 1e6
    assert 1.4 < litres < 2.2
    # The corpus callosum is white matter, the caudate grey, at their MNI152 places.
    for mm, part in (((0, 24, 6), anatomy.white), ((12, 14, 8), anatomy.grey)):
        voxel = tuple(np.round(np.linalg.inv(model_grid(2).affine) @ [*mm, 1])[:3].astype(int))
        assert part[voxel] > 0.5, mm
