"""Write an analysis: one page to read, tables and figures to use, scalars for TensorBoard."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from utils.files import replacing, write_json

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


def write_analysis(
    folder: Path, title: str, sections: Sequence[Section], subjects: pd.DataFrame, provenance: dict[str, str]
) -> None:
    """Write ``report.html``, ``metrics.json``, tables, figures and TensorBoard events; the page comes last.

    Parameters
    ----------
    folder : Path
    title : str
    sections : sequence of Section
    subjects : DataFrame, a row for each scan
    provenance : dict of str to str
        How it was made.
    """
    drawings = {}
    for section in sections:
        for name, (figure, _) in section.figures.items():
            for kind in ("png", "svg"):
                drawings[f"{name}.{kind}"] = _draw(figure, kind)
    page = _render(title, sections, drawings, provenance)

    for file_name, content in drawings.items():
        with replacing(folder / "figures" / file_name) as temporary:
            temporary.write_bytes(content)
    tables = {name: table.frame for section in sections for name, table in section.tables.items()}
    for name, frame in {"subjects": subjects, **tables}.items():
        with replacing(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    metrics = {name: table.records() for section in sections for name, table in section.tables.items()}
    notes = {"warnings": [line for section in sections for line in section.warnings],
             "leakage": [line for section in sections for line in section.alarms]}  # fmt: skip
    write_json(folder / "metrics.json", {**metrics, **notes, "provenance": provenance})
    with SummaryWriter(str(folder / "tensorboard"), purge_step=0) as writer:
        for name, rows in metrics.items():
            for row, figures in rows.items():
                for figure_name, value in figures.items():
                    if value is not None:
                        writer.add_scalar(f"{name}/{row}/{figure_name}", value, 0)
        for section in sections:
            for name, (figure, _) in section.figures.items():
                writer.add_figure(name, figure, 0, close=False)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


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
