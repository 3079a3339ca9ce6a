"""Tables carry formulas and paths: neither reaches a spreadsheet program or another folder."""

import csv
from pathlib import Path

import pytest

from utils.analysis.gap_tables import read_tables
from utils.common.choices import WHOLE
from utils.common.errors import InputError
from utils.data.cohort import load_cohort
from utils.data.names import unusable_name
from utils.data.subjects import Subject
from utils.data.tables import read_label_table
from utils.prediction.cross_validation import CrossValidation, assign_folds
from utils.prediction.scan_preparation import find_scans
from utils.preparation.labelling import label_scans
from utils.preparation.raw_scans import find_raw_scans
from utils.preparation.splitting import FSL_PRODUCT, check_given_splits

FORMULAS = (
    "=cmd|' C calc'!A0",
    "=1+1",
    "@SUM(A1:A9)",
    "+cmd|' C calc'!A0",
    "-2+3+cmd|' C calc'!A0",
    '=HYPERLINK("x")',
)
NAMES = (
    "-01",
    "+01",
    "-x 1",
    "--",
    "a=b",
    "a@b",
    "sub 1",
    "Zoë",
    "0012",
    "1e5",
    "名前",
    "O'Neil",
    "100%",
    "#1",
    "-1.5",
)
ELSEWHERE = ("../../thesis", "/etc/passwd", "..", "C:\\\\windows", "a/../../b")


def write(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("column", ["subject_id", "person", "site", "diagnosis"])
def test_what_is_written_into_tables_is_no_formula(tmp_path, formula, column) -> None:
    row = {"subject_id": "a", "age": "40", "sex": "F", "brain_age": "41", column: formula}
    path = write(tmp_path / "table.csv", list(row), list(row.values()))
    with pytest.raises(InputError, match="as a formula; rename it"):
        read_tables({"test": [path]}, None, {})
    if column == "diagnosis":  # no label table needs it
        return
    rows = read_label_table(path, "site" if column == "site" else "").rows
    assert "as a formula; rename it" in rows[0].problems[0]
    with pytest.raises(InputError, match="as a formula; rename it"):
        label_scans({row["subject_id"]: Path("a.nii")}, path, site_column="site" if column == "site" else None)


@pytest.mark.parametrize("name", ["=1+1", "@x", "-2+3+cmd|' C calc'!A0", "a\nb", "a\tb"])
def test_scans_whose_names_are_formulas_are_refused(tmp_path, name) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / f"{name}.nii").touch()
    (tmp_path / "fsl" / f"{name}.anat").mkdir(parents=True)
    (tmp_path / "fsl" / f"{name}.anat" / FSL_PRODUCT).touch()
    for find in (
        lambda: find_raw_scans(tmp_path / "raw"), lambda: find_scans(tmp_path / "raw"),
        lambda: find_scans(tmp_path / "fsl"), lambda: load_cohort({"test": tmp_path / "raw"}, None, None, use_sex=False),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"rename it$"):
            find()


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_good_names(tmp_path, name) -> None:
    assert unusable_name(name) == ""
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / f"{name}.nii").touch()
    path = write(tmp_path / "labels.csv", ["subject_id", "age", "sex"], ["other", "50", "M"], [name, "40", "F"])
    (subject,) = load_cohort({"test": tmp_path / "scans"}, path, None)["test"]
    assert (subject.subject_id, subject.chronological_age) == (name, 40)
    assert [raw.name for raw in find_raw_scans(tmp_path / "scans")] == [name]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_paths_in_a_table_do_not_leave_the_folder(tmp_path, elsewhere) -> None:
    """A subject is looked for by its name alone; a site becomes a folder inside the results."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "sub-1.nii").touch()
    path = write(
        tmp_path / "labels.csv", ["file", "age", "sex", "part"], [f"{elsewhere}/sub-1.nii", "40", "F", elsewhere]
    )
    (subject,) = load_cohort({"test": tmp_path / "scans"}, path, None)["test"]
    assert (subject.subject_id, subject.path) == ("sub-1", tmp_path / "scans" / "sub-1.nii")
    with pytest.raises(InputError, match="is none of train, valid, test"):
        check_given_splits(label_scans({"sub-1": subject.path}, path, split_column="part"), path)
    settings = CrossValidation(
        output_dir=tmp_path / "cv", label_table=path, folds=2, hold_out="sites", site_column="site", members=1, stages=1, seed=0,
        weights_dir=None, data_notice="", remark="", jobs=1, shard=WHOLE, num_workers=0, cache_folder=None,
    )  # fmt: skip
    subjects = [Subject(f"s{number}", tmp_path, 40.0, site=site) for number, site in enumerate((elsewhere, "Oslo"))]
    for fold in assign_folds(subjects, settings)["sites"]:
        assert settings.member_folder(fold, 1).resolve().parent.parent == (tmp_path / "cv").resolve()
