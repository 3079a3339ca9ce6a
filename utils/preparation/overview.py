"""Show what preprocessing made of a folder: ``qc.csv``, ``index.html`` and a summary."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from filelock import FileLock

from utils.common.files import replacing
from utils.preparation.parameters import LIMITS
from utils.preparation.records import DOUBTFUL, FAIL, QC_FOLDER, VERDICTS, Record, read_records

MOST_SHOWN = 20  # scans in the summary
PICTURE_SIZE = (1224, 936)  # pixels, of `utils.preparation.quality.draw_picture`
COLUMNS = (
    "name", "verdict", "reasons", *LIMITS, "signal", "noise", "seconds", "memory", "source", "fingerprint", "versions",
)  # fmt: skip


def picture_path(folder: Path, name: str) -> Path:
    """Return where the picture of a scan is kept."""
    return folder / QC_FOLDER / f"{name}.png"


def write_overview(folder: Path) -> None:
    """Write ``qc.csv`` and ``index.html`` from the records of a folder; the jobs of an array take turns."""
    with FileLock(folder / QC_FOLDER / ".lock"):
        rows = [_row(record) for record in read_records(folder)]
        with replacing(folder / "qc.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            picture = picture_path(folder, row["name"])
            row["picture"] = f"{QC_FOLDER}/{picture.name}" if picture.exists() else ""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        page = environment.get_template("quality_page.html").render(
            title=folder.resolve().name, rows=rows, limits=LIMITS, verdicts=VERDICTS, picture_size=PICTURE_SIZE
        )
        with replacing(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


def _row(record: Record) -> dict[str, Any]:
    """Return a record as a row of ``qc.csv``."""
    quality = {name: f"{value:.4g}" for name, value in record["quality"].items() if value is not None}
    versions = " ".join(f"{name}={value}" for name, value in record["versions"].items())
    return record | quality | {"reasons": "; ".join(record["reasons"]), "versions": versions}


def summarize(records: Sequence[Record], folder: Path) -> Counter[str]:
    """Print the verdicts, and the reasons where a scan did not pass; return how many scans have each verdict."""
    counts = Counter(record["verdict"] for record in records)
    seconds = [record["seconds"] for record in records if record.get("quality")]
    print(f"\n{len(records)} scans: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if seconds:
        print(f"  seconds for a scan in one process: median {np.median(seconds):.1f}, maximum {max(seconds):.1f}")
    others = [record for verdict in (FAIL, DOUBTFUL) for record in records if record["verdict"] == verdict]
    width = max((len(record["name"]) for record in others[:MOST_SHOWN]), default=0)
    for record in others[:MOST_SHOWN]:
        print(f"  {record['verdict']:<9} {record['name']:<{width}}  {'; '.join(record['reasons'])}")
    if len(others) > MOST_SHOWN:
        print(f"  ... and {len(others) - MOST_SHOWN} more")
    names = {record["name"] for record in records}
    rest = [record for record in read_records(folder) if record["name"] not in names]
    gone = [record["name"] for record in rest if not Path(record["source"]).exists()]
    if gone:
        print(f"WARNING: {folder} also holds scans whose raw files no longer exist: {', '.join(gone[:MOST_SHOWN])}")
    if {record["fingerprint"] for record in rest} - {record["fingerprint"] for record in records}:
        print(f"WARNING: {folder} also holds scans made with other parameters; see the fingerprint in qc.csv")
    print(f"  brains: {folder}   table: {folder / 'qc.csv'}   pictures: {folder / 'index.html'}")
    return counts
