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
from tests.prediction.conftest import AGE_INTERVAL, GRID, MANIFEST_ENTRIES, TYPICAL
from utils.common.errors import InputError
from utils.common.files import PROJECT
from utils.data.dataset import ScanDataset
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.predicting import predict
from utils.prediction.likeness import TypicalVolumes
from utils.prediction.weights import (
    MANIFEST,
    check_same_network,
    load_typical_volumes,
    load_weights,
    read_initial_weights,
    save_weights,
)
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


def test_typical_volumes_come_back_in_half_precision(checkpoints, tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    typical = TypicalVolumes(torch.randn(GRID, generator=generator), torch.rand(GRID, generator=generator))
    save_weights(tmp_path, checkpoints, MANIFEST_ENTRIES, "# Card\n", typical)
    found = load_typical_volumes(tmp_path)
    for own, given in zip(found, typical, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, given, rtol=1e-3, atol=1e-6)


def test_initial_weights_are_found_in_a_folder_and_in_a_checkpoint(weights, checkpoints, tmp_path) -> None:
    own = {"train_subjects": ["sub-7", "sub-8"], "initial_subjects": ["sub-9"]}
    torch.save({**checkpoints[0][1], **own}, tmp_path / "best.pt")
    for stage, path, subjects in (
        (1, weights, MANIFEST_ENTRIES["training_persons"]),
        (2, weights, MANIFEST_ENTRIES["training_persons"]),
        (2, tmp_path / "best.pt", ["sub-7", "sub-8", "sub-9"]),
    ):
        found, trained = read_initial_weights(path, stage, AGE_INTERVAL), checkpoints[0][stage - 1]
        assert (found.voxel_size, found.normalization) == (trained["voxel_size"], trained["normalization"])
        assert found.subjects == subjects
        expected = load_network(trained, stage)
        assert found.network.config == expected.config
        torch.testing.assert_close(found.network.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-6)
    assert read_initial_weights(None, 1, AGE_INTERVAL) is None


def test_initial_weights_that_cannot_be_used_are_named(weights, checkpoints, tmp_path) -> None:
    first = checkpoints[0][0]
    torch.save(first, tmp_path / "best.pt")
    earlier = {**first, "network": {**first["network"], "volume_shape": (23, 28, 23)}}
    torch.save(earlier, tmp_path / "earlier.pt")
    for path, stage, age_interval, said in (
        (tmp_path / "none.pt", 1, AGE_INTERVAL, r"none\.pt: no such checkpoint"),
        (tmp_path, 1, AGE_INTERVAL, "no readable manifest"),
        (tmp_path / "best.pt", 2, AGE_INTERVAL, r"best\.pt: holds a first stage; expected a second stage"),
        (tmp_path / "best.pt", 1, 10.0, r"best\.pt: was trained with AGE_INTERVAL=5"),
        (weights, 2, 10.0, f"{weights.name}: was trained with AGE_INTERVAL=5"),
        (tmp_path / "earlier.pt", 1, AGE_INTERVAL, r"earlier\.pt: was made for 23x28x23 voxels of 8 mm"),
    ):
        with pytest.raises(InputError, match=said):
            read_initial_weights(path, stage, age_interval)


def test_a_second_stage_starts_from_the_network_of_its_first_stage(weights, checkpoints) -> None:
    initial = read_initial_weights(weights, 2, AGE_INTERVAL)
    first = load_network(checkpoints[0][0], 1)
    own = weights, initial, first, initial.voxel_size, initial.normalization
    check_same_network(*own)  # the scales of their ages differ
    assert first.config.age_sd != initial.network.config.age_sd
    with pytest.raises(InputError, match=f"{weights.name}: holds another network than the first stage"):
        check_same_network(*own[:3], 4, initial.normalization)
    with pytest.raises(InputError, match="holds another network"):
        check_same_network(*own[:4], "tissue")
    first.config = replace(first.config, flip_averaging=True)
    with pytest.raises(InputError, match="holds another network"):
        check_same_network(*own)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalization", "foo"),
        ("voxel_size", "four"),
        ("age_range", None),
        ("out_of_fold_errors", []),
        ("members", 0),
        ("distance_limit", 0),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(weights, tmp_path, name, value) -> None:
    manifest = json.loads((weights / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, name: value}))
    with pytest.raises(InputError, match=f"lacks a usable {name}"):
        load_weights(tmp_path)


def test_weights_of_an_earlier_version_are_refused_by_one_line(weights, tmp_path) -> None:
    manifest = json.loads((weights / MANIFEST).read_text())
    del manifest["distance_limit"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="these weights are of an earlier version; make them again") as refused:
        load_weights(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


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
    with pytest.raises(InputError, match=r"typical_volumes.safetensors: .* fetch the folder of weights again"):
        load_typical_volumes(tmp_path)
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
    save_weights(tmp_path / "weights", constant[:1], MANIFEST_ENTRIES, "# Card\n", TYPICAL)
    assert gain_with_age(tmp_path / "weights", tmp_path) == 0


def test_the_shipped_weights_estimate_their_mean_volume_within_the_training_ages() -> None:
    manifest, _ = load_weights(SHIPPED)
    with torch.inference_mode():
        age = float(cascade_of(SHIPPED)(load_typical_volumes(SHIPPED).mean, torch.tensor([-1]))[0])
    assert manifest["age_range"][0] < age < manifest["age_range"][1]


def test_all_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 12e6
