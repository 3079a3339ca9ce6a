"""Label tables in every form, and what can be wrong with them."""

import math

import pandas as pd
import pytest
import xlwt

from utils.common.errors import InputError
from utils.data.cohort import load_cohort
from utils.data.scan_folders import FSL_PRODUCT
from utils.data.tables import read_label_table
from utils.prediction.scan_labels import add_labels
from utils.prediction.scan_preparation import find_scans

ROWS = [["sub-1", "61.25", "F"], ["sub-10.nii.gz", "23", "male"], ["1003", "80.5", "0"], ["x/sub-4.nii", "44", "1"]]
AGES = {"sub-1": 61.25, "sub-10": 23.0, "1003": 80.5, "sub-4": 44.0}
SEXES = {"sub-1": 0, "sub-10": 1, "1003": 0, "sub-4": 1}


def ages_of(table):
    return {row.subject_id: row.age.years for row in table.rows if math.isfinite(row.age.years)}


def sexes_of(table):
    return {row.subject_id: row.sex for row in table.rows}


def write(path, rows, header):
    table = ([header] if header else []) + rows
    if path.suffix == ".xlsx":
        typed = [[float(cell) if cell.replace(".", "").isdigit() else cell for cell in row] for row in table]
        pd.DataFrame(typed).to_excel(path, header=False, index=False)
    elif path.suffix == ".xls":
        book = xlwt.Workbook()
        sheet = book.add_sheet("labels")
        for i, row in enumerate(table):
            for j, cell in enumerate(row):
                sheet.write(i, j, cell)
        book.save(str(path))
    else:
        path.write_text("\n".join({".csv": ",", ".tsv": "\t"}[path.suffix].join(row) for row in table))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".xls"])
@pytest.mark.parametrize("header", [None, ["Subject ID", "Age", "Gender"], ["participant_id", "age", "sex"]])
def test_every_kind_with_and_without_header(tmp_path, suffix, header) -> None:
    table = read_label_table(write(tmp_path / f"labels{suffix}", ROWS, header))
    assert ages_of(table) == AGES
    assert sexes_of(table) == SEXES
    assert not any(row.problems for row in table.rows)


