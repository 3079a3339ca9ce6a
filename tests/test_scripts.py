"""The bash scripts and entry points end to end, on the CPU."""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from model.building import load_network, make_network
from model.cascade import Cascade
from model.ranking import SoftRank
from model.scaledense import NetworkConfig
from tests.conftest import (
    QUICK,
    ROOT,
    SHORT,
    SMALL_NETWORK,
    VOXEL_SIZE,
    data_flags,
    random_brain,
    run_script,
    save_scan,
)
from tests.model.helpers import released_names
from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.common.files import sha256_of
from utils.common.provenance import software_version
from utils.data.cohort import load_cohort
from utils.data.dataset import ScanDataset, collate, to_device
from utils.data.discretized_ages import write_discretized_ages
from utils.data.images import MNI152_T1_2MM, brain_box, model_grid
from utils.data.scans import ScanStore
from utils.evaluation.predicting import predict
from utils.options.training import parse_training_flags
from utils.training.stages import FirstStage, SecondStage


def bash(script: str, *flags: object, **variables: object) -> str:
    """Run a bash script as a user does: variables in the environment, further flags behind."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        ["bash", str(ROOT / f"bash_{script}.sh"), *map(str, flags)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment | {name: str(value) for name, value in variables.items()},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_both_test_scripts_through_bash(synthetic_cohort, first_stage, second_stage, tmp_path) -> None:
    common = {"DATA": synthetic_cohort, "BATCH_SIZE": 4, "NUM_WORKERS": 0}
    checkpoint = {"FIRST_STAGE_CHECKPOINT": first_stage / "best.pt"}
    shown = bash("test_first_stage", CHECKPOINT=first_stage / "best.pt", OUTPUT_DIR=tmp_path / "test_first", **common)
    assert "MAE (years)" in shown
    shown = bash(
        "test_second_stage",
        CHECKPOINT=second_stage / "best.pt",
        OUTPUT_DIR=tmp_path / "test_second",
        **checkpoint,
        **common,
    )
    assert "first stage" in shown
    files = {"predictions.csv", "predictions.npz", "metrics.json", "brain_age.png"}
    assert {p.name for p in (tmp_path / "test_second").iterdir()} == files | {"test_second_stage.log"}
    own_files = {"test_discretized_age.npy", "test_first_stage.log"}
    assert {p.name for p in (tmp_path / "test_first").iterdir()} == files | own_files
    log = (tmp_path / "test_second" / "test_second_stage.log").read_text()
    assert all(line in log for line in shown.splitlines())
    rows = read_csv(tmp_path / "test_second" / "predictions.csv")
    assert [row["subject_id"] for row in rows] == [f"sub-{i:02d}" for i in range(18, 23)]
    one = rows[0]
    origin = {
        "software_version": software_version(),
        "weights_sha256": f"{sha256_of(first_stage / 'best.pt')} {sha256_of(second_stage / 'best.pt')}",
        "preprocessing_fingerprint": "",  # of scans without a dataset_description.json
    }
    assert {name: one[name] for name in origin} == origin
    metrics = json.loads((tmp_path / "test_second" / "metrics.json").read_text())
    assert metrics["provenance"] == {name: [value] if value else [] for name, value in origin.items()}
    assert float(one["brain_age"]) == pytest.approx(
        float(one["discretized_age"]) + float(one["residual_age"]), abs=1e-3
    )
    assert float(one["discretized_age"]) % 5 == 0
    # The first stage of the cascade is that of its own test, and of the tables it wrote when trained.
    own = read_csv(tmp_path / "test_first" / "predictions.csv")
    np.testing.assert_allclose(
        [float(row["first_stage_age"]) for row in rows], [float(row["brain_age"]) for row in own], rtol=1e-4
    )
    trained, tested = (
        np.load(folder / "test_discretized_age.npy") for folder in (first_stage, tmp_path / "test_first")
    )
    np.testing.assert_allclose(trained["brain_age"], tested["brain_age"], rtol=1e-4)
    assert set(trained["first_stage_sha256"]) == {sha256_of(first_stage / "best.pt")}


# What recipes/as_released.sh and the defaults must give: the authors' training.
RELEASED = {
    "initialization": "released", "loss": "mse", "ranking": "sodeep", "ranking_weight": 10, "age_difference_weight": 1,
    "batches": "shuffled", "accumulation_steps": 1, "augmentation": [], "weight_decay": 5e-4, "momentum": 0,
    "scheduler": "plateau", "warmup_epochs": 0, "minimum_learning_rate": 0, "plateau_factor": 0.5, "plateau_epochs": 5,
    "keep": "best", "early_stopping_epochs": 20, "recalibrate": False, "precision": "float32", "age_interval": 5,
    "seed": 0,
}  # fmt: skip
RELEASED_STAGES = {
    "first": {"optimizer": "adam", "amsgrad": True, "learning_rate": 1e-3, "field_of_view": "whole",
              "normalization": "brain", "folds": 0, "model": "scaledense", "filters": 8, "dense_connections": True,
              "use_sex": True, "flip_averaging": False},
    "second": {"optimizer": "sgd", "amsgrad": False, "learning_rate": 1e-5, "start_from_first_stage": False,
               "age_jitter": 0},
}  # fmt: skip


def flags_passed_by(script: str, tmp_path: Path, **variables: object) -> list[str]:
    """Return the flags with which a bash script starts its Python script."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    return bash(script, PYTHON=python, **variables).split("\0")[1:-1]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_recipe_stands_between_the_environment_and_the_defaults(tmp_path, stage) -> None:
    name = {1: "first", 2: "second"}[stage]
    script = f"train_{name}_stage"
    plain = parse_training_flags(stage, flags_passed_by(script, tmp_path))
    assert (plain.epochs, plain.batch_size) == (parse_training_flags(stage, []).epochs, 16)
    released = parse_training_flags(stage, flags_passed_by(script, tmp_path, RECIPE="recipes/as_released.sh"))
    assert (released.epochs, released.batch_size) == (150, 32)
    assert stage == 2 or (released.blocks, released.voxel_size) == (5, 2)
    assert str(released.sorter) == "runs/sorter_32.pt"
    settings = vars(released) | {"augmentation": list(released.augmentation)}
    expected = RELEASED | RELEASED_STAGES[name]
    assert {key: settings[key] for key in expected} == expected
    changed = flags_passed_by(script, tmp_path, RECIPE="recipes/as_released.sh", EPOCHS=7, KEEP="last")
    args = parse_training_flags(stage, changed)
    assert (args.epochs, args.keep, args.batch_size) == (7, "last", 32)


