"""The comparison of runs: its table, its flags, its figure, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import compare_runs
from utils.analysis.run_comparison import compare, describe_comparison, differing_flags, read_runs
from utils.analysis.run_figure import plot_comparison
from utils.common.errors import InputError
from utils.common.files import write_json
from utils.evaluation.metrics import compare_errors

AGES = np.linspace(20, 80, 40)


def write_training(folder: Path, mae: list[float], split: str = "valid", **flags: object) -> None:
    """Write what a training leaves, but its weights."""
    common = {"epochs": 30, "use_sex": True, "augmentation": ["flip"], "output_dir": str(folder), "num_workers": 1}
    write_json(
        folder / "hyperparameters.json", {**common, **flags, "versions": {"torch": "2.13.0"}, "command": [str(folder)]}
    )
    table = {"epoch": np.arange(len(mae)), "train/loss": 1.0, f"{split}/mae": mae}
    pd.DataFrame(table).to_csv(folder / "metrics.csv", index=False)


def write_predictions(path: Path, errors: np.ndarray, first: np.ndarray | None = None, begin: int = 0) -> None:
    """Write a table as testing does, of subjects counted from `begin`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"sub-{begin + number:02d}" for number in range(len(errors))]
    ages = AGES[begin : begin + len(errors)] if begin + len(errors) <= len(AGES) else np.linspace(20, 80, len(errors))
    table = pd.DataFrame({"subject_id": names, "person": names, "chronological_age": ages, "brain_age": ages + errors})
    if first is not None:
        table["first_stage_age"] = ages + first
    table.to_csv(path, index=False)


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """A cascade, one with other flags that errs less, on other subjects in part, and a first stage."""
    rng = np.random.default_rng(0)
    for name, scale, begin, flags in (("a", 6.0, 0, {}), ("b", 1.5, 8, {"epochs": 50, "learning_rate": 0.01})):
        write_training(tmp_path / name / "first_stage", [9.0, 7.0, 5.0], **flags)
        first = str(tmp_path / name / "first_stage" / "best.pt")
        write_training(tmp_path / name / "second_stage", [4.0, 4.5], "train", first_stage_checkpoint=first)
        errors = rng.normal(0, scale, 40 - begin)
        write_predictions(tmp_path / name / "second_stage" / "test" / "predictions.csv", errors, 2 * errors, begin)
    write_training(tmp_path / "c", [8.0])
    write_predictions(tmp_path / "c" / "test" / "predictions.csv", rng.normal(0, 6, 40))
    return [tmp_path / "a", tmp_path / "b" / "second_stage", tmp_path / "c"]


def test_the_table_has_both_stages_and_paired_gains_on_common_subjects(runs) -> None:
    found = read_runs(runs)
    table = compare(found).set_index("run")
    assert table.index.tolist() == ["a", "b/second_stage", "c"]
    assert table["estimate"].tolist() == ["cascade", "cascade", "first stage"]
    one, other = (found[number].ages.set_index("subject_id") for number in (0, 1))
    common = one.index.intersection(other.index)
    assert table["common"].tolist()[1:] == [len(common), 40] == [32, 40]
    age, before, after = (
        part.loc[common, name].to_numpy(float)
        for part, name in ((one, "chronological_age"), (one, "brain_age"), (other, "brain_age"))
    )
    gain = compare_errors(age, after, before)
    row = table.loc["b/second_stage"]
    assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx(tuple(gain.values()))
    assert row["gain_low"] > 0
    assert np.isnan(table.loc["a", "gain"])
    assert row["first_stage_mae"] == pytest.approx(2 * row["mae"], rel=1e-4)
    assert row["second_stage_gain"] == pytest.approx(row["mae"], rel=1e-4)
    assert row["mae_low"] < row["mae"] < row["mae_high"]
    assert (row["first_stage_epochs"], row["first_stage_valid_mae"]) == (3, 5.0)  # found beside its checkpoint
    assert (row["second_stage_epochs"], row["second_stage_train_mae"]) == (2, 4.0)


def test_flags_that_differ_are_named_and_others_are_not(runs) -> None:
    found = read_runs(runs)
    flags = differing_flags(found)
    assert flags.to_dict("index") == {
        "first stage: epochs": {"a": "30", "b/second_stage": "50", "c": "30"},
        "first stage: learning_rate": {"a": "-", "b/second_stage": "0.01", "c": "-"},
    }
    lines = list(describe_comparison(compare(found), flags))
    assert "  first stage: epochs   30: a, c   50: b/second_stage" in lines
    assert lines[0].split()[-4:] == ["gain", "over", "a", "common"] or "gain over a" in lines[0]


