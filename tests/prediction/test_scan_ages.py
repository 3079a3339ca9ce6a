"""Ages of scans: labelled, calibrated, warned of, tabulated."""

import csv
from pathlib import Path

import numpy as np
import pytest

from utils.common.errors import InputError
from utils.data.scan_folders import FSL_PRODUCT
from utils.data.tables import LabelTable, read_label_table
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.calibration import FEWEST_PEOPLE, Calibration, fit_calibration
from utils.prediction.scan_ages import (
    PredictedScan,
    add_age_warnings,
    add_intervals,
    add_likeness,
    calibrate,
    describe,
    interval_errors,
    write_table,
)
from utils.prediction.scan_labels import add_labels, add_training, calibration_people, find_candidates

SITES = {"Oslo": [4.0, 6.0, 2.0], "Rome": [-9.0, -3.0]}  # years, gaps of people on scanners held out
MANIFEST = {"age_range": [20, 80], "out_of_fold_errors": np.linspace(1, 8, 20).tolist(), "unseen_site_gaps": SITES,
            "unseen_site_ages": [25.0, 75.0]}  # fmt: skip
WITHOUT_SITES = {name: value for name, value in MANIFEST.items() if name != "unseen_site_gaps"}


def test_labels_come_from_the_table_and_sex_from_the_flag_where_it_is_silent(tmp_path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("subject_id,age,sex\na,40,M\nb,50,\n")
    scans = [PredictedScan(name, tmp_path / f"{name}_T1w.nii.gz") for name in "abc"]
    add_labels(scans, table, "F")
    assert [scan.sex for scan in scans] == [1, 0, 0]
    assert [scan.chronological_age for scan in scans[:2]] == [40, 50]
    assert np.isnan(scans[2].chronological_age)
    assert [scan.warnings for scan in scans] == [[], [], [f"no row of {table} has the subject c or c_T1w; add one"]]


def set_ages(scans: list[PredictedScan], *brain_ages: float) -> None:
    for scan, brain_age in zip(scans, brain_ages, strict=True):
        scan.brain_age = brain_age


def test_training_subjects_and_ages_outside_the_training_range_are_warned_of(tmp_path) -> None:
    scans = [
        PredictedScan(f"sub-{number}_ses-1", tmp_path, chronological_age=age) for number, age in enumerate([95, 50])
    ]
    add_training(scans, ["sub-1"])
    set_ages(scans, 70.0, 15.0)
    add_intervals(scans, {**WITHOUT_SITES, "out_of_fold_errors": [8.0] * 20}, "")
    add_age_warnings(scans, WITHOUT_SITES)
    assert scans[0].warnings == ["chronological age 95.0 is outside the training range, 20 to 80 years"]
    assert scans[1].warnings[0].startswith("is of a training subject")
    assert scans[1].warnings[1:] == ["brain age 15.0 is outside the training range, 20 to 80 years"]
    failed = PredictedScan("sub-2", tmp_path, failure="no brain")
    *lines, summary = describe([*scans, failed])
    assert lines[0].startswith("sub-0_ses-1  70.0 years (62 to 78), gap -25.0; chronological age 95.0 is")
    assert lines[2] == "sub-2        failed: no brain"
    assert summary == ("3 scans: 2 with a brain age, 2 of them with a warning, 0 unlike the training scans, 1 failed")


@pytest.mark.parametrize(
    ("manifest", "scanner", "errors", "source"),
    [
        (MANIFEST, "", [2, 3, 4, 6, 9], "unseen scanners"),
        (MANIFEST, "Oslo", MANIFEST["out_of_fold_errors"], "training scanners"),
        (WITHOUT_SITES, "", MANIFEST["out_of_fold_errors"], "training scanners"),
    ],
)
def test_intervals_come_from_the_errors_on_such_scanners(manifest, scanner, errors, source) -> None:
    found, told = interval_errors(manifest, scanner)
    assert (sorted(found.tolist()), told) == (errors, source)


def test_intervals_have_the_radius_of_these_errors_and_never_go_below_0(tmp_path) -> None:
    scans = [PredictedScan(name, tmp_path) for name in "ab"]
    set_ages(scans, 50.0, 3.0)
    add_intervals(scans, MANIFEST, "Rome")
    radius = interval_radius(np.array(MANIFEST["out_of_fold_errors"]), INTERVAL_COVERAGE)
    assert [scan.interval for scan in scans] == [(50 - radius, 50 + radius), (0, 3 + radius)]
    assert [scan.interval_from for scan in scans] == ["training scanners"] * 2


@pytest.mark.parametrize(
    ("manifest", "scanner", "warned"), [(MANIFEST, "", True), (MANIFEST, "Oslo", False), (WITHOUT_SITES, "", False)]
)
def test_ages_that_no_scanner_held_out_had_are_warned_of(tmp_path, manifest, scanner, warned) -> None:
    scans = [PredictedScan(name, tmp_path) for name in "ab"]
    set_ages(scans, 74.0, 78.0)
    add_intervals(scans, manifest, scanner)
    add_age_warnings(scans, manifest)
    assert scans[0].warnings == []
    assert [line[:46] for line in scans[1].warnings] == ["no scanner that was held out had people of 78 "] * warned


def test_a_scanner_that_training_did_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="--scanner Bonn: the weights were trained on the scanners Oslo, Rome; give"):
        interval_errors(MANIFEST, "Bonn")
    with pytest.raises(InputError, match="trained on scanners without names; .*leave SCANNER empty"):
        interval_errors(WITHOUT_SITES, "Oslo")


