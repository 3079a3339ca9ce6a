"""What testing writes: tables, arrays, metrics and the figure."""

import csv
import json

import numpy as np

from utils.data.preparations import ORIGIN
from utils.data.subjects import Subject
from utils.evaluation.reports import announce_report, plot_ages, write_report
from utils.training.stages import SecondStage


def cohort(folder, known=6, size=6):
    subjects = [Subject(f"s{i}", folder, 20.0 + 10 * i if i < known else float("nan"), i % 2) for i in range(size)]
    age = np.array([s.chronological_age for s in subjects], np.float32)
    shift = np.array([1, -2, 3, -1, 2, 0], np.float32)[:size]
    base = np.nan_to_num(age, nan=50)
    return subjects, {"chronological_age": age, "brain_age": base + shift, "residual_age": shift,
                      "discretized_age": base // 20 * 20, "first_stage_age": base + 2 * shift}  # fmt: skip


def test_csv_and_npz_hold_the_same(tmp_path) -> None:
    subjects, predictions = cohort(tmp_path)
    metrics = write_report(
        tmp_path, subjects, predictions, "Cascade", ("first_stage_age", "discretized_age", "residual_age"),
        stage_report=SecondStage(5.0).report,
    )  # fmt: skip
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["subject_id", "person", "chronological_age", "sex", "brain_age", "brain_age_gap",
                             "first_stage_age", "discretized_age", "residual_age", *ORIGIN]  # fmt: skip
    assert rows[1]["sex"] == "M"
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as arrays:
        for name in rows[0]:
            assert [row[name] for row in rows] == [
                cell if isinstance(cell, str) else f"{cell:.4f}" for cell in arrays[name].tolist()
            ]
    assert float(rows[2]["brain_age_gap"]) == 3
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["mae"] == 1.5
    assert metrics["first_stage"]["mae"] == 3
    assert metrics["gain_over_first_stage"] == 1.5


def test_unknown_ages_leave_no_metrics(tmp_path, capsys) -> None:
    subjects, predictions = cohort(tmp_path, known=0)
    assert write_report(tmp_path, subjects, predictions, "First stage") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions.npz"]
    with (tmp_path / "predictions.csv").open() as file:
        assert {row["brain_age_gap"] for row in csv.DictReader(file)} == {""}
    announce_report(tmp_path, "first stage", None)
    assert "no age is known" in capsys.readouterr().out


def test_metrics_are_of_the_subjects_whose_age_is_known(tmp_path, capsys) -> None:
    subjects, predictions = cohort(tmp_path, known=4)
    metrics = write_report(
        tmp_path,
        subjects,
        predictions,
        "Cascade",
        ("first_stage_age", "residual_age"),
        "a.npz",
        "b.png",
        SecondStage(5.0).report,
    )
    assert metrics["n"] == metrics["first_stage"]["n"] == 4
    assert {"a.npz", "b.png", "metrics.json", "predictions.csv"} == {path.name for path in tmp_path.iterdir()}
    announce_report(tmp_path, "cascade", metrics)
    shown = capsys.readouterr().out
    assert "first stage" in shown
    assert "1.75" in shown


def test_the_figure_has_identity_fit_and_points() -> None:
    age = np.linspace(20, 80, 9)
    axes = plot_ages(age, 0.5 * age + 25, "Title", ["MAE = 1"]).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["identity", "fit, slope 0.50"]
    assert len(axes.collections[0].get_offsets()) == 9
    assert plot_ages(age[:1], age[:1], "one subject").axes


def test_groups_have_a_color_and_a_name_each() -> None:
    age = np.linspace(20, 80, 9)
    axes = plot_ages(age, age, "Title", groups=list("aabbbbaac")).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["identity", "fit, slope 1.00", "a", "b", "c"]  # the largest first, equal ones by name
    assert [len(points.get_offsets()) for points in axes.collections] == [4, 4, 1]
    assert len({tuple(points.get_facecolor()[0]) for points in axes.collections}) == 3
    alike = plot_ages(age, age, "Title", groups=["a"] * 9).axes[0]
    assert len(alike.get_legend().get_texts()) == 2


def test_groups_of_subjects_without_an_age_are_left_out(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(
        "utils.evaluation.reports.plot_ages", lambda *given: (drawn.append(given), plot_ages(*given))[1]
    )
    subjects, predictions = cohort(tmp_path, known=4)
    write_report(tmp_path, subjects, predictions, "Cascade", groups=list("abcdef"))
    ((age, _, _, _, groups),) = drawn
    assert age.tolist() == [20, 30, 40, 50]
    assert groups == list("abcd")
