"""Matching scans to rows, and finding all problems at once."""

import gzip
import shutil

import numpy as np
import pytest

from tests.conftest import VOXEL_SIZE, save_scan, small_volume
from utils.common.errors import InputError
from utils.data.cohort import (
    add_first_stage_ages,
    are_known,
    load_cohort,
    split_into_folds,
    warn_of_overfitting,
)
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject, person_of


def make(folder, names, rows, header="subject_id,age,sex"):
    rng = np.random.default_rng(0)
    for name in names:
        save_scan(folder / name, small_volume(rng, 50), model_grid(VOXEL_SIZE).affine)
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def load(folder, *splits, **options):
    folders = {split: folder / split for split in splits}
    return load_cohort(folders, folder / "labels.csv", ScanStore(VOXEL_SIZE, "brain"), **options)


def test_ids_are_exact_never_substrings(tmp_path) -> None:
    make(tmp_path, ["train/sub-1.nii.gz", "train/sub-10.nii"], ["sub-10,70.5,M", "sub-1,30.25,F", "sub-100,90,F"])
    first, tenth = load(tmp_path, "train")["train"]
    assert (first.subject_id, first.chronological_age, first.sex) == ("sub-1", 30.25, 0)
    assert (tenth.subject_id, tenth.chronological_age, tenth.sex) == ("sub-10", 70.5, 1)


def test_sites_are_asked_for_where_they_are_named(tmp_path) -> None:
    rows = ["a,30,F,Oslo", "b,40,M,", "c,50,F,"]
    make(tmp_path, ["train/a.nii", "test/a.nii", "test/b.nii"], rows, header="subject_id,age,sex,site")
    assert [subject.site for subject in load(tmp_path, "train", site_column="site")["train"]] == ["Oslo"]
    assert [subject.site for subject in load(tmp_path, "train")["train"]] == [""]
    with pytest.raises(InputError, match="row 3: b has no site; add it") as caught:
        load(tmp_path, "test", site_column="site")
    assert len(caught.value.problems) == 1  # c has no scan


def test_bids_names(tmp_path) -> None:
    make(
        tmp_path,
        ["train/sub-01_T1w.nii.gz", "train/sub-02_ses-1_T1w.nii.gz"],
        ["sub-01,30,F", "sub-02_ses-1,40,M", "sub-02,99,M"],
    )
    assert [s.chronological_age for s in load(tmp_path, "train")["train"]] == [30.0, 40.0]
    assert person_of("sub-02_ses-1") == "sub-02"


@pytest.mark.parametrize("cached", [False, True])
def test_copies_of_a_scan_under_other_names_are_found(tmp_path, capsys, cached) -> None:
    """One in another split leaks; one in the same split is warned of."""
    make(
        tmp_path, [f"train/s{n}.nii.gz" for n in range(3)] + ["test/s4.nii.gz"], [f"s{n},{40 + n},F" for n in range(6)]
    )
    shutil.copy(tmp_path / "train/s1.nii.gz", tmp_path / "train/s3.nii.gz")
    folders = {split: tmp_path / split for split in ("train", "test")}
    scans = ScanStore(VOXEL_SIZE, "brain", tmp_path / "cache" if cached else None)
    load_cohort(folders, tmp_path / "labels.csv", scans)
    shown = capsys.readouterr().out
    assert f"hold the same voxels, so one has a wrong name: {tmp_path}/train/s3.nii.gz and {tmp_path}/train/s1" in shown
    (tmp_path / "test/s5.nii").write_bytes(gzip.decompress((tmp_path / "train/s2.nii.gz").read_bytes()))
    with pytest.raises(
        InputError, match=r"test/s5\.nii: holds the same voxels as .*train/s2\.nii\.gz of the train split"
    ):
        load_cohort(folders, tmp_path / "labels.csv", scans)


def test_a_folder_of_fsl_means_its_brain(tmp_path) -> None:
    """One scan, not seven, named by the folder."""
    names = [f"sub-7.anat/{name}.nii.gz" for name in ("T1", "T1_fast_seg", "T1_to_MNI_lin", "T1_to_MNI_nonlin_brain")]
    make(tmp_path, names, ["sub-7,40,F"])
    (subject,) = load_cohort({"test": tmp_path / "sub-7.anat"}, tmp_path / "labels.csv", None)["test"]
    assert (subject.subject_id, subject.path) == ("sub-7", tmp_path / names[3])
    (tmp_path / names[3]).unlink()
    with pytest.raises(InputError, match="holds no T1_to_MNI_nonlin_brain.nii.gz"):
        load_cohort({"test": tmp_path / "sub-7.anat"}, tmp_path / "labels.csv", None)


def test_all_problems_are_reported_together(tmp_path) -> None:
    make(
        tmp_path,
        ["train/a.nii.gz", "train/b.nii.gz", "train/c.nii.gz", "train/d.nii.gz", "train/d.nii", "valid/a.nii.gz",
         "train/sub-5_ses-1.nii", "valid/sub-5_ses-2.nii", "train/e.nii"],
        ["a,50,F", "b,NA,F", "d,40,F", "e,40,2", "e,41,M", "unused,NA,F", "sub-5_ses-1,50,F", "sub-5_ses-2,51,F"],
    )  # fmt: skip
    save_scan(tmp_path / "train" / "a.nii.gz", np.zeros((3, 3, 3)), model_grid(VOXEL_SIZE).affine)
    with pytest.raises(InputError) as caught:
        load(tmp_path, "train", "valid", "test")
    text = str(caught.value)
    for expected in (
        "test: no such folder; set TEST_FOLDER",
        "c.nii.gz: no row of",
        "row 3: age 'NA' of b",
        "a second scan of d beside",
        "row 5: sex '2' of e is not one of",
        "e stands in row 5 already",
        "a is in the valid split and in the train split",
        "sub-5 is in the valid split and in the train split",
        "a.nii.gz: has 3x3x3 voxels",
    ):
        assert expected in text, expected
    assert "unused" not in text  # a row without a scan does no harm
    assert len(caught.value.problems) == 9


