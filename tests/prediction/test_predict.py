"""``predict.py`` from scans to the table, the pictures and the maps."""

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import predict
from model.building import load_network
from model.conventions import discretize_age
from tests.conftest import VOXEL_SIZE, run_script
from tests.prediction.conftest import AGE_INTERVAL, MANIFEST_ENTRIES, prepared_scan
from utils.common.errors import InputError
from utils.data.dataset import ScanDataset, collate, to_device
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.likeness import describe_training
from utils.prediction.weights import MANIFEST, load_weights, save_weights


def age_by_the_two_stages(weights: Path, path: Path, sexes: list[int]) -> float:
    """Estimate as ``test_first_stage.py`` and ``test_second_stage.py`` do, one member and sex after another."""
    dataset = ScanDataset([Subject("x", path)], ScanStore(VOXEL_SIZE, "brain"))
    volume = to_device(collate([dataset[0]]), torch.device("cpu"))["volume"]
    ages = []
    for first, second in load_weights(weights)[1]:
        for sex in torch.tensor(sexes):
            with torch.inference_mode():
                discretized_age = discretize_age(load_network(first, 1)(volume, sex[None]), AGE_INTERVAL)
                ages.append(float(discretized_age + load_network(second, 2)(volume, sex[None], discretized_age)))
    return float(np.mean(ages))


def test_prediction_of_prepared_scans(weights, tmp_path) -> None:
    for name, radius in (("sub-01", 30.0), ("sub-91", 25.0), ("sub-92", 35.0)):
        prepared_scan(tmp_path / "in" / f"{name}.nii.gz", radius)
    (tmp_path / "labels.csv").write_text("subject_id,age,sex\nsub-01,40,F\nsub-91,95,\n")
    printed = run_script(
        "predict.py", "--input", tmp_path / "in", "--weights_dir", weights, "--num_workers", 0, "--device", "cpu",
        "--output_dir", tmp_path / "out", "--label_table", tmp_path / "labels.csv", "--explain", "integrated_gradients",
    ).stdout  # fmt: skip
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert [row["sex"] for row in rows] == ["F", "", ""]
    assert "chronological age 95.0 is outside the training range" in rows[1]["warnings"]
    assert ["labels.csv has the subject sub-92; add one" in row["warnings"] for row in rows] == [False, False, True]
    assert ["is of a training subject" in row["warnings"] for row in rows] == [True, False, False]
    radius = interval_radius(load_weights(weights)[0]["out_of_fold_errors"], INTERVAL_COVERAGE)
    for row, sexes in zip(rows, ([0], [0, 1], [0, 1]), strict=True):
        age = age_by_the_two_stages(weights, Path(row["scan"]), sexes)
        assert float(row["brain_age"]) == pytest.approx(age, abs=0.02)
        assert float(row["interval_high"]) - float(row["brain_age"]) == pytest.approx(radius, abs=0.011)
        assert float(row["brain_age"]) - float(row["interval_low"]) == pytest.approx(radius, abs=0.011)
    assert len({row["brain_age"] for row in rows}) == 3
    assert float(rows[0]["brain_age_gap"]) == pytest.approx(float(rows[0]["brain_age"]) - 40, abs=0.011)
    assert rows[2]["brain_age_gap"] == ""
    assert {row["interval_from"] for row in rows} == {"training scanners"}
    assert {row["uncalibrated_age"] for row in rows} == {""}
    assert "3 scans: 3 with a brain age" in printed
    for name in ("sub-01", "sub-91", "sub-92"):
        assert (tmp_path / "out" / "pictures" / f"{name}.png").exists()
        assert (tmp_path / "out" / "maps" / f"{name}_map.png").exists()
        values = nibabel.load(tmp_path / "out" / "maps" / f"{name}_map.nii.gz").get_fdata()
        assert values.shape == (23, 27, 23)
        assert values.any()