def test_columns_are_found_by_name_in_any_order(tmp_path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text("site\tsex\tage\tparticipant_id\nA\tfemale\t30.5\tsub-01\n\nB\tn/a\t50\tsub-02\n")
    table = read_label_table(path)
    assert ages_of(table) == {"sub-01": 30.5, "sub-02": 50.0}
    assert sexes_of(table) == {"sub-01": 0, "sub-02": -1}


def test_sites_are_read_from_the_named_column_alone(tmp_path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text("Scan Site\tsex\tage\tparticipant_id\n A \tF\t30.5\tsub-01\nB\tM\t50\tsub-02\n")
    table = read_label_table(path, "scan-site")
    assert [table.find(name).site for name in ("sub-01", "sub-02")] == ["A", "B"]
    assert not any(table.find(row.subject_id).problems for row in table.rows)
    assert {row.site for row in read_label_table(path).rows} == {""}
    with pytest.raises(InputError, match=r"has no column scanner \(found scan_site, sex, .*correct SITE_COLUMN"):
        read_label_table(path, "scanner")


@pytest.mark.parametrize("unknown", ["", "n/a", "NA"])
def test_a_site_that_is_not_known_is_a_problem(tmp_path, unknown) -> None:
    path = write(tmp_path / "labels.csv", [["sub-1", "50", unknown]], ["subject_id", "age", "site"])
    assert read_label_table(path, "site").find("sub-1").problems == (f"{path}, row 2: sub-1 has no site; add it",)


def test_semicolons_and_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffsubject_id;age;sex\ns1;44.5;M\n", encoding="utf-8")
    assert ages_of(read_label_table(path)) == {"s1": 44.5}


@pytest.mark.parametrize("age", ["NA", "", "-3", "0", "nan", "inf", "200", "63,5,1", "old"])
def test_unusable_ages_name_their_row(tmp_path, age) -> None:
    table = read_label_table(
        write(tmp_path / "labels.tsv", [["s1", "50", "F"], ["s2", age, "F"]], ["id", "age", "sex"])
    )
    row = table.find("s2")
    hint = " (days, months or a year of birth?)" if age == "200" else ""
    assert row.age_complaint == (
        f"{tmp_path}/labels.tsv, row 3: age '{age}' of s2 is not a number of years between 0 and 130{hint}; "
        "correct or remove the row"
    )
    assert math.isnan(row.age.years)
    assert row.age.unknown == (age in ("NA", "", "nan"))


def test_a_subject_twice(tmp_path) -> None:
    table = read_label_table(write(tmp_path / "labels.csv", [["s1", "50", "F"], ["s1.nii.gz", "50", "F"]], None))
    assert "row 2: s1 stands in row 1 already" in table.find("s1.nii").problems[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.ods", "", "no kind of table known here"),
        ("labels.csv", "", "holds no rows"),
        ("labels.csv", "s1\ns2\n", "has one column"),
        ("labels.csv", "age,sex\n50,F\n", "has no subject column"),
        ("labels.csv", "subject_id,age,sex\n", "holds no rows below its header"),
        ("labels.xlsx", "PK\x03\x04 not a workbook", "cannot be read as an Excel file"),
        ("labels.csv", 's1,50,"F\n', "cannot be read as .csv"),
        ("labels.csv", "s1,50,F\ns2,50,F,1,2\n", "row 2: has 5 cells, more than the first .3."),
    ],
)
def test_unusable_tables(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_label_table(tmp_path / name)


def test_a_first_row_without_an_age_is_no_header(tmp_path) -> None:
    table = read_label_table(write(tmp_path / "labels.csv", [["sub-1", "", "F"], ["sub-2", "44", "M"]], None))
    assert table.find("sub-1").age.unknown
    assert ages_of(table) == {"sub-2": 44.0}
    table = read_label_table(write(tmp_path / "labels.tsv", [["sub-1", "F"]], ["subject_id", "sex"]))
    assert (ages_of(table), sexes_of(table), table.find("sub-1").age.unknown) == ({}, {"sub-1": 0}, True)


def test_a_missing_table(tmp_path) -> None:
    with pytest.raises(InputError, match="no such table"):
        read_label_table(tmp_path / "none.csv")


ROWS_OF_SCANS = {  # file: the rows that could be meant, the right one first; "" for none
    "sub-1.nii.gz": ("sub-1", "sub-10", "sub-1_T1w"),
    "sub-10_T1w.nii": ("sub-10_T1w", "sub-10", "sub-1"),
    "sub-2_T1w.nii.gz": ("sub-2", "sub-20"),
    "sub-3.nii": ("sub-3_T1w", "sub-30"),
    "sub-4_ses-1_T1w.nii.gz": ("sub-4_ses-1", "sub-4", "sub-4_ses-10"),
    "sub-5_ses-1_run-2.nii.gz": ("sub-5_ses-1", "sub-5", "sub-5_ses-2"),
    "sub-6_ses-1_run-2.nii.gz": ("sub-6", "sub-60"),
    "sub-07_T1w.nii.gz": ("07", "sub-7", "7"),
    "IXI012-HH-1211-T1.nii.gz": ("IXI012", "IXI0123"),
    "brain_7.nii.gz": ("", "brain_70", "brain"),
}


@pytest.mark.parametrize(("file", "rows"), ROWS_OF_SCANS.items())
@pytest.mark.parametrize("in_order", [True, False])
def test_training_and_prediction_match_the_same_row(tmp_path, file, rows, in_order) -> None:
    right = rows[0]
    labels = [[name, str(40 + number), "FM"[number % 2]] for number, name in enumerate(rows) if name]
    path = write(tmp_path / "labels.csv", labels if in_order else labels[::-1], None)
    row = read_label_table(path).find(file)
    assert (row and row.where) == (
        f"{path}, row {1 + [label[0] for label in labels][:: 1 if in_order else -1].index(right)}" if right else None
    )

    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / file).touch()
    (scan,) = find_scans(tmp_path / "scans")
    add_labels([scan], path, None)
    if not right:
        assert math.isnan(scan.chronological_age)
        with pytest.raises(InputError, match="no row of"):
            load_cohort({"train": tmp_path / "scans"}, path, None)
        return
    (subject,) = load_cohort({"train": tmp_path / "scans"}, path, None)["train"]
    assert (scan.chronological_age, scan.sex) == (subject.chronological_age, subject.sex) == (40.0, 0)


def test_scans_in_folders_of_fsl_anat_have_the_names_of_the_folders(tmp_path) -> None:
    for name in ("sub-1_T1w.anat", "sub-10.anat"):
        (tmp_path / "fsl" / name).mkdir(parents=True)
        (tmp_path / "fsl" / name / FSL_PRODUCT).touch()
    path = write(tmp_path / "labels.csv", [["sub-10", "70", "M"], ["sub-1", "40", "F"]], None)
    scans = find_scans(tmp_path / "fsl")
    add_labels(scans, path, None)
    assert {(scan.name, scan.chronological_age, scan.sex) for scan in scans} == {("sub-1", 40, 0), ("sub-10", 70, 1)}
