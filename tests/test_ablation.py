"""The ablation: what it runs, and what it makes of the results."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import ablation, ablation_report
from benchmarks.ablation_report import describe_row, interval_over_seeds, probe_errors, read_row, to_markdown
from benchmarks.ablation_rows import MSE, PAPER, Row, make_rows
from tests.test_scripts import bash
from utils.common.errors import InputError
from utils.data.subjects import Subject
from utils.prediction.script_runs import run_chains

PLAIN = [
    {"ranking_weight": 10.0, "batch_size": 16, "epochs": 20, "learning_rate": 1e-3, "warmup_epochs": 3,
     "augmentation": ("flip", "gain"), "blocks": 4},
    {"epochs": 6},
]  # fmt: skip
ROWS = make_rows(PLAIN, 20.0, (40, 60), "sorter_16.pt")


def test_rows_build_on_each_other() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert row.reference in names
        assert row.first is not None or row.second is not None  # each trains something


def test_ranks_in_years_have_the_spread_of_the_ages() -> None:
    """A tenth of the weight is the factor between squared ranks and squared years."""
    (scaled,) = (row for row in ROWS if row.name == "scaled")
    ages = np.linspace(0, 1, 10_001)  # uniform ranks
    spread = ages.std() * (float(str(scaled.first["RANKING_WEIGHT"])) / 10) ** 0.5
    assert spread == pytest.approx(20.0, rel=1e-3)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


class Recorder:
    """Runs nothing: notes the script and its variables, and writes what the script would have written."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, log: Path, script: str, flags: list[str], variables: dict[str, Any], jobs: int) -> None:
        self.runs.append((script, variables))
        ages = ["train_discretized_age.npy"] if variables.get("SPLIT") == "train" or "train_first" in script else []
        for name in (["best.pt"] if "train" in script else ["predictions.csv"]) + ages:
            touch(variables["OUTPUT_DIR"] / name)


