"""Weights: written and read, refused where they cannot be used, and those that are shipped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.building import load_network
from model.cascade import Cascade
from tests.conftest import save_scan
from tests.prediction.conftest import AGE_INTERVAL, MANIFEST_ENTRIES
from utils.common.errors import InputError
from utils.common.files import PROJECT
from utils.data.dataset import ScanDataset
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.predicting import predict
from utils.prediction.weights import MANIFEST, load_mean_volume, load_weights, save_weights
from utils.preparation.simulation import draw_subjects, simulate_volume
from utils.training.stages import FirstStage

SHIPPED = PROJECT / "weights"

YOUNG, OLD = 25.0, 80.0  # years
LEAST_DIFFERENCE = 5.0  # years, between the estimates of such simulated brains


def cascade_of(folder: Path) -> Cascade:
    manifest, members = load_weights(folder)
    networks = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    return Cascade(networks, manifest["age_interval"])


def test_weights_come_back_in_half_precision(weights, checkpoints) -> None:
    manifest, members = load_weights(weights)
    assert (manifest["members"], manifest["age_interval"], manifest["normalization"]) == (2, AGE_INTERVAL, "brain")
    for member, trained in zip(members, checkpoints, strict=True):
        for own, checkpoint in zip(member, trained, strict=True):
            assert own["network"] == json.loads(json.dumps(checkpoint["network"]))
            assert own["state_dict"].keys() == checkpoint["state_dict"].keys()
            for name, value in checkpoint["state_dict"].items():
                torch.testing.assert_close(own["state_dict"][name], value, rtol=1e-3, atol=1e-6)
    assert load_mean_volume(weights).shape == (1, 1, *model_grid(manifest["voxel_size"]).shape)


@pytest.mark.parametrize(
    ("name", "value"),
    [("normalization", "foo"), ("voxel_size", "four"), ("age_range", None), ("out_of_fold_errors", []), ("members", 0)],
)
def test_a_manifest_that_cannot_be_used_is_refused(weights, tmp_path, name, value) -> None:
    manifest = json.loads((weights / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, name: value}))
    with pytest.raises(InputError, match=f"lacks a usable {name}"):
        load_weights(tmp_path)


@pytest.mark.parametrize("normalization", ["local_sd", "registered_sd", "native_sd"])
def test_weights_of_a_removed_kind_are_refused_by_one_line(weights, tmp_path, normalization) -> None:
    manifest = json.loads((weights / MANIFEST).read_text())
    for network in manifest["networks"].values():
        network["model"] = "perceptron"
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "normalization": normalization}))
    with pytest.raises(InputError, match=r"of version 0\.1 .* removed; set WEIGHTS_DIR") as refused:
        load_weights(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_checkpoint_of_a_removed_kind_is_refused_by_one_line(checkpoints) -> None:
    checkpoint = checkpoints[0][0]
    for removed in (
        {**checkpoint, "network": {**checkpoint["network"], "model": "perceptron"}},
        {**checkpoint, "normalization": "local_sd"},
    ):
        with pytest.raises(ValueError, match=r"version 0\.1 .* removed") as refused:
            load_network(removed, 1)
        assert len(str(refused.value).splitlines()) == 1


def test_missing_files_are_named(weights, tmp_path) -> None:
    shutil.copy(weights / MANIFEST, tmp_path)
    with pytest.raises(InputError, match=r"member_1_first_stage.safetensors: .* fetch the folder of weights again"):
        load_weights(tmp_path)
    with pytest.raises(InputError, match=r"mean_volume.safetensors: .* fetch the folder of weights again"):
        load_mean_volume(tmp_path)
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(InputError, match="no readable manifest"):
        load_weights(tmp_path)


def gain_with_age(folder: Path, scans: Path) -> float:
    """Return by how many years weights estimate simulated old brains as older than young ones of the same persons."""
    manifest, _ = load_weights(folder)
    grid, ages = model_grid(manifest["voxel_size"]), []
    persons = draw_subjects(4, seed=1)
    for true_age in (YOUNG, OLD):
        subjects = []
        for number, person in enumerate(persons):
            path = scans / f"{number}_{true_age:.0f}.nii"
            volume = simulate_volume(replace(person, true_brain_age=true_age), number, manifest["voxel_size"])
            save_scan(path, volume, grid.affine)
            subjects.append(Subject(path.stem, path, true_age, number % 2))
        dataset = ScanDataset(subjects, ScanStore(manifest["voxel_size"], manifest["normalization"]))
        made = predict(
            cascade_of(folder), FirstStage(), dataset, torch.device("cpu"), batch_size=4, num_workers=0,
            precision="float32", label="simulated",
        )  # fmt: skip
        ages.append(made["brain_age"])
    return float(np.mean(ages[1] - ages[0]))


def test_the_shipped_weights_tell_old_brains_from_young_ones(tmp_path) -> None:
    """They were trained on real brains; simulated ones differ by wide ventricles and sulci, thin cortex and lesions."""
    assert gain_with_age(SHIPPED, tmp_path) > LEAST_DIFFERENCE


def test_a_network_that_predicts_a_constant_would_not_pass(checkpoints, tmp_path) -> None:
    for checkpoint in (constant := [[dict(own) for own in member] for member in checkpoints])[0]:
        last = list(checkpoint["state_dict"])[-2:]  # weight and bias of the last layer
        zeros = {name: torch.zeros_like(checkpoint["state_dict"][name]) for name in last}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **zeros}
    volume = torch.zeros(model_grid(constant[0][0]["voxel_size"]).shape)
    save_weights(tmp_path / "weights", constant[:1], MANIFEST_ENTRIES, "# Card\n", volume)
    assert gain_with_age(tmp_path / "weights", tmp_path) == 0


def test_the_shipped_weights_estimate_their_mean_volume_within_the_training_ages() -> None:
    manifest, _ = load_weights(SHIPPED)
    with torch.inference_mode():
        age = float(cascade_of(SHIPPED)(load_mean_volume(SHIPPED), torch.tensor([-1]))[0])
    assert manifest["age_range"][0] < age < manifest["age_range"][1]


def test_all_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 12e6
