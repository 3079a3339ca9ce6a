"""Signals that ask a run to stop: it saves at once, says how to go on, and goes on bit for bit."""

import os
import signal
from functools import partial

import pytest
import torch

from tests.faults.helpers import differences, outcome
from utils.training.stages import SecondStage
from utils.training.trainer import Trainer


def send_in_step(epoch: int, step: int, number: signal.Signals, to_all: bool = False) -> None:
    """Send this process a signal within a step, or all of its group, as a batch system does."""
    os.setpgid(0, 0)
    train_step = Trainer.train_step

    def send_and_step(trainer, batch):
        if (trainer.progress.epoch, trainer.progress.step) == (epoch, step):
            os.killpg(0, number) if to_all else os.kill(os.getpid(), number)
        return train_step(trainer, batch)

    Trainer.train_step = send_and_step


def send_in_validation(number: signal.Signals) -> None:
    """Send this process a signal within every validation of the second stage."""
    report = SecondStage.report
    SecondStage.report = lambda *args: os.kill(os.getpid(), number) or report(*args)


@pytest.mark.parametrize(
    ("stage", "number", "send", "workers", "saved"),
    [
        (1, signal.SIGINT, partial(send_in_step, 0, 3), 0, (0, 4)),  # the last step of an epoch
        (1, signal.SIGUSR1, partial(send_in_step, 1, 1), 0, (1, 2)),
        (2, signal.SIGTERM, partial(send_in_step, 0, 0, to_all=True), 1, (0, 1)),
        (2, signal.SIGHUP, send_in_validation, 0, (1, 0)),  # the epoch is finished first
    ],
)
def test_a_signal_saves_what_is_done(undisturbed, tmp_path, stage, number, send, workers, saved) -> None:
    whole = undisturbed[stage]
    rarely = ("--save_every_steps", 1000, "--num_workers", workers)
    assert whole.training.run(tmp_path, *rarely, prepare=partial(send, number=number)) == 128 + number
    log = (tmp_path / "log.txt").read_text()
    assert f"{number.name}: saves after this step and stops" in log
    last = tmp_path / "run" / "last.pt"
    kept = f"{last} holds the last good state: go on with the same command, a training with --resume"
    assert f"stopped by {number.name}; {kept}\n" in log
    assert "Traceback" not in log
    state = torch.load(last, weights_only=True)
    assert (state["epoch"], state["step"]) == saved
    assert whole.training.run(tmp_path, "--resume") == 0
    assert differences(outcome(tmp_path), whole.outcome) == []


def test_gradients_are_whole_when_a_signal_saves(undisturbed, tmp_path) -> None:
    """With 3 batches a step of the optimizer, a signal in the second batch saves after the third."""
    prepare = partial(send_in_step, 0, 1, signal.SIGTERM)
    status = undisturbed[1].training.run(tmp_path, "--accumulation_steps", 3, prepare=prepare)
    assert status == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 3