def test_the_small_recipe_fits_its_grid(tmp_path) -> None:
    passed = flags_passed_by("train_first_stage", tmp_path, RECIPE="recipes/small_cohort.sh")
    args = parse_training_flags(1, passed)
    assert args.voxel_size > 2
    NetworkConfig(
        1, args.model, args.use_sex, model_grid(args.voxel_size).shape, args.blocks, args.filters,
        field_of_view=brain_box(args.voxel_size),
    )  # fmt: skip
    parse_training_flags(2, flags_passed_by("train_second_stage", tmp_path, RECIPE="recipes/small_cohort.sh"))


def test_the_recipe_of_fine_tuning_starts_from_the_weights_of_this_project(tmp_path) -> None:
    for stage, script in ((1, "train_first_stage"), (2, "train_second_stage")):
        recipe = {"RECIPE": "recipes/fine_tune.sh"}
        args = parse_training_flags(stage, flags_passed_by(script, tmp_path, **recipe))
        plain = parse_training_flags(stage, [])
        assert args.initial_weights == ROOT / "weights"
        assert args.learning_rate <= plain.learning_rate
        assert args.warmup_epochs < args.epochs < plain.epochs
        own = parse_training_flags(stage, flags_passed_by(script, tmp_path, **recipe, INITIAL_WEIGHTS="own", EPOCHS=3))
        assert (str(own.initial_weights), own.epochs, own.batch_size) == ("own", 3, args.batch_size)


def test_a_recipe_that_is_no_file_is_refused() -> None:
    result = subprocess.run(
        ["bash", str(ROOT / "bash_train_first_stage.sh")], capture_output=True, text=True, check=False,
        env={**os.environ, "RECIPE": "recipes/paper.sh"},
    )  # fmt: skip
    assert result.returncode == 2
    assert "recipes/paper.sh: no such file" in result.stderr


