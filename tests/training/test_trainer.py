"""The loop: it learns, it chooses an epoch, it stops where it must."""

import csv
import math

import numpy as np
import pytest
import torch

from model.building import freeze
from model.ranking import CascadeLoss
from tests.training.helpers import CPU, flags, make_trainer, same, small_network, states, train
from utils.common.errors import InputError
from utils.data.dataset import ScanDataset, collate, to_device
from utils.training.stages import FirstStage
from utils.training.state import RunState


class Scripted(FirstStage):
    """Errs by the given years on the validation subjects in each epoch, and warns in the first epochs."""

    def __init__(self, errors: list[float], warned_epochs: int = 0) -> None:
        self.errors, self.warned_epochs, self.epoch = errors, warned_epochs, 0

    def report(self, predictions):
        error = self.errors[self.epoch]
        self.epoch += 1
        predictions["brain_age"] = predictions["chronological_age"] + np.float32(error)
        return {"error": error}, "COLLAPSED" if self.epoch <= self.warned_epochs else ""


def read_csv(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_one_batch_can_be_overfitted(datasets, tmp_path) -> None:
    few = ScanDataset(datasets[0].subjects[::3], datasets[0].scans)
    train((few, few), tmp_path, flags("--epochs", 40, "--lr", 5e-3, "--augmentation", "none"))
    rows = read_csv(tmp_path / "metrics.csv")
    assert float(rows[0]["train/mae"]) > 10
    assert float(rows[-1]["train/mae"]) < 2.5


def test_early_stopping_and_best_weights(datasets, tmp_path) -> None:
    args = flags("--epochs", 30, "--keep", "best", "--early_stopping_epochs", 3)
    stage = Scripted([9, -5, 7, 6, 5.5, 1])
    best = torch.load(train(datasets, tmp_path, args, stage=stage), weights_only=True)
    assert [float(row["valid/mae"]) for row in read_csv(tmp_path / "metrics.csv")] == pytest.approx([9, 5, 7, 6, 5.5])
    assert best["epoch"] == 1
    assert best["valid_mae"] == pytest.approx(5)


def test_a_collapsed_epoch_is_never_better_than_one_that_is_not(datasets, tmp_path) -> None:
    stage = Scripted([0, -1, 30, 20, 25], warned_epochs=2)
    best = train(datasets, tmp_path, flags("--epochs", 5, "--keep", "best"), stage=stage)
    assert torch.load(best, weights_only=True)["epoch"] == 3
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epochs_without_gain"] == 1


def test_a_run_that_is_worse_than_the_mean_age_says_so(datasets, tmp_path, capsys) -> None:
    """In its last epoch, or from the tenth on."""
    for name, errors, said in (("worse", [3, 30], 1), ("better", [30, 3], 0), ("long", [30] * 9 + [31, 30, 3], 2)):
        train(datasets, tmp_path / name, flags("--epochs", len(errors)), stage=Scripted(errors))
        assert capsys.readouterr().out.count("WORSE THAN THE MEAN AGE: the validation MAE is 3") == said


def test_gradients_accumulate_to_those_of_a_larger_batch(datasets, tmp_path) -> None:
    """For a trunk without batch statistics and a loss that is a mean: 12 subjects at once, or 3 times 4."""
    weights = []
    for size, steps in ((12, 1), (4, 3)):
        network = small_network()
        for part in network.trunk.modules():
            part.train = lambda mode=True, part=part: part
            part.training = False
        args = flags("--epochs", 1, "--batch_size", size, "--accumulation_steps", steps, "--augmentation", "none",
                     "--optimizer", "sgd", "--lr", 1e-2, "--recalibrate", "false")  # fmt: skip
        train(datasets, tmp_path / str(size), args, network, loss=CascadeLoss(ranking_weight=0))
        weights.append(network.output_layer[-1].bias.detach().clone())
    assert weights[0].abs() > 1e-3
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_nothing_is_saved_while_gradients_are_half_accumulated(datasets, tmp_path, monkeypatch) -> None:
    args = flags("--batch_size", 2, "--accumulation_steps", 2, "--save_every_steps", 1)
    trainer = make_trainer(datasets, tmp_path, args)
    saved = []
    monkeypatch.setattr(RunState, "save", lambda state: saved.append(state.progress.step))
    trainer.train_epoch()
    assert saved == [2, 4]


def test_activation_checkpointing_changes_nothing(datasets, tmp_path) -> None:
    states = []
    for name in ("kept", "recomputed"):
        network = small_network()
        network.trunk.activation_checkpointing = name == "recomputed"
        states.append(torch.load(train(datasets, tmp_path / name, flags("--epochs", 2), network), weights_only=True))
    assert same(states[0]["state_dict"], states[1]["state_dict"])


def test_bfloat16_follows_float32(datasets, tmp_path) -> None:
    curves = []
    for precision in ("float32", "bfloat16"):
        args = flags("--epochs", 4, "--lr", 3e-3, "--precision", precision, "--augmentation", "none")
        train(datasets, tmp_path / precision, args)
        curves.append([float(row["train/mae"]) for row in read_csv(tmp_path / precision / "metrics.csv")])
    assert curves[0][-1] < curves[0][0] - 2
    np.testing.assert_allclose(curves[1], curves[0], atol=0.5)


def test_a_loss_that_is_not_finite_stops_the_run(datasets, tmp_path) -> None:
    class Broken(CascadeLoss):
        calls = 0

        def forward(self, brain_age, chronological_age, generator):
            Broken.calls += 1
            parts = super().forward(brain_age, chronological_age, generator)
            return {**parts, "loss": parts["loss"] * (math.nan if Broken.calls == 7 else 1)}

    # 3 training batches and 2 validation batches an epoch: the seventh call is in epoch 2.
    with pytest.raises(InputError, match=r"the loss is nan in epoch 2, batch 2\b.*sub-") as caught:
        train(datasets, tmp_path, flags("--epochs", 4), loss=Broken())
    assert str(tmp_path / "last.pt") in str(caught.value)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_weights_that_overflow_are_never_saved(datasets, tmp_path) -> None:
    args = flags("--epochs", 3, "--optimizer", "sgd", "--lr", 1e12, "--scheduler", "constant")
    with pytest.raises(InputError, match="not finite|loss is"):
        train(datasets, tmp_path, args)
    for path in tmp_path.glob("*.pt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def test_a_seed_makes_a_run_repeatable(datasets, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(datasets, tmp_path / name, flags("--epochs", 2, "--seed", seed), small_network(seed))
    first, again, other = (states(tmp_path / name) for name in "abc")
    assert same(first, again)
    assert not same(first[0]["state_dict"], other[0]["state_dict"])


def test_recalibrated_statistics_are_those_of_the_training_scans(datasets, tmp_path) -> None:
    best = train(datasets, tmp_path, flags("--epochs", 2, "--batch_size", 5, "--lr", 1e-2))
    network = small_network()
    network.load_state_dict(torch.load(best, weights_only=True)["state_dict"])
    branch = network.trunk.blocks[0].convolution_1.branches[0]
    everybody = to_device(collate(list(datasets[0])), CPU)["volume"]
    expected = branch.convolution(everybody).mean((0, 2, 3, 4))
    torch.testing.assert_close(branch.norm.running_mean, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True])
def test_frozen_parts_stay_as_they_are_and_the_rest_learns(datasets, tmp_path, recomputed) -> None:
    """Bit for bit through two epochs, weight decay and recalibration."""
    network = small_network()
    network.trunk.activation_checkpointing = recomputed
    for name, statistic in network.trunk.named_buffers():
        if name.endswith("running_mean"):
            statistic.normal_(generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    freeze(network, 2)
    best = train(datasets, tmp_path, flags("--epochs", 2, "--lr", 1e-2, "--weight_decay", 0.1), network)
    after = torch.load(best, weights_only=True)["state_dict"]
    frozen = [name for name in before if name.startswith(("trunk.stem", "trunk.blocks.0.", "trunk.blocks.1."))]
    assert len(frozen) > 30
    for name, value in before.items():
        if name in frozen:
            assert torch.equal(after[name], value), name
        elif value.is_floating_point():
            assert not torch.equal(after[name], value), name


def test_without_validation_the_last_weights_are_kept(datasets, tmp_path) -> None:
    args = flags("--epochs", 3, "--valid_folder", "")
    path = train([datasets[0], ScanDataset([], datasets[0].scans)], tmp_path, args)
    best, last = (torch.load(file, weights_only=True) for file in (path, tmp_path / "last.pt"))
    assert best["epoch"] == 2
    assert same(best["state_dict"], last["state_dict"])
    rows = read_csv(tmp_path / "metrics.csv")
    assert len(rows) == 3
    assert not [name for name in rows[0] if name.startswith("valid/")]


def test_batches_that_cannot_be_filled_are_refused(datasets, tmp_path) -> None:
    class Sorted(CascadeLoss):
        batch_size = 16

    with pytest.raises(InputError, match="a step has 4 subjects, but the sorter ranks 16"):
        make_trainer(datasets, tmp_path, flags(), loss=Sorted())
    with pytest.raises(InputError, match="12 subjects do not fill one batch of 16"):
        make_trainer(datasets, tmp_path, flags("--batch_size", 16), loss=Sorted())
