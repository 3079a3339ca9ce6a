"""Cross-validation: folds and sites that do not leak, recipes and variables, resuming, pooled ages, weights."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cross_validate
from tests.conftest import ROOT, VOXEL_SIZE, save_scan
from utils.common.checkpoints import load_checkpoint
from utils.common.choices import Shard
from utils.common.errors import InputError
from utils.data.subjects import Subject, person_of
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.cross_validation import CrossValidation, assign_folds, pool, run_all, training_arguments
from utils.prediction.site_figures import EVERYBODY, describe_sites, seen_ages
from utils.prediction.weights import STAGES, load_typical_volumes, load_weights

FOLDS = 2
SITES = ("Oslo", "Rome 3T")
SITE_FOLDERS = ("site_Oslo", "site_Rome_3T")
# Nothing of this may reach the trainings.
ELSEWHERE = dict.fromkeys(
    ("DATA", "TRAIN_FOLDER", "VALID_FOLDER", "TEST_FOLDER", "FIRST_STAGE_CHECKPOINT", "DISCRETIZED_AGE_FOLDER",
     "CHECKPOINT"),
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
def label_table(synthetic_cohort, tmp_path_factory):
    """The labels of the small cohort, whose subjects are from two sites in turn."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    header, *rows = (synthetic_cohort / "labels.csv").read_text().splitlines()
    rows = [f"{row},{SITES[number % 2]}" for number, row in enumerate(rows)]
    path.write_text("\n".join([f"{header},site", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def variables(scans, label_table, tmp_path_factory):
    """The environment of a short cross-validation with a recipe."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.sh"
    recipe.write_text(
        f': "${{MODEL:=scaledense_paper}}" "${{BLOCKS:=3}}" "${{FILTERS:=4}}" "${{VOXEL_SIZE:={VOXEL_SIZE}}}"\n'
        ': "${BATCH_SIZE:=6}" "${WARMUP_EPOCHS:=0}" "${RANKING_WEIGHT:=10}"\n'
        'if [[ $STAGE == first ]]; then : "${EPOCHS:=2}" "${FOLDS:=3}"; else : "${EPOCHS:=1}"; fi\n'
    )
    return {
        **ELSEWHERE, "RECIPE": recipe, "RANKING_WEIGHT": 3, "SCAN_FOLDER": scans, "LABEL_TABLE": label_table,
        "FOLDS": FOLDS, "HOLD_OUT": "both", "SITE_COLUMN": "site", "SEED": 5, "JOBS": 2, "NUM_WORKERS": 0,
        "CACHE_FOLDER": "", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def set_up(monkeypatch, variables: dict, *flags: object, **more: object) -> None:
    """Give this process the environment and the command line that bash would give ``cross_validate.py``."""
    own = {name: str(value) for name, value in {**variables, **more}.items()}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    names = (
        "scan_folder", "label_table", "output_dir", "folds", "hold_out", "site_column", "seed", "num_workers",
        "cache_folder",
    )  # fmt: skip
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
    rows = rows_of(folder / "folds.csv")
    assert len(rows) == 22
    for column, names in (("fold", ("fold_1", "fold_2")), ("site", SITE_FOLDERS)):
        assert {row[column] for row in rows} == set(names)
        for name in names:
            tested = {person_of(row["subject_id"]) for row in rows if row[column] == name}
            own = rows_of(folder / name / "member_1" / "test" / "predictions.csv")
            assert {person_of(row["subject_id"]) for row in own} == tested
            for stage in STAGES:
                checkpoint = load_checkpoint(folder / name / "member_1" / stage / "best.pt")
                seen = {person_of(subject) for subject in checkpoint["train_subjects"]}
                assert not tested & seen
                assert len(tested) + len(seen) == 22
                assert checkpoint["valid_subjects"] == []


def test_a_site_that_is_tested_was_seen_by_no_network(cross_validated, label_table) -> None:
    folder, _, _ = cross_validated
    site_of = {row["subject_id"]: row["site"] for row in rows_of(label_table)}
    for name, site in zip(SITE_FOLDERS, SITES, strict=True):
        own = folder / name / "member_1"
        paths = [
            own / "first_stage",
            *(own / "first_stage" / f"fold_{number}" for number in (1, 2, 3)),
            own / "second_stage",
        ]
        for path in paths:
            checkpoint = load_checkpoint(path / "best.pt")
            assert site not in {site_of[subject] for subject in checkpoint["train_subjects"]}


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


@pytest.mark.parametrize(("part", "names"), [(".", ("fold_1", "fold_2")), ("unseen_sites", SITE_FOLDERS)])
def test_every_subject_has_an_age_and_an_interval(cross_validated, part, names) -> None:
    folder, _, printed = cross_validated
    pooled = {row["subject_id"]: row for row in rows_of(folder / part / "predictions.csv")}
    assert len(pooled) == 22
    for name in names:
        for row in rows_of(folder / name / "member_1" / "test" / "predictions.csv"):
            assert float(pooled[row["subject_id"]]["brain_age"]) == pytest.approx(float(row["brain_age"]), abs=1e-3)
    metrics = json.loads((folder / part / "metrics.json").read_text())
    inside = [
        float(row["interval_low"]) <= float(row["chronological_age"]) <= float(row["interval_high"])
        for row in pooled.values()
    ]
    assert metrics["coverage"] == pytest.approx(np.mean(inside))
    assert {"first_stage", "gain_interval", "residual_sd"} <= set(metrics)
    assert "gain over the first stage" in printed


def test_figures_by_site_are_those_of_the_predictions(cross_validated, label_table) -> None:
    folder, _, printed = cross_validated
    site_of = {row["subject_id"]: row["site"] for row in rows_of(label_table)}
    rows = {(row["held_out"], row["site"]): row for row in rows_of(folder / "sites.csv")}
    assert set(rows) == {(held_out, site) for held_out in ("people", "sites") for site in (*SITES, EVERYBODY)}
    for held_out, part in (("people", "."), ("sites", "unseen_sites")):
        for site in (*SITES, EVERYBODY):
            gaps = [
                float(row["brain_age_gap"])
                for row in rows_of(folder / part / "predictions.csv")
                if site in (EVERYBODY, site_of[row["subject_id"]])
            ]
            row = rows[held_out, site]
            assert int(row["n"]) == len(gaps)
            assert float(row["mae"]) == pytest.approx(np.abs(gaps).mean(), abs=1e-3)
            assert float(row["mean_gap"]) == pytest.approx(np.mean(gaps), abs=1e-3)
            assert f"{float(row['mae']):.2f}" in printed


def test_only_what_is_not_finished_is_run_again(cross_validated, variables, monkeypatch) -> None:
    folder, _, _ = cross_validated
    missing = folder / "fold_2" / "member_1" / "test" / "predictions.csv"
    parts = folder / "predictions.csv", folder / "unseen_sites" / "predictions.csv", folder / "sites.csv"
    content, before = missing.read_text(), [path.read_text() for path in parts]
    missing.unlink()
    run_again = []

    def run_instead(log: Path, script: str, flags: list[str], variables: dict[str, str], jobs: int) -> None:
        run_again.append((log, script))
        assert flags[flags.index("--precision") + 1] == "float32"  # on whatever device
        assert jobs == 1
        missing.write_text(content)

    monkeypatch.setattr("utils.prediction.cross_validation.run_script", run_instead)
    set_up(monkeypatch, variables, OUTPUT_DIR=folder)
    cross_validate.main()
    assert run_again == [(folder / "fold_2" / "member_1" / "test_second_stage.log", "bash_test_second_stage.sh")]
    assert [path.read_text() for path in parts] == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SEED": 1}, "holds other subjects or folds"),
        ({"HOLD_OUT": "people"}, "holds other subjects or folds"),
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
        (["--weights_dir", "w"], {"HOLD_OUT": "sites"}, "--hold_out sites: weights need .* use --hold_out both"),
        ([], {"HOLD_OUT": "sites", "SITE_COLUMN": ""}, "--hold_out sites: name the column of sites with SITE_COLUMN"),
        ([], {"SITE_COLUMN": "scanner"}, "labels.csv: has no column scanner .*correct SITE_COLUMN"),
        (["--flags", "--epochs 3"], {}, "unrecognized arguments: --flags"),
    ],
)
def test_wrong_settings_end_before_anything_is_written(
    variables, tmp_path, monkeypatch, capsys, flags, more, said
) -> None:
    assert re.search(said, refusal(monkeypatch, capsys, variables, *flags, OUTPUT_DIR=tmp_path / "run", **more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda lines: [line.replace(*SITES) for line in lines],
            "there is only the site Rome 3T; use --hold_out people",
        ),
        (lambda lines: [lines[0], lines[1].rpartition(",")[0] + ",", *lines[2:]], "row 2: sub-01 has no site; add it"),
    ],
)
def test_sites_that_cannot_be_held_out_are_refused(
    variables, label_table, tmp_path, monkeypatch, capsys, change, said
) -> None:
    (tmp_path / "labels.csv").write_text("\n".join(change(label_table.read_text().splitlines())))
    changed = {"LABEL_TABLE": tmp_path / "labels.csv", "OUTPUT_DIR": tmp_path / "run"}
    assert said in refusal(monkeypatch, capsys, variables, **changed)
    assert not (tmp_path / "run").exists()


def test_weights_are_not_overwritten(variables, weights, tmp_path, monkeypatch, capsys) -> None:
    flags = "--weights_dir", weights
    said = refusal(monkeypatch, capsys, variables, *flags, OUTPUT_DIR=tmp_path / "run")
    assert "holds weights already" in said
    assert not (tmp_path / "run").exists()


def test_results_of_something_else_are_kept(variables, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "predictions.csv").touch()
    said = refusal(monkeypatch, capsys, variables, OUTPUT_DIR=tmp_path)
    assert "holds predictions.csv of something else" in said


def test_a_scan_off_the_grid_is_found_before_the_folds(variables, scans, tmp_path, monkeypatch, capsys) -> None:
    folder = shutil.copytree(scans, tmp_path / "scans")
    path = min(folder.iterdir())
    save_scan(path, np.ones((20, 20, 20), np.float32), np.eye(4))
    said = refusal(monkeypatch, capsys, variables, SCAN_FOLDER=folder, OUTPUT_DIR=tmp_path / "run")
    assert str(path) in said
    assert not (tmp_path / "run").exists()


def test_initial_weights_that_saw_the_people_are_refused(variables, checkpoints, tmp_path, monkeypatch, capsys) -> None:
    torch.save({**checkpoints[0][0], "train_subjects": ["x", "sub-03_ses-2"]}, tmp_path / "best.pt")
    changed = {"INITIAL_WEIGHTS": tmp_path / "best.pt", "OUTPUT_DIR": tmp_path / "run"}
    said = refusal(monkeypatch, capsys, variables, **changed)
    assert re.search(r"best\.pt: was trained on people of .*; they would leak", said)
    assert not (tmp_path / "run").exists()


def test_the_end_of_the_log_of_a_failed_script_is_shown(variables, tmp_path, monkeypatch, capsys) -> None:
    wrong = {"OUTPUT_DIR": tmp_path / "run", "RANKING": "sodeep", "SORTER": "no_sorter.pt"}
    said = refusal(monkeypatch, capsys, variables, **wrong)
    assert "bash_train_first_stage.sh failed with status 2" in said
    assert "error: no_sorter.pt" in said


def settings_of(folder: Path, **more: object) -> CrossValidation:
    given = {
        "output_dir": folder, "label_table": folder / "labels.csv", "folds": 2, "hold_out": "people", "site_column": "",
        "members": 2, "stages": 2, "seed": 0, "weights_dir": None, "data_notice": "", "remark": "", "jobs": 1, "shard": Shard(),
        "num_workers": 0, "cache_folder": None,
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


def sessions(folder: Path, sites: tuple[str, ...] = ("A", "B", "C")) -> list[Subject]:
    """Twelve persons with three sessions each, from the sites in turn."""
    return [
        Subject(f"sub-{number:02d}_ses-{session}", folder, 20.0 + number, 0, site=sites[number % len(sites)])
        for number in range(12)
        for session in range(3)
    ]


def test_folds_divide_persons_not_scans(tmp_path) -> None:
    subjects, settings = sessions(tmp_path), settings_of(tmp_path, folds=4)
    folds = assign_folds(subjects, settings)
    assert list(folds) == ["people"]
    assert set(folds["people"]) == {"fold_1", "fold_2", "fold_3", "fold_4"}
    assert all(len(set(folds["people"][3 * number : 3 * number + 3])) == 1 for number in range(12))
    assert (assign_folds(subjects, settings)["people"] == folds["people"]).all()
    with pytest.raises(InputError, match="other subjects or folds"):
        assign_folds(subjects[:-3], settings)


def test_shards_divide_the_members_of_the_folds_and_the_last_one_finds_nothing_left(tmp_path, monkeypatch) -> None:
    ran: list[tuple[str, str]] = []

    def run_script(log: Path, _: str, flags: list[str], _devices: object, jobs: int) -> None:
        ran.append((log.parent.parent.name, log.parent.name))
        product = {"t": "predictions.csv", "f": "train_discretized_age.npy", "s": "best.pt"}
        folder = Path(flags[flags.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        (folder / product[folder.name[0]]).touch()

    monkeypatch.setattr("utils.prediction.cross_validation.run_script", run_script)
    subjects = [Subject(f"sub-{age}", tmp_path / f"sub-{age}.nii", float(age), 0) for age in range(20, 30)]
    folds = assign_folds(subjects, settings_of(tmp_path))
    members = [(f"fold_{fold}", f"member_{member}") for fold in (1, 2) for member in (1, 2)]
    done: list[tuple[str, str]] = []
    for part in (3, 1, 2):
        left = run_all(subjects, folds, settings_of(tmp_path, shard=Shard(part, 3)))
        own = members[part - 1 :: 3]
        assert ran == [member for member in own for _ in range(3)]
        ran.clear()
        done += own
        assert len(left) == 3 * (len(members) - len(done))
    assert sorted(done) == members


@pytest.mark.parametrize(("hold_out", "kinds"), [("sites", ["sites"]), ("both", ["people", "sites"])])
def test_a_site_is_a_fold_where_sites_are_held_out(tmp_path, hold_out, kinds) -> None:
    subjects = sessions(tmp_path, ("A", "B/2", "C d"))
    folds = assign_folds(subjects, settings_of(tmp_path, hold_out=hold_out, site_column="site"))
    assert list(folds) == kinds
    names = {"A": "site_A", "B/2": "site_B_2", "C d": "site_C_d"}
    assert folds["sites"].tolist() == [names[subject.site] for subject in subjects]
    rows = rows_of(tmp_path / "folds.csv")
    assert [row["site"] for row in rows] == folds["sites"].tolist()
    assert {row["fold"] for row in rows} == ({"fold_1", "fold_2"} if hold_out == "both" else {""})


def test_sites_that_are_one_or_share_a_person_or_a_folder_are_refused(tmp_path) -> None:
    settings = settings_of(tmp_path / "run", hold_out="sites", site_column="site")
    with pytest.raises(InputError, match="there is only the site A; use --hold_out people"):
        assign_folds(sessions(tmp_path, ("A",)), settings)
    moved = sessions(tmp_path)
    moved[4] = replace(moved[4], site="C")  # of sub-01, whose other sessions are at B
    with pytest.raises(InputError, match="sub-01_ses-[12]: sub-01 is at several sites, so neither can be held out"):
        assign_folds(moved, settings)
    with pytest.raises(InputError, match="sites A 1 and A_1 differ only in special characters; rename one"):
        assign_folds(sessions(tmp_path, ("A 1", "A_1")), settings)
    assert not (tmp_path / "run").exists()


def test_ages_are_seen_if_the_training_of_their_fold_reaches_them() -> None:
    age, fold = np.array([20.0, 30, 40, 90, 90, 91]), np.array(["a", "b", "a", "b", "c", "c"])
    assert seen_ages(age, fold).tolist() == [False, True, True, True, True, False]


def write_tests(folder: Path, settings: CrossValidation, subjects, fold, values: dict[str, np.ndarray]) -> Path:
    """Write what the test scripts of the members of each fold write; return the last file."""
    for member in range(settings.members):
        for name in sorted(set(fold)):
            path = settings.member_folder(name, member + 1) / "test" / "predictions.csv"
            path.parent.mkdir(parents=True)
            rows = [
                [subjects[i].subject_id, *(f"{own[member, i]:.6f}" for own in values.values())]
                for i in np.flatnonzero(fold == name)
            ]
            path.write_text("\n".join(",".join(row) for row in [["subject_id", *values], *rows]) + "\n")
    return path


def test_pooled_ages_are_the_mean_of_the_members(tmp_path) -> None:
    rng = np.random.default_rng(0)
    ages = np.arange(20.0, 60.0)
    subjects = [Subject(f"sub-{age:.0f}", tmp_path, float(age), 0) for age in ages]
    fold, settings = np.resize(["fold_1", "site_A"], len(ages)).astype(object), settings_of(tmp_path)
    names = ("first_stage_age", "discretized_age", "residual_age", "brain_age")
    tables = {name: rng.uniform(20, 60, (2, len(ages))) for name in names}
    last = write_tests(tmp_path, settings, subjects, fold, tables)
    predictions, report = pool(subjects, fold, settings)
    for name in names:
        np.testing.assert_allclose(predictions[name], tables[name].mean(0), atol=1e-4)
    error = np.abs(predictions["brain_age"] - ages)
    inside = (predictions["interval_low"] <= ages) & (ages <= predictions["interval_high"])
    assert report(predictions)[0]["coverage"] == pytest.approx(inside.mean())
    last.write_text("\n".join(last.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="lacks 1 subjects of the fold"):
        pool(subjects, fold, settings)
    assert error.max() > 0


@pytest.mark.parametrize("kind", ["site", "fold"])
def test_the_radius_of_a_fold_comes_from_the_others(tmp_path, kind) -> None:
    """Of sites, from people of ages that were seen: one errs by far the most, but is older than all of the other."""
    ages = np.r_[np.linspace(30, 60, 15), np.linspace(31, 59, 15), 90.0]
    subjects = [Subject(f"sub-{number:02d}", tmp_path, float(age), 0) for number, age in enumerate(ages)]
    fold = np.array([f"{kind}_1"] * 15 + [f"{kind}_2"] * 16, object)
    errors = np.r_[np.linspace(1, 3, 15), np.linspace(4, 6, 15), 80.0]
    settings = settings_of(tmp_path, members=1)
    values = {name: np.zeros((1, 31)) for name in ("first_stage_age", "discretized_age", "residual_age")}
    write_tests(tmp_path, settings, subjects, fold, {**values, "brain_age": (ages + errors)[None]})
    predictions, _ = pool(subjects, fold, settings)
    radius = predictions["interval_high"] - predictions["brain_age"]
    # The youngest of the first site was tested by networks that saw nobody of that age, either.
    first, second = (errors[1:15], errors[15:30]) if kind == "site" else (errors[:15], errors[15:])
    np.testing.assert_allclose(radius[:15], interval_radius(second, INTERVAL_COVERAGE), rtol=1e-4)
    np.testing.assert_allclose(radius[15:], interval_radius(first, INTERVAL_COVERAGE), rtol=1e-4)


def test_stuck_networks_are_named(tmp_path) -> None:
    """One of four networks gives everybody of its fold the same age; so does one that has four people."""
    ages = np.linspace(20, 80, 24)
    subjects = [Subject(f"sub-{number:02d}", tmp_path, float(age), 0) for number, age in enumerate(ages)]
    fold, settings = np.array(["a"] * 10 + ["b"] * 10 + ["c"] * 4, object), settings_of(tmp_path)
    values = {name: np.zeros((2, 24)) for name in ("first_stage_age", "discretized_age", "residual_age")}
    brain_age = np.tile(ages, (2, 1))
    brain_age[1, 10:20] = brain_age[1, 20:] = 50.0
    write_tests(tmp_path, settings, subjects, fold, {**values, "brain_age": brain_age})
    predictions, report = pool(subjects, fold, settings)
    assert "STUCK: 1 of 6 networks give everybody nearly the same age (b, member 2)" in report(predictions)[1]


def test_intervals_do_not_go_below_0(tmp_path) -> None:
    ages = np.linspace(1, 30, 30)
    subjects = [Subject(f"sub-{number:02d}", tmp_path, float(age), 0) for number, age in enumerate(ages)]
    fold, settings = np.resize(["a", "b"], 30).astype(object), settings_of(tmp_path, members=1)
    values = {name: np.zeros((1, 30)) for name in ("first_stage_age", "discretized_age", "residual_age")}
    write_tests(tmp_path, settings, subjects, fold, {**values, "brain_age": (ages[::-1])[None]})
    assert pool(subjects, fold, settings)[0]["interval_low"].min() == 0


def test_sites_are_described_one_by_one_and_together(tmp_path) -> None:
    ages, gaps = np.array([30.0, 40, 50, 35, 45, 90]), np.array([1.0, -2, 3, 4, 5, -30])
    sites = ["A", "A", "A", "B", "B", "B"]
    subjects = [Subject(site + str(age), tmp_path, age, 0, site=site) for site, age in zip(sites, ages, strict=True)]
    own = {"chronological_age": ages, "brain_age": ages + gaps, "interval_low": ages + gaps - 3.5}
    own["interval_high"] = ages + gaps + 3.5
    rows = describe_sites(subjects, {"sites": own}, {"sites": np.array(sites)})
    first, second, together = rows
    assert [(row["held_out"], row["site"], row["n"]) for row in rows] == [
        ("sites", "A", 3), ("sites", "B", 3), ("sites", "all sites", 6),
    ]  # fmt: skip
    assert (first["mae"], first["mean_gap"], first["coverage"]) == pytest.approx((2, 2 / 3, 1))
    assert (second["mae"], second["mean_gap"], second["coverage"]) == pytest.approx((13, -7, 0))
    assert together["mae"] == pytest.approx(7.5)
    assert [row["n_seen_ages"] for row in rows] == [2, 2, 4]  # 30 and 90 were not
    assert (second["mae_seen_ages"], second["mean_gap_seen_ages"]) == pytest.approx((4.5, 4.5))
    assert first["pearson"] == pytest.approx(np.corrcoef(ages[:3], (ages + gaps)[:3])[0, 1])


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
    assert card.partition("\n# ")[2].splitlines()[2] == "Interim."  # below front matter and title
    assert "Made-up balls." in card
    mean, deviation = load_typical_volumes(weights)
    assert mean.shape == deviation.shape == (1, 1, 23, 27, 23)
    assert mean.max() > 0 > mean.min()  # of z-scored brains, below 0 outside
    assert deviation.min() >= 0
    assert 1 < manifest["distance_limit"] < 3


def test_weights_tell_the_errors_on_sites_that_were_held_out(cross_validated, label_table) -> None:
    folder, weights, _ = cross_validated
    site_of = {row["subject_id"]: row["site"] for row in rows_of(label_table)}
    rows = rows_of(folder / "unseen_sites" / "predictions.csv")
    ages = {site: [float(r["chronological_age"]) for r in rows if site_of[r["subject_id"]] == site] for site in SITES}
    expected = {
        site: [
            float(row["brain_age_gap"])
            for row in rows
            if site_of[row["subject_id"]] == site
            and min(ages[other]) <= float(row["chronological_age"]) <= max(ages[other])
        ]
        for site, other in (SITES, SITES[::-1])
    }
    gaps = load_weights(weights)[0]["unseen_site_gaps"]
    assert list(gaps) == list(SITES)
    seen = [
        age for site, other in (SITES, SITES[::-1]) for age in ages[site] if min(ages[other]) <= age <= max(ages[other])
    ]
    assert load_weights(weights)[0]["unseen_site_ages"] == pytest.approx([min(seen), max(seen)], abs=1e-2)
    for site in SITES:
        assert gaps[site] == pytest.approx(expected[site], abs=2e-3)
    card = (weights / "MODEL_CARD.md").read_text()
    figures = [row for row in rows_of(folder / "sites.csv") if row["held_out"] == "sites"]
    for row in figures:
        assert f"| sites | {row['site']} | {row['n']} | {float(row['mae']):.2f} |" in card