def test_both_stages_as_released(synthetic_cohort, tmp_path) -> None:
    """Through bash: what a tiny cohort needs is overridden, all else is the authors'."""
    small = {"RECIPE": "recipes/as_released.sh", "DATA": synthetic_cohort, "BATCH_SIZE": 4, "EPOCHS": 2, "BLOCKS": 2,
             "SORTER": tmp_path / "sorter.pt", "NUM_WORKERS": 0, "CACHE_FOLDER": ""}  # fmt: skip
    bash("train_sorter", LENGTH=4, MODEL_TYPE="lstm", STEPS=2, OUTPUT=small["SORTER"])
    folders = {name: tmp_path / name for name in ("first", "second")}
    bash("train_first_stage", **small, VOXEL_SIZE=VOXEL_SIZE, OUTPUT_DIR=folders["first"])
    bash(
        "train_second_stage", **small, FIRST_STAGE_CHECKPOINT=folders["first"] / "best.pt", OUTPUT_DIR=folders["second"]
    )
    for stage, folder in folders.items():
        written = json.loads((folder / "hyperparameters.json").read_text())
        expected = RELEASED | RELEASED_STAGES[stage]
        assert {key: written[key] for key in expected} == expected
        best = torch.load(folder / "best.pt", weights_only=True)
        assert best["network"]["field_of_view"] is None
        assert (best["network"]["age_mean"], best["network"]["age_sd"]) == (0, 1)
        assert len(best["valid_subjects"]) == 5  # they chose the epoch
        row = read_csv(folder / "metrics.csv")[-1]
        assert float(row["train/ranking"]) > 0
        assert float(row["valid/ranking"]) > 0  # of the one full batch among 5 validation subjects


@pytest.fixture
def trainer_parts(monkeypatch, run_here):
    """Run a training script up to its trainer, and return what it gives the trainer."""

    class CapturedError(Exception):
        pass

    class Recorder:
        def __init__(self, *parts: object) -> None:
            names = ("network", "stage", "criterion", "train_set", "valid_set", "folder", "settings", "flags", "device")
            raise CapturedError(dict(zip((*names, "identity"), parts, strict=True)))

    def run(script: str) -> dict[str, object]:
        monkeypatch.setattr("utils.training.trainer.Trainer", Recorder)
        with pytest.raises(CapturedError) as captured:
            run_here(script)
        return captured.value.args[0]

    return run


