"""Cross-validation: folds that do not leak, recipes and variables, resuming, pooled ages, weights."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cross_validate
from tests.conftest import ROOT, VOXEL_SIZE, save_scan
from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.data.subjects import Subject, person_of
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.cross_validation import CrossValidation, pool, training_arguments, write_folds
from utils.prediction.weights import STAGES, load_mean_volume, load_weights

FOLDS = 2
# Nothing of this may reach the trainings.
ELSEWHERE = dict.fromkeys(
    ("DATA", "TRAIN_FOLDER", "VALID_FOLDER", "TEST_FOLDER", "FIRST_STAGE_CHECKPOINT", "DISCRETIZED_AGE_FOLDER", "CHECKPOINT"),
    "/nowhere",
)  # fmt: skip


@pytest.fixture(scope="module")
def scans(synthetic_cohort, tmp_path_factory):
    """All scans of the small cohort in one folder."""
    folder = tmp_path_factory.mktemp("scans")
    for path in synthetic_cohort.glob("*/*.nii.gz"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def variables(scans, synthetic_cohort, tmp_path_factory):
    """The environment of a short cross-validation with a recipe."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.sh"
    recipe.write_text(
        f': "${{MODEL:=scaledense_paper}}" "${{BLOCKS:=3}}" "${{FILTERS:=4}}" "${{VOXEL_SIZE:={VOXEL_SIZE}}}"\n'
        ': "${BATCH_SIZE:=6}" "${WARMUP_EPOCHS:=0}" "${RANKING_WEIGHT:=10}"\n'
        'if [[ $STAGE == first ]]; then : "${EPOCHS:=2}" "${FOLDS:=3}"; else : "${EPOCHS:=1}"; fi\n'
    )
    return {
        **ELSEWHERE, "RECIPE": recipe, "RANKING_WEIGHT": 3, "SCAN_FOLDER": scans,
        "LABEL_TABLE": synthetic_cohort / "labels.csv", "FOLDS": FOLDS, "SEED": 5, "NUM_WORKERS": 0, "CACHE_FOLDER": "",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def set_up(monkeypatch, variables: dict, *flags: object, **more: object) -> None:
    """Give this process the environment and the command line that bash would give ``cross_validate.py``."""
    own = {name: str(value) for name, value in {**variables, **more}.items()}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    names = ("scan_folder", "label_table", "output_dir", "folds", "seed", "num_workers", "cache_folder")
    given = [word for name in names for word in (f"--{name}", own[name.upper()])]
    monkeypatch.setattr(sys, "argv", ["cross_validate.py", *given, *map(str, flags)])


def refusal(monkeypatch, capsys, variables: dict, *flags: object, **more: object) -> str:
    """Return what ``cross_validate.py`` says before it ends with status 2."""
    set_up(monkeypatch, variables, *flags, **more)
    with pytest.raises((InputError, SystemExit)) as stop:
        cross_validate.main()
    if isinstance(stop.value, InputError):
        return str(stop.value)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def cross_validated(variables, tmp_path_factory):
    """A cross-validation through bash, as a user runs it: its folder, the folder of its weights, what it printed."""
    folder = tmp_path_factory.mktemp("cross_validated")
    run_folder, weights = folder / "run", folder / "weights"
    made = {"OUTPUT_DIR": run_folder, "WEIGHTS_DIR": weights, "DATA_NOTICE": "Made-up balls.", "REMARK": "Interim."}
    own = {name: str(value) for name, value in {**variables, **made}.items()}
    result = subprocess.run(
        ["bash", str(ROOT / "bash_cross_validate.sh")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **own},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return run_folder, weights, result.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_no_network_saw_the_subjects_it_is_tested_on(cross_validated) -> None:
    folder, _, _ = cross_validated
    fold = {row["subject_id"]: row["fold"] for row in rows_of(folder / "folds.csv")}
    assert len(fold) == 22
    for number in range(1, FOLDS + 1):
        tested = {person_of(name) for name, own in fold.items() if own == str(number)}
        for stage in STAGES:
            checkpoint = load_checkpoint(folder / f"fold_{number}" / "member_1" / stage / "best.pt")
            seen = {person_of(name) for name in checkpoint["train_subjects"]}
            assert not tested & seen
            assert len(tested) + len(seen) == 22
            assert checkpoint["valid_subjects"] == []


def test_recipe_and_environment_reach_the_trainings(cross_validated) -> None:
    folder, _, _ = cross_validated
    first, second = (
        json.loads((folder / "fold_1" / "member_1" / stage / "hyperparameters.json").read_text()) for stage in STAGES
    )
    assert (first["epochs"], second["epochs"]) == (2, 1)  # of the recipe, by stage
    assert first["folds"] == 3  # of the recipe, not the number of folds of cross-validation
    assert first["ranking_weight"] == second["ranking_weight"] == 3  # the environment wins
    assert first["seed"] == second["seed"] == 5
    assert first["valid_folder"] is first["test_folder"] is second["valid_folder"] is None
    table = np.load(folder / "fold_1" / "member_1" / "first_stage" / "train_discretized_age.npy", allow_pickle=False)
    assert table["out_of_fold"].all()


def test_every_subject_has_an_age_and_an_interval(cross_validated) -> None:
    folder, _, printed = cross_validated
    pooled = {row["subject_id"]: row for row in rows_of(folder / "predictions.csv")}
    assert len(pooled) == 22
    for number in range(1, FOLDS + 1):
        for row in rows_of(folder / f"fold_{number}" / "member_1" / "test" / "predictions.csv"):
            assert float(pooled[row["subject_id"]]["brain_age"]) == pytest.approx(float(row["brain_age"]), abs=1e-3)
    metrics = json.loads((folder / "metrics.json").read_text())
    inside = [
        float(row["interval_low"]) <= float(row["chronological_age"]) <= float(row["interval_high"])
        for row in pooled.values()
    ]
    assert metrics["coverage"] == pytest.approx(np.mean(inside))
    assert {"first_stage", "gain_interval", "residual_sd"} <= set(metrics)
    assert "gain over the first stage" in printed


def test_only_what_is_not_finished_is_run_again(cross_validated, variables, monkeypatch) -> None:
    folder, _, _ = cross_validated
    missing = folder / "fold_2" / "member_1" / "test" / "predictions.csv"
    content, before = missing.read_text(), (folder / "predictions.csv").read_text()
    missing.unlink()
    run_again = []

    def run_instead(member: Path, script: str, flags: list[str]) -> None:
        run_again.append((member, script))
        missing.write_text(content)

    monkeypatch.setattr("utils.prediction.cross_validation._run", run_instead)
    set_up(monkeypatch, variables, OUTPUT_DIR=folder)
    cross_validate.main()
    assert run_again == [(folder / "fold_2" / "member_1", "bash_test_second_stage.sh")]
    assert (folder / "predictions.csv").read_text() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SEED": 1}, "holds other subjects or folds"),
        ({"EPOCHS": 3}, "--epochs of the first stage was 2, is 3; --epochs of the second stage was 1, is 3"),
        ({"PRECISION": "bfloat16"}, "--precision of the first stage was auto, is bfloat16"),
    ],
)
def test_a_folder_is_continued_with_the_same_settings(
    cross_validated, variables, monkeypatch, capsys, more, said
) -> None:
    assert said in refusal(monkeypatch, capsys, variables, OUTPUT_DIR=cross_validated[0], **more)


