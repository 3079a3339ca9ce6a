"""Trainings that start from weights: whose network, grid and ages they have, what is frozen, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.building import load_network
from tests.conftest import QUICK, VOXEL_SIZE, data_flags
from utils.common.errors import InputError
from utils.data.images import model_grid
from utils.prediction.likeness import TypicalVolumes
from utils.prediction.weights import save_weights

ONE_EPOCH = (*QUICK, "--epochs", 1, "--warmup_epochs", 0, "--recalibrate", "false")
NO_STEPS = (*ONE_EPOCH, "--lr", 1e-12, "--weight_decay", 0)  # too small to change a weight
AGES = {"age_mean": 51.0, "age_sd": 11.0}  # years, unlike those of the cohort


def given(content: dict, stage: int, path: Path) -> dict:
    """Write a checkpoint whose weights and scale of the ages differ from those of a new network."""
    network = load_network(content, stage)
    generator = torch.Generator().manual_seed(stage)
    for weights in network.parameters():
        weights.data += 0.05 * torch.randn(weights.shape, generator=generator)
    network_config = {**content["network"], **AGES}
    changed = {**content, "network": network_config, "state_dict": network.state_dict()}
    torch.save(changed, path)
    return changed


@pytest.fixture(scope="module")
def initial(first_stage, second_stage, tmp_path_factory):
    """The folder of first.pt and second.pt to start from, and what they hold."""
    folder = tmp_path_factory.mktemp("initial")
    runs = {"first": (first_stage, 1), "second": (second_stage, 2)}
    contents = {
        name: given(torch.load(run / "best.pt", weights_only=True), stage, folder / f"{name}.pt")
        for name, (run, stage) in runs.items()
    }
    return folder, contents


def check_start(trained: dict, expected: dict) -> None:
    """Check that a training kept the network, its scale and grid, and began with its weights."""
    assert trained["network"] == expected["network"]
    assert {name: trained["network"][name] for name in AGES} == AGES
    assert trained["voxel_size"] == VOXEL_SIZE
    for name, value in expected["state_dict"].items():
        if "running_" not in name and value.is_floating_point():
            torch.testing.assert_close(trained["state_dict"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_a_first_stage_starts_from_weights(synthetic_cohort, initial, tmp_path, run_here, kind) -> None:
    """Without a flag for the network or the grid, whose defaults are others."""
    folder, contents = initial
    path = folder / "first.pt"
    if kind == "folder":
        path, shape = tmp_path / "weights", (1, 1, *model_grid(VOXEL_SIZE).shape)
        manifest = {"age_range": [20, 80], "out_of_fold_errors": [1.0] * 20, "training_persons": [],
                    "preprocessing": [], "distance_limit": 2.0}  # fmt: skip
        typical = TypicalVolumes(torch.zeros(shape), torch.ones(shape))
        save_weights(path, [[contents["first"], contents["second"]]], manifest, "", typical)
    run_here(
        "train_first_stage.py", *data_flags(synthetic_cohort, "train", "valid", "test"), *NO_STEPS,
        "--output_dir", tmp_path / "run", "--initial_weights", path,
    )  # fmt: skip
    check_start(torch.load(tmp_path / "run" / "best.pt", weights_only=True), contents["first"])


def test_people_whom_the_weights_know_have_no_out_of_fold_ages(synthetic_cohort, initial, tmp_path, run_here) -> None:
    """Not even in the fold that leaves them out, because its network starts from these weights, too."""
    _, contents = initial
    own = {"train_subjects": ["sub-01_ses-9", "sub-03"], "initial_subjects": ["sub-04"]}
    torch.save({**contents["first"], **own}, tmp_path / "first.pt")
    run_here(
        "train_first_stage.py", *data_flags(synthetic_cohort, "train", "valid", "test"), *NO_STEPS, "--folds", 2,
        "--output_dir", tmp_path / "run", "--initial_weights", tmp_path / "first.pt",
    )  # fmt: skip
    known = {"sub-01", "sub-03", "sub-04"}
    table = np.load(tmp_path / "run" / "train_discretized_age.npy")
    assert len(table) == 12
    assert {row["subject_id"] for row in table if not row["out_of_fold"]} == known
    for name in ("train", "test"):
        assert np.isfinite(np.load(tmp_path / "run" / f"{name}_discretized_age.npy")["brain_age"]).all()
    assert np.load(tmp_path / "run" / "test_discretized_age.npy")["out_of_fold"].all()
    for path in (tmp_path / "run" / "best.pt", tmp_path / "run" / "fold_1" / "best.pt"):
        trained = torch.load(path, weights_only=True)
        assert trained["initial_subjects"] == ["sub-01", "sub-03", "sub-04"]


def second_stage_flags(cohort: Path, first: Path, output: Path) -> list[object]:
    return [*data_flags(cohort, "train", "valid"), "--first_stage_checkpoint", first / "best.pt",
            "--output_dir", output]  # fmt: skip


def test_a_second_stage_starts_from_weights(synthetic_cohort, first_stage, initial, tmp_path, run_here) -> None:
    folder, contents = initial
    run_here(
        "train_second_stage.py", *second_stage_flags(synthetic_cohort, first_stage, tmp_path), *NO_STEPS,
        "--initial_weights", folder / "second.pt",
    )  # fmt: skip
    check_start(torch.load(tmp_path / "best.pt", weights_only=True), contents["second"])


@pytest.mark.parametrize("stage", ["first", "second"])
def test_frozen_blocks_stay_those_of_the_weights(
    synthetic_cohort, first_stage, initial, tmp_path, run_here, stage
) -> None:
    folder, contents = initial
    flags = [*data_flags(synthetic_cohort, "train", "valid", "test"), "--output_dir", tmp_path]
    if stage == "second":
        flags = second_stage_flags(synthetic_cohort, first_stage, tmp_path)
    more = ["--freeze_blocks", 2, "--lr", 1e-2, "--initial_weights", folder / f"{stage}.pt"]
    run_here(f"train_{stage}_stage.py", *flags, *QUICK, "--epochs", 1, "--warmup_epochs", 0, *more)
    trained = torch.load(tmp_path / "best.pt", weights_only=True)["state_dict"]
    for name, value in contents[stage]["state_dict"].items():
        if name.startswith(("trunk.blocks.0.", "trunk.blocks.1.")):
            assert torch.equal(trained[name], value), name
        elif value.is_floating_point():
            assert not torch.equal(trained[name], value), name


def test_a_second_stage_may_freeze_what_it_takes_over_from_the_first(
    synthetic_cohort, first_stage, tmp_path, run_here
) -> None:
    flags = second_stage_flags(synthetic_cohort, first_stage, tmp_path)
    run_here("train_second_stage.py", *flags, *ONE_EPOCH, "--freeze_blocks", 1)
    trained, first = (
        torch.load(folder / "best.pt", weights_only=True)["state_dict"] for folder in (tmp_path, first_stage)
    )
    names = [name for name in first if name.startswith("trunk.blocks.0.")]
    assert all(torch.equal(trained[name], first[name]) for name in names)


def test_weights_that_do_not_fit_are_refused(synthetic_cohort, first_stage, initial, tmp_path, run_here) -> None:
    folder, contents = initial
    first = [*data_flags(synthetic_cohort, "train", "valid", "test"), *QUICK, "--output_dir", tmp_path / "run"]
    second = [*second_stage_flags(synthetic_cohort, first_stage, tmp_path / "run"), *QUICK]
    without_sex = {**contents["second"]["network"], "use_sex": False}
    heads = {name: value for name, value in contents["second"]["state_dict"].items() if "sex_layer" not in name}
    heads["output_layer.0.weight"] = heads["output_layer.0.weight"][:, :-8]
    torch.save({**contents["second"], "network": without_sex, "state_dict": heads}, tmp_path / "other.pt")

    def error(script: str, flags: list[object], *more: object) -> str:
        with pytest.raises(InputError) as caught:
            run_here(script, *flags, *more)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    said = error("train_second_stage.py", second, "--initial_weights", tmp_path / "other.pt")
    assert "other.pt: holds another network than the first stage; start the first stage from it, too" in said
    more = ("--freeze_blocks", 4, "--initial_weights")
    said = error("train_first_stage.py", first, *more, folder / "first.pt")
    assert "--freeze_blocks: the network has only 3 blocks, not 4" in said
    said = error("train_second_stage.py", second, *more, folder / "second.pt")
    assert "--freeze_blocks: the network has only 3 blocks, not 4" in said
    said = error("train_second_stage.py", second, "--initial_weights", folder / "first.pt")
    assert "first.pt: holds a first stage; expected a second stage" in said
    said = error("train_first_stage.py", first, "--initial_weights", folder / "second.pt")
    assert "second.pt: holds a second stage; expected a first stage" in said