def test_default_flags_train_the_released_network_on_intensities(trainer_parts, tmp_path, monkeypatch) -> None:
    """Both scripts, without any flag, in a folder with data/ on the 2 mm grid."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["subject_id,age,sex"]
    for number, split in enumerate(("train", "train", "valid", "test")):
        save_scan(Path("data", split, f"sub-{number}.nii"), random_brain(rng), MNI152_T1_2MM.affine)
        rows.append(f"sub-{number},{40 + 10 * number},F")
    Path("data/labels.csv").write_text("\n".join(rows))

    first = trainer_parts("train_first_stage.py")
    checkpoint = Path("runs/first_stage/best.pt")
    checkpoint.parent.mkdir(parents=True)
    no_bytes = {name: torch.zeros(()).expand(value.shape) for name, value in first["network"].state_dict().items()}
    torch.save({**first["identity"], "state_dict": no_bytes}, checkpoint)
    monkeypatch.setattr("model.building.usable_weights", dict)  # which refuses tensors without bytes
    for split, subjects in (("train", first["train_set"].subjects), ("valid", first["valid_set"].subjects)):
        ages = np.array([subject.chronological_age for subject in subjects])
        write_discretized_ages(
            checkpoint.with_name(f"{split}_discretized_age.npy"), [subject.subject_id for subject in subjects], ages,
            5.0, sha256_of(checkpoint), np.zeros(len(ages), bool),
        )  # fmt: skip
    second = trainer_parts("train_second_stage.py")

    for stage, parts in ((1, first), (2, second)):
        network, criterion = parts["network"], parts["criterion"]
        assert network.config == NetworkConfig(
            stage, "scaledense", True, (91, 109, 91), blocks=5, filters=8, age_mean=45.0, age_sd=5.0,
            field_of_view=brain_box(2),
        )  # fmt: skip
        assert 102.3e6 < sum(parameter.numel() for parameter in network.parameters()) < 102.4e6
        assert isinstance(criterion.ranker, SoftRank)
        assert criterion.error_name == "mse_loss"
        assert (criterion.ranking_weight, criterion.age_difference_weight) == (10, 1)
        scans = parts["train_set"].scans
        assert (scans.voxel_size, scans.normalization) == (2, "brain")
        volume = to_device(collate([parts["train_set"][0]]), torch.device("cpu"))["volume"]
        inside = volume[volume > volume.min()]
        assert (inside.mean().item(), inside.std().item()) == pytest.approx((0, 1), abs=1e-4)
        assert parts["settings"].precision == "auto"
    assert isinstance(first["stage"], FirstStage)
    assert isinstance(second["stage"], SecondStage)
    assert second["identity"]["first_stage_sha256"] == sha256_of(checkpoint)


def test_folds_give_training_subjects_ages_of_networks_that_never_saw_them(first_stage) -> None:
    table = np.load(first_stage / "train_discretized_age.npy")
    assert table["out_of_fold"].all()
    parts = [torch.load(first_stage / f"fold_{k}" / "best.pt", weights_only=True)["train_subjects"] for k in (1, 2)]
    everyone = set(table["subject_id"].tolist())
    assert not (everyone - set(parts[0])) & (everyone - set(parts[1]))
    assert (everyone - set(parts[0])) | (everyone - set(parts[1])) == everyone


def test_the_second_stage_remembers_its_first(synthetic_cohort, first_stage, second_stage, tmp_path, run_here) -> None:
    content = torch.load(second_stage / "best.pt", weights_only=True)
    assert content["first_stage_sha256"] == sha256_of(first_stage / "best.pt")
    other = torch.load(first_stage / "best.pt", weights_only=True)
    torch.save({**other, "epoch": 99}, tmp_path / "other.pt")
    flags = [
        *data_flags(synthetic_cohort, "test"),
        *QUICK,
        "--checkpoint",
        second_stage / "best.pt",
        "--output_dir",
        tmp_path / "t",
    ]
    with pytest.raises(InputError, match="another first stage"):
        run_here("test_second_stage.py", *flags, "--first_stage_checkpoint", tmp_path / "other.pt")
    assert not (tmp_path / "t").exists()


def test_the_cascade_as_one_network_is_the_test_of_the_second_stage(
    synthetic_cohort, first_stage, second_stage, tmp_path, run_here
) -> None:
    """Same scans, same checkpoints, and first-stage ages that lie in several intervals."""
    content = torch.load(first_stage / "best.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(content["state_dict"]["output_layer.1.weight"], generator=generator)
    torch.save(content, tmp_path / "first.pt")
    second = torch.load(second_stage / "best.pt", weights_only=True) | {
        "first_stage_sha256": sha256_of(tmp_path / "first.pt")
    }
    torch.nn.init.normal_(second["state_dict"]["output_layer.1.weight"], generator=generator)
    torch.save(second, tmp_path / "second.pt")
    run_here(
        "test_second_stage.py", *data_flags(synthetic_cohort, "test"), *QUICK, "--checkpoint", tmp_path / "second.pt",
        "--first_stage_checkpoint", tmp_path / "first.pt", "--output_dir", tmp_path / "test",
    )  # fmt: skip
    rows = read_csv(tmp_path / "test" / "predictions.csv")
    assert len({row["discretized_age"] for row in rows}) > 1
    assert np.ptp([float(row["residual_age"]) for row in rows]) > 1
    scans = ScanStore(VOXEL_SIZE, "brain")
    subjects = load_cohort({"test": synthetic_cohort / "test"}, synthetic_cohort / "labels.csv", scans)["test"]
    stages = (
        load_network(load_checkpoint(tmp_path / f"{name}.pt"), stage) for stage, name in ((1, "first"), (2, "second"))
    )
    ages = predict(
        Cascade([tuple(stages)], second["age_interval"]), FirstStage(), ScanDataset(subjects, scans),
        torch.device("cpu"), batch_size=4, num_workers=0, precision="auto", label="",
    )["brain_age"]  # fmt: skip
    np.testing.assert_allclose(ages, [float(row["brain_age"]) for row in rows], rtol=1e-4)


def test_a_second_stage_that_estimates_a_constant_is_called_collapsed(
    synthetic_cohort, first_stage, second_stage, tmp_path, run_here
) -> None:
    content = torch.load(second_stage / "best.pt", weights_only=True)
    content["state_dict"]["output_layer.1.weight"].zero_()
    content["state_dict"]["output_layer.1.bias"].fill_(0.3)
    torch.save(content, tmp_path / "constant.pt")
    shown = run_here(
        "test_second_stage.py", *data_flags(synthetic_cohort, "test"), *QUICK, "--checkpoint", tmp_path / "constant.pt",
        "--first_stage_checkpoint", first_stage / "best.pt", "--output_dir", tmp_path / "test",
    )  # fmt: skip
    assert "SECOND STAGE COLLAPSED" in shown
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["residual_sd"] == pytest.approx(0, abs=1e-5)
    assert metrics["warning"].startswith("SECOND STAGE COLLAPSED")


def test_a_table_of_ages_spares_the_first_stage(
    synthetic_cohort, first_stage, second_stage, tmp_path, run_here
) -> None:
    flags = [*data_flags(synthetic_cohort, "test"), *QUICK, "--checkpoint", second_stage / "best.pt",
             "--first_stage_checkpoint", first_stage / "best.pt"]  # fmt: skip
    run_here("test_second_stage.py", *flags, "--output_dir", tmp_path / "run")
    table = first_stage / "test_discretized_age.npy"
    run_here("test_second_stage.py", *flags, "--output_dir", tmp_path / "table", "--discretized_age_file", table)
    ages = [[float(r["brain_age"]) for r in read_csv(tmp_path / name / "predictions.csv")] for name in ("run", "table")]
    np.testing.assert_allclose(*ages, rtol=1e-4)


def test_testing_replaces_results_only_if_told_to(
    synthetic_cohort, first_stage, second_stage, tmp_path, run_here
) -> None:
    stages = {1: ["--checkpoint", first_stage / "best.pt"],
              2: ["--checkpoint", second_stage / "best.pt", "--first_stage_checkpoint", first_stage / "best.pt"]}  # fmt: skip
    for stage, own in stages.items():
        folder = tmp_path / str(stage)
        script = f"test_{'first' if stage == 1 else 'second'}_stage.py"
        flags = [*own, *data_flags(synthetic_cohort, "test"), *QUICK, "--output_dir", folder]
        run_here(script, *flags)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(InputError, match=r"holds predictions\.csv, .* OVERWRITE=true"):
            run_here(script, *flags, "--test_folder", synthetic_cohort / "valid")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        run_here(script, *flags, "--test_folder", synthetic_cohort / "valid", "--overwrite", "true")
        assert (folder / "predictions.csv").read_bytes() != before["predictions.csv"]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "test_discretized_age.npy").touch()  # of a training, say
    with pytest.raises(InputError, match=r"tables: holds test_discretized_age\.npy already"):
        run_here(
            "test_first_stage.py",
            *stages[1],
            *data_flags(synthetic_cohort, "test"),
            *QUICK,
            "--output_dir",
            tmp_path / "tables",
        )


def test_prediction_without_a_label_table(synthetic_cohort, first_stage, tmp_path, run_here) -> None:
    flags = [
        "--test_folder",
        synthetic_cohort / "test",
        "--label_table",
        "",
        "--checkpoint",
        first_stage / "best.pt",
        *QUICK,
    ]
    with pytest.raises(InputError, match="the sex of sub-18 is not known"):
        run_here("test_first_stage.py", *flags)
    shown = run_here("test_first_stage.py", *flags, "--sex", "F", "--output_dir", tmp_path / "out")
    assert "no age is known" in shown
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 5
    assert all(row["sex"] == "F" and row["chronological_age"] == "" and float(row["brain_age"]) > 0 for row in rows)


def test_released_checkpoints_of_both_stages_predict(run_here, tmp_path) -> None:
    """In the authors' form: pickled, with module. before each name, both heads, an optimizer."""
    for stage in (1, 2):
        network = make_network(NetworkConfig(stage, blocks=4, filters=1), stage, released_start=True)
        weights = released_names(network.state_dict())
        optimizer = {"state": {}, "param_groups": []}
        content = {"epoch": 7, "arch": "ScaleDense", "state_dict": OrderedDict(weights), "optimizer": optimizer}
        torch.save(content, tmp_path / f"stage_{stage}.pth.tar")
    rng = np.random.default_rng(0)
    for name in ("sub-1", "sub-10"):
        save_scan(tmp_path / "scans" / f"{name}.nii", random_brain(rng), MNI152_T1_2MM.affine)
    (tmp_path / "labels.csv").write_text("sub-1,50.5,F\nsub-10,71,M\n")
    flags = ["--test_folder", tmp_path / "scans", "--label_table", tmp_path / "labels.csv", *QUICK, "--dis_range", 10,
             "--normalization", "legacy"]  # fmt: skip
    run_here(
        "test_first_stage.py", *flags, "--checkpoint", tmp_path / "stage_1.pth.tar", "--output_dir", tmp_path / "first"
    )
    run_here(
        "test_second_stage.py", *flags, "--checkpoint", tmp_path / "stage_2.pth.tar", "--use_gender", "False",
        "--first_stage_net", tmp_path / "stage_1.pth.tar", "--output_dir", tmp_path / "second",
    )  # fmt: skip
    rows = read_csv(tmp_path / "second" / "predictions.csv")
    assert [row["subject_id"] for row in rows] == ["sub-1", "sub-10"]
    assert all(np.isfinite(float(row["brain_age"])) for row in rows)
    assert np.load(tmp_path / "first" / "test_discretized_age.npy")["age_interval"].tolist() == [10, 10]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_folder", "none"], "none: no such folder; set TRAIN_FOLDER"),
        (["--label_table", "none.csv"], "none.csv: no such table"),
        (["--voxel_size", "3"], "voxel size is 3 mm"),
        (["--voxel_size", "2"], "VOXEL_SIZE=8"),
        (["--blocks", "5"], "21x25x21 voxels does not survive scaledense_paper with 5 blocks"),
        (["--output_dir", "/dev/null/run"], "cannot be written"),
        (["--folds", "13"], "13 folds of 12 training subjects"),
    ],
)
def test_bad_input_ends_before_training(synthetic_cohort, tmp_path, run_here, flags, message) -> None:
    base = [*data_flags(synthetic_cohort, "train", "valid", "test"), *SMALL_NETWORK, *QUICK, *SHORT,
            "--voxel_size", VOXEL_SIZE, "--output_dir", tmp_path / "run"]  # fmt: skip
    with pytest.raises(InputError, match=message):
        run_here("train_first_stage.py", *base, *flags)
    assert not (tmp_path / "run").exists()


