"""What preprocessing recorded of a scan."""

from pathlib import Path
from typing import Any

from utils.common.files import read_json
from utils.data.names import scan_name
from utils.data.preparations import origins, results_folder

PASS, DOUBTFUL, FAIL = "pass", "doubtful", "fail"  # verdicts on a preprocessed scan
VERDICTS = (PASS, DOUBTFUL, FAIL)
QC_FOLDER = "qc"  # inside a folder of preprocessed scans; holds a record and a picture of each
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


def read_whole_record(folder: Path, name: str) -> Record | None:
    """Return the record of a scan in a folder if it has all parts."""
    record = read_record(folder, name)
    return record if record and record.keys() >= PARTS.keys() else None


def record_of(scan: Path) -> Record | None:
    """Return the record of a preprocessed scan, or of the file it links to; None if there is none."""
    return next(filter(None, (read_record(results_folder(file), scan_name(file.name)) for file in origins(scan))), None)


def _read_json(path: Path) -> Record:
    """Return the content of a file; nothing if it is damaged or missing."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