def run(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    recorder = Recorder()
    monkeypatch.setattr("utils.prediction.script_runs.run_script", recorder)
    monkeypatch.setattr(ablation, "discretize_anew", lambda source, target, step: touch(target))
    (row,) = (row for row in ROWS if row.name == name)
    place = ablation.Place(root, "fold_1", 3)
    run_chains([list(ablation.steps(row, place, {"LABEL_TABLE": "labels.csv"}, (20, 6), 1))], 1)
    return recorder.runs


def test_a_cascade_is_trained_on_the_first_stage_of_another_row(tmp_path, monkeypatch) -> None:
    (_, train), (_, test) = run("interval_10", tmp_path, monkeypatch)
    assert train["FIRST_STAGE_CHECKPOINT"] == tmp_path / PAPER / "fold_1" / "seed_3" / "first_stage" / "best.pt"
    assert train["DISCRETIZED_AGE_FOLDER"] == tmp_path / "interval_10" / "fold_1" / "seed_3" / "ages"
    assert (train["AGE_INTERVAL"], train["EPOCHS"], train["SEED"]) == (10, 6, 3)
    assert test["CHECKPOINT"] == train["OUTPUT_DIR"] / "best.pt"
    assert test["TEST_FOLDER"] == tmp_path / "splits" / "fold_1" / "test"
    assert run("interval_10", tmp_path, monkeypatch) == []  # it is finished


def test_halves_never_meet(tmp_path, monkeypatch) -> None:
    runs = run("halves", tmp_path, monkeypatch)
    assert [script for script, _ in runs] == [
        "bash_train_first_stage.sh", "bash_test_first_stage.sh", "bash_test_first_stage.sh",
        "bash_train_second_stage.sh", "bash_test_second_stage.sh",
    ]  # fmt: skip
    half_1, half_2 = (tmp_path / "splits" / "fold_1" / f"half_{k}" for k in (1, 2))
    assert [runs[0][1]["TRAIN_FOLDER"], runs[2][1]["TEST_FOLDER"], runs[3][1]["TRAIN_FOLDER"]] == [
        half_1,
        half_2,
        half_2,
    ]
    assert runs[3][1]["DISCRETIZED_AGE_FOLDER"] == runs[2][1]["OUTPUT_DIR"]


def write_predictions(root: Path, row: str, seed: int, fold: int, ages: np.ndarray, brain_ages: np.ndarray) -> None:
    folder = root / row / f"fold_{fold}" / f"seed_{seed}" / "first_stage_test"
    folder.mkdir(parents=True)
    names = [f"p{fold}-{k}" for k in range(len(ages))]
    table = pd.DataFrame({"subject_id": names, "chronological_age": ages, "brain_age": brain_ages})
    table.to_csv(folder / "predictions.csv", index=False)


def test_a_row_is_compared_over_the_same_people_and_seeds(tmp_path) -> None:
    ages = np.linspace(20, 80, 30)
    rows = [next(row for row in ROWS if row.name == name) for name in (MSE, PAPER)]
    for fold in (1, 2):
        for seed, error in ((0, 6.0), (1, 5.0)):
            write_predictions(tmp_path, MSE, seed, fold, ages, ages + error)
        write_predictions(tmp_path, PAPER, 0, fold, ages, ages - 4.0)
    write_predictions(tmp_path, PAPER, 1, 1, ages, ages + 50.0)  # fold 2 is still missing
    tables = {row.name: read_row(tmp_path, row, 2) for row in rows}
    names = [f"p{fold}-{k}" for fold in (1, 2) for k in range(30)]
    true_ages = pd.Series(np.tile(ages + 1.5, 2), index=names)
    reference, compared = (describe_row(row, tables, tmp_path, true_ages) for row in rows)
    assert (reference["mae"], reference["seeds"], reference["people"]) == (pytest.approx(5.5), 2, 60)
    assert reference["floor"] == pytest.approx(1.5)
    assert np.isnan(reference["gain"])
    assert (compared["gain"], compared["common_seeds"]) == (pytest.approx(2.0), 1)  # seed 0 alone
    assert (compared["gain_low"], compared["gain_high"]) == (pytest.approx(2.0), pytest.approx(2.0))
    text = to_markdown(pd.DataFrame([reference, compared]))
    assert "| +2.00 (+2.00 to +2.00) | squared error alone |" in text  # not bold: one seed shows nothing
    several = to_markdown(pd.DataFrame([reference, compared | {"common_seeds": 2}]))
    assert "| **+2.00 (+2.00 to +2.00)** | squared error alone |" in several


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.8), (12, 0.88)])
def test_the_interval_covers_trainings_and_persons(seeds, least) -> None:
    """Each fold and seed has a level of its own, as networks have."""
    rng = np.random.default_rng(1)
    folds = np.repeat(["a", "b", "c"], 30)
    held = 0
    for _ in range(100):
        networks = np.repeat(rng.normal(0, 0.25, (seeds, 3)), 30, 1)
        values = rng.normal(0, 0.8, (1, 90)) + networks + rng.normal(0, 0.5, (seeds, 90))
        low, high = interval_over_seeds(values, [f"p{k}" for k in range(90)], folds)
        held += low <= 0 <= high
    assert least <= held / 100 <= 0.99
    repeated = interval_over_seeds(np.repeat([[0.0, 1.0]], 40, 1), ["a"] * 40 + ["b"] * 40, ["f"] * 80)
    assert repeated == (0.0, 1.0)  # two persons, however many scans


def test_features_that_know_the_error_are_found(tmp_path, monkeypatch) -> None:
    """The probe sees the error where the features hold it, beyond a constant."""
    rng = np.random.default_rng(0)
    ages, error = rng.uniform(20, 80, 60), rng.normal(3, 5, 60)
    write_predictions(tmp_path, PAPER, 0, 1, ages, ages - error)
    people = [Subject(f"p1-{k}", tmp_path / f"p1-{k}.nii", age, 0) for k, age in enumerate(ages)]
    monkeypatch.setattr(ablation_report, "load_checkpoint", lambda path: {})
    monkeypatch.setattr(ablation_report, "load_network", lambda checkpoint, stage: torch.nn.Identity())
    monkeypatch.setattr(ablation_report.ScanStore, "prepare", lambda self, paths: [])
    for known, least, most in ((error, 0.9, 1.0), (rng.normal(0, 1, 60), -0.2, 0.1)):
        monkeypatch.setattr(ablation_report, "predict", lambda *_, known=known, **__: {"features": known[:, None]})
        probe = probe_errors(tmp_path, people, None)
        assert least <= probe["r2"] <= most
        assert (probe["low"] > 1) == (least > 0)


