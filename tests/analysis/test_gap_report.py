"""The report as people read it, and as programs read it."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from utils.analysis.gap_report import Section, Table, number, write_analysis

FRAME = pd.DataFrame({
    "estimate": ["one", "other"], "n": [40, 39], "mae": [4.321, np.nan], "mae_low": [3.5, np.nan],
    "mae_high": [5.25, np.nan],
    "p_value": [0.0001, 0.5],
})  # fmt: skip


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [(40, "n", "40"), (0.1234, "", "0.123"), (-4.321, "", "-4.32"), (0.0012, "", "0.001"), (np.nan, "", "-"),
     (0.0, "", "0.000"),
     (0.00001, "p_value", "<0.001"), (0.04, "p_value", "0.040"), (12, "persons", "12")],
)  # fmt: skip
def test_numbers(value, name, text) -> None:
    assert number(value, name) == text


def test_tables() -> None:
    rows = Table("", FRAME).present()
    assert rows == [
        ["estimate", "N", "MAE (years)", "p"],
        ["one", "40", "4.32 (3.50 to 5.25)", "<0.001"],
        ["other", "39", "-", "0.500"],
    ]
    assert Table("", FRAME, transposed=True).present()[2] == ["MAE (years)", "4.32 (3.50 to 5.25)", "-"]
    records = Table("", FRAME).records()
    assert records["one"]["mae_low"] == 3.5
    assert records["other"]["mae"] is None


def test_what_users_wrote_cannot_run_in_the_page(tmp_path) -> None:
    section = Section("data", "Data", "<script>alert(1)</script>", ["a headline"], ["a warning"], ["an alarm"])
    section.tables["table"] = Table("caption", FRAME)
    section.figures["figure"] = (Figure(), "a figure")
    write_analysis(tmp_path, [section], FRAME, {"command": "<b>"}, {})
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert (
        page.index("LEAKAGE was allowed") < page.index("a headline") < page.index("an alarm") < page.index("a warning")
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["leakage"] == ["an alarm"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "metrics.json", "subjects.csv", "table.csv", "figures",
    }  # fmt: skip
