"""What the benchmarks make of tables of ages."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.adaptation import NUMBERS, TESTED, calibration_rows
from benchmarks.robustness import AS_IT_IS, summarize


def test_moves_are_counted_against_the_same_scan_as_it_is() -> None:
    rows = [  # name, brain age, status, warnings
        ("a__2 mm", 44.0, "ok", "is doubtful"),
        ("a__as it is", 40.0, "ok", None),
        ("a__gamma 0.7", 39.0, "ok", None),
        ("b__2 mm", 55.0, "ok", None),
        ("b__as it is", 60.0, "ok", None),
        ("b__gamma 0.7", None, "failed", "no brain"),
        ("c__2 mm", 72.0, "unlike training scans", "is unlike"),
        ("c__as it is", 70.0, "ok", None),
        ("c__gamma 0.7", 72.5, "ok", None),
    ]
    table = summarize(pd.DataFrame(rows, columns=["subject_id", "brain_age", "status", "warnings"]))
    table = table.set_index("change")
    assert list(table.index) == [AS_IT_IS, "2 mm", "gamma 0.7"]
    assert (table.loc[AS_IT_IS, ["mean move", "largest", "failed", "over 3 years"]] == 0).all()
    coarse, gamma = table.loc["2 mm"], table.loc["gamma 0.7"]
    assert coarse[["mean move", "mean size of moves", "largest"]].tolist() == pytest.approx([1 / 3, 11 / 3, 5])
    counts = ["scans", "failed", "over 3 years", "of them marked unlike", "others marked unlike"]
    assert coarse[counts].tolist() == [3, 0, 2, 0, 1]
    assert gamma[counts].tolist() == [3, 1, 0, 0, 0]
    assert gamma[["mean move", "largest"]].tolist() == pytest.approx([0.75, 2.5])


def test_calibration_is_measured_on_people_whom_it_did_not_use() -> None:
    """Three sites with offsets of their own, one of them too small for most numbers of people."""
    rng = np.random.default_rng(0)
    sites = np.repeat(["Oslo", "Rome", "Ulm"], [200, 200, TESTED + 10])
    age = rng.uniform(20, 80, len(sites))
    gap = pd.Series(sites).map({"Oslo": 6.0, "Rome": -4.0, "Ulm": 0.0}).to_numpy() + rng.normal(0, 5, len(sites))
    table = pd.DataFrame({"site": sites, "chronological_age": age, "brain_age": age + gap})
    rows = pd.DataFrame(calibration_rows(table, np.random.default_rng(0))).set_index(["site", "people"])
    assert {site: [n for own, n in rows.index if own == site] for site in ("Oslo", "Rome", "Ulm")} == {
        "Oslo": list(NUMBERS), "Rome": list(NUMBERS), "Ulm": [0, 5, 10],
    }  # fmt: skip
    for site in ("Oslo", "Rome"):
        own = np.abs(gap[sites == site])
        assert rows.loc[(site, 0), "mae"] == pytest.approx(own.mean())
        assert rows.loc[(site, 0), "mean_gap"] == pytest.approx(abs(gap[sites == site].mean()))
        gaps = rows.loc[site, "mean_gap"].to_numpy()
        assert (np.diff(gaps) < 0).all()  # the more people, the smaller
        assert gaps[-1] < 1.5
        assert rows.loc[(site, 40), "mae"] == pytest.approx(5 * np.sqrt(2 / np.pi), rel=0.1)
        assert rows.loc[(site, 40), "coverage"] == pytest.approx(0.9, abs=0.04)
