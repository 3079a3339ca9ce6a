"""What a run writes for people."""

import csv
import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.training.run_log import SPEEDS


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
        assert [scalar.step for scalar in scalars] == [0, 1]
        np.testing.assert_allclose([s.value for s in scalars], [float(row[tag]) for row in rows], rtol=1e-5)
    assert events.Images("valid/brain_age")
    best = torch.load(first_stage / "best.pt", weights_only=True)
    assert events.Scalars("best/valid/mae")[0].value == pytest.approx(best["valid_mae"])
    assert len(best["train_subjects"]) == 12
    facts = json.loads((first_stage / "hyperparameters.json").read_text())
    assert facts["batch_size"] == 4
    assert facts["versions"]["torch"].startswith("2.")
    assert {"device_name", "git_commit", "command"} <= set(facts)