@pytest.mark.parametrize(
    ("flags", "more", "said"),
    [
        ([], {"EPOCHS": "x"}, "'x' is not a number"),
        ([], {"KEEP": "best"}, "--keep best needs --valid_folder"),
        ([], {"RECIPE": "nowhere.sh"}, "RECIPE=nowhere.sh: no such file"),
        ([], {"VOXEL_SIZE": 3}, "voxel size is 3 mm"),
        ([], {"FOLDS": 0}, "at least 2 folds"),
        (["--scan_folder", "nowhere"], {"USE_SEX": "false"}, "nowhere: no such folder"),
        (["--stages", 1, "--weights_dir", "w"], {}, "weights hold both stages"),
        (["--flags", "--epochs 3"], {}, "unrecognized arguments: --flags"),
    ],
)
def test_wrong_settings_end_before_anything_is_written(
    variables, tmp_path, monkeypatch, capsys, flags, more, said
) -> None:
    assert said in refusal(monkeypatch, capsys, variables, *flags, OUTPUT_DIR=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_weights_are_not_overwritten(variables, weights, tmp_path, monkeypatch, capsys) -> None:
    flags = "--weights_dir", weights
    said = refusal(monkeypatch, capsys, variables, *flags, OUTPUT_DIR=tmp_path / "run")
    assert "holds weights already" in said
    assert not (tmp_path / "run").exists()


def test_a_scan_off_the_grid_is_found_before_the_folds(variables, scans, tmp_path, monkeypatch, capsys) -> None:
    folder = shutil.copytree(scans, tmp_path / "scans")
    path = min(folder.iterdir())
    save_scan(path, np.ones((20, 20, 20), np.float32), np.eye(4))
    said = refusal(monkeypatch, capsys, variables, SCAN_FOLDER=folder, OUTPUT_DIR=tmp_path / "run")
    assert str(path) in said
    assert not (tmp_path / "run").exists()


def test_the_end_of_the_log_of_a_failed_script_is_shown(variables, tmp_path, monkeypatch, capsys) -> None:
    wrong = {"OUTPUT_DIR": tmp_path / "run", "RANKING": "sodeep", "SORTER": "no_sorter.pt"}
    said = refusal(monkeypatch, capsys, variables, **wrong)
    assert "bash_train_first_stage.sh failed with status 2" in said
    assert "error: no_sorter.pt" in said


def settings_of(folder: Path, **more: object) -> CrossValidation:
    given = {
        "output_dir": folder, "label_table": folder / "labels.csv", "folds": 2, "members": 2, "stages": 2, "seed": 0,
        "weights_dir": None, "data_notice": "", "remark": "", "num_workers": 0, "cache_folder": None,
    }  # fmt: skip
    return CrossValidation(**{**given, **more})


def test_arguments_with_blanks_and_several_processes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PROCESSES", "2")
    settings = settings_of(tmp_path / "a folder", cache_folder=tmp_path / "the cache")
    for stage in (1, 2):
        words = training_arguments(stage, settings)
        assert words[0] == "--train_folder"  # what is before it, the launcher's, is left out
        last = len(words) - 1 - words[::-1].index("--train_folder")
        assert words[last + 1] == str(settings.output_dir / "fold_1" / "train")
        assert str(tmp_path / "the cache") in words


def test_folds_divide_persons_not_scans(tmp_path) -> None:
    subjects = [
        Subject(f"sub-{number:02d}_ses-{session}", tmp_path, 20.0 + number, 0)
        for number in range(12)
        for session in range(3)
    ]
    fold = write_folds(tmp_path, subjects, 4, 0)
    assert set(fold) == {1, 2, 3, 4}
    assert all(len(set(fold[3 * number : 3 * number + 3])) == 1 for number in range(12))
    assert (write_folds(tmp_path, subjects, 4, 0) == fold).all()
    with pytest.raises(InputError, match="other subjects or folds"):
        write_folds(tmp_path, subjects[:-3], 4, 0)


def test_pooled_ages_are_the_mean_of_the_members(tmp_path) -> None:
    rng = np.random.default_rng(0)
    size, settings = 40, settings_of(tmp_path)
    subjects = [
        Subject(f"sub-{number:02d}", tmp_path, float(age), 0) for number, age in enumerate(range(20, 20 + size))
    ]
    fold = np.arange(size) % 2 + 1
    names = ("first_stage_age", "discretized_age", "residual_age", "brain_age")
    tables = rng.uniform(20, 60, (2, len(names), size))
    for member in (1, 2):
        for number in (1, 2):
            path = settings.member_folder(number, member) / "test" / "predictions.csv"
            path.parent.mkdir(parents=True)
            rows = [
                [subjects[i].subject_id, *(f"{value:.6f}" for value in tables[member - 1, :, i])]
                for i in np.flatnonzero(fold == number)
            ]
            path.write_text("\n".join(",".join(row) for row in [["subject_id", *names], *rows]) + "\n")
    predictions, report = pool(subjects, fold, settings)
    for column, name in enumerate(names):
        np.testing.assert_allclose(predictions[name], tables[:, column].mean(0), atol=1e-4)
    error = np.abs(predictions["brain_age"] - predictions["chronological_age"])
    for number in (1, 2):  # the radius of a fold comes from the other one
        radius = (predictions["interval_high"] - predictions["interval_low"])[fold == number] / 2
        np.testing.assert_allclose(radius, interval_radius(error[fold != number], INTERVAL_COVERAGE), rtol=1e-4)
    inside = (predictions["interval_low"] <= predictions["chronological_age"]) & (
        predictions["chronological_age"] <= predictions["interval_high"]
    )
    assert report(predictions)[0]["coverage"] == pytest.approx(inside.mean())
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="lacks 1 subjects of the fold"):
        pool(subjects, fold, settings)


def test_weights_hold_what_was_trained_on_all_subjects(cross_validated) -> None:
    folder, weights, _ = cross_validated
    manifest, members = load_weights(weights)
    assert len(members) == 1
    for stage, own in zip(STAGES, members[0], strict=True):
        trained = load_checkpoint(folder / "all" / "member_1" / stage / "best.pt")
        assert len(trained["train_subjects"]) == 22
        for name, value in trained["state_dict"].items():  # half precision, but for statistics
            torch.testing.assert_close(own["state_dict"][name], value, rtol=1e-3, atol=1e-6)
    errors = [abs(float(row["brain_age_gap"])) for row in rows_of(folder / "predictions.csv")]
    assert manifest["out_of_fold_errors"] == pytest.approx(errors, abs=1e-3)
    assert manifest["preprocessing"] == [None]
    assert manifest["remark"] == "Interim."
    card = (weights / "MODEL_CARD.md").read_text()
    assert card.splitlines()[2] == "Interim."
    assert "Made-up balls." in card
    volume = load_mean_volume(weights)
    assert volume.shape == (1, 1, 23, 28, 23)
    assert volume.max() > 0 > volume.min()  # the mean of z-scored brains, below 0 outside