def test_a_user_is_told_in_one_line_and_with_status_2(synthetic_cohort, tmp_path) -> None:
    flags = [*data_flags(synthetic_cohort, "train", "valid", "test"), "--output_dir", tmp_path, "--voxel_size", 3]
    (line,) = run_script("train_first_stage.py", *flags, status=2).stderr.splitlines()
    assert line.startswith("error: ")


def test_a_second_stage_refuses_what_does_not_fit(synthetic_cohort, first_stage, tmp_path, run_here) -> None:
    base = [*data_flags(synthetic_cohort, "train", "valid"), *QUICK, *SHORT,
            "--output_dir", tmp_path / "run", "--first_stage_checkpoint", first_stage / "best.pt"]  # fmt: skip

    def error(*flags: object) -> str:
        with pytest.raises(InputError) as caught:
            run_here("train_second_stage.py", *base, *flags)
        return str(caught.value)

    assert "interval of 5 years; expected 10" in error("--age_interval", 10)
    assert "no such checkpoint" in error("--first_stage_checkpoint", tmp_path / "none.pt")
    assert "no such table of discretized ages" in error("--discretized_age_folder", tmp_path)
    assert "lacks sub-18" in error("--train_folder", synthetic_cohort / "test")
    torch.save({"state_dict": {}, "x": Harmful()}, tmp_path / "bad.pt")
    assert "without running code" in error("--first_stage_checkpoint", tmp_path / "bad.pt")
    torch.save({"state_dict": {}, "x": argparse.Namespace()}, tmp_path / "bad.pt")
    assert "without running code" in error("--first_stage_checkpoint", tmp_path / "bad.pt")
    removed = torch.load(first_stage / "best.pt", weights_only=True) | {"normalization": "local_sd"}
    torch.save(removed, tmp_path / "removed.pt")
    (line,) = error("--first_stage_checkpoint", tmp_path / "removed.pt").splitlines()
    assert "removed.pt: is a network of version 0.1" in line
    assert not (tmp_path / "run").exists()
    assert not Path("harmed").exists()


def test_real_scans_lie_on_the_grid(real_scans, tmp_path) -> None:
    """IXI (CC BY-SA 3.0): every subject of the validation split matches its row and its grid."""
    with (real_scans / "labels.csv").open() as file:
        names = [row["subject_id"] for row in csv.DictReader(file) if row["split"] == "valid"]
    (tmp_path / "valid").mkdir()
    for name in names:
        (tmp_path / "valid" / f"{name}.nii.gz").symlink_to(real_scans / "t1w_mni_2mm" / f"{name}.nii.gz")
    subjects = load_cohort({"valid": tmp_path / "valid"}, real_scans / "labels.csv", ScanStore(4, "brain"))["valid"]
    assert len(subjects) == 19
    assert json.dumps([s.chronological_age for s in subjects]).count(".") == 19
