"""Write an analysis: one page to read, tables and figures to use."""

import base64
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from utils.common.errors import InputError
from utils.common.figures import Figure
from utils.common.files import check_results, read_json, write_json

PAGE, METRICS = "report.html", "metrics.json"
HEADINGS = {
    "n": "N",
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "auc": "AUC of scores",
    "icc": "ICC(2,1)",
    "p_value": "p",
}


@dataclass
class Table:
    """Figures, one row for each thing compared; ``x_low`` and ``x_high`` are the 95 % interval of ``x``."""

    caption: str
    frame: pd.DataFrame
    transposed: bool = False  # the page shows one column for each thing compared

    def present(self) -> list[list[str]]:
        """Return the heading and the rows as the page shows them, with intervals inside the cells."""
        names = [name for name in self.frame.columns if not name.endswith(("_low", "_high"))]
        rows = [[HEADINGS.get(name, name.replace("_", " ")) for name in names]]
        rows += [[cell(row, name) for name in names] for _, row in self.frame.iterrows()]
        return [list(column) for column in zip(*rows, strict=True)] if self.transposed else rows

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the figures by row and name; None where undefined."""
        words = [name for name in self.frame.columns if not pd.api.types.is_numeric_dtype(self.frame[name])]
        return {
            ", ".join(str(row[name]) for name in words if row[name]): {
                str(name): value if np.isfinite(value) else None for name, value in row.items() if name not in words
            }
            for row in self.frame.to_dict("records")
        }


@dataclass
class Section:
    """A part of the report; its tables and figures, with a description, are written to files of these names."""

    name: str  # anchor in the page
    title: str
    text: str
    headlines: list[str] = field(default_factory=list)  # shown at the top of the page and in the terminal
    warnings: list[str] = field(default_factory=list)  # what weakens the results
    alarms: list[str] = field(default_factory=list)  # what makes the results invalid
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)


def number(value: float, name: str = "") -> str:
    """Format a figure for people to read; "-" if it is undefined."""
    if not np.isfinite(value):
        return "-"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if name == "p_value":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def cell(row: Any, name: str) -> str:
    """Format a figure of a row (Series or dict), with its interval if there is one."""
    value = row[name]
    if isinstance(value, str):
        return value
    text = number(value, name)
    low, high = (row.get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    return f"{text} ({number(low)} to {number(high)})" if np.isfinite(low) and text != "-" else text


def check_analysis_folder(folder: Path, overwrite: bool) -> list[str]:
    """Return the files of an earlier analysis in a folder, which a new one replaces.

    Raises
    ------
    InputError
        If the folder holds an earlier analysis and `overwrite` is false, or other files.
    """
    check_results(folder, [PAGE], overwrite)
    if not folder.exists() or not any(folder.iterdir()):
        return []
    try:
        files = read_json(folder / METRICS)["files"]
        if not all(isinstance(name, str) and ".." not in name and not name.startswith("/") for name in files):
            raise ValueError("it names files elsewhere")
        return list(files)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder}: holds other files, not an earlier analysis; set another OUTPUT_DIR (--output_dir)"
        ) from error


def write_analysis(
    folder: Path,
    sections: Sequence[Section],
    subjects: pd.DataFrame,
    provenance: Mapping[str, str],
    more: Mapping[str, str],
) -> None:
    """Write ``report.html``, ``metrics.json``, tables and figures.

    Everything is written to a temporary folder first and then replaces what
    an earlier analysis left, the page last.

    Parameters
    ----------
    folder : Path
    sections : sequence of Section
    subjects : DataFrame, one row per scan
    provenance : mapping of str to str, how the analysis was made
    more : mapping of file name to str, further files
    """
    old = check_analysis_folder(folder, overwrite=True)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: table for section in sections for name, table in section.tables.items()}
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        aside = Path(temporary)
        (aside / "figures").mkdir()
        drawings = {}
        for name, (figure, _) in (item for section in sections for item in section.figures.items()):
            for kind in ("png", "svg"):
                figure.savefig(aside / "figures" / f"{name}.{kind}", dpi=150)
            drawings[name] = base64.b64encode((aside / "figures" / f"{name}.svg").read_bytes()).decode()
        for name, frame in {"subjects": subjects, **{name: table.frame for name, table in tables.items()}}.items():
            frame.to_csv(aside / f"{name}.csv", index=False, float_format="%.6g")
        for name, text in more.items():
            (aside / name).write_text(text, encoding="utf-8")
        files = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
        files += [METRICS, PAGE]
        metrics: dict[str, Any] = {name: table.records() for name, table in tables.items()}
        metrics["warnings"] = [line for section in sections for line in section.warnings]
        metrics["leakage"] = [line for section in sections for line in section.alarms]
        write_json(aside / METRICS, {**metrics, "provenance": provenance, "files": files})
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        page = environment.get_template("gap_report.html").render(
            sections=sections, drawings=drawings, provenance=provenance
        )
        (aside / PAGE).write_text(page, encoding="utf-8")
        (folder / "figures").mkdir(exist_ok=True)
        for name in files:
            os.replace(aside / name, folder / name)
        for name in set(old) - set(files):
            (folder / name).unlink(missing_ok=True)