def test_ages_are_calibrated_and_unlike_scans_are_marked(checkpoints, tmp_path, run_here) -> None:
    """Ten healthy people, on whose scans the weights were trained, and one with a much larger brain."""
    rows, healthy = ["subject_id,age"], []
    for number in range(10):
        healthy.append(Subject(f"sub-{number}", tmp_path / "in" / f"sub-{number}.nii.gz"))
        prepared_scan(healthy[-1].path, 25.0 + number)
        rows.append(f"sub-{number},{30 + 4 * number}")
    prepared_scan(tmp_path / "in" / "unlike.nii.gz", 44.0)
    (tmp_path / "healthy.csv").write_text("\n".join(rows))
    typical, limit = describe_training(ScanDataset(healthy, ScanStore(VOXEL_SIZE, "brain")), 0)
    manifest = {**MANIFEST_ENTRIES, "distance_limit": 1.2 * limit}
    save_weights(tmp_path / "weights", checkpoints[:1], manifest, "# Card\n", typical)
    flags = ["--input", tmp_path / "in", "--weights_dir", tmp_path / "weights", "--num_workers", 0, "--device", "cpu"]
    flags += ["--pictures", "false"]
    tables = []
    for name, more in (("plain", []), ("calibrated", ["--calibration_table", tmp_path / "healthy.csv"])):
        with pytest.raises(SystemExit) as stop:
            run_here("predict.py", *flags, "--output_dir", tmp_path / name, *more)
        assert stop.value.code == 0
        with (tmp_path / name / "predictions.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    for table in tables:
        assert [row["status"] for row in table] == ["ok"] * 10 + ["unlike training scans"]
        widths = [float(row["interval_high"]) - float(row["brain_age"]) for row in table]
        assert widths[10] > 1.2 * max(widths[:10])
    plain, calibrated = tables
    assert [row["uncalibrated_age"] for row in calibrated] == [row["brain_age"] for row in plain]
    assert {row["interval_from"] for row in calibrated} == {"calibration by 10 people"}
    gaps = [np.mean([float(row["brain_age"]) for row in table[:10]]) - 48 for table in tables]
    assert abs(gaps[1]) < abs(gaps[0]) - 1

    shards = {}
    for part in (1, 2):
        folder = tmp_path / f"shard_{part}"
        with pytest.raises(SystemExit):
            run_here("predict.py", *flags, "--output_dir", folder, *more, "--shard", f"{part}/2")
        with (folder / "predictions.csv").open() as file:
            shards[part] = list(csv.DictReader(file))
    assert (shards[1], shards[2]) == (calibrated[::2], calibrated[1::2])  # all calibrate by the same people
    with pytest.raises(SystemExit, match="0"):  # there are only 11 scans
        run_here("predict.py", *flags, "--output_dir", tmp_path / "none", "--shard", "12/12")
    assert len((tmp_path / "none" / "predictions.csv").read_text().splitlines()) == 1


def test_prediction_with_a_small_shm_ends_in_one_sentence(small_shm, weights, tmp_path) -> None:
    for number in range(3):
        prepared_scan(tmp_path / "in" / f"sub-{number}.nii.gz")
    shown = small_shm(
        "200k", "predict.py", "--input", tmp_path / "in", "--weights_dir", weights, "--device", "cpu", "--batch_size", 1,
        "--num_workers", 2, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert "NUM_WORKERS=0" in shown
    assert "--shm-size" in shown


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--input", "nowhere", "no such file or folder"),
        ("--input", "README.md", "holds no scan"),
        ("--weights_dir", "nowhere", "no readable manifest of weights"),
        ("--label_table", "nowhere.csv", "no such table"),
        ("--calibration_table", "nowhere.csv", "no such table"),
        ("--scanner", "Oslo", "--scanner Oslo: the weights were trained on scanners without names"),
        ("--calibration_table", "healthy.csv", "healthy.csv: 0 of its people have a usable scan"),
    ],
)
def test_wrong_input_ends_before_anything_is_written(weights, tmp_path, monkeypatch, flag, value, said) -> None:
    prepared_scan(tmp_path / "a.nii.gz")
    if value == "healthy.csv":
        value = tmp_path / value
        value.write_text("subject_id,age\nsub-1,40\n")
    given = {"--input": tmp_path / "a.nii.gz", "--output_dir": tmp_path / "out", "--weights_dir": weights, flag: value}
    monkeypatch.setattr(sys, "argv", ["predict.py", *(str(word) for pair in given.items() for word in pair)])
    with pytest.raises(InputError, match=said):
        predict.main()
    assert not (tmp_path / "out").exists()


def test_a_loop_over_scans_loses_no_row(weights, tmp_path, monkeypatch, run_here) -> None:
    out = tmp_path / "out"
    flags = ["--output_dir", out, "--weights_dir", weights, "--num_workers", 0, "--device", "cpu"]
    for name in ("sub-91", "sub-92"):
        prepared_scan(tmp_path / f"{name}.nii.gz")
    with pytest.raises(SystemExit, match="0"):
        run_here("predict.py", *flags, "--input", tmp_path / "sub-91.nii.gz")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(
        InputError, match=r"out: holds predictions\.csv already; set another OUTPUT_DIR .*OVERWRITE=true"
    ):
        run_here("predict.py", *flags, "--input", tmp_path / "sub-92.nii.gz")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    with pytest.raises(SystemExit, match="0"):
        run_here("predict.py", *flags, "--input", tmp_path / "sub-92.nii.gz", "--overwrite", "true")
    assert (out / "predictions.csv").read_bytes() != before[out / "predictions.csv"]


def test_weights_for_the_grid_of_an_earlier_version_are_refused(weights, tmp_path, monkeypatch) -> None:
    prepared_scan(tmp_path / "a.nii.gz")
    earlier = shutil.copytree(weights, tmp_path / "earlier")
    manifest = json.loads((earlier / MANIFEST).read_text())
    for network in manifest["networks"].values():
        network["volume_shape"] = [23, 28, 23]
    (earlier / MANIFEST).write_text(json.dumps(manifest))
    flags = ["--input", tmp_path / "a.nii.gz", "--output_dir", tmp_path / "out", "--weights_dir", earlier]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, flags)])
    with pytest.raises(InputError, match="earlier: was made for 23x28x23 voxels of 8 mm, .*; train it again"):
        predict.main()
    assert not (tmp_path / "out").exists()


def test_a_training_scanner_is_not_calibrated(weights, tmp_path, monkeypatch) -> None:
    flags = ["--weights_dir", weights, "--scanner", "Oslo", "--calibration_table", tmp_path / "healthy.csv"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, flags)])
    with pytest.raises(InputError, match="--scanner and --calibration_table contradict each other"):
        predict.main()
