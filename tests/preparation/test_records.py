"""Records: found beside a scan and beside the file it links to, and never invented."""

import csv
import json
from pathlib import Path

import pytest

import utils.preparation.records
from utils.common.files import write_json
from utils.data.preparations import DESCRIPTION, preparation_of
from utils.preparation.overview import MOST_ON_PAGE, list_rows, write_overview
from utils.preparation.records import record_of, record_path


def record_called(name: str) -> dict[str, object]:
    """A complete record."""
    return {
        "name": name, "verdict": "pass", "reasons": [], "quality": {}, "seconds": 1.0, "memory": 1.0, "source": "",
        "stamp": [], "fingerprint": "a", "versions": {}, "registration": "affine", "finished": True,
    }  # fmt: skip


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A folder with two scans, their records and a description."""
    folder = tmp_path / "prepared"
    for name in ("b", "a"):
        write_json(record_path(folder, name), record_called(name))
        (folder / f"{name}.nii.gz").touch()
    made = {"Fingerprint": "123", "Parameters": {"registration": "affine"}}
    write_json(folder / DESCRIPTION, {"GeneratedBy": [made]})
    return folder


def test_a_scan_and_a_link_to_it_have_the_same_record(prepared, tmp_path) -> None:
    link = tmp_path / "other name.nii.gz"
    link.symlink_to(prepared / "a.nii.gz")
    for scan in (prepared / "a.nii.gz", link):
        assert record_of(scan) == record_called("a")
        assert preparation_of(scan) == {"fingerprint": "123", "registration": "affine"}
    assert [row["name"] for row in list_rows(prepared)] == ["a", "b"]


def test_what_is_missing_or_damaged_is_no_record(prepared, tmp_path) -> None:
    record_path(prepared, "a").write_text("{half of")
    assert record_of(prepared / "a.nii.gz") is None
    assert [row["name"] for row in list_rows(prepared)] == ["b"]
    assert record_of(tmp_path / "a.nii.gz") is None
    (tmp_path / DESCRIPTION).write_text('{"Name": "made by something else"}')
    assert preparation_of(tmp_path / "a.nii.gz") is None


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that are read as records."""
    names, read_json = [], utils.preparation.records.read_json
    monkeypatch.setattr(
        utils.preparation.records, "read_json", lambda path: (names.append(path.stem), read_json(path))[1]
    )
    return names


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "qc.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_only_records_that_the_table_does_not_hold_are_read(prepared, reads) -> None:
    write_overview(prepared)
    assert reads == ["a", "b"]
    before, page = ((prepared / name).read_text() for name in ("qc.csv", "index.html"))
    reads.clear()
    write_overview(prepared)
    assert reads == []
    assert (prepared / "qc.csv").read_text() == before
    assert (prepared / "index.html").read_text() == page
    write_json(record_path(prepared, "a"), {**record_called("a"), "verdict": "doubtful", "reasons": ["x,", "y"]})
    write_json(record_path(prepared, "c"), record_called("c"))
    record_path(prepared, "b").unlink()
    write_overview(prepared)
    assert reads == ["a", "c"]
    assert {name: (row["verdict"], row["reasons"]) for name, row in table_of(prepared).items()} == {
        "a": ("doubtful", "x,; y"), "c": ("pass", ""),
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["name,verdict\na,pass\n", "", "\0", "cut"])
def test_a_damaged_table_is_made_anew(prepared, reads, damage) -> None:
    write_overview(prepared)
    before = (prepared / "qc.csv").read_text()
    (prepared / "qc.csv").write_text(before[:-30] if damage == "cut" else damage)
    reads.clear()
    write_overview(prepared)
    assert reads == (["b"] if damage == "cut" else ["a", "b"])
    assert (prepared / "qc.csv").read_text() == before


def test_the_page_shows_the_worst_of_many(tmp_path) -> None:
    (tmp_path / "qc").mkdir()
    write_json(record_path(tmp_path, "zzz"), {**record_called("zzz"), "verdict": "fail"})
    write_json(record_path(tmp_path, "0"), record_called("0"))
    for number in range(1, MOST_ON_PAGE + 10):
        record_path(tmp_path, f"{number}").write_text(json.dumps(record_called(f"{number}")))
    write_overview(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<article") == MOST_ON_PAGE
    assert "<h2>zzz" in page
    assert f"pass ({MOST_ON_PAGE + 10})" in page
    assert "11 scans of the best verdict are not shown here" in page
    assert len(table_of(tmp_path)) == MOST_ON_PAGE + 11