def people(folder: Path, size: int) -> tuple[list[PredictedScan], LabelTable]:
    """Scans whose brain ages are about 6 years too high, two sessions of the first person, and a patient."""
    ages = np.linspace(25, 75, size)
    gaps = 6 + np.resize([2.0, -1.0, 0.5], size)
    scans = [PredictedScan(f"sub-{n}", folder / f"sub-{n}.nii.gz", brain_age=a) for n, a in enumerate(ages + gaps)]
    scans.append(PredictedScan("sub-0_ses-2", folder / "sub-0_ses-2.nii.gz", brain_age=90.0))
    scans.append(PredictedScan("patient", folder / "patient.nii.gz", brain_age=60.0))
    rows = [f"sub-{n},{age:.2f},F" for n, age in enumerate(ages)]
    (folder / "healthy.csv").write_text("\n".join(["subject_id,age,sex", *rows, "elsewhere,40,M"]))
    return scans, read_label_table(folder / "healthy.csv")


def calibrated(scans: list[PredictedScan], table: LabelTable, manifest: dict) -> Calibration:
    """Calibrate by all people of a table."""
    chosen = calibration_people(find_candidates(scans, table, []), table.path)
    return calibrate(scans, [(scan, age) for scan, _, age in chosen], manifest)


ERRORS = np.array(MANIFEST["out_of_fold_errors"])


@pytest.mark.parametrize(
    ("manifest", "offset_sd", "residual_sd"),
    [
        (MANIFEST, np.sqrt((4**2 + 6**2) / 2), np.sqrt((2 * 2**2 + 2 * 3**2) / 5)),
        (WITHOUT_SITES, ERRORS.mean(), np.sqrt((ERRORS**2).mean())),
    ],
)
def test_calibration_changes_everybody_by_the_healthy_people_once_each(
    tmp_path, manifest, offset_sd, residual_sd
) -> None:
    scans, table = people(tmp_path, 12)
    before = np.array([scan.brain_age for scan in scans])
    calibration = calibrated(scans, table, manifest)
    expected = fit_calibration(np.linspace(25, 75, 12).round(2), before[:12], offset_sd, residual_sd)
    assert (calibration.people, calibration.offset) == (12, pytest.approx(expected.offset))
    ages, radii = expected.apply(before)
    assert [scan.brain_age for scan in scans] == pytest.approx(ages)
    assert [scan.radius for scan in scans] == pytest.approx(radii)
    assert [scan.uncalibrated_age for scan in scans] == pytest.approx(before)
    assert {scan.interval_from for scan in scans} == {"calibration by 12 people"}
    assert scans[-1].brain_age < 57  # the patient's, too
    used = ["was used for the calibration" in " ".join(scan.warnings) for scan in scans]
    assert used == [True] * 12 + [False] * 2


def test_a_site_without_people_of_seen_ages_does_not_spoil_calibration(tmp_path) -> None:
    empty = {**MANIFEST, "unseen_site_gaps": {**SITES, "Ulm": []}}
    offsets = [calibrated(*people(tmp_path, 12), manifest).offset for manifest in (MANIFEST, empty)]
    assert offsets[0] == offsets[1]