def test_a_row_that_changes_nothing_is_refused() -> None:
    rows = [Row(MSE, "", "", MSE, {"RANKING_WEIGHT": 0}), Row(PAPER, "", "", MSE, {})]
    assert ablation.check_rows(rows, lambda stage, variables: dict(variables)).keys() == {MSE, PAPER}
    with pytest.raises(InputError, match="row paper .* is trained like the row mse"):
        ablation.check_rows(rows, lambda stage, variables: {"stage": stage})


def test_chosen_rows_bring_those_that_they_need() -> None:
    def chosen(*names: str) -> list[str]:
        return [row.name for row in ablation.choose_rows(ROWS, names)]

    assert chosen("continuous") == [MSE, PAPER, "continuous"]
    assert chosen("few") == [MSE, "few_mse", "few"]
    assert len(chosen("all")) == len(ROWS)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "paper,nothing"], "no row nothing"),
        (["--rows", "sodeep"], "--sorter: runs/sorter_16.pt"),
        (["--folds", "0"], "--folds: needs at least 2 folds"),
        (["--narrow", "60,40"], "too small"),
    ],
)
def test_wrong_choices_end_before_anything_is_written(
    synthetic_cohort, tmp_path, monkeypatch, capsys, flags, said
) -> None:
    folders = " ".join(str(synthetic_cohort / part) for part in ("train", "valid", "test"))
    given = ["--scan_folder", folders, "--label_table", str(synthetic_cohort / "labels.csv")]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *given, "--output_dir", str(tmp_path / "run"), *flags])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        ablation.run_command(ablation.main)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shards_divide_the_trainings_and_leave_second_stages_whose_first_is_missing(
    synthetic_cohort, tmp_path, monkeypatch, capsys
) -> None:
    recorder = Recorder()
    monkeypatch.setattr("utils.prediction.script_runs.run_script", recorder)
    monkeypatch.setattr(ablation, "discretize_anew", lambda source, target, step: touch(target))
    monkeypatch.setattr(ablation_report, "write_results", lambda *_: None)
    given = ["--scan_folder", str(synthetic_cohort / "train"), "--label_table", str(synthetic_cohort / "labels.csv")]
    given += ["--output_dir", str(tmp_path / "run"), "--rows", "continuous", "--folds", "2"]

    def places(part: int) -> list[str]:
        recorder.runs.clear()
        monkeypatch.setattr(sys, "argv", ["ablation.py", *given, "--shard", f"{part}/3"])
        ablation.main()
        trained = [variables["OUTPUT_DIR"] for script, variables in recorder.runs if "train" in script]
        return [str(folder.relative_to(tmp_path / "run").parents[1]) for folder in trained]

    assert places(1) == [f"{MSE}/fold_1", f"{PAPER}/fold_2"]  # continuous/fold_1 needs paper/fold_1
    assert "left to other shards, or to this command again: 10 scripts" in capsys.readouterr().out
    assert places(2) == [f"{MSE}/fold_2", "continuous/fold_2"]
    assert places(3) == [f"{PAPER}/fold_1"]
    capsys.readouterr()
    assert places(1) == ["continuous/fold_1"]
    assert "left" not in capsys.readouterr().out


def test_the_script_trains_compares_and_goes_on(synthetic_cohort, tmp_path) -> None:
    variables = {
        "DATA": synthetic_cohort, "OUTPUT_DIR": tmp_path / "run", "ROWS": "continuous", "FOLDS": 2, "JOBS": 2,
        "FIRST_EPOCHS": 2, "SECOND_EPOCHS": 1, "BATCH_SIZE": 4, "BLOCKS": 3, "NUM_WORKERS": 0, "CACHE_FOLDER": "",
        "VOXEL_SIZE": 8, "MODEL": "scaledense_paper", "WARMUP_EPOCHS": 0, "RECIPE": "recipes/small_cohort.sh",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    bash("ablation", **variables)
    table = pd.read_csv(tmp_path / "run" / "ablation.csv").set_index("row")
    assert list(table.index) == [MSE, PAPER, "continuous"]
    assert (table["people"] == 22).all()
    assert table.loc["continuous", ["gain", "gain_low", "gain_high"]].notna().all()
    for name in ("ablation.png", "gradients.png", "gradients.csv", "probe.json", "ablation.md"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    marker = tmp_path / "run" / PAPER / "fold_1" / "seed_0" / "first_stage" / "best.pt"
    before = marker.stat().st_mtime_ns
    bash("ablation", **variables)
    assert marker.stat().st_mtime_ns == before
