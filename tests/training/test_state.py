"""Runs that are interrupted, resumed and refused."""

from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from model.scaledense import ScaleDense
from tests.training.helpers import CONFIG, flags, same, states, train
from utils.common.errors import InputError
from utils.data.subjects import Subject
from utils.training.run_folder import claimed
from utils.training.state import describe_checkpoint
from utils.training.trainer import Trainer


def test_resuming_checks_what_must_agree(datasets, tmp_path) -> None:
    train(datasets, tmp_path / "cosine", flags("--epochs", 1))
    with pytest.raises(InputError, match="--epochs was 1, is 2"):
        train(datasets, tmp_path / "cosine", flags("--epochs", 2, "--resume"))
    plateau = ("--scheduler", "plateau", "--keep", "best")
    train(datasets, tmp_path / "plateau", flags("--epochs", 1, *plateau))
    train(datasets, tmp_path / "plateau", flags("--epochs", 2, *plateau, "--resume"))
    assert torch.load(tmp_path / "plateau" / "last.pt", weights_only=True)["epoch"] == 2
    other = ScaleDense(replace(CONFIG, age_mean=51.0))
    with pytest.raises(InputError, match="its subjects or ages differ"):
        train(datasets, tmp_path / "plateau", flags("--epochs", 2, *plateau, "--resume"), other)


def test_a_finished_run_has_nothing_left_to_do(datasets, tmp_path) -> None:
    args = "--scheduler", "constant"
    train(datasets, tmp_path, flags("--epochs", 2, *args))
    before = states(tmp_path)
    train(datasets, tmp_path, flags("--epochs", 2, *args, "--resume"))
    assert same(states(tmp_path), before)
    with pytest.raises(InputError, match="has 2 epochs already; raise EPOCHS"):
        train(datasets, tmp_path, flags("--epochs", 1, *args, "--resume"))


def test_a_folder_with_a_run_is_refused(datasets, tmp_path) -> None:
    train(datasets, tmp_path, flags("--epochs", 1))
    with pytest.raises(InputError, match="holds a run already"):
        train(datasets, tmp_path, flags("--epochs", 1))
    with pytest.raises(InputError, match="--learning_rate was 0.001, is 0.5"):
        train(datasets, tmp_path, flags("--epochs", 1, "--lr", 0.5, "--resume"))


def test_a_checkpoint_says_what_it_is_of(tmp_path) -> None:
    trained, chose = Subject("a", tmp_path, 50.0, 1, discretized_age=45.0), Subject("b", tmp_path, 60.0, 0)
    first = describe_checkpoint({"stage": 1}, 4, "brain", 5.0, [trained], [])
    assert (first["train_subjects"], first["train_ages"], first["train_sexes"]) == (["a"], [50.0], [1])
    assert (first["voxel_size"], first["normalization"], first["age_interval"]) == (4, "brain", 5.0)
    assert (first["valid_subjects"], first["valid_ages"]) == ([], [])
    assert "first_stage_sha256" not in first
    second = describe_checkpoint({"stage": 2}, 4, "brain", 5.0, [trained], [chose], "f" * 64)
    assert (second["valid_subjects"], second["valid_ages"]) == (["b"], [60.0])
    assert (second["first_stage_sha256"], second["train_discretized_ages"]) == ("f" * 64, [45.0])


def test_results_that_cannot_be_continued_are_never_replaced(datasets, tmp_path) -> None:
    """Whatever of a run is left, --resume replaces nothing unless it can go on."""
    train(datasets, tmp_path, flags("--epochs", 2))
    (tmp_path / "train_discretized_age.npy").write_bytes(b"a table")
    (tmp_path / "last.pt").rename(tmp_path / "away")
    for lost in ("", "best.pt", "metrics.csv"):
        if lost:
            (tmp_path / lost).unlink()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(InputError, match=r"holds results .*, but no last\.pt to go on from"):
            train(datasets, tmp_path, flags("--epochs", 3, "--seed", 5, "--resume"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "away").rename(tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"best\.pt: is gone"):
        train(datasets, tmp_path, flags("--epochs", 2, "--resume"))


def test_a_run_can_be_continued_from_its_first_moment(datasets, tmp_path, monkeypatch) -> None:
    train(datasets, tmp_path / "whole", flags("--epochs", 1))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", die)
        train(datasets, tmp_path / "cut", flags("--epochs", 1))
    train(datasets, tmp_path / "cut", flags("--epochs", 1, "--resume"))
    assert (tmp_path / "whole" / "best.pt").read_bytes() == (tmp_path / "cut" / "best.pt").read_bytes()


def test_two_trainings_never_share_a_folder_and_leftovers_are_removed(datasets, tmp_path) -> None:
    def hold() -> None:
        with claimed(tmp_path):
            held.set()
            done.wait()

    context = get_context("fork")
    held, done = context.Event(), context.Event()
    (tmp_path / ".0123456789ab.best.pt").write_bytes(b"half of a checkpoint")
    (tmp_path / ".mine").touch()
    other = context.Process(target=hold)
    other.start()
    held.wait()
    with pytest.raises(InputError, match="another training is writing there"):
        train(datasets, tmp_path, flags("--epochs", 1))
    done.set()
    other.join()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".mine"}
    train(datasets, tmp_path, flags("--epochs", 1))


def run_of_two_processes(path, step: int = 0) -> None:
    """Make a saved run of one process look as if two had made it, each with half of the batch."""
    state = torch.load(path, weights_only=True)
    assert (state["flags"]["processes"], state["flags"]["batch_size"]) == (1, 4)
    torch.save({**state, "flags": {**state["flags"], "processes": 2, "batch_size": 2}, "step": step}, path)


def test_a_run_goes_on_with_another_number_of_processes_if_the_joint_batch_stays(datasets, tmp_path, capsys) -> None:
    constant = ("--scheduler", "constant", "--recalibrate", "false")
    train(datasets, tmp_path / "whole", flags("--epochs", 2, *constant))
    train(datasets, tmp_path / "cut", flags("--epochs", 1, *constant))
    last = tmp_path / "cut" / "last.pt"
    run_of_two_processes(last)
    with pytest.raises(InputError, match="--batch_size was 2, is 3; --processes was 2, is 1"):
        train(datasets, tmp_path / "cut", flags("--epochs", 2, *constant, "--resume", "--batch_size", 3))
    train(datasets, tmp_path / "cut", flags("--epochs", 2, *constant, "--resume"))
    assert "goes on with 1 instead of 2 processes; the joint batch stays at 4 scans" in capsys.readouterr().out
    assert same(states(tmp_path / "cut"), states(tmp_path / "whole"))
    run_of_two_processes(last, step=1)
    with pytest.raises(InputError, match="within an epoch of 2 processes"):
        train(datasets, tmp_path / "cut", flags("--epochs", 2, *constant, "--resume"))