def test_sex_is_needed_only_where_it_is_used(tmp_path) -> None:
    make(tmp_path, ["test/a.nii"], ["a,50"], header="id,age")
    assert load(tmp_path, "test", use_sex=False)["test"][0].sex == -1
    assert load(tmp_path, "test", sex_of_all="M")["test"][0].sex == 1
    with pytest.raises(
        InputError, match=r"has no sex column \(found id, age\); name it sex, or use a model without sex"
    ):
        load(tmp_path, "test")


def test_a_table_without_an_age_column_is_told_once(tmp_path, capsys) -> None:
    make(tmp_path, ["test/a.nii", "test/b.nii"], ["a,50,F", "b,60,M"], header="id,AgeAtScan,sex")
    with pytest.raises(InputError, match=r"has no age column \(found id, ageatscan, sex\); name it age") as caught:
        load(tmp_path, "test")
    assert len(caught.value.problems) == 1
    assert len(load(tmp_path, "test", ages_required=False)["test"]) == 2
    assert "WARNING" in capsys.readouterr().out


def test_ages_may_be_missing_where_none_is_needed(tmp_path) -> None:
    make(tmp_path, ["test/a.nii", "test/b.nii"], ["a,NA,F", "b,50,F"])
    first, second = load(tmp_path, "test", ages_required=False)["test"]
    assert np.isnan(first.chronological_age)
    assert second.chronological_age == 50
    with pytest.raises(InputError, match="age 'NA' of a"):
        load(tmp_path, "test")


@pytest.mark.parametrize("names", [("sub-01_run-1", "sub-01_run-2"), ("sub-01_T1w", "sub-01_ses-2_T1w")])
def test_scans_of_one_person_stay_in_one_split(tmp_path, names) -> None:
    make(tmp_path, [f"train/{names[0]}.nii", f"test/{names[1]}.nii"], [f"{name},50,F" for name in names])
    with pytest.raises(InputError, match="sub-01 is in the test split and in the train split"):
        load(tmp_path, "train", "test")


def test_without_a_table_ages_are_unknown(tmp_path) -> None:
    make(tmp_path, ["test/a.nii"], [])
    (subject,) = load_cohort({"test": tmp_path / "test"}, None, ScanStore(VOXEL_SIZE, "brain"), sex_of_all="F")["test"]
    assert np.isnan(subject.chronological_age)
    assert subject.sex == 0


def test_an_empty_folder(tmp_path) -> None:
    make(tmp_path, [], ["a,50,F"])
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="holds no .nii or .nii.gz file"):
        load(tmp_path, "test")


def test_persons_on_whom_a_network_was_trained_are_known_in_any_session(tmp_path) -> None:
    subjects = [Subject(name, tmp_path) for name in ("sub-1_ses-2", "sub-10", "sub-2", "b")]
    known = are_known(subjects, ["sub-1_ses-1", "sub-2", "sub-1_ses-2", "c"])
    assert known.dtype == bool
    assert known.tolist() == [True, False, True, False]
    assert are_known(subjects, []).tolist() == [False] * 4
    assert are_known([], ["sub-1"]).shape == (0,)


@pytest.mark.parametrize(("size", "folds"), [(98, 5), (12, 2), (5, 5)])
def test_folds_hold_each_subject_once_and_like_ages(tmp_path, size, folds) -> None:
    subjects = [Subject(f"s{i}", tmp_path, 20 + 60 * i / size) for i in range(size)]
    parts = list(split_into_folds(subjects, folds, seed=3))
    assert sorted(np.concatenate([part for _, part in parts]).tolist()) == list(range(size))
    for rest, part in parts:
        assert not set(rest) & set(part)
        assert len(rest) + len(part) == size
    if size == 98:
        means = [np.mean([subjects[i].chronological_age for i in part]) for _, part in parts]
        assert np.ptp(means) < 5
    again = list(split_into_folds(subjects, folds, seed=3))
    assert all((a[1] == b[1]).all() for a, b in zip(parts, again, strict=True))


def test_sessions_of_a_person_share_a_fold(tmp_path) -> None:
    subjects = [Subject(f"sub-{i:02d}_ses-{j}", tmp_path, 20 + 2 * i) for i in range(20) for j in (1, 2)]
    for rest, part in split_into_folds(subjects, 4, 0):
        people = [{person_of(subjects[i].subject_id) for i in side} for side in (rest, part)]
        assert not people[0] & people[1]
    with pytest.raises(InputError, match="21 folds of 20 training subjects"):
        list(split_into_folds(subjects, 21, 0))
    assert list(split_into_folds(subjects, 0, 0)) == []


def test_an_overfitted_first_stage_is_told(tmp_path, capsys) -> None:
    def subjects(error):
        return [Subject(f"s{i}", tmp_path, 40.0 + i, 0, 40.0 + i + error) for i in range(4)]

    warn_of_overfitting(subjects(4.0), subjects(6.0))
    assert capsys.readouterr().out == ""
    warn_of_overfitting(subjects(0.5), subjects(-6.0))
    assert "MAE is 0.50 years on the training subjects and 6.00 on the validation" in capsys.readouterr().out


def test_first_stage_ages_are_added(tmp_path) -> None:
    (subject,) = add_first_stage_ages([Subject("a", tmp_path, 50.0)], np.array([52.4]), np.array([50.0]))
    assert (subject.first_stage_age, subject.discretized_age) == (52.4, 50.0)
