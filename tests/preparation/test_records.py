"""Records: found beside a scan and beside the file it links to, and never invented."""

from pathlib import Path

import pytest

from utils.common.files import write_json
from utils.data.preparations import DESCRIPTION, preparation_of
from utils.preparation.records import read_records, record_of, record_path


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
    assert [record["name"] for record in read_records(prepared)] == ["a", "b"]


def test_what_is_missing_or_damaged_is_no_record(prepared, tmp_path) -> None:
    record_path(prepared, "a").write_text("{half of")
    assert record_of(prepared / "a.nii.gz") is None
    assert [record["name"] for record in read_records(prepared)] == ["b"]
    assert record_of(tmp_path / "a.nii.gz") is None
    (tmp_path / DESCRIPTION).write_text('{"Name": "made by something else"}')
    assert preparation_of(tmp_path / "a.nii.gz") is None
