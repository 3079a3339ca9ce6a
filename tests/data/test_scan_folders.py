"""Folders of scans: BIDS and its derivatives, FreeSurfer, UK Biobank, DICOM; people and sessions are chosen."""

from pathlib import Path

import pytest

from utils.common.errors import InputError
from utils.common.files import write_json
from utils.data.scan_folders import Selection, list_prepared, why_no_scans
from utils.prediction.scan_preparation import find_scans
from utils.preparation.raw_scans import find_raw_scans
from utils.preparation.splitting import find_prepared_scans

MNI = "space-MNI152NLin2009cAsym"
FMRIPREP = ("desc-preproc_T1w", f"{MNI}_desc-preproc_T1w", f"{MNI}_res-2_desc-preproc_T1w", "desc-brain_mask", "dseg")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def bids(folder: Path, person: str, *endings: str, session: str = "") -> Path:
    start, within = (f"{person}_{session}_", f"{person}/{session}") if session else (f"{person}_", person)
    return touch(folder, *(f"{within}/anat/{start}{ending}.nii.gz" for ending in endings))


def found_in(folder: Path, **wanted: list[str]) -> dict[str, str]:
    """Return names and files, alike for preprocessing and prediction."""
    raw = {scan.name: scan.path.name for scan in find_raw_scans(folder, Selection(**wanted))}
    assert {scan.name: scan.source.name for scan in find_scans(folder, Selection(**wanted))} == raw
    return raw


def test_a_derivative_of_fmriprep_gives_one_scan_a_session_and_is_said_to_be_one(tmp_path, capsys) -> None:
    bids(tmp_path, "sub-01", *FMRIPREP)
    bids(tmp_path, "sub-02", *FMRIPREP, session="ses-1")
    bids(tmp_path, "sub-02", *FMRIPREP, session="ses-2")
    write_json(
        tmp_path / "dataset_description.json",
        {"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.0"}]},
    )
    assert found_in(tmp_path) == {
        "sub-01": "sub-01_desc-preproc_T1w.nii.gz",
        "sub-02_ses-1": "sub-02_ses-1_desc-preproc_T1w.nii.gz",
        "sub-02_ses-2": "sub-02_ses-2_desc-preproc_T1w.nii.gz",
    }
    said = capsys.readouterr().out
    assert "is a derivative of fMRIPrep 23.2.0, not raw data" in said
    assert "6 files are other versions of the same scans and are left out (raw before derived" in said


@pytest.mark.parametrize(
    ("endings", "taken"),
    [
        (("T1w", *FMRIPREP), "T1w"),
        (("space-T1w_desc-preproc_T1w", f"{MNI}_desc-preproc_T1w"), "space-T1w_desc-preproc_T1w"),
        (("desc-denoised_T1w", "desc-preproc_T1w"), "desc-preproc_T1w"),
        ((f"{MNI}_T1w", f"{MNI}_desc-preproc_T1w"), f"{MNI}_desc-preproc_T1w"),
    ],
)
def test_raw_comes_before_derived_and_native_space_before_a_template(tmp_path, endings, taken) -> None:
    assert found_in(bids(tmp_path, "sub-01", *endings)) == {"sub-01": f"sub-01_{taken}.nii.gz"}


def test_two_versions_that_are_left_are_named(tmp_path) -> None:
    bids(tmp_path, "sub-01", f"{MNI}_desc-preproc_T1w", "space-MNI152Lin_desc-preproc_T1w")
    with pytest.raises(InputError, match="space-MNI152NLin2009cAsym.*same file as .*space-MNI152Lin_"):
        find_raw_scans(tmp_path)
    with pytest.raises(InputError, match="a second scan of sub-01 beside sub-01_space-MNI152Lin_desc-preproc"):
        find_prepared_scans(tmp_path, False)


def test_repeated_scans_of_a_session_are_all_taken(tmp_path) -> None:
    bids(tmp_path, "sub-01", "run-1_T1w", "run-2_T1w", "acq-fast_T1w")
    assert set(found_in(tmp_path)) == {"sub-01_run-1", "sub-01_run-2", "sub-01_acq-fast"}


def test_people_and_sessions_are_chosen(tmp_path) -> None:
    for person, session in (("sub-01", "ses-1"), ("sub-01", "ses-02"), ("sub-10", "ses-1")):
        bids(tmp_path, person, "T1w", session=session)
    assert set(found_in(tmp_path, participants=["01"])) == {"sub-01_ses-1", "sub-01_ses-02"}
    assert set(found_in(tmp_path, participants=["sub-01"], sessions=["2"])) == {"sub-01_ses-02"}
    assert set(found_in(tmp_path, sessions=["ses-1"])) == {"sub-01_ses-1", "sub-10_ses-1"}
    for find in (find_raw_scans, find_scans):
        with pytest.raises(InputError) as raised:
            find(tmp_path, Selection(["01", "1"], ["3"]))
        assert raised.value.problems == [
            "--participants: no scan of 1; there are 01, 10",
            "--sessions: no scan of 3; there are 1, 2",
        ]


def test_folders_of_freesurfer_are_scans_without_its_templates(tmp_path, capsys) -> None:
    subjects = ("bert", "sub-01_ses-1", "fsaverage", "fsaverage5", "sub-01", "sub-01_ses-1.long.sub-01")
    touch(tmp_path, *(f"{name}/mri/{part}.mgz" for name in subjects for part in ("orig", "T1", "brainmask")))
    touch(tmp_path, "sub-01/base-tps")
    assert set(found_in(tmp_path)) == {"bert", "sub-01_ses-1"}
    said = "left out: fsaverage, fsaverage5, sub-01, sub-01_ses-1.long.sub-01\n"
    assert said in capsys.readouterr().out
    for one in (tmp_path / "bert", tmp_path / "bert/mri/orig.mgz"):
        assert [scan.name for scan in find_scans(one)] == ["bert"]


def test_unpacked_files_of_uk_biobank_are_scans(tmp_path) -> None:
    for instance in (2, 3):
        touch(tmp_path, *(f"1000011_20252_{instance}_0/T1/{name}.nii.gz" for name in ("T1", "T1_brain", "T1_orig")))
    assert set(found_in(tmp_path)) == {"1000011_20252_2_0", "1000011_20252_3_0"}
    assert {scan.subject.person for scan in find_scans(tmp_path, Selection(sessions=["3"]))} == {"1000011"}


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619", "MR.dcm", "x.img"])
def test_a_folder_of_dicom_files_names_the_converter(tmp_path, name) -> None:
    path = tmp_path / "a b" / "series" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(300))
    for source in (tmp_path / "a b", path):
        with pytest.raises(InputError, match="is DICOM.*convert it with dcm2niix: .*'.*a b"):
            find_raw_scans(source)
    with pytest.raises(InputError, match="dcm2niix"):
        find_prepared_scans(tmp_path, False)
    path.write_bytes(bytes(500))
    assert ("dcm2niix" in why_no_scans(tmp_path, "is empty")) == name.endswith(".dcm")


def test_a_derivative_of_prepared_brains_is_listed_without_its_masks(tmp_path) -> None:
    bids(tmp_path, "sub-01", f"{MNI}_desc-preproc_T1w", f"{MNI}_desc-brain_mask", session="ses-1")
    assert [path.name for path in list_prepared(tmp_path)] == [f"sub-01_ses-1_{MNI}_desc-preproc_T1w.nii.gz"]
