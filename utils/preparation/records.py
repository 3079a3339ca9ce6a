"""What preprocessing recorded of a scan, and how a folder of scans was made."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from utils.common.files import read_json
from utils.data.names import scan_name

PASS, DOUBTFUL, FAIL = "pass", "doubtful", "fail"  # verdicts on a preprocessed scan
VERDICTS = (PASS, DOUBTFUL, FAIL)
QC_FOLDER = "qc"  # inside a folder of preprocessed scans; holds a record and a picture of each
DESCRIPTION = "dataset_description.json"  # beside the scans; says how they were made
Record = dict[str, Any]
PARTS: dict[str, Any] = {  # of a record, and their types; one of another form counts as none
    "name": str, "source": str, "verdict": str, "fingerprint": str, "registration": str,
    "reasons": list, "stamp": list, "quality": dict, "versions": dict,
    "seconds": (int, float), "memory": (int, float), "finished": bool,
}  # fmt: skip


def record_path(folder: Path, name: str) -> Path:
    """Return where the record of a scan in a folder is kept."""
    return folder / QC_FOLDER / f"{name}.json"


def read_record(folder: Path, name: str) -> Record | None:
    """Return the record of a scan in a folder; None if there is none."""
    record = _read_json(record_path(folder, name))
    usable = all(isinstance(record[part], kind) for part, kind in PARTS.items() if part in record)
    return record if usable and record.get("verdict") in VERDICTS and record.get("name", name) == name else None


def read_records(folder: Path) -> list[Record]:
    """Return all records of a folder, sorted by the names of the scans."""
    found = (read_record(folder, path.stem) for path in sorted((folder / QC_FOLDER).glob("[!.]*.json")))
    return [record for record in found if record and record.keys() >= PARTS.keys()]


def record_of(scan: Path) -> Record | None:
    """Return the record of a preprocessed scan, or of the file it links to; None if there is none."""
    return next(filter(None, (read_record(file.parent, scan_name(file.name)) for file in _origins(scan))), None)


def preparation_of(scan: Path) -> dict[str, str] | None:
    """Tell how a scan, or the file it links to, was made: ``fingerprint`` and ``registration``; None if unknown."""
    return next(filter(None, (_preparation_in(file.parent) for file in _origins(scan))), None)


def _origins(path: Path) -> Iterator[Path]:
    """Give a file and the file it links to, because records may be kept beside either."""
    yield path
    yield path.resolve()


@cache
def _preparation_in(folder: Path) -> dict[str, str] | None:
    """Read the description of a folder."""
    try:
        made = _read_json(folder / DESCRIPTION)["GeneratedBy"][0]
        return {"fingerprint": made["Fingerprint"], "registration": made["Parameters"]["registration"]}
    except (KeyError, IndexError, TypeError):
        return None


def _read_json(path: Path) -> Record:
    """Return the content of a file; nothing if it is damaged or missing."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
