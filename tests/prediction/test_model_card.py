"""The model card and the manifest: what they say of training data and accuracy."""

import numpy as np
import pytest

from tests.conftest import save_scan
from utils.common.files import write_json
from utils.data.subjects import Subject
from utils.evaluation.metrics import evaluate_ages
from utils.prediction.model_card import make_card, make_manifest
from utils.preparation.records import DESCRIPTION, preparation_of


@pytest.fixture
def subjects(tmp_path):
    """Thirty scans of fifteen persons, two sessions each."""
    return [
        Subject(f"sub-{number // 2:02d}_ses-{number % 2}", tmp_path / "x.nii.gz", 20.0 + number, number // 2 % 2)
        for number in range(30)
    ]


def made(subjects, remark=""):
    ages = np.array([subject.chronological_age for subject in subjects])
    predictions = {"brain_age": ages + np.resize([3.0, -1.0], 30), "chronological_age": ages}
    metrics = {**evaluate_ages(ages, predictions["brain_age"]), "coverage": 0.9}
    metrics["first_stage"] = evaluate_ages(ages, ages + 4)
    manifest = make_manifest(subjects, predictions, metrics, "Made-up people, CC0.", remark)
    checkpoint = {
        "network": {"model": "scaledense", "blocks": 4, "filters": 2}, "voxel_size": 4, "normalization": "brain",
    }  # fmt: skip
    return manifest, make_card(manifest, subjects, checkpoint, 3, 5)


def test_manifest_and_card_say_what_was_trained_and_how_well(subjects) -> None:
    manifest, card = made(subjects)
    assert manifest["age_range"] == [20.0, 49.0]
    assert manifest["out_of_fold_errors"] == [3.0, 1.0] * 15
    assert manifest["training_persons"] == [f"sub-{number:02d}" for number in range(15)]
    assert manifest["preprocessing"] == [None]
    for text in (
        "mean of 3 cascades of two stages: `scaledense`, 4 blocks of 2 filters, 4 mm", "Made-up people, CC0.",
        "30 scans of 15 persons aged 20.0 to 49.0 years (mean 34.5); 8 female, 7 male", "Prepared by: other tools",
        "5-fold cross-validation", "| 30 | 2.00 (", "first stage alone has an MAE of 4.00 years", "plus and minus\n3.0 years",
        "age of 90 % of these", "say nothing about other scanners", "Diagnosis",
    ):  # fmt: skip
        assert text in card, text


def test_a_remark_stands_at_the_top(subjects) -> None:
    manifest, card = made(subjects, "These weights are interim.")
    assert manifest["remark"] == "These weights are interim."
    assert card.splitlines()[:3] == ["# Model card: brain age from a T1-weighted MRI", "", "These weights are interim."]
    assert made(subjects)[1].splitlines()[2].startswith("The mean of 3 cascades")


def test_how_a_scan_was_prepared_is_read_beside_it_or_beside_the_file_it_links_to(tmp_path) -> None:
    parts = {"Fingerprint": "abc", "Parameters": {"registration": "affine"}}
    write_json(tmp_path / "ours" / DESCRIPTION, {"GeneratedBy": [parts]})
    write_json(tmp_path / "others" / DESCRIPTION, {"GeneratedBy": "someone"})
    for folder in ("ours", "others"):
        save_scan(tmp_path / folder / "a.nii.gz", np.ones((2, 2, 2)), np.eye(4))
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "ours" / "a.nii.gz")
    expected = {"fingerprint": "abc", "registration": "affine"}
    assert preparation_of(tmp_path / "ours" / "a.nii.gz") == preparation_of(tmp_path / "link.nii.gz") == expected
    assert preparation_of(tmp_path / "others" / "a.nii.gz") is None
