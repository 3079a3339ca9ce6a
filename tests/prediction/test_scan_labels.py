"""Ages and sexes that are not known stop no prediction, and each is told."""

import csv

import numpy as np
import pytest

from tests.prediction.conftest import prepared_scan
from utils.common.errors import InputError
from utils.data.cohort import load_cohort
from utils.data.tables import read_label_table
from utils.prediction.scan_ages import PredictedScan
from utils.prediction.scan_labels import add_averaging, add_labels, calibration_people, find_candidates

MISSING = ("", "-", "n/a", "NA", "nan", "None", "unknown", "N.A.", "#N/A", "?", ".")
CENSORED = ("89+", "90+", ">89", "> 89", ">=90", "≥90", "<18", "90 or older")
WRONG = ("-3", "0", "999", "old", "1961-05-03", "12/07/1961", "=B2*2", "21915", "61 years")


def labelled(folder, age, sex="F", **options):
    """Write a table of a scan with this age, and two with good ones; predict and train."""
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["subject_id", "age", "sex"], ["a", age, sex], ["b", "40", "M"], ["c", "61,5", "F"]]
        )
    scans = [PredictedScan(name, folder / "scans" / f"{name}.nii.gz") for name in "abc"]
    (folder / "scans").mkdir(exist_ok=True)
    for scan in scans:
        scan.source.touch()
    add_labels(scans, table, None)
    return scans, table


@pytest.mark.parametrize("age", [*MISSING, *CENSORED, *WRONG])
def test_an_age_that_cannot_be_used_is_unknown_where_none_is_needed(tmp_path, age) -> None:
    scans, table = labelled(tmp_path, age)
    assert [scan.chronological_age for scan in scans[1:]] == [40, 61.5]
    assert np.isnan(scans[0].chronological_age)
    assert [scan.warnings for scan in scans[1:]] == [[], []]
    told = f"its age is not known, so there is no gap: {table}, row 2: age '{age}' of a "
    assert all(warning.startswith(told) for warning in scans[0].warnings)
    assert len(scans[0].warnings) == (age != "")


@pytest.mark.parametrize("age", [*MISSING, *CENSORED])
def test_training_refuses_unknown_ages_together_and_testing_warns_of_them(tmp_path, capsys, age) -> None:
    _, table = labelled(tmp_path, age)
    table.write_text(table.read_text().replace("40", "-"))
    with pytest.raises(InputError) as caught:
        load_cohort({"train": tmp_path / "scans"}, table, None)
    assert [problem.partition(" age ")[0] for problem in caught.value.problems] == [
        f"{table}, row 2:", f"{table}, row 3:",
    ]  # fmt: skip
    subjects = load_cohort({"test": tmp_path / "scans"}, table, None, ages_required=False)["test"]
    assert np.isnan([subject.chronological_age for subject in subjects]).tolist() == [True, True, False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "WARNING: 2 scans have no metrics:"
    assert lines[1].startswith(f"  {table}, row 2: age '{age}' of a is ")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("age", "said"),
    [("1961-05-03", "is a date; give the age at the scan, in years"), ("12.07.61", "is a date"),
     ("1961-05-03 00:00:00", "is a date"), ("=B2*2", "is a formula whose value was not saved"),
     ("21915", r".* \(days, months or a year of birth\?\)"), ("999", "is not a number of years between 0 and 130"),
     ("89+", "is a bound, so the age is unknown")],
)  # fmt: skip
def test_what_an_age_might_be_is_told(tmp_path, age, said) -> None:
    _, table = labelled(tmp_path, age)
    with pytest.raises(InputError, match=f"row 2: age '.*' of a {said}"):
        load_cohort({"train": tmp_path / "scans"}, table, None)


def test_a_sex_that_is_averaged_is_told_for_each_scan(tmp_path) -> None:
    scans, table = labelled(tmp_path, "50", sex="x")
    assert scans[0].warnings == [f"{table}, row 2: sex 'x' of a is not one of 0/1, F/M, female/male; add it"]
    add_averaging(scans, uses_sex=True)
    told = ["is the mean of those for a woman and for a man" in " ".join(scan.warnings) for scan in scans]
    assert told == [True, False, False]
    scans, _ = labelled(tmp_path, "50", sex="")
    add_averaging(scans, uses_sex=False)
    assert not any(scan.warnings for scan in scans)


def test_unknown_ages_do_not_calibrate_and_wrong_ones_are_refused(tmp_path, capsys) -> None:
    scans = [PredictedScan(f"s{n}", tmp_path / f"s{n}.nii.gz") for n in range(12)]
    rows = [f"s{n},{30 + n},F" for n in range(11)]
    table = tmp_path / "healthy.csv"
    table.write_text("\n".join(["subject_id,age,sex", *rows, "s11,90+,F"]))
    assert len(calibration_people(find_candidates(scans, read_label_table(table), []), table)) == 11
    printed = capsys.readouterr().out
    assert f"WARNING: 1 scans of {table} do not calibrate:\n  {table}, row 13: age '90+' of s11 is a bound" in printed
    table.write_text(table.read_text().replace("90+", "900"))
    with pytest.raises(InputError, match="row 13: age '900' of s11 is not a number"):
        find_candidates(scans, read_label_table(table), [])


def test_predict_goes_on_without_an_age_and_tells_what_is_averaged(weights, tmp_path, run_here) -> None:
    for name in ("sub-1", "sub-2"):
        prepared_scan(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "labels.csv").write_text("subject_id,age,sex\nsub-1,89+,2\nsub-2,40,\n")
    with pytest.raises(SystemExit) as stop:
        run_here("predict.py", "--input", tmp_path / "in", "--weights_dir", weights, "--num_workers", 0, "--device", "cpu",
                 "--output_dir", tmp_path / "out", "--label_table", tmp_path / "labels.csv")  # fmt: skip
    assert stop.value.code == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["chronological_age"], first["brain_age_gap"], first["sex"]) == ("", "", "F")
    assert "age '89+' of sub-1 is a bound" in first["warnings"]
    assert (second["chronological_age"], second["sex"]) == ("40.00", "")
    assert "the mean of those for a woman and for a man" in second["warnings"]


def test_a_row_that_gives_its_age_to_several_scans_is_told(tmp_path, capsys) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("subject_id,age,sex\nsub-1,40,F\nsub-2,50,M\n")
    scans = [PredictedScan(name, tmp_path / f"{name}.nii.gz") for name in ("sub-1_ses-1", "sub-1_ses-2", "sub-2")]
    add_labels(scans, table, None)
    assert [scan.chronological_age for scan in scans] == [40, 40, 50]
    assert f"the ages of 1 rows are taken for several scans each, such as {table}, row 2" in capsys.readouterr().out
    table.write_text("subject_id,ses,age,sex\nsub-1,1,40,F\nsub-1,2,45,F\nsub-2,,50,M\n")
    add_labels(scans, table, None)
    assert [scan.chronological_age for scan in scans] == [40, 45, 50]
    assert "several scans" not in capsys.readouterr().out
