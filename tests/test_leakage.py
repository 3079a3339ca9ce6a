"""Persons on both sides are found, by person and not by scan."""

import json

import torch

from utils.leakage import find_leaks, networks_persons
from utils.weights import MANIFEST, NEEDED, STAGES


def test_whom_networks_have_seen(tmp_path) -> None:
    content = {"state_dict": {}, "network": {"stage": 1}, "train_subjects": ["sub-1_ses-1", "sub-2"], "train_ages": [30.0, 50.0],
               "valid_subjects": ["sub-3"]}  # fmt: skip
    torch.save(content, tmp_path / "best.pt")
    torch.save({"state_dict": {}}, tmp_path / "released.pt")
    manifest = dict.fromkeys(NEEDED) | {"members": 1, "networks": dict.fromkeys(STAGES), "training_persons": ["sub-8"],
                                        "age_range": [20.0, 80.0]}  # fmt: skip
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    persons, ages, warnings = networks_persons([tmp_path / "best.pt", tmp_path / "released.pt"], tmp_path)
    training, validation, shipped = persons.values()
    assert training == {"sub-1", "sub-2"}
    assert validation == {"sub-3"}
    assert shipped == {"sub-8"}
    assert "first stage's training" in next(iter(persons))
    assert min(ages) < 30 < 50 < max(ages)
    assert "released.pt does not record its training subjects" in warnings[0]


def test_leaks_are_named() -> None:
    many = {f"sub-{i:02d}" for i in range(60)}
    (line,) = find_leaks(many, {"the fit": many, "the calibration set": {"other"}}, "the test set")
    assert "60 persons of the test set are in the fit too: sub-00, sub-01" in line
    assert line.endswith("sub-19 and 40 more")
