"""The model card and the manifest: what they say of training data and accuracy."""

import numpy as np
import pytest

from tests.conftest import save_scan
from utils.common.files import write_json
from utils.data.preparations import DESCRIPTION, preparation_of
from utils.data.subjects import Subject
from utils.evaluation.metrics import evaluate_ages
from utils.prediction.model_card import make_card, make_manifest


@pytest.fixture
def subjects(tmp_path):
    """Thirty scans of fifteen persons, two sessions each."""
    return [
        Subject(f"sub-{number // 2:02d}_ses-{number % 2}", tmp_path / "x.nii.gz", 20.0 + number, number // 2 % 2)
        for number in range(30)
    ]


def made(subjects, remark="", further=None, rows=()):
    ages = np.array([subject.chronological_age for subject in subjects])
    predictions = {"brain_age": ages + np.resize([3.0, -1.0], 30), "chronological_age": ages}
    metrics = {**evaluate_ages(ages, predictions["brain_age"]), "coverage": 0.9}
    metrics["first_stage"] = evaluate_ages(ages, ages + 4)
    manifest = make_manifest(subjects, predictions, metrics, "Made-up people, CC0.", remark) | (further or {})
    checkpoint = {
        "network": {"model": "scaledense", "blocks": 4, "filters": 2}, "voxel_size": 4, "normalization": "brain",
    }  # fmt: skip
    return manifest, make_card(manifest, subjects, checkpoint, 3, 5, rows)


def test_manifest_and_card_say_what_was_trained_and_how_well(subjects) -> None:
    manifest, card = made(subjects)
    assert manifest["age_range"] == [20.0, 49.0]
    assert manifest["out_of_fold_errors"] == [3.0, 1.0] * 15
    assert manifest["training_persons"] == [f"sub-{number:02d}" for number in range(15)]
    assert manifest["preprocessing"] == [None]
    for text in (
        "mean of 3 cascades of two stages: `scaledense`, 4 blocks of 2 filters, 4 mm", "Made-up people, CC0.",
        "30 scans of 15 persons aged 20.0 to 49.0 years (mean 34.5); 8 female, 7 male", "Prepared by: other tools",
        "5-fold cross-validation", "| 30 | 2.00 (", "first stage alone has an MAE of 4.00 years",
        "plus and minus 3.0 years", "age of 90 % of these", "for the scanners of the training subjects only",
        "Test the weights on healthy people from your scanner",
        "Diagnosis",
    ):  # fmt: skip
        assert text in " ".join(card.split()), text


def test_a_remark_stands_at_the_top(subjects) -> None:
    manifest, card = made(subjects, "These weights are interim.")
    assert manifest["remark"] == "These weights are interim."
    front, _, text = card.removeprefix("---\n").partition("\n---\n\n")
    assert "metrics: [mae, pearsonr]" in front.splitlines()
    assert text.splitlines()[:3] == ["# Model card: brain age from a T1-weighted MRI", "", "These weights are interim."]
    assert "\n\nThe mean of 3 cascades" in made(subjects)[1]


def test_the_card_tells_the_errors_on_sites_that_were_held_out(subjects) -> None:
    seen = {"n_seen_ages": 9, "mae_seen_ages": 4.321, "mean_gap_seen_ages": -2.5}
    figures = {"n": 11, "mae": 5.5, "mean_gap": 3.25, "pearson": 0.875, "coverage": 0.8}
    rows = [
        {"held_out": "people", "site": "Oslo", **figures, **seen},
        {"held_out": "sites", "site": "Rome", **figures, "n_seen_ages": 0},  # nobody of an age that training saw
    ]
    _, card = made(subjects, further={"unseen_site_gaps": {"Oslo": [1.0] * 8, "Rome": [-7.5] * 9}}, rows=rows)
    lines = card.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| held out |"))
    assert lines[start + 2] == "| people | Oslo | 11 | 5.50 | +3.25 | 0.88 | 80 % | 9 | 4.32 | -2.50 |"
    assert [cell.strip() for cell in lines[start + 3].split("|")[8:]] == ["0", "", "", ""]
    assert len({line.count("|") for line in lines[start : start + 4]}) == 1
    assert "a scanner that training never saw, `bash_predict.sh` takes plus and minus 7.5 years" in card
    assert "Test the weights on healthy people from your scanner" not in card


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
