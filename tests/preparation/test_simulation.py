"""Simulated brains: repeatable, visibly ageing, not trivial, and never mistaken for real persons."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import make_demo_cohort
from tests.conftest import run_script
from utils.common.errors import InputError
from utils.data.images import model_grid, read_image
from utils.preparation.simulation import SimulatedSubject, draw_subjects, load_anatomy, simulate_volume, write_cohort

SUBJECT = SimulatedSubject("simulated-0001", 50.0, 50.0, 0, "HC", "train")


def test_ageing_shows_in_the_same_person() -> None:
    """Everything individual is the same at three ages: fluid replaces tissue around the ventricles."""
    box = tuple(slice(a, b) for a, b in ((30, 61), (40, 75), (32, 53)))
    fractions = []
    for age in (25.0, 55.0, 85.0):
        volume = simulate_volume(replace(SUBJECT, age=age, true_brain_age=age), seed=0).astype(float)
        middle = ndimage.gaussian_filter(volume, 1)[box]
        fractions.append((middle < 0.5 * np.percentile(volume[volume > 0], 90)).mean())
    assert fractions[0] < fractions[1] < fractions[2]
    assert fractions[2] > 1.5 * fractions[0]


def test_a_volume_depends_on_seed_and_subject_alone() -> None:
    first = simulate_volume(SUBJECT, seed=3, voxel_size=4)
    assert first.dtype == np.uint8
    assert first.shape == model_grid(4).shape
    np.testing.assert_array_equal(first, simulate_volume(SUBJECT, seed=3, voxel_size=4))
    for subject, seed in ((SUBJECT, 4), (replace(SUBJECT, subject_id="simulated-0002"), 3)):
        assert (first != simulate_volume(subject, seed, voxel_size=4)).mean() > 0.2


def test_no_intensity_statistic_tells_the_age() -> None:
    subjects = draw_subjects(16, seed=1)
    statistics = []
    for subject in subjects:
        volume = simulate_volume(subject, 1, 4)
        inside = volume[volume > 0].astype(float)
        levels = np.percentile(inside, [1, 5, 10, 25, 50, 75, 90, 95, 99])
        statistics.append([inside.mean(), inside.std(), *levels, volume.mean(), volume.std(), (volume > 0).mean()])
    ages = [subject.age for subject in subjects]
    for values in np.transpose(statistics):
        assert abs(np.corrcoef(values, ages)[0, 1]) < 0.8


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
    data = tmp_path / "data"
    flags = ["--output_dir", data, "--subjects", 3, "--patients", 1, "--voxel_size", 4, "--num_workers", 1]
    assert "5 simulated brains were written to" in run_script("make_demo_cohort.py", *flags).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert "SIMULATED" in (data / "README.txt").read_text()
    assert json.loads((data / "cohort.json").read_text())["simulated"] is True
    table = pd.read_csv(data / "labels.csv")
    assert table["subject_id"].str.startswith("simulated-").all()
    assert set(table["sex"]) <= {"F", "M"}
    for subject in table.itertuples():
        path = data / subject.split / f"{subject.subject_id}.nii.gz"
        assert b"SIMULATED" in nibabel.load(path).header["descrip"].item()
        assert read_image(path, 4).max() > 0
    subjects = draw_subjects(3, 1)
    assert not write_cohort(data, subjects, 0, 4, 1)  # it is there already
    with pytest.raises(InputError, match="holds other files"):
        write_cohort(data, subjects, 1, 4, 1)


def test_a_wrong_voxel_size_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_demo_cohort.py", "--voxel_size", "3"])
    with pytest.raises(InputError, match="--voxel_size: .* multiple of 2"):
        make_demo_cohort.main()


def test_a_failed_cohort_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ValueError):
        write_cohort(tmp_path / "data", [replace(SUBJECT, subject_id="simulated-x")], 0, 4, 1)
    assert list(tmp_path.iterdir()) == []


def test_anatomy_lies_on_the_grid_of_mni152() -> None:
    anatomy = load_anatomy()
    assert anatomy.brain.shape == (91, 109, 91)
    litres = anatomy.brain.sum() * 8 / 1e6
    assert 1.4 < litres < 2.2
    # The corpus callosum is white matter, the caudate grey, at their MNI152 places.
    for mm, part in (((0, 24, 6), anatomy.white), ((12, 14, 8), anatomy.grey)):
        voxel = tuple(np.round(np.linalg.inv(model_grid(2).affine) @ [*mm, 1])[:3].astype(int))
        assert part[voxel] > 0.5, mm