def test_healthy_people_in_folders_of_fsl_anat_are_found(tmp_path) -> None:
    scans, table = people(tmp_path, 12)
    for scan in scans:
        scan.source = tmp_path / f"{scan.name}.anat" / FSL_PRODUCT
    assert calibrated(scans, table, MANIFEST).people == 12


def test_calibration_needs_ten_people(tmp_path) -> None:
    scans, table = people(tmp_path, FEWEST_PEOPLE - 1)
    with pytest.raises(
        InputError, match="healthy.csv: 9 of its people have a usable scan .* at least 10 healthy people"
    ):
        calibration_people(find_candidates(scans, table, []), table.path)


def test_training_subjects_and_scans_that_failed_do_not_calibrate(tmp_path, capsys) -> None:
    scans, table = people(tmp_path, 14)
    scans[3].failure = "no brain"
    found = calibration_people(find_candidates(scans, table, ["sub-0", "sub-7", "elsewhere"]), table.path)
    assert [one.scan.name for one in found] == [f"sub-{n}" for n in range(14) if n not in (0, 3, 7)]
    assert [one.age for one in found] == [table.find(one.scan.source.name).age.years for one in found]
    assert "3 scans of" in capsys.readouterr().out  # two sessions of the first person


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("sub-3,", "sub-3,x"), r"healthy.csv, row 5: age 'x.*' of sub-3 is not a number"),
        (lambda text: text.replace("subject_id,age", "subject_id,weight"), "healthy.csv: has no age column"),
    ],
)
def test_a_calibration_table_with_problems_is_refused(tmp_path, change, said) -> None:
    scans, table = people(tmp_path, 14)
    table.path.write_text(change(table.path.read_text()))
    with pytest.raises(InputError, match=said):
        find_candidates(scans, read_label_table(table.path), [])


def test_scans_unlike_those_of_the_training_are_marked_and_their_intervals_widened(tmp_path) -> None:
    scans = [PredictedScan(name, tmp_path) for name in ("like", "unlike")]
    set_ages(scans, 50.0, 50.0)
    add_intervals(scans, MANIFEST, "Oslo")
    radius = scans[0].radius
    scans[0].distance, scans[1].distance = 1.5, 3.0
    add_likeness(scans, 1.5)
    assert [scan.status for scan in scans] == ["ok", "unlike training scans"]
    assert [scan.radius for scan in scans] == [radius, 2 * radius]
    assert scans[0].warnings == []
    assert scans[1].warnings[0].startswith("is unlike the training scans (distance 3.00, expected at most 1.50)")
    *_, summary = describe(scans)
    assert summary == ("2 scans: 2 with a brain age, 1 of them with a warning, 1 unlike the training scans, 0 failed")
    scans[1].failure = "no brain"
    assert scans[1].status == "failed"


def test_of_many_scans_only_those_that_failed_are_described(tmp_path) -> None:
    scans = [PredictedScan(str(number), tmp_path, failure="no brain" * (number < 25)) for number in range(100_000)]
    lines = list(describe(scans))
    assert lines[0] == "0   failed: no brain"
    assert lines[-2] == "... and 5 more"
    assert lines[-1].startswith("100000 scans: 99975 with a brain age")
    assert len(lines) == 22


def test_the_table_tells_where_intervals_come_from_and_ages_before_calibration(tmp_path) -> None:
    scans = [
        PredictedScan(
            "a",
            tmp_path / "a.nii",
            chronological_age=40.0,
            sex=1,
            brain_age=2.0,
            radius=5.0,
            interval_from="unseen scanners",
        ),
        PredictedScan("b", tmp_path / "b.nii", brain_age=45.0, radius=5.0, uncalibrated_age=51.0, unlike=True),
        PredictedScan("c", tmp_path / "c.nii", failure="no brain"),
    ]
    write_table(tmp_path / "out.csv", scans, "abc")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "unlike training scans", "failed"]
    assert [row["interval_low"] for row in rows] == ["0.00", "40.00", ""]
    assert [row["interval_high"] for row in rows] == ["7.00", "50.00", ""]
    assert [row["brain_age_gap"] for row in rows] == ["-38.00", "", ""]
    assert [row["interval_from"] for row in rows] == ["unseen scanners", "", ""]
    assert [row["uncalibrated_age"] for row in rows] == ["", "51.00", ""]
    assert rows[2]["warnings"] == "no brain"
    assert {row["weights_sha256"] for row in rows} == {"abc"}
