"""The loop: it learns, it resumes bit for bit, it stops where it must."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.building import make_network
from model.ranking import CascadeLoss, SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import QUICK, ROOT, SMALL_NETWORK, VOXEL_SIZE, data_flags, run_script
from utils.common.errors import InputError
from utils.data.cohort import load_cohort
from utils.data.dataset import ScanDataset, collate, make_loader, to_device
from utils.data.scans import ScanStore
from utils.options import everything as options
from utils.training.stages import FirstStage
from utils.training.trainer import SPEEDS, Training, autocast, make_scheduler, predict

CPU = torch.device("cpu")


def flags(*extra: object) -> Namespace:
    return options.parse_training_flags(1, ["--recipe", "paper", *QUICK, *map(str, extra)])


@pytest.fixture
def datasets(synthetic_cohort):
    scans = ScanStore(VOXEL_SIZE, "brain")
    cohort = load_cohort(
        {split: synthetic_cohort / split for split in ("train", "valid")},
        synthetic_cohort / "labels.csv",
        scans,
    )
    return [ScanDataset(cohort[split], scans) for split in ("train", "valid")]


def small_network(seed: int = 0) -> ScaleDense:
    torch.manual_seed(seed)
    return ScaleDense(NetworkConfig(1, "scaledense_paper", True, (23, 28, 23), 3, 4, 50.0, 20.0))


def train(datasets, folder, args, network=None, loss=None):
    network = network or small_network()
    loss = loss or CascadeLoss(ranker=SoftRank())
    return Training(
        network, FirstStage(), loss, *datasets, folder, args, CPU, {"network": network.config.to_dict()}
    ).fit()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_batch_can_be_overfitted(datasets, tmp_path, precision) -> None:
    few = ScanDataset(datasets[0].subjects[::3], datasets[0].scans)
    args = flags("--epochs", 60, "--lr", 3e-3, "--augmentation", "none", "--precision", precision, "--scheduler", "cosine",
                 "--early_stopping_epochs", 100)  # fmt: skip
    train((few, few), tmp_path, args)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["train/mae"]) > 10
    assert float(rows[-1]["train/mae"]) < 2.5


def test_prediction_sees_each_subject_once_in_order(datasets) -> None:
    network = small_network()
    with torch.no_grad():
        network.output_layer[-1].weight.normal_()
    predictions = predict(network, FirstStage(), datasets[0], flags("--batch_size", 5), CPU, "")
    one_by_one = predict(network, FirstStage(), datasets[0], flags("--batch_size", 1), CPU, "")
    assert len(predictions["brain_age"]) == 12
    assert len(set(predictions["brain_age"].tolist())) == 12
    np.testing.assert_allclose(predictions["brain_age"], one_by_one["brain_age"], rtol=1e-4)
    expected = [s.chronological_age for s in datasets[0].subjects]
    np.testing.assert_allclose(predictions["chronological_age"], expected, rtol=1e-6)


def test_early_stopping_and_best_weights(datasets, tmp_path) -> None:
    args = flags("--epochs", 30, "--lr", 0.3, "--early_stopping_epochs", 3)
    best = torch.load(train(datasets, tmp_path, args), weights_only=True)
    with (tmp_path / "metrics.csv").open() as file:
        maes = [float(row["valid/mae"]) for row in csv.DictReader(file)]
    assert len(maes) == best["epoch"] + 1 + 3 < 30
    assert best["valid_mae"] == pytest.approx(min(maes))


def test_a_collapsed_epoch_is_never_better_than_one_that_is_not(datasets, tmp_path) -> None:
    class Warns(FirstStage):
        """Warns in its first two epochs, of which the second is the better."""

        def __init__(self) -> None:
            self.calls = 0

        def report(self, predictions):
            self.calls += 1
            error = {1: 0.0, 2: -1.0, 3: 30.0, 4: 20.0, 5: 25.0}[self.calls]
            predictions["brain_age"] = predictions["chronological_age"] + np.float32(error)
            return {"error": error}, "COLLAPSED" if self.calls < 3 else ""

    network = small_network()
    args = flags("--epochs", 5)
    best = Training(
        network, Warns(), CascadeLoss(), *datasets, tmp_path, args, CPU, {"network": network.config.to_dict()}
    ).fit()
    assert torch.load(best, weights_only=True)["epoch"] == 3
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epochs_without_gain"] == 1


def test_gradients_accumulate_to_those_of_a_larger_batch(datasets, tmp_path) -> None:
    """For a network without batch statistics and a loss that is a mean: 12 subjects at once, or 3 times 4."""
    weights = []
    for size, steps in ((12, 1), (4, 3)):
        network = small_network()
        for part in network.modules():
            if isinstance(part, torch.nn.BatchNorm3d):
                part.train = lambda mode=True, part=part: part
                part.training = False
        args = flags("--epochs", 1, "--batch_size", size, "--accumulation_steps", steps, "--augmentation", "none",
                     "--optimizer", "sgd", "--lr", 1e-2)  # fmt: skip
        train(datasets, tmp_path / str(size), args, network, CascadeLoss(ranking_weight=0))
        weights.append(network.output_layer[-1].bias.detach().clone())
    assert weights[0].abs() > 1e-3
    torch.testing.assert_close(*weights)


def test_nothing_is_saved_while_gradients_are_half_accumulated(datasets, tmp_path) -> None:
    args = flags("--batch_size", 2, "--accumulation_steps", 2, "--save_every_steps", 1)
    network = small_network()
    training = Training(
        network, FirstStage(), CascadeLoss(), *datasets, tmp_path, args, CPU, {"network": network.config.to_dict()}
    )
    saved = []
    training.save = lambda: saved.append(training.step)
    training.train_epoch(make_loader(datasets[0], training.batches, 0, CPU))
    assert saved == [2, 4]


def test_activation_checkpointing_changes_nothing(datasets, tmp_path) -> None:
    states = []
    for name in ("kept", "again"):
        network = small_network()
        network.trunk.activation_checkpointing = name == "again"
        states.append(torch.load(train(datasets, tmp_path / name, flags("--epochs", 2), network), weights_only=True))
    assert same(states[0]["state_dict"], states[1]["state_dict"])


def test_bfloat16_follows_float32(datasets, tmp_path) -> None:
    curves = []
    for precision in ("float32", "bfloat16"):
        args = flags("--epochs", 8, "--lr", 2e-3, "--precision", precision, "--augmentation", "none")
        train(datasets, tmp_path / precision, args)
        with (tmp_path / precision / "metrics.csv").open() as file:
            curves.append([float(row["train/mae"]) for row in csv.DictReader(file)])
    assert curves[0][-1] < curves[0][0] - 2
    np.testing.assert_allclose(curves[1], curves[0], atol=0.5)


def test_training_goes_on_where_nothing_can_be_compiled(datasets, tmp_path, monkeypatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fail)
    train(datasets, tmp_path, flags("--epochs", 1, "--compile", "true"))
    assert "torch.compile does not work here (no C++ compiler); training goes on without it" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(datasets, tmp_path) -> None:
    class Broken(CascadeLoss):
        calls = 0

        def forward(self, brain_age, chronological_age, generator):
            Broken.calls += 1
            parts = super().forward(brain_age, chronological_age, generator)
            return {**parts, "loss": parts["loss"] * (math.nan if Broken.calls == 7 else 1)}

    # 3 training batches and 2 validation batches an epoch: the seventh call is in epoch 2.
    with pytest.raises(InputError, match="the loss is nan in epoch 2, batch 2, with the subjects sub-") as caught:
        train(datasets, tmp_path, flags("--epochs", 4), loss=Broken())
    assert str(tmp_path / "last.pt") in str(caught.value)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_weights_that_overflow_are_never_saved(datasets, tmp_path) -> None:
    args = flags("--epochs", 3, "--optimizer", "sgd", "--lr", 1e12)
    with pytest.raises(InputError, match="not finite|loss is"):
        train(datasets, tmp_path, args)
    for path in tmp_path.glob("*.pt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def test_resuming_checks_what_must_agree(datasets, tmp_path) -> None:
    train(datasets, tmp_path / "cosine", flags("--epochs", 1, "--scheduler", "cosine"))
    with pytest.raises(InputError, match="--epochs was 1, is 2"):
        train(datasets, tmp_path / "cosine", flags("--epochs", 2, "--scheduler", "cosine", "--resume"))
    train(datasets, tmp_path / "plateau", flags("--epochs", 1))
    train(datasets, tmp_path / "plateau", flags("--epochs", 2, "--resume"))
    assert torch.load(tmp_path / "plateau" / "last.pt", weights_only=True)["epoch"] == 2
    other = ScaleDense(NetworkConfig(1, "scaledense_paper", True, (23, 28, 23), 3, 4, 51.0, 20.0))
    with pytest.raises(InputError, match="its subjects or ages differ"):
        train(datasets, tmp_path / "plateau", flags("--epochs", 2, "--resume"), other)


def test_a_folder_with_a_run_is_refused(datasets, tmp_path) -> None:
    train(datasets, tmp_path, flags("--epochs", 1))
    with pytest.raises(InputError, match="holds a run already"):
        train(datasets, tmp_path, flags("--epochs", 1))
    with pytest.raises(InputError, match="--learning_rate was 0.001, is 0.5"):
        train(datasets, tmp_path, flags("--epochs", 1, "--lr", 0.5, "--resume"))


def test_what_a_run_writes(first_stage) -> None:
    written = {path.name for path in first_stage.iterdir()}
    assert {"best.pt", "last.pt", "metrics.csv", "hyperparameters.json", "fold_1", "fold_2"} <= written
    with (first_stage / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(first_stage), size_guidance={"images": 0}).Reload()
    parts = [
        f"{split}/{part}"
        for split in ("train", "valid")
        for part in ("loss", "mse_loss", "ranking", "age_difference", "mae")
    ]
    for tag in [*parts, "learning_rate", *SPEEDS]:
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [0, 1, 2]
        np.testing.assert_allclose([s.value for s in scalars], [float(row[tag]) for row in rows], rtol=1e-5)
    assert events.Images("valid/brain_age")
    best = torch.load(first_stage / "best.pt", weights_only=True)
    assert events.Scalars("best/valid/mae")[0].value == pytest.approx(best["valid_mae"])
    assert len(best["train_subjects"]) == 12
    facts = json.loads((first_stage / "hyperparameters.json").read_text())
    assert facts["batch_size"] == 4
    assert facts["versions"]["torch"].startswith("2.")
    assert {"device_name", "git_commit", "command"} <= set(facts)


def test_schedules() -> None:
    def rates(*extra: object) -> list[float]:
        args = flags("--epochs", 10, "--lr", 1.0, *extra)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
        scheduler = make_scheduler(optimizer, args)
        seen = []
        for _ in range(10):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step(*([5.0] if args.scheduler == "plateau" else []))
        return seen

    cosine = rates("--scheduler", "cosine", "--warmup_epochs", 2, "--min_lr", 0.1)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert 0.1 < cosine[-1] < 0.2
    assert rates("--scheduler", "constant") == [1.0] * 10
    assert rates("--plateau_epochs", 3) == pytest.approx([1.0] * 5 + [0.5] * 4 + [0.25])


def test_autocast_is_bfloat16_on_cuda_by_default() -> None:
    assert not autocast(CPU, "auto")._enabled
    assert autocast(CPU, "bfloat16")._enabled
    assert not autocast(CPU, "float32")._enabled


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def states(folder: Path) -> list[dict[str, object]]:
    contents = []
    for name in ("last.pt", "best.pt"):
        content = torch.load(folder / name, weights_only=True)
        content.pop("flags", None)  # they hold the folder's name
        for row in content.get("history", []):
            for name in SPEEDS:
                row.pop(name)
        contents.append(content)
    return contents


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(synthetic_cohort, first_stage, tmp_path, stage) -> None:
    """SIGKILL in the middle of an epoch; then --resume; every bit of the state is the same."""
    if stage == 1:
        script = "train_first_stage.py"
        extra = ["--voxel_size", VOXEL_SIZE, "--folds", 0, *data_flags(synthetic_cohort, "train", "valid", "test"),
                 "--cache_folder", tmp_path / "cache"]  # fmt: skip
    else:
        script = "train_second_stage.py"
        extra = ["--first_stage_checkpoint", first_stage / "best.pt", *data_flags(synthetic_cohort, "train", "valid")]
    common = [*SMALL_NETWORK, *QUICK, *extra, "--batch_size", 1, "--epochs", 6, "--save_every_steps", 5]
    run_script(script, *common, "--output_dir", tmp_path / "whole")

    command = [sys.executable, ROOT / script, *common, "--output_dir", tmp_path / "killed"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline, seen = time.monotonic() + 120, (0, 0)
    last = tmp_path / "killed" / "last.pt"
    while process.poll() is None and time.monotonic() < deadline:
        if last.exists():
            state = torch.load(last, weights_only=True)
            seen = (state["epoch"], state["step"])
            if seen[0] >= 1 and seen[1] > 0:
                process.send_signal(signal.SIGKILL)
                break
        time.sleep(0.005)
    assert process.wait(60) == -signal.SIGKILL, f"the run ended before it could be killed, last seen at {seen}"
    state = torch.load(last, weights_only=True)
    assert state["epoch"] < 6
    run_script(script, *common, "--output_dir", tmp_path / "killed", "--resume")
    whole, killed = states(tmp_path / "whole"), states(tmp_path / "killed")
    assert same(whole, killed)
    assert whole[0]["epoch"] == 6
    with (tmp_path / "killed" / "metrics.csv").open() as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == list(range(6))
    steps = [s.step for s in EventAccumulator(str(tmp_path / "killed")).Reload().Scalars("valid/mae")]
    assert steps == list(range(6))


def test_a_seed_makes_a_run_repeatable(datasets, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(datasets, tmp_path / name, flags("--epochs", 2, "--seed", seed), small_network(seed))
    first, again, other = (states(tmp_path / name) for name in "abc")
    assert same(first, again)
    assert not same(first[0]["state_dict"], other[0]["state_dict"])


def test_recalibrated_statistics_are_those_of_the_training_scans(datasets, tmp_path) -> None:
    args = flags("--epochs", 2, "--batch_size", 5, "--recalibrate", "true", "--lr", 1e-2)
    best = torch.load(train(datasets, tmp_path, args), weights_only=True)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    network = small_network()
    network.load_state_dict(last["state_dict"])
    norm = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm3d))
    everybody = to_device(collate(list(datasets[0])), CPU)["volume"]
    expected = network.trunk.blocks[0][0].branches[0][0](everybody).mean((0, 2, 3, 4))
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-3, atol=1e-4)
    assert best["epoch"] in (0, 1)


def test_a_perceptron_standardizes_voxels_over_the_training_scans(datasets, tmp_path) -> None:
    """From the first step on, whatever the batch; a run that was interrupted goes on in the same way."""
    config = NetworkConfig(1, "perceptron", True, (23, 28, 23), 1, 4, 50.0, 20.0)
    network = make_network(config, 0)
    before = [parameter.clone() for parameter in network.trunk.weighing.parameters()]
    train(datasets, tmp_path / "whole", flags("--epochs", 3), network)
    everybody = to_device(collate(list(datasets[0])), CPU)["volume"].flatten(1)
    torch.testing.assert_close(network.trunk.norm.running_mean, everybody.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.trunk.norm.running_var, everybody.var(0, correction=0), rtol=1e-4, atol=1e-4)
    assert network.trunk.norm.subjects == len(everybody)
    assert not torch.equal(before[0], network.trunk.weighing.weight)
    one = to_device(collate([datasets[0][0]]), CPU)["volume"]
    torch.testing.assert_close(network.train().trunk(one), network.eval().trunk(one))
    train(datasets, tmp_path / "cut", flags("--epochs", 1), make_network(config, 0))
    train(datasets, tmp_path / "cut", flags("--epochs", 3, "--resume"), make_network(config, 1))
    assert same(states(tmp_path / "whole"), states(tmp_path / "cut"))


def test_without_validation_the_last_weights_are_kept(datasets, tmp_path) -> None:
    args = options.parse_training_flags(1, [*QUICK, "--epochs", "3", "--warmup_epochs", "1", "--valid_folder", ""])
    path = train([datasets[0], ScanDataset([], datasets[0].scans)], tmp_path, args)
    best, last = (torch.load(file, weights_only=True) for file in (path, tmp_path / "last.pt"))
    assert best["epoch"] == 2
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in best["state_dict"].items())
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert not [name for name in rows[0] if name.startswith("valid/")]
