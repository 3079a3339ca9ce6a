"""Scans of all kinds: found, told apart, checked, and what is warned of their preparation."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import save_scan
from tests.prediction.conftest import prepared_scan
from utils.common.errors import InputError
from utils.common.files import write_json
from utils.data.image_files import UnusableScanError
from utils.data.images import MNI152_T1_2MM, model_grid, read_image
from utils.data.preparations import DESCRIPTION
from utils.data.scan_folders import FSL_PRODUCT
from utils.prediction.scan_ages import PredictedScan
from utils.prediction.scan_preparation import add_preparation, check_scan, find_scans
from utils.preparation.raw_scans import find_raw_scans, read_raw_scan
from utils.preparation.records import DOUBTFUL, FAIL
from utils.preparation.template import load_template, load_tissue_maps


def test_verdicts_and_misplacement_of_prepared_brains(tmp_path) -> None:
    template, verdicts = load_template(), {"good": "pass", "doubted": DOUBTFUL, "bad": FAIL}
    shifts = {**dict.fromkeys(verdicts, 0), "alone": 0, "near": 1, "away": 3}
    for name, shift in shifts.items():
        volume = np.roll(template.volume * template.brain, shift, 1)
        save_scan(tmp_path / f"{name}.nii.gz", volume, MNI152_T1_2MM.affine)
    for name, verdict in verdicts.items():
        record = {"name": name, "fingerprint": "a", "source": "", "verdict": verdict, "reasons": ["noise is 9"]}
        write_json(tmp_path / "qc" / f"{name}.json", record)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked.nii.gz").symlink_to(tmp_path / "doubted.nii.gz")
    paths = [scan.source for folder in (tmp_path, tmp_path / "links") for scan in find_scans(folder)]
    checked = {path.name.removesuffix(".nii.gz"): check_scan(path) for path in paths}
    assert {name for name, found in checked.items() if found.failure} == {"bad"}
    assert checked["bad"].failure == "noise is 9"
    assert {name for name, found in checked.items() if found.brain is None} == {"bad"}
    assert {name for name, found in checked.items() if found.warnings} == {"doubted", "linked", "away"}
    assert "preprocessing is doubtful: noise is 9" in checked["linked"].warnings
    assert "is about 6 mm off" in checked["away"].warnings[0]


def test_brains_of_fsl_are_named_by_their_folders(tmp_path) -> None:
    for name in ("sub-1.anat", "sub-2.anat"):
        prepared_scan(tmp_path / name / FSL_PRODUCT)
    assert [scan.name for scan in find_scans(tmp_path)] == ["sub-1", "sub-2"]
    (scan,) = find_scans(tmp_path / "sub-2.anat" / FSL_PRODUCT)
    assert (scan.name, scan.source) == ("sub-2", tmp_path / "sub-2.anat" / FSL_PRODUCT)


def test_a_folder_of_fsl_means_its_brain_in_mni_space(tmp_path, monkeypatch) -> None:
    """And none of the six other files in it that lie on the grid of MNI152."""
    folder = tmp_path / "sub-1_T1w.anat"
    prepared_scan(folder / FSL_PRODUCT)
    for name in ("T1_biascorr", "T1_fast_pve_0", "T1_fast_seg", "T1_to_MNI_lin", "T1_to_MNI_nonlin", "mask"):
        shutil.copy(folder / FSL_PRODUCT, folder / f"{name}.nii.gz")
    for source in (folder, folder / FSL_PRODUCT, tmp_path):
        assert [(scan.name, scan.source) for scan in find_scans(source)] == [("sub-1", folder / FSL_PRODUCT)]
    monkeypatch.chdir(folder)
    for source in (Path("."), Path(FSL_PRODUCT)):
        assert [scan.name for scan in find_scans(source)] == ["sub-1"]
    with pytest.raises(InputError, match="is a folder of fsl_anat, whose T1_to_MNI_nonlin_brain.nii.gz is prepared"):
        find_raw_scans(folder)


def test_an_unfinished_folder_of_fsl_is_named(tmp_path, capsys) -> None:
    prepared_scan(tmp_path / "done.anat" / FSL_PRODUCT)
    prepared_scan(tmp_path / "cut.anat" / "T1.nii.gz")
    with pytest.raises(
        InputError, match=r"cut\.anat: holds no T1_to_MNI_nonlin_brain\.nii\.gz; run fsl_anat to its end"
    ):
        find_scans(tmp_path / "cut.anat")
    assert [scan.name for scan in find_scans(tmp_path)] == ["done"]
    assert "WARNING: 1 folders of fsl_anat hold no T1_to_MNI_nonlin_brain.nii.gz: cut.anat" in capsys.readouterr().out
    prepared_scan(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="holds both scans and fsl_anat's folders"):
        find_scans(tmp_path)


def test_what_is_on_the_grid_but_no_t1_weighted_brain_gets_no_age(tmp_path) -> None:
    template = load_template()
    brain = np.where(template.brain, 20 + 100 * template.volume, 0)
    rng = np.random.default_rng(0)
    noisy = np.where(template.brain, brain + rng.normal(0, 3, brain.shape), 0)
    other_contrast = np.where(template.brain, 150 - brain + rng.normal(0, 3, brain.shape), 0)
    gray, white = load_tissue_maps()
    flair = np.where(template.brain, 20 + 80 * gray + 65 * white + rng.normal(0, 3, brain.shape), 0)
    for name, volume in {
        "t1": noisy,
        "t2": other_contrast,
        "flair": flair,
        "mask": template.brain,
        "classes": brain // 40,
    }.items():
        save_scan(tmp_path / f"{name}.nii.gz", volume.astype(np.float32), MNI152_T1_2MM.affine)
    checked = {scan.name: check_scan(scan.source) for scan in find_scans(tmp_path)}
    assert [name for name, found in checked.items() if found.brain] == ["t1"]
    assert [name for name, found in checked.items() if found.failure] == [
        "flair",
        "t2",
    ]  # the others are no prepared brains
    assert "white matter is darker than gray (0." in checked["flair"].failure
    assert "does not look like a T1-weighted brain in MNI152 space: its correlation" in checked["t2"].failure
    for name, said in (("mask", "is constant, every voxel above 0 is 1"), ("classes", "holds only 2 different")):
        with pytest.raises(UnusableScanError, match=said):
            read_raw_scan(tmp_path / f"{name}.nii.gz")


def test_raw_prepared_and_averaged_scans_are_told_apart(tmp_path) -> None:
    prepared_scan(tmp_path / "prepared.nii.gz")
    volume = read_image(tmp_path / "prepared.nii.gz", 2)
    save_scan(tmp_path / "averaged.nii.gz", read_image(tmp_path / "prepared.nii.gz", 4), model_grid(4).affine)
    save_scan(tmp_path / "raw.nii.gz", volume + 1, MNI152_T1_2MM.affine)  # with a background: no brain extraction
    averaged, prepared, raw = (check_scan(scan.source) for scan in find_scans(tmp_path))
    np.testing.assert_array_equal(prepared.brain.volume, volume)
    assert raw.brain is None
    assert averaged.brain is None
    assert not raw.failure
    assert "is a prepared brain averaged to 4 mm" in averaged.failure


def test_other_preparations_are_warned_of(tmp_path) -> None:
    made = {}
    for name in ("ours", "older", "other"):
        save_scan(tmp_path / name / "a.nii.gz", np.ones((2, 2, 2)), np.eye(4))
        made[name] = {"registration": "affine", "fingerprint": name} if name != "other" else None
        if made[name]:
            parts = {"Fingerprint": name, "Parameters": {"registration": "affine"}}
            write_json(tmp_path / name / DESCRIPTION, {"GeneratedBy": [parts]})
    scans = [PredictedScan(name, tmp_path / name / "a.nii.gz") for name in made]
    add_preparation(scans, [made["ours"]])
    assert [len(scan.warnings) for scan in scans] == [0, 1, 1]
    assert "fingerprint older, the training scans in another way" in scans[1].warnings[0]
    assert "in an unknown way" in scans[2].warnings[0]
    add_preparation(scans, [made["ours"], None])  # of weights that were trained on both
    assert [len(scan.warnings) for scan in scans] == [0, 2, 1]
