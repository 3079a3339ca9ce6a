"""Write an analysis: one page to read, tables and figures to use, scalars for TensorBoard."""

import base64
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from utils.common.errors import InputError
from utils.common.files import check_writable, write_json

PAGE, METRICS = "report.html", "metrics.json"
HEADINGS = {
    "n": "N",
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "r2": "R²",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mean_gap": "mean gap (years)",
    "gap_age_pearson": "gap and age, Pearson",
    "gap_age_spearman": "gap and age, Spearman",
    "auc": "AUC of scores",
    "hard_label_auc": "AUC of hard labels, as the released script",
    "p_value": "p",
    "n_patients": "patients",
    "n_healthy": "healthy",
    "icc_2_1": "ICC(2,1)",
    "icc_3_1": "ICC(3,1)",
    "age_sd": "age SD",
    "sd": "SD",
    "within_subject_sd": "within-subject SD",
    "mean_half_width": "mean half width (years)",
}


@dataclass
class Table:
    """Figures, a row for each thing compared; ``x_low`` and ``x_high`` are the 95 % interval of ``x``.

    Parameters
    ----------
    caption : str
    frame : DataFrame
    upright : bool
        Whether the page shows a column for each thing, and a row for each figure.
    """

    caption: str
    frame: pd.DataFrame
    upright: bool = False

    def present(self) -> list[list[str]]:
        """Return the heading and the rows as people read them, intervals within the cells."""
        frame = self.frame
        names = [
            name
            for name in frame.columns
            if not (name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in frame.columns)
        ]
        rows = [[HEADINGS.get(name, name.replace("_", " ")) for name in names]]
        for _, row in frame.iterrows():
            rows.append([cell(row, name) for name in names])
        return [list(column) for column in zip(*rows, strict=True)] if self.upright else rows

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the figures by row, and then by name; None where not defined."""
        words = [name for name in self.frame.columns if not pd.api.types.is_numeric_dtype(self.frame[name])]
        result = {}
        for row in self.frame.to_dict("records"):
            key = ", ".join(str(row[name]) for name in words if row[name])
            result[key] = {
                str(name): value if np.isfinite(value) else None for name, value in row.items() if name not in words
            }
        return result


@dataclass
class Section:
    """A part of the report.

    Parameters
    ----------
    name : str
        Of its files.
    title, text : str
    headlines : list of str
        What it found, for the top of the page and the terminal.
    warnings, alarms : list of str
        What weakens it, and what voids it.
    tables : dict of str to Table
    figures : dict of str to (Figure, description)
    """

    name: str
    title: str
    text: str
    headlines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)


def number(value: float, name: str = "") -> str:
    """Write a figure as people read it: counts whole, p-values exact, the rest with two or three digits."""
    if not np.isfinite(value):
        return "-"
    if (float(value).is_integer() and name in ("n", "persons", "scans")) or name.startswith("n_"):
        return f"{value:.0f}"
    if name == "p_value":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    size = abs(value)
    return f"{value:.2g}" if 0 < size < 0.01 else f"{value:.3f}" if size < 1 else f"{value:.2f}"


def cell(row: Any, name: str) -> str:
    """Write a figure of a row (Series or dict) as people read it, with its interval where there is one."""
    value = row[name]
    if isinstance(value, str):
        return value
    text = number(value, name)
    low, high = (row.get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    return f"{text} ({number(low)} to {number(high)})" if np.isfinite(low) and text != "-" else text


def _draw(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()


def check_analysis_folder(folder: Path) -> list[str]:
    """Return the files that an earlier analysis wrote there, which a new one replaces.

    Raises
    ------
    InputError
        If the folder holds anything, but no earlier analysis.
    """
    check_writable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return []
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if "provenance" not in content:
            raise ValueError
        files: list[str] = content.get("files", [])
        return files
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: holds other files, not an earlier analysis; set another OUTPUT_DIR (--output_dir)"
        ) from error


def write_analysis(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    subjects: pd.DataFrame,
    provenance: dict[str, str],
    more: Mapping[str, str],
) -> None:
    """Write ``report.html``, ``metrics.json``, tables, figures and TensorBoard events.

    All of it is written aside, and put in place of what an earlier analysis
    left, the page last.

    Parameters
    ----------
    folder : Path
    title : str
    sections : sequence of Section
    subjects : DataFrame, a row for each scan
    provenance : dict of str to str
        How it was made.
    more : mapping of file name to str
        Further files.

    Raises
    ------
    InputError
        See `check_analysis_folder`.
    """
    old = check_analysis_folder(folder)
    drawings = {}
    for section in sections:
        for name, (figure, _) in section.figures.items():
            for kind in ("png", "svg"):
                drawings[f"{name}.{kind}"] = _draw(figure, kind)
    tables = {name: table.frame for section in sections for name, table in section.tables.items()}
    metrics = {name: table.records() for section in sections for name, table in section.tables.items()}
    notes = {"warnings": [line for section in sections for line in section.warnings],
             "leakage": [line for section in sections for line in section.alarms]}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        aside = Path(temporary)
        (aside / "figures").mkdir()
        for file_name, content in drawings.items():
            (aside / "figures" / file_name).write_bytes(content)
        for name, frame in {"subjects": subjects, **tables}.items():
            frame.to_csv(aside / f"{name}.csv", index=False, float_format="%.6g")
        for file_name, text in more.items():
            (aside / file_name).write_text(text, encoding="utf-8")
        with SummaryWriter(str(aside / "tensorboard")) as writer:
            for name, rows in metrics.items():
                for row, values in rows.items():
                    for figure_name, value in values.items():
                        if value is not None:
                            writer.add_scalar(f"{name}/{row}/{figure_name}", value, 0)
            for section in sections:
                for name, (figure, _) in section.figures.items():
                    writer.add_figure(name, figure, 0, close=False)
        files = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
        files += [METRICS, PAGE]
        write_json(aside / METRICS, {**metrics, **notes, "provenance": provenance, "files": files})
        (aside / PAGE).write_text(_render(title, sections, drawings, provenance), encoding="utf-8")
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, folder / name)
        for name in set(old) - set(files):
            (folder / name).unlink(missing_ok=True)


def _render(title: str, sections: Sequence[Section], drawings: dict[str, bytes], provenance: dict[str, str]) -> str:
    """Return the page, which needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    embedded = {
        name.removesuffix(".svg"): "data:image/svg+xml;base64," + base64.b64encode(content).decode()
        for name, content in drawings.items()
        if name.endswith(".svg")
    }
    return environment.get_template("gap_report.html").render(
        title=title, sections=sections, drawings=embedded, provenance=provenance
    )
