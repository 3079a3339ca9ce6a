"""Scans of all kinds: found, told apart, labelled, checked, warned of."""

import numpy as np
import pytest

from tests.conftest import save_scan
from tests.prediction.conftest import prepared_scan
from utils.common.errors import InputError
from utils.common.files import write_json
from utils.data.images import MNI152_T1_2MM, model_grid, read_image
from utils.prediction.scan_ages import (
    PredictedScan,
    add_ages,
    add_labels,
    add_preparation,
    add_training,
    add_verdicts,
    describe,
    find_scans,
)
from utils.preparation.records import DESCRIPTION, DOUBTFUL, FAIL
from utils.preparation.splitting import FSL_PRODUCT
from utils.preparation.template import load_template


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
    scans = {scan.name: scan for folder in (tmp_path, tmp_path / "links") for scan in find_scans(folder)}
    add_verdicts(list(scans.values()))
    assert {name for name, scan in scans.items() if scan.failure} == {"bad"}
    assert scans["bad"].failure == "noise is 9"
    assert {name for name, scan in scans.items() if scan.warnings} == {"doubted", "linked", "away"}
    assert "preprocessing is doubtful: noise is 9" in scans["linked"].warnings
    assert "is about 6 mm off" in scans["away"].warnings[0]


def test_brains_of_fsl_are_named_by_their_folders(tmp_path) -> None:
    for name in ("sub-1.anat", "sub-2.anat"):
        prepared_scan(tmp_path / name / FSL_PRODUCT)
    assert [scan.name for scan in find_scans(tmp_path)] == ["sub-1", "sub-2"]
    (scan,) = find_scans(tmp_path / "sub-2.anat" / FSL_PRODUCT)
    assert (scan.name, scan.prepared) == ("sub-2", tmp_path / "sub-2.anat" / FSL_PRODUCT)


def test_raw_prepared_and_averaged_scans_are_told_apart(tmp_path) -> None:
    prepared_scan(tmp_path / "prepared.nii.gz")
    volume = read_image(tmp_path / "prepared.nii.gz", 2)[0]
    save_scan(tmp_path / "averaged.nii.gz", read_image(tmp_path / "prepared.nii.gz", 4)[0], model_grid(4).affine)
    save_scan(tmp_path / "raw.nii.gz", volume + 1, MNI152_T1_2MM.affine)  # with a background: no brain extraction
    averaged, prepared, raw = find_scans(tmp_path)
    assert prepared.prepared == tmp_path / "prepared.nii.gz"
    assert raw.prepared is None
    assert not prepared.failure + raw.failure
    assert "is a prepared brain averaged to 4 mm" in averaged.failure


def test_labels_come_from_the_table_and_sex_from_the_flag_where_it_is_silent(tmp_path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("subject_id,age,sex\na,40,M\nb,50,\nd,x,F\n")
    scans = [PredictedScan(name, tmp_path / f"{name}_T1w.nii.gz") for name in "abc"]
    add_labels(scans, table, "F")
    assert [scan.sex for scan in scans] == [1, 0, 0]
    assert [scan.chronological_age for scan in scans[:2]] == [40, 50]
    assert np.isnan(scans[2].chronological_age)
    assert [scan.warnings for scan in scans] == [[], [], ["no row in labels.csv"]]
    with pytest.raises(InputError, match=r"row 4: age 'x' of d"):
        add_labels([PredictedScan("d", tmp_path / "d.nii")], table, None)


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
    assert "fingerprint older, unlike" in scans[1].warnings[0]
    assert "in an unknown way" in scans[2].warnings[0]
    add_preparation(scans, [made["ours"], None])  # of weights that were trained on both
    assert [len(scan.warnings) for scan in scans] == [0, 2, 1]


def test_training_subjects_and_ages_outside_the_training_range_are_warned_of(tmp_path) -> None:
    scans = [
        PredictedScan(f"sub-{number}_ses-1", tmp_path, chronological_age=age) for number, age in enumerate([95, 50])
    ]
    add_training(scans, ["sub-1"])
    add_ages(scans, np.array([70.0, 15.0]), 8.0, [20, 80])
    assert scans[0].warnings == ["chronological age 95.0 is outside the training range, 20 to 80 years"]
    assert scans[1].warnings[0].startswith("is of a training subject")
    assert scans[1].warnings[1:] == ["brain age 15.0 is outside the training range, 20 to 80 years"]
    failed = PredictedScan("sub-2", tmp_path, failure="no brain")
    *lines, summary = describe([*scans, failed])
    assert lines[0].startswith("sub-0_ses-1  70.0 years (62 to 78), gap -25.0; chronological age 95.0 is")
    assert lines[2] == "sub-2        failed: no brain"
    assert summary == "3 scans: 2 with a brain age, 2 of them with a warning, 1 failed"
