"""Runs that are interrupted, resumed and refused."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.scaledense import ScaleDense
from tests.conftest import QUICK, ROOT, SMALL_NETWORK, VOXEL_SIZE, data_flags
from tests.training.helpers import CONFIG, flags, same, states, train
from utils.common.errors import InputError
from utils.data.subjects import Subject
from utils.training.state import describe_checkpoint
from utils.training.trainer import Trainer

EPOCHS = 3
# Runs a training script that kills itself before step 8 of its second epoch.
KILLED = """
import os, runpy, signal, sys
from utils.training.trainer import Trainer

train_step = Trainer.train_step

def train_step_or_die(trainer, batch):
    if (trainer.progress.epoch, trainer.progress.step) == (1, 7):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer, batch)

Trainer.train_step = train_step_or_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(synthetic_cohort, first_stage, tmp_path, run_here, stage) -> None:
    """SIGKILL in the middle of an epoch; then --resume; every bit of the state is the same."""
    if stage == 1:
        script = "train_first_stage.py"
        extra = ["--voxel_size", VOXEL_SIZE, *data_flags(synthetic_cohort, "train", "valid", "test"),
                 "--cache_folder", tmp_path / "cache"]  # fmt: skip
    else:
        script = "train_second_stage.py"
        extra = ["--first_stage_checkpoint", first_stage / "best.pt", *data_flags(synthetic_cohort, "train", "valid")]
    common = [*(SMALL_NETWORK if stage == 1 else []), *QUICK, *extra, "--batch_size", 1, "--epochs", EPOCHS, "--warmup_epochs", 1,
              "--save_every_steps", 5]  # fmt: skip
    run_here(script, *common, "--output_dir", tmp_path / "whole")

    killed = tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (script, *common, "--output_dir", killed))],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    last = torch.load(killed / "last.pt", weights_only=True)
    assert (last["epoch"], last["step"]) == (1, 5)
    run_here(script, *common, "--output_dir", killed, "--resume")
    uninterrupted, resumed = states(tmp_path / "whole"), states(killed)
    assert same(uninterrupted, resumed)
    assert resumed[0]["epoch"] == EPOCHS
    assert (killed / "best.pt").read_bytes() == (tmp_path / "whole" / "best.pt").read_bytes()
    with (killed / "metrics.csv").open() as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == list(range(EPOCHS))
    files = [EventAccumulator(str(file)).Reload() for file in killed.glob("events.*")]  # of both processes
    files = [file for file in files if "valid/mae" in file.Tags()["scalars"]]
    assert {scalar.step for file in files for scalar in file.Scalars("valid/mae")} == set(range(EPOCHS))


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
