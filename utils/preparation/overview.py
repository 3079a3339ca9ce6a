"""Show what preprocessing made of a folder: ``qc.csv``, ``index.html`` and a summary."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from filelock import FileLock

from utils.common.files import replacing
from utils.preparation.parameters import LIMITS
from utils.preparation.records import DOUBTFUL, FAIL, QC_FOLDER, VERDICTS, Record, read_whole_record

MOST_SHOWN = 20  # scans in the summary
PICTURE_SIZE = (1224, 936)  # pixels, of `utils.preparation.quality.draw_picture`
COLUMNS = (
    "name", "verdict", "reasons", *LIMITS, "signal", "noise", "seconds", "memory", "source", "fingerprint", "versions",
    "registration", "recorded",
    "software_version",
)  # fmt: skip
MOST_ON_PAGE = 5000  # scans; a browser is slow with more
Row = dict[str, str]  # of ``qc.csv``


def picture_path(folder: Path, name: str) -> Path:
    """Return where the picture of a scan is kept."""
    return folder / QC_FOLDER / f"{name}.png"


def write_overview(folder: Path) -> None:
    """Write ``qc.csv`` and ``index.html`` from the records of a folder; the jobs of an array take turns."""
    with FileLock(folder / QC_FOLDER / ".lock"):
        rows = list_rows(folder)
        with replacing(folder / "qc.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        worst = sorted(rows, key=lambda row: VERDICTS.index(row["verdict"]), reverse=True)[:MOST_ON_PAGE]
        shown = sorted(worst, key=lambda row: row["name"])
        for row in shown:
            picture = picture_path(folder, row["name"])
            row["picture"] = f"{QC_FOLDER}/{picture.name}" if picture.exists() else ""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        page = environment.get_template("quality_page.html").render(
            title=folder.resolve().name, rows=shown, limits=LIMITS, picture_size=PICTURE_SIZE,
            counts={verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS},
            left_out=len(rows) - len(shown),
        )  # fmt: skip
        with replacing(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


def list_rows(folder: Path) -> list[Row]:
    """Return a row for each record of a folder, sorted by name; only records that ``qc.csv`` does not hold are read.

    Its column ``recorded`` tells when a record was written, in ns.
    """
    known = _read_table(folder / "qc.csv")
    rows = []
    with os.scandir(folder / QC_FOLDER) as entries:
        records = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries if entry.name.endswith(".json"))
    for file_name, written in records:
        name = file_name.removesuffix(".json")
        row = known.get(name)
        if row and row["recorded"] == str(written):
            rows.append(row)
        elif not name.startswith(".") and (record := read_whole_record(folder, name)):
            rows.append(_row(record, written))
    return rows


def _read_table(path: Path) -> dict[str, Row]:
    """Return the rows of ``qc.csv`` by name; nothing if it is missing, damaged, or of another version."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                return {}
            return {row["name"]: row for row in reader if row["verdict"] in VERDICTS and None not in row.values()}
    except (OSError, ValueError, csv.Error):
        return {}


def _row(record: Record, written: int) -> Row:
    """Return a record as a row of ``qc.csv``."""
    quality = {name: f"{value:.4g}" for name, value in record["quality"].items() if value is not None}
    versions = " ".join(f"{name}={value}" for name, value in record["versions"].items())
    cells = record | quality | {"reasons": "; ".join(record["reasons"]), "versions": versions, "recorded": written}
    return {column: str(cells.get(column, "")) for column in COLUMNS}


def summarize(records: Sequence[Record], folder: Path) -> Counter[str]:
    """Print the verdicts, and the reasons where a scan did not pass; return how many scans have each verdict."""
    counts = Counter(record["verdict"] for record in records)
    seconds = [record["seconds"] for record in records if record.get("quality")]
    print(
        f"\n{len(records)} scan{'' if len(records) == 1 else 's'}: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    )
    if seconds:
        print(f"  seconds for a scan in one process: median {np.median(seconds):.1f}, maximum {max(seconds):.1f}")
    others = [record for verdict in (FAIL, DOUBTFUL) for record in records if record["verdict"] == verdict]
    width = max((len(record["name"]) for record in others[:MOST_SHOWN]), default=0)
    for record in others[:MOST_SHOWN]:
        print(f"  {record['verdict']:<9} {record['name']:<{width}}  {'; '.join(record['reasons'])}")
    if len(others) > MOST_SHOWN:
        print(f"  ... and {len(others) - MOST_SHOWN} more")
    names = {record["name"] for record in records}
    rest = [row for row in list_rows(folder) if row["name"] not in names]
    gone = [row["name"] for row in rest if not Path(row["source"]).exists()]
    if gone:
        print(f"WARNING: {folder} also holds scans whose raw files no longer exist: {', '.join(gone[:MOST_SHOWN])}")
    if {row["fingerprint"] for row in rest} - {record["fingerprint"] for record in records}:
        print(f"WARNING: {folder} also holds scans made with other parameters; see the fingerprint in qc.csv")
    print(f"  brains: {folder}   table: {folder / 'qc.csv'}   pictures: {folder / 'index.html'}")
    return counts
