"""``predict.py`` from scans to the table, the pictures and the maps."""

import csv
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
from tests.prediction.conftest import AGE_INTERVAL, prepared_scan
from utils.common.errors import InputError
from utils.data.dataset import ScanDataset, collate, to_device
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.weights import load_weights


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
    assert ["no row in labels.csv" in row["warnings"] for row in rows] == [False, False, True]
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
    assert "3 scans: 3 with a brain age" in printed
    for name in ("sub-01", "sub-91", "sub-92"):
        assert (tmp_path / "out" / "pictures" / f"{name}.png").exists()
        assert (tmp_path / "out" / "maps" / f"{name}_map.png").exists()
        values = nibabel.load(tmp_path / "out" / "maps" / f"{name}_map.nii.gz").get_fdata()
        assert values.shape == (23, 28, 23)
        assert values.any()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--input", "nowhere", "no such file or folder"),
        ("--input", "README.md", "holds no scan"),
        ("--weights_dir", "nowhere", "no readable manifest of weights"),
        ("--label_table", "nowhere.csv", "no such table"),
    ],
)
def test_wrong_input_ends_before_anything_is_written(weights, tmp_path, monkeypatch, flag, value, said) -> None:
    prepared_scan(tmp_path / "a.nii.gz")
    given = {"--input": tmp_path / "a.nii.gz", "--output_dir": tmp_path / "out", "--weights_dir": weights, flag: value}
    monkeypatch.setattr(sys, "argv", ["predict.py", *(str(word) for pair in given.items() for word in pair)])
    with pytest.raises(InputError, match=said):
        predict.main()
    assert not (tmp_path / "out").exists()
