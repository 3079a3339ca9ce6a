"""Leakage is found by person, not by scan."""

from pathlib import Path

import pandas as pd
import torch

from utils.analysis.leakage import find_leaks, names_of, seen_by_checkpoints, seen_by_weights, suspect_leaks


def test_whom_networks_have_seen(tmp_path) -> None:
    content = {"state_dict": {}, "network": {"stage": 1}, "train_subjects": ["sub-1_ses-1", "sub-2"],
               "train_ages": [30.0, 50.0],
               "valid_subjects": ["sub-3"]}  # fmt: skip
    torch.save(content, tmp_path / "best.pt")
    torch.save({"state_dict": {}}, tmp_path / "released.pt")
    seen = seen_by_checkpoints([tmp_path / "best.pt", tmp_path / "released.pt"])
    assert seen.training == {f"the first stage's training of {tmp_path / 'best.pt'}": {"sub-1", "sub-2"}}
    assert seen.validation == {f"the first stage's validation of {tmp_path / 'best.pt'}": {"sub-3"}}
    assert seen.age_ranges == [(30, 50)]
    assert "released.pt does not record its training subjects" in seen.warnings[0]
    shipped = seen_by_weights(Path("weights"), {"training_persons": ["sub-8"], "age_range": [20.0, 80.0]})
    assert shipped.training == {"the training of weights": {"sub-8"}}
    assert shipped.age_ranges == [(20, 80)]


def test_networks_have_seen_the_subjects_of_their_initial_weights(tmp_path) -> None:
    content = {"state_dict": {}, "network": {"stage": 2}, "train_subjects": ["sub-1"], "valid_subjects": [],
               "initial_subjects": ["sub-4_ses-1"]}  # fmt: skip
    torch.save(content, tmp_path / "best.pt")
    seen = seen_by_checkpoints([tmp_path / "best.pt"])
    assert seen.training == {f"the second stage's training of {tmp_path / 'best.pt'}": {"sub-1", "sub-4"}}


def test_leaks_are_named() -> None:
    many = {f"sub-{i:02d}": {f"sub-{i:02d}"} for i in range(60)}
    (line,) = find_leaks(many, {"the fit": set(many), "the calibration set": {"other"}}, "the test set")
    assert "60 persons of the test set are in the fit too: sub-00, sub-01" in line
    assert line.endswith("sub-19 and 40 more")


def test_a_person_is_found_by_any_name() -> None:
    table = pd.DataFrame({"person": ["P1", "P1", "P2"], "subject_id": ["sub-1_ses-1", "sub-1_ses-2", "sub-2"]})
    names = names_of(table)
    assert names == {"P1": {"P1", "sub-1"}, "P2": {"P2", "sub-2"}}
    for known in ("P1", "sub-1"):
        (line,) = find_leaks(names, {"the fit": {known}}, "the test set")
        assert line == "1 person of the test set is in the fit too: P1"


def test_names_that_are_nearly_the_same_are_suspected() -> None:
    names = {"HOSP-007": {"HOSP-007"}, "HOSP-008": {"HOSP-008"}, "sub-10": {"sub-10"}}
    (line,) = suspect_leaks(names, {"the fit": {"sub-hosp7", "HOSP-008", "sub-100"}})
    assert "nearly the same: 1 person of the test set is in the fit too: HOSP-007" in line
