"""Pooling a cohort's preparations: every scan linked once, and every person kept together."""

import csv
import shutil
import sys

import pytest

from benchmarks.pool_preparations import main
from utils.errors import InputError
from utils.subjects import person_of


@pytest.fixture
def pool(monkeypatch):
    """Call the command with these flags."""

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["pool_preparations", *map(str, flags)])
        main()

    return call


def test_every_scan_is_linked_with_its_labels(pool, capsys, synthetic_cohort, tmp_path) -> None:
    for name in ("ours", "theirs"):
        shutil.copytree(synthetic_cohort / "test", tmp_path / name)
    folders = ["--scan_folders", tmp_path / "ours", tmp_path / "theirs"]
    common = ["--label_table", synthetic_cohort / "labels.csv", "--output_dir", tmp_path / "pooled"]
    pool(*folders, *common)
    assert "10 scans of 5 persons" in capsys.readouterr().out
    with (tmp_path / "pooled" / "labels.csv").open() as file:
        rows = {row["subject_id"]: row for row in csv.DictReader(file)}
    with (synthetic_cohort / "labels.csv").open() as file:
        expected = {row["subject_id"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        person, folder = name.split("_")
        assert person_of(name) == person
        assert abs(float(row["age"]) - float(expected[person]["age"])) < 1e-3
        assert row["sex"] == expected[person]["sex"]
        link = tmp_path / "pooled" / f"{name}.nii.gz"
        assert link.resolve() == (tmp_path / folder / f"{person}.nii.gz").resolve()
    with pytest.raises(InputError, match="exists already"):
        pool(*folders, *common)


def test_names_that_do_not_tell_the_person_are_refused(pool, synthetic_cohort, tmp_path) -> None:
    (tmp_path / "ours").mkdir()
    shutil.copy(next((synthetic_cohort / "test").iterdir()), tmp_path / "ours" / "brain.nii.gz")
    (tmp_path / "labels.csv").write_text("subject_id,age,sex\nbrain,40,F\n")
    common = ["--label_table", tmp_path / "labels.csv", "--output_dir", tmp_path / "pooled"]
    with pytest.raises(InputError, match="does not tell the person"):
        pool("--scan_folders", tmp_path / "ours", *common)
    assert not (tmp_path / "pooled").exists()