def test_the_script_writes_one_row_a_run_and_a_figure(runs, tmp_path, run_here) -> None:
    words = " ".join(f"'{run}'" for run in runs)
    shown = run_here("compare_runs.py", "--runs", words, "--output_dir", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["folder"].tolist() == list(map(str, runs))
    assert table["first stage: epochs"].tolist() == [30, 50, 30]
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    assert "gain over a" in shown
    with pytest.raises(InputError, match=r"holds comparison\.csv, comparison\.png already"):
        run_here("compare_runs.py", "--runs", words, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("count", [2, 8])
def test_no_label_of_the_figure_overlaps_another(tmp_path, count) -> None:
    rng = np.random.default_rng(1)
    folders = [tmp_path / f"an_experiment_with_a_rather_long_name_{number}" for number in range(count)]
    for folder in folders:
        write_training(folder / "first_stage", list(10 - np.arange(9) * rng.uniform(0.3, 0.6)))
        errors = rng.normal(0, 5, 40)
        write_predictions(folder / "second_stage" / "test" / "predictions.csv", errors, 1.2 * errors)
    found = read_runs(folders)
    figure = plot_comparison(found, compare(found))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        boxes += [axes.title.get_window_extent(), axes.xaxis.label.get_window_extent()]
        assert not [1 for one in boxes for other in boxes if one is not other and one.overlaps(other)]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert not [1 for one in titles for other in titles if one is not other and one.overlaps(other)]


def test_runs_that_were_not_tested_are_compared_by_their_curves(runs, tmp_path) -> None:
    write_training(tmp_path / "d", [6.0, 5.0])
    write_training(tmp_path / "e", [6.0, 4.0], epochs=31)
    found = read_runs([tmp_path / "d", tmp_path / "e"])
    table, flags = compare(found), differing_flags(found)
    assert table["first_stage_valid_mae"].tolist() == [5, 4]
    assert any("30: d   31: e" in line for line in describe_comparison(table, flags))
    assert len(plot_comparison(found, table).axes) == 1


def test_a_cross_validation_has_flags_and_the_mean_of_its_curves(runs, tmp_path) -> None:
    folder = tmp_path / "cv"
    write_predictions(folder / "predictions.csv", np.ones(40), 2 * np.ones(40))
    write_json(folder / "settings.json", {"--epochs of the first stage": 40, "SHA-256 of the label table": "abc"})
    for number, mae in enumerate(([4.0, 2.0], [6.0, 4.0]), 1):
        write_training(folder / f"fold_{number}" / "member_1" / "first_stage", mae, "train")
    found = read_runs([runs[0], folder])
    row = compare(found).iloc[1]
    assert (row["first_stage_epochs"], row["first_stage_train_mae"]) == (2, 3.0)
    assert differing_flags(found).loc["first stage: epochs"].tolist() == ["30", "40"]


def test_what_cannot_be_compared_is_refused_together(runs, tmp_path, monkeypatch) -> None:
    write_predictions(tmp_path / "others" / "predictions.csv", np.ones(10), begin=90)
    write_predictions(tmp_path / "older" / "predictions.csv", np.ones(12))
    table = pd.read_csv(tmp_path / "older" / "predictions.csv")
    table.assign(chronological_age=table["chronological_age"] + 1).to_csv(tmp_path / "older" / "predictions.csv")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "hyperparameters.json").write_text("{")
    given = [*runs, tmp_path / "others", tmp_path / "older", tmp_path / "empty", broken, tmp_path / "nowhere", runs[0]]
    with pytest.raises(InputError) as caught:
        read_runs(given)
    lines = caught.value.problems
    assert len(lines) == 6
    for said in (
        "a: is given twice", "empty: is no run; give the OUTPUT_DIR", "nowhere: is no run", "broken/hyperparameters.json: cannot be read",
        "others: has no subject in common with a", "older: gives other ages than a for 12 subjects, such as sub-00 (21 and 20)",
    ):  # fmt: skip
        assert sum(said in line for line in lines) == 1, (said, lines)
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", "--runs", str(runs[0]), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(InputError, match="at least two runs"):
        compare_runs.main()
    assert not (tmp_path / "out").exists()
