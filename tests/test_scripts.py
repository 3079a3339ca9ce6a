"""The bash scripts and entry points end to end, on the CPU."""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import QUICK, ROOT, SMALL_NETWORK, VOXEL_SIZE, data_flags, run_script, save_scan
from tests.model.test_scaledense import released_state_dict
from utils.common.files import sha256_of
from utils.data.images import MNI152_T1_2MM


def bash(script: str, *flags: object, **variables: object) -> str:
    """Run a bash script as a user does: variables in the environment, further flags behind."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        ["bash", str(ROOT / f"bash_{script}.sh"), *map(str, flags)],
        capture_output=True, text=True, check=False, timeout=300,
        env=environment | {name: str(value) for name, value in variables.items()},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_cascade_through_its_bash_scripts(synthetic_cohort, tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = {"DATA": synthetic_cohort, "BATCH_SIZE": 4, "NUM_WORKERS": 0}
    training = {**common, "MODEL": "scaledense_paper", "EPOCHS": 2, "SCHEDULER": "cosine"}
    bash("train_first_stage", "--blocks", 3, OUTPUT_DIR=first, VOXEL_SIZE=VOXEL_SIZE, FOLDS=2, **training)
    checkpoint = {"FIRST_STAGE_CHECKPOINT": first / "best.pt"}
    output = bash("train_second_stage", "--blocks", 3, OUTPUT_DIR=second, **checkpoint, **training)
    assert "residual_sd" in output
    assert "gain_over_first_stage" in output
    shown = bash("test_first_stage", CHECKPOINT=first / "best.pt", OUTPUT_DIR=tmp_path / "test_first", **common)
    assert "MAE (years)" in shown
    shown = bash(
        "test_second_stage", CHECKPOINT=second / "best.pt", OUTPUT_DIR=tmp_path / "test_second", **checkpoint, **common
    )
    assert "first stage" in shown
    files = {"predictions.csv", "predictions.npz", "metrics.json", "brain_age.png"}
    assert {p.name for p in (tmp_path / "test_second").iterdir()} == files
    assert {p.name for p in (tmp_path / "test_first").iterdir()} == files | {"test_discretized_age.npy"}
    rows = read_csv(tmp_path / "test_second" / "predictions.csv")
    assert [row["subject_id"] for row in rows] == [f"sub-{i:02d}" for i in range(18, 23)]
    one = rows[0]
    assert float(one["brain_age"]) == pytest.approx(
        float(one["discretized_age"]) + float(one["residual_age"]), abs=1e-3
    )
    assert float(one["discretized_age"]) % 5 == 0
    # The first stage of the cascade is that of its own test, and of the tables it wrote when trained.
    own = read_csv(tmp_path / "test_first" / "predictions.csv")
    np.testing.assert_allclose(
        [float(row["first_stage_age"]) for row in rows], [float(row["brain_age"]) for row in own], rtol=1e-4
    )
    trained, tested = (np.load(folder / "test_discretized_age.npy") for folder in (first, tmp_path / "test_first"))
    np.testing.assert_allclose(trained["brain_age"], tested["brain_age"], rtol=1e-4)
    assert set(trained["first_stage_sha256"]) == {sha256_of(first / "best.pt")}


def test_folds_give_training_subjects_ages_of_networks_that_never_saw_them(first_stage) -> None:
    table = np.load(first_stage / "train_discretized_age.npy")
    assert table["out_of_fold"].all()
    parts = [torch.load(first_stage / f"fold_{k}" / "best.pt", weights_only=True)["train_subjects"] for k in (1, 2)]
    everyone = set(table["subject_id"].tolist())
    assert not (everyone - set(parts[0])) & (everyone - set(parts[1]))
    assert (everyone - set(parts[0])) | (everyone - set(parts[1])) == everyone


def test_the_second_stage_remembers_its_first(synthetic_cohort, first_stage, second_stage, tmp_path) -> None:
    content = torch.load(second_stage / "best.pt", weights_only=True)
    assert content["first_stage_sha256"] == sha256_of(first_stage / "best.pt")
    other = torch.load(first_stage / "best.pt", weights_only=True)
    torch.save({**other, "epoch": 99}, tmp_path / "other.pt")
    flags = [
        *data_flags(synthetic_cohort, "test"),
        *QUICK,
        "--checkpoint",
        second_stage / "best.pt",
        "--output_dir",
        tmp_path / "t",
    ]
    wrong = run_script("test_second_stage.py", *flags, "--first_stage_checkpoint", tmp_path / "other.pt", status=2)
    assert "another first stage" in wrong.stderr
    assert not (tmp_path / "t").exists()


def test_a_table_of_ages_spares_the_first_stage(synthetic_cohort, first_stage, second_stage, tmp_path) -> None:
    flags = [*data_flags(synthetic_cohort, "test"), *QUICK, "--checkpoint", second_stage / "best.pt",
             "--first_stage_checkpoint", first_stage / "best.pt"]  # fmt: skip
    run_script("test_second_stage.py", *flags, "--output_dir", tmp_path / "run")
    table = first_stage / "test_discretized_age.npy"
    run_script("test_second_stage.py", *flags, "--output_dir", tmp_path / "table", "--discretized_age_file", table)
    ages = [[float(r["brain_age"]) for r in read_csv(tmp_path / name / "predictions.csv")] for name in ("run", "table")]
    np.testing.assert_allclose(*ages, rtol=1e-4)


def test_prediction_without_a_label_table(synthetic_cohort, first_stage, tmp_path) -> None:
    flags = [
        "--test_folder",
        synthetic_cohort / "test",
        "--label_table",
        "",
        "--checkpoint",
        first_stage / "best.pt",
        *QUICK,
    ]
    assert "the sex of sub-18 is not known" in run_script("test_first_stage.py", *flags, status=2).stderr
    shown = run_script("test_first_stage.py", *flags, "--sex", "F", "--output_dir", tmp_path / "out").stdout
    assert "no age is known" in shown
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 5
    assert all(row["sex"] == "F" and row["chronological_age"] == "" and float(row["brain_age"]) > 0 for row in rows)


def test_sodeep_through_the_scripts(synthetic_cohort, tmp_path) -> None:
    run_script("train_sorter.py", "--length", 4, "--model_type", "lstm", "--steps", 3, "--output", tmp_path / "s.pt")
    flags = [*data_flags(synthetic_cohort, "train", "valid", "test"), *SMALL_NETWORK, *QUICK, "--voxel_size", VOXEL_SIZE,
             "--epochs", 1, "--folds", 0, "--output_dir", tmp_path / "run", "--ranking", "sodeep",
             "--ranking_weight", 10]  # fmt: skip
    assert "needs --sorter" in run_script("train_first_stage.py", *flags, status=2).stderr
    wrong = run_script("train_first_stage.py", *flags, "--sorter", tmp_path / "s.pt", "--batch_size", 3, status=2)
    assert "the sorter ranks 4" in wrong.stderr
    run_script("train_first_stage.py", *flags, "--sorter", tmp_path / "s.pt")
    row = read_csv(tmp_path / "run" / "metrics.csv")[0]
    assert float(row["train/ranking"]) > 0
    assert float(row["valid/ranking"]) > 0  # of the one full batch among 5 validation subjects


def test_released_checkpoints_of_both_stages_predict(reference_folder, tmp_path) -> None:
    """In the authors' form: pickled, with module. before each name, both heads, an optimizer."""
    for stage in (1, 2):
        weights = OrderedDict((f"module.{k}", v) for k, v in released_state_dict(reference_folder, stage).items())
        content = {
            "epoch": 7,
            "arch": "ScaleDense",
            "state_dict": weights,
            "optimizer": {"state": {}, "param_groups": []},
        }
        torch.save(content, tmp_path / f"stage_{stage}.pth.tar")
    rng = np.random.default_rng(0)
    for name in ("sub-1", "sub-10"):
        save_scan(
            tmp_path / "scans" / f"{name}.nii.gz",
            rng.integers(0, 255, (91, 109, 91)).astype(np.uint8),
            MNI152_T1_2MM.affine,
        )
    (tmp_path / "labels.csv").write_text("sub-1,50.5,F\nsub-10,71,M\n")
    flags = ["--test_folder", tmp_path / "scans", "--label_table", tmp_path / "labels.csv", *QUICK, "--batch_size", 1]
    run_script(
        "test_first_stage.py", *flags, "--checkpoint", tmp_path / "stage_1.pth.tar", "--output_dir", tmp_path / "first",
        "--normalization", "legacy", "--dis_range", 10,
    )  # fmt: skip
    run_script(
        "test_second_stage.py", *flags, "--checkpoint", tmp_path / "stage_2.pth.tar", "--use_gender", "False",
        "--first_stage_net", tmp_path / "stage_1.pth.tar", "--output_dir", tmp_path / "second",
    )  # fmt: skip
    rows = read_csv(tmp_path / "second" / "predictions.csv")
    assert [row["subject_id"] for row in rows] == ["sub-1", "sub-10"]
    assert all(np.isfinite(float(row["brain_age"])) for row in rows)
    assert np.load(tmp_path / "first" / "test_discretized_age.npy")["age_interval"].tolist() == [10, 10]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_folder", "none"], "none: no such folder; set TRAIN_FOLDER"),
        (["--label_table", "none.csv"], "none.csv: no such table"),
        (["--voxel_size", "3"], "voxel size is 3 mm"),
        (["--voxel_size", "2"], "VOXEL_SIZE=8"),
        (["--blocks", "5"], "21x25x20 voxels does not survive scaledense_paper with 5 blocks"),
        (["--output_dir", "/dev/null/run"], "cannot be written"),
        (["--folds", "13"], "13 folds of 12 training subjects"),
    ],
)
def test_bad_input_ends_before_training(synthetic_cohort, tmp_path, flags, message) -> None:
    base = [*data_flags(synthetic_cohort, "train", "valid", "test"), *SMALL_NETWORK, *QUICK,
            "--voxel_size", VOXEL_SIZE, "--output_dir", tmp_path / "run", "--epochs", 1]  # fmt: skip
    result = run_script("train_first_stage.py", *base, *flags, status=2)
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_second_stage_refuses_what_does_not_fit(synthetic_cohort, first_stage, tmp_path) -> None:
    base = [*data_flags(synthetic_cohort, "train", "valid"), *SMALL_NETWORK, *QUICK, "--output_dir", tmp_path / "run",
            "--first_stage_checkpoint", first_stage / "best.pt"]  # fmt: skip

    def error(*flags: object) -> str:
        return run_script("train_second_stage.py", *base, *flags, status=2).stderr

    assert "made with an age interval of 5 years; expected 10" in error("--age_interval", 10)
    assert "no such checkpoint" in error("--first_stage_checkpoint", tmp_path / "none.pt")
    assert "no such table of discretized ages" in error("--discretized_age_folder", tmp_path)
    assert "the first stage differs in filters" in error("--filters", 8)
    assert "lacks sub-18" in error("--train_folder", synthetic_cohort / "test")
    torch.save({"state_dict": {}, "x": Harmful()}, tmp_path / "bad.pt")
    assert "without running code" in error("--first_stage_checkpoint", tmp_path / "bad.pt")
    torch.save({"state_dict": {}, "x": argparse.Namespace()}, tmp_path / "bad.pt")
    assert "without running code" in error("--first_stage_checkpoint", tmp_path / "bad.pt")
    assert not (tmp_path / "run").exists()
    assert not Path("harmed").exists()


def test_real_scans_lie_on_the_grid(real_scans, tmp_path) -> None:
    """IXI (CC BY-SA 3.0): every subject of the validation split matches its row and its grid."""
    from utils.data.cohort import load_cohort
    from utils.data.scans import ScanStore

    with (real_scans / "labels.csv").open() as file:
        names = [row["subject_id"] for row in csv.DictReader(file) if row["split"] == "valid"]
    (tmp_path / "valid").mkdir()
    for name in names:
        (tmp_path / "valid" / f"{name}.nii.gz").symlink_to(real_scans / "t1w_mni_2mm" / f"{name}.nii.gz")
    subjects = load_cohort({"valid": tmp_path / "valid"}, real_scans / "labels.csv", ScanStore(4, "brain"))["valid"]
    assert len(subjects) == 19
    assert json.dumps([s.chronological_age for s in subjects]).count(".") == 19
