"""Cross-validation and what is made of it: folds that do not leak, resuming, weights, predictions."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks.ridge_baseline import ridge
from model.building import load_network
from model.cascade import Cascade
from tests.conftest import ROOT, SMALL_NETWORK, VOXEL_SIZE, run_script, save_scan
from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.common.files import write_json
from utils.data.images import DEVIATIONS, MEASURED_AT, MNI152_T1_2MM, model_grid, read_image, sharpness
from utils.data.subjects import DESCRIPTION, DOUBTFUL, FAIL, Subject, person_of
from utils.prediction.cross_validation import write_folds
from utils.prediction.scan_ages import (
    Scan,
    add_preparation,
    add_sharpness,
    add_verdicts,
    add_voxel_sizes,
    assign_weights,
    find_scans,
)
from utils.prediction.weights import DEFAULT_FOLDER, MANIFEST, REGISTERED, load_reference, load_weights, weights_folders
from utils.preparation.splitting import FSL_PRODUCT
from utils.preparation.template import load_template

MEMBERS, FOLDS = 2, 2


@pytest.fixture(scope="module")
def scans(synthetic_cohort, tmp_path_factory):
    """All scans of the small cohort in one folder."""
    folder = tmp_path_factory.mktemp("scans")
    for path in synthetic_cohort.glob("*/*.nii.gz"):
        shutil.copy(path, folder)
        image = nibabel.load(path)
        measured = nibabel.Nifti1Image(np.sqrt(np.maximum(image.get_fdata(), 0)), image.affine)
        measured.header["descrip"] = (MEASURED_AT + "2.00 2.00 2.00").encode()
        (folder / DEVIATIONS).mkdir(exist_ok=True)
        nibabel.save(measured, folder / DEVIATIONS / path.name)
    return folder


def flags(scans, synthetic_cohort, folder, *more):
    return [
        "--scan_folder", scans, "--label_table", synthetic_cohort / "labels.csv", "--output_dir", folder, "--folds", FOLDS,
        "--members", MEMBERS, "--num_workers", 0, "--device", "cpu", "--cache_folder", "",
        "--flags", " ".join([*SMALL_NETWORK, "--epochs 2 --warmup_epochs 0 --batch_size 6"]),
        "--first_stage_flags", f"--voxel_size {VOXEL_SIZE}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cross_validated(scans, synthetic_cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv") / "run"
    weights = folder.parent / "weights"
    more = ["--weights_dir", weights, "--data_notice", "Made-up balls."]
    result = run_script("cross_validate.py", *flags(scans, synthetic_cohort, folder, *more))
    return folder, weights, result.stdout


def test_no_network_saw_those_whom_it_is_tested_on(cross_validated) -> None:
    folder, _, _ = cross_validated
    with (folder / "folds.csv").open() as file:
        fold = {row["subject_id"]: row["fold"] for row in csv.DictReader(file)}
    assert len(fold) == 22
    for number in range(1, FOLDS + 1):
        tested = {person_of(name) for name, own in fold.items() if own == str(number)}
        for stage in ("first_stage", "second_stage"):
            for member in range(1, MEMBERS + 1):
                checkpoint = load_checkpoint(folder / f"fold_{number}" / f"member_{member}" / stage / "best.pt")
                seen = {person_of(name) for name in checkpoint["train_subjects"]}
                assert not tested & seen
                assert len(tested) + len(seen) == 22
                assert checkpoint["valid_subjects"] == []


def test_the_pooled_ages_are_the_members_mean(cross_validated) -> None:
    folder, _, printed = cross_validated
    with (folder / "predictions.csv").open() as file:
        pooled = {row["subject_id"]: row for row in csv.DictReader(file)}
    assert len(pooled) == 22
    for number in range(1, FOLDS + 1):
        tables = []
        for member in range(1, MEMBERS + 1):
            with (folder / f"fold_{number}" / f"member_{member}" / "test" / "predictions.csv").open() as file:
                tables.append({row["subject_id"]: float(row["brain_age"]) for row in csv.DictReader(file)})
        for name in tables[0]:
            assert float(pooled[name]["brain_age"]) == pytest.approx(np.mean([t[name] for t in tables]), abs=1e-3)
    metrics = json.loads((folder / "metrics.json").read_text())
    inside = [
        float(row["interval_low"]) <= float(row["chronological_age"]) <= float(row["interval_high"])
        for row in pooled.values()
    ]
    assert metrics["coverage"] == pytest.approx(np.mean(inside))
    assert {"first_stage", "gain_interval", "residual_sd"} <= set(metrics)
    assert "gain over the first stage" in printed


def test_what_is_finished_is_not_done_again(cross_validated, scans, synthetic_cohort) -> None:
    folder, _, _ = cross_validated
    kept = folder / "fold_1" / "member_1" / "first_stage" / "best.pt"
    again = folder / "fold_2" / "member_2" / "test" / "predictions.csv"
    stamp, content = kept.stat().st_mtime_ns, again.read_text()
    again.unlink()
    run_script("cross_validate.py", *flags(scans, synthetic_cohort, folder))
    assert kept.stat().st_mtime_ns == stamp
    assert again.read_text() == content
    message = run_script("cross_validate.py", *flags(scans, synthetic_cohort, folder, "--seed", 1), status=2).stderr
    assert "holds other subjects or folds" in message


def test_a_script_that_fails_is_shown(scans, synthetic_cohort, tmp_path) -> None:
    wrong = flags(scans, synthetic_cohort, tmp_path / "run", "--second_stage_flags", "--blocks 2", "--folds", 3)
    wrong[wrong.index("--members") + 1] = 1
    message = run_script("cross_validate.py", *wrong, status=2).stderr
    assert "train_second_stage failed in fold_1, member 1 (status 2)" in message
    assert "the first stage differs in blocks" in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--flags=--seed=3"], "--seed=3: cross-validation sets this itself"),
        (["--flags", "--epochs x"], "'x' is not a number"),
        (["--folds", 0], "at least 2 folds"),
        (["--stages", 1, "--weights_dir", "w"], "weights are made of both stages"),
        (["--weights_dir", ROOT / "weights"], "holds weights already"),
    ],
)
def test_wrong_flags_of_cross_validation(scans, synthetic_cohort, tmp_path, more, said) -> None:
    common = flags(scans, synthetic_cohort, tmp_path / "run")
    assert said in run_script("cross_validate.py", *common, *more, status=2).stderr
    assert not (tmp_path / "run" / "fold_1").exists()


def test_a_scan_off_the_grid_is_found_before_the_folds(scans, synthetic_cohort, tmp_path) -> None:
    folder = shutil.copytree(scans, tmp_path / "scans")
    path = min(folder.iterdir())
    save_scan(path, np.ones((20, 20, 20), np.float32), np.eye(4))
    result = run_script("cross_validate.py", *flags(folder, synthetic_cohort, tmp_path / "run"), status=2)
    assert str(path) in result.stderr
    assert not (tmp_path / "run").exists()


def test_folds_part_persons_not_scans(tmp_path) -> None:
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


def test_weights_hold_what_was_trained(cross_validated) -> None:
    folder, weights, _ = cross_validated
    manifest, members = load_weights(weights)
    assert len(members) == MEMBERS
    for number, member in enumerate(members, 1):
        for stage, own in zip(("first_stage", "second_stage"), member, strict=True):
            trained = load_checkpoint(folder / "all" / f"member_{number}" / stage / "best.pt")
            assert len(trained["train_subjects"]) == 22
            for name, value in trained["state_dict"].items():  # half precision, but for statistics
                torch.testing.assert_close(own["state_dict"][name], value, rtol=1e-3, atol=1e-6)
    assert len(manifest["out_of_fold_errors"]) == 22
    assert manifest["preprocessing"] == [None]
    card = (weights / "MODEL_CARD.md").read_text()
    assert "Made-up balls." in card
    assert "Diagnosis" in card
    assert load_reference(weights).shape == (1, 1, 23, 28, 23)
    (folder.parent / "damaged").mkdir()
    (folder.parent / "damaged" / "weights.json").write_text((weights / "weights.json").read_text())
    with pytest.raises(InputError, match="fetch the folder of weights again"):
        load_weights(folder.parent / "damaged")


def prepared_scan(path, rng, radius=30.0):
    """A ball on the 2 mm grid, in place of a prepared brain."""
    indices = np.indices(MNI152_T1_2MM.shape) - np.array(MNI152_T1_2MM.shape)[:, None, None, None] / 2
    volume = np.where(np.linalg.norm(indices, axis=0) < radius, 120 + rng.normal(0, 5, MNI152_T1_2MM.shape), 0)
    save_scan(path, volume.astype(np.float32), MNI152_T1_2MM.affine)


def with_registered(weights, folder):
    """Copy weights, and put weights for brains without deviations into them that err twice as much."""
    shutil.copytree(weights, folder)
    shutil.copytree(weights, folder / REGISTERED)
    manifest = json.loads((weights / MANIFEST).read_text())
    errors = [2 * error for error in manifest["out_of_fold_errors"]]
    write_json(folder / REGISTERED / MANIFEST, {**manifest, "normalization": REGISTERED, "out_of_fold_errors": errors})
    return folder


def test_prediction_of_prepared_scans(cross_validated, tmp_path) -> None:
    weights = with_registered(cross_validated[1], tmp_path / "weights")
    rng = np.random.default_rng(0)
    for number in (0, 91, 92):
        prepared_scan(tmp_path / "in" / f"sub-{number:02d}.nii.gz", rng)
    (tmp_path / "in" / "sub-00.nii.gz").rename(tmp_path / "in" / "sub-01.nii.gz")
    (tmp_path / "labels.csv").write_text("subject_id,age,sex\nsub-01,40,F\nsub-91,95,\n")
    common = ["--input", tmp_path / "in", "--weights_dir", weights, "--num_workers", 0, "--device", "cpu"]
    more = ["--label_table", tmp_path / "labels.csv", "--explain", "integrated_gradients"]
    alone = ["--weights_dir", cross_validated[1], "--output_dir", tmp_path / "alone"]
    assert "prepare the raw scan" in run_script("predict.py", *common, *alone, status=1).stdout
    measured = tmp_path / "in" / DEVIATIONS / "sub-01.nii.gz"
    save_scan(measured, rng.random(MNI152_T1_2MM.shape).astype(np.float32), MNI152_T1_2MM.affine)
    printed = run_script("predict.py", *common, "--output_dir", tmp_path / "out", *more).stdout
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert [row["sex"] for row in rows] == ["F", "", ""]
    assert float(rows[0]["brain_age_gap"]) == pytest.approx(float(rows[0]["brain_age"]) - 40, abs=0.011)
    assert rows[2]["brain_age_gap"] == ""
    assert "chronological age 95.0 is outside the training range" in rows[1]["warnings"]
    assert "no row of labels.csv" in rows[2]["warnings"]
    assert float(rows[0]["interval_low"]) < float(rows[0]["brain_age"]) < float(rows[0]["interval_high"])
    assert ["was trained on" in row["warnings"] for row in rows] == [True, False, False]
    assert [row["weights"] for row in rows] == ["weights", REGISTERED, REGISTERED]
    assert "different weights" in printed
    assert ["the weights for such brains" in row["warnings"] for row in rows] == [False, True, True]
    widths = [float(row["interval_high"]) - float(row["interval_low"]) for row in rows]
    assert widths == pytest.approx([widths[0], 2 * widths[0], 2 * widths[0]], abs=0.03)  # as `with_registered` says
    assert "3 scans: 3 with a brain age" in printed
    for number in (1, 91, 92):
        assert (tmp_path / "out" / "pictures" / f"sub-{number:02d}.png").stat().st_size > 5000
        values = nibabel.load(tmp_path / "out" / "maps" / f"sub-{number:02d}_map.nii.gz")
        assert values.shape == (23, 28, 23)
        assert (tmp_path / "out" / "maps" / f"sub-{number:02d}_map.png").exists()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_brains_without_deviations_get_the_weights_for_them(tmp_path, suffix) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        prepared_scan(tmp_path / f"{name}{suffix}", rng)
    save_scan(tmp_path / DEVIATIONS / f"a{suffix}", rng.random(MNI152_T1_2MM.shape), MNI152_T1_2MM.affine)
    scans = [*find_scans(tmp_path), Scan("raw", tmp_path / "raw.nii", failure="no brain")]
    native, registered = tmp_path / "weights", tmp_path / "weights" / REGISTERED
    assert assign_weights(scans, [native]) == {native: scans[:2]}
    assert not any(scan.warnings for scan in scans)
    assert assign_weights(scans, [native, registered]) == {native: scans[:1], registered: scans[1:2]}
    assert [scan.weights for scan in scans] == ["weights", REGISTERED, ""]
    assert [len(scan.warnings) for scan in scans] == [0, 1, 0]
    assert "the weights for such brains err more" in scans[1].warnings[0]


def test_weights_for_brains_without_deviations_are_found_where_they_are_of_use(cross_validated, tmp_path) -> None:
    weights, inner = with_registered(cross_validated[1], tmp_path / "weights"), tmp_path / "weights" / REGISTERED
    assert weights_folders(cross_validated[1]) == [cross_validated[1]]
    assert weights_folders(weights) == [weights, inner]
    assert weights_folders(inner) == [inner]
    manifest = json.loads((inner / MANIFEST).read_text())
    write_json(inner / MANIFEST, {**manifest, "normalization": "native_sd"})
    with pytest.raises(InputError, match="need measured deviations themselves"):
        weights_folders(weights)
    write_json(inner / MANIFEST, {**manifest, "preprocessing": None})
    with pytest.raises(InputError, match="lacks a usable preprocessing"):
        weights_folders(weights)
    write_json(weights / MANIFEST, {**manifest, "normalization": "brain"})
    assert weights_folders(weights) == [weights]


def test_verdicts_and_places_of_prepared_brains(tmp_path) -> None:
    template, verdicts = load_template(), {"good": "pass", "doubted": DOUBTFUL, "bad": FAIL}
    shifts = {**dict.fromkeys(verdicts, 0), "alone": 0, "near": 1, "away": 3}
    for name, shift in shifts.items():
        save_scan(
            tmp_path / f"{name}.nii.gz", np.roll(template.volume * template.brain, shift, 1), MNI152_T1_2MM.affine
        )
    for name, verdict in verdicts.items():
        record = {"name": name, "fingerprint": "a", "source": "", "verdict": verdict, "reasons": ["noise is 9"]}
        write_json(tmp_path / "qc" / f"{name}.json", record)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked.nii.gz").symlink_to(tmp_path / "doubted.nii.gz")
    scans = {scan.name: scan for folder in (tmp_path, tmp_path / "links") for scan in find_scans(folder)}
    add_verdicts(list(scans.values()))
    assert {name for name, scan in scans.items() if scan.failure} == {"bad"}
    assert scans["bad"].failure == "noise is 9"
    assert {name for name, scan in scans.items() if scan.warnings} == {"doubted", "linked", "away"}
    assert "preprocessing is doubtful: noise is 9" in scans["linked"].warnings
    assert "lies about 6 mm off" in scans["away"].warnings[0]


def test_brains_of_fsl_are_named_by_their_folders(tmp_path) -> None:
    for name in ("sub-1.anat", "sub-2.anat"):
        prepared_scan(tmp_path / name / FSL_PRODUCT, np.random.default_rng(0))
    assert [scan.name for scan in find_scans(tmp_path)] == ["sub-1", "sub-2"]
    (scan,) = find_scans(tmp_path / "sub-2.anat" / FSL_PRODUCT)
    assert (scan.name, scan.prepared) == ("sub-2", tmp_path / "sub-2.anat" / FSL_PRODUCT)


@pytest.mark.parametrize(
    ("name", "value"),
    [("normalization", "foo"), ("voxel_size", "four"), ("age_range", None), ("out_of_fold_errors", []), ("members", 0)],
)
def test_a_manifest_that_cannot_be_used_is_refused(cross_validated, tmp_path, name, value) -> None:
    manifest = json.loads((cross_validated[1] / MANIFEST).read_text())
    write_json(tmp_path / MANIFEST, {**manifest, name: value})
    with pytest.raises(InputError, match=f"lacks a usable {name}"):
        load_weights(tmp_path)


def test_other_preparations_are_warned_of(tmp_path) -> None:
    made = {}
    for name in ("ours", "older", "other"):
        save_scan(tmp_path / name / "a.nii.gz", np.ones((2, 2, 2)), np.eye(4))
        made[name] = {"registration": "affine", "fingerprint": name} if name != "other" else None
        if made[name]:
            parts = {"Fingerprint": name, "Parameters": {"registration": "affine"}}
            write_json(tmp_path / name / DESCRIPTION, {"GeneratedBy": [parts]})
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "ours" / "a.nii.gz")
    scans = [Scan(name, tmp_path / name / "a.nii.gz") for name in made] + [Scan("link", tmp_path / "link.nii.gz")]
    add_preparation(scans, [made["ours"]])
    assert [len(scan.warnings) for scan in scans] == [0, 1, 1, 0]
    assert "fingerprint older, unlike" in scans[1].warnings[0]
    assert "in a way that is not known" in scans[2].warnings[0]
    add_preparation(scans, [made["ours"], None])  # of weights that were trained on several
    assert [len(scan.warnings) for scan in scans] == [0, 2, 1, 0]


def test_other_voxel_sizes_are_warned_of(tmp_path) -> None:
    rng = np.random.default_rng(0)
    scans = []
    for name, sizes in (("a", "2.00 2.05 1.95"), ("b", "1.00 1.00 4.00"), ("c", "")):
        prepared_scan(tmp_path / f"{name}.nii.gz", rng)
        save_scan(tmp_path / DEVIATIONS / f"{name}.nii.gz", rng.random(MNI152_T1_2MM.shape), MNI152_T1_2MM.affine)
        image = nibabel.load(tmp_path / DEVIATIONS / f"{name}.nii.gz")
        image.header["descrip"] = (MEASURED_AT + sizes if sizes else "").encode()
        nibabel.save(image, tmp_path / DEVIATIONS / f"{name}.nii.gz")
        scans.append(Scan(name, tmp_path / f"{name}.nii.gz"))
    add_voxel_sizes(scans, None)
    assert not any(scan.warnings for scan in scans)
    add_voxel_sizes(scans, [2.0, 2.0])
    assert [len(scan.warnings) for scan in scans] == [0, 1, 0]
    assert "voxels of 1x1x4 mm" in scans[1].warnings[0]


def test_averages_of_a_prepared_brain_are_neither_raw_nor_prepared(tmp_path) -> None:
    prepared_scan(tmp_path / "in" / "a.nii.gz", np.random.default_rng(0))
    save_scan(tmp_path / "in" / "b.nii.gz", read_image(tmp_path / "in" / "a.nii.gz", 4)[0], model_grid(4).affine)
    prepared, averaged = find_scans(tmp_path / "in")
    assert prepared.prepared
    assert not prepared.failure
    assert "is a prepared brain averaged to 4 mm" in averaged.failure


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--input", "nowhere"], "no such file or folder"),
        (["--input", "README.md"], "holds no scan"),
        (["--weights_dir", "nowhere"], "no readable manifest of weights"),
        (["--label_table", "nowhere.csv"], "no such"),
    ],
)
def test_wrong_input_of_prediction(cross_validated, tmp_path, more, said) -> None:
    _, weights, _ = cross_validated
    prepared_scan(tmp_path / "a.nii.gz", np.random.default_rng(0))
    common = ["--input", tmp_path / "a.nii.gz", "--output_dir", tmp_path / "out", "--weights_dir", weights]
    assert said in run_script("predict.py", *common, *more, status=2).stderr
    assert not (tmp_path / "out").exists()


def test_cross_validation_of_the_default_recipe_with_out_of_fold_ages(scans, synthetic_cohort, tmp_path) -> None:
    common = flags(scans, synthetic_cohort, tmp_path / "run")
    common[common.index("--flags") + 1] = "--epochs 2 --warmup_epochs 0 --batch_size 6"
    common[common.index("--first_stage_flags") + 1] += " --folds 2"
    common[common.index("--members") + 1] = 1
    run_script("cross_validate.py", *common)
    for number in (1, 2):
        table = tmp_path / "run" / f"fold_{number}" / "member_1" / "first_stage" / "train_discretized_age.npy"
        assert np.load(table, allow_pickle=False)["out_of_fold"].all()
    checkpoint = load_checkpoint(tmp_path / "run" / "fold_1" / "member_1" / "second_stage" / "best.pt")
    assert checkpoint["network"]["model"] == "perceptron"
    assert checkpoint["normalization"] == "native_sd"  # through the folds' folders of links
    other = [*common, "--flags", "--epochs 3 --warmup_epochs 0 --batch_size 6"]
    message = run_script("cross_validate.py", *other, status=2).stderr
    assert "flag --epochs of stage 1" in message


def test_the_shipped_weights_predict() -> None:
    """With their own mean volume, near the middle of the training ages."""
    folders = weights_folders(DEFAULT_FOLDER)
    assert len(folders) == 2
    for folder in folders:
        manifest, members = load_weights(folder)
        cascade = Cascade([(load_network(a, 1), load_network(b, 2)) for a, b in members], manifest["age_interval"])
        with torch.inference_mode():
            age = float(cascade(load_reference(folder), torch.tensor([-1]))[0])
        assert manifest["age_range"][0] + 10 < age < manifest["age_range"][1] - 10
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.rglob("*.*")) < 12e6


def test_unusual_sharpness_is_warned_of(tmp_path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 5, MNI152_T1_2MM.shape)
    seen = {}
    for name, sigma in (("blurred", 1.0), ("usual", 0.5), ("sharp", 0.0)):
        ball = np.linalg.norm(np.indices(noise.shape) - 45.0, axis=0) < 30
        volume = np.where(ball, 100 + ndimage.gaussian_filter(noise, sigma), 0)
        save_scan(tmp_path / f"{name}.nii.gz", volume.astype(np.float32), MNI152_T1_2MM.affine)
        seen[name] = sharpness(tmp_path / f"{name}.nii.gz")
    scans = [Scan(name, tmp_path / f"{name}.nii.gz") for name in seen]
    add_sharpness(scans, None)
    assert not any(scan.warnings for scan in scans)
    add_sharpness(scans, [0.9 * seen["usual"], 1.1 * seen["usual"]])
    assert "less sharp" in scans[0].warnings[0]
    assert not scans[1].warnings
    assert "sharper" in scans[2].warnings[0]


def test_ridge_learns_a_line() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(80, 50))
    ages = 50 + voxels[:, :5] @ np.full(5, 5.0)
    predicted = ridge().fit(voxels[:60], ages[:60]).predict(voxels[60:])
    assert np.corrcoef(predicted, ages[60:])[0, 1] > 0.8
