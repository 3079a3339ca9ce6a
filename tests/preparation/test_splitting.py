"""Splits: persons stay together, ages and sites are spread, nothing is half written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import VOXEL_SIZE, run_script, save_scan, small_volume
from utils.common.errors import InputError
from utils.data.images import model_grid
from utils.preparation.labelling import LabelledScan, label_scans
from utils.preparation.splitting import (
    check_given_splits,
    find_prepared_scans,
    split_by_person,
    write_dataset,
)


def made_scans(persons: int, sessions: int = 1, seed: int = 0) -> list[LabelledScan]:
    rng = np.random.default_rng(seed)
    return [
        LabelledScan(f"sub-{p:04d}_ses-{s}", Path(f"{p}_{s}.nii.gz"), f"sub-{p:04d}", age + s, p % 2, "AB"[p % 3 == 0])
        for p, age in enumerate(rng.uniform(20, 90, persons))
        for s in range(sessions)
    ]


@pytest.mark.parametrize("persons", [10, 136, 1000])
def test_persons_stay_together_and_ages_and_sites_are_spread(persons) -> None:
    scans = split_by_person(made_scans(persons, sessions=2), (70, 15, 15), seed=0)
    of_person: dict[str, set[str]] = {}
    for scan in scans:
        of_person.setdefault(scan.person, set()).add(scan.split)
    assert all(len(splits) == 1 for splits in of_person.values())
    counts = {split: sum(splits == {split} for splits in of_person.values()) for split in ("train", "valid", "test")}
    assert abs(counts["train"] - 0.7 * persons) <= 1
    assert abs(counts["valid"] - 0.15 * persons) <= 1
    if persons > 100:
        ages = {split: np.array([scan.age for scan in scans if scan.split == split]) for split in counts}
        sites = {split: np.mean([scan.site == "B" for scan in scans if scan.split == split]) for split in counts}
        for split in ("valid", "test"):
            assert abs(ages[split].mean() - ages["train"].mean()) < 4
            assert abs(sites[split] - sites["train"]) < 0.05


def test_the_seed_makes_the_split() -> None:
    scans = made_scans(60)
    one, again, other = (split_by_person(scans, (70, 15, 15), seed) for seed in (0, 0, 1))
    assert one == again != other
    assert {scan.split for scan in split_by_person(scans, (0, 0, 1), 0)} == {"test"}


def test_one_person_in_two_given_splits_is_refused() -> None:
    scans = [
        LabelledScan("sub-1_ses-1", Path("a"), "sub-1", 30, 0, "", "train"),
        LabelledScan("sub-1_ses-2", Path("b"), "sub-1", 31, 0, "", "test"),
        LabelledScan("sub-2", Path("c"), "sub-2", 31, 0, "", "dev"),
    ]
    with pytest.raises(InputError) as error:
        check_given_splits(scans, Path("labels.csv"))
    assert "sub-1 is in the splits test and train" in str(error.value)
    assert "'dev' of sub-2 is none of" in str(error.value)


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Twenty scans of ten persons, with qc.csv and labels."""
    rng = np.random.default_rng(0)
    rows = ["subject_id,age,sex,dx"]
    for number in range(10):
        for session in (1, 2):
            name = f"sub-{number:02d}_ses-{session}"
            save_scan(
                tmp_path / "pre" / f"{name}.nii.gz", small_volume(rng, 20 + 6 * number), model_grid(VOXEL_SIZE).affine
            )
            rows.append(f"{name},{20 + 6 * number + session},{'FM'[number % 2]},{'CN' if number < 8 else 'AD'}")
            verdict = "doubtful" if name == "sub-00_ses-1" else "pass"
            record = tmp_path / "pre" / "qc" / f"{name}.json"
            record.parent.mkdir(exist_ok=True)
            record.write_text(json.dumps({"verdict": verdict, "fingerprint": "a"}))
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_script_makes_what_training_takes(prepared) -> None:
    flags = [
        "--preprocessed",
        prepared / "pre",
        "--label_table",
        prepared / "labels.csv",
        "--output_dir",
        prepared / "data",
    ]
    output = run_script("prepare_dataset.py", *flags, "--where", "dx=CN").stdout
    assert "sub-00_ses-1" in output
    assert "4 scans that --where does not select are left out" in output
    data = prepared / "data"
    with (data / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    for row in rows:
        link = data / row["split"] / f"{row['subject_id']}.nii.gz"
        assert link.is_symlink()
        assert link.resolve() == Path(row["scan"]) == prepared / "pre" / link.name
    run_script(
        "train_first_stage.py", "--train_folder", data / "train", "--valid_folder", data / "valid", "--test_folder", "",
        "--label_table", data / "labels.csv", "--model", "scaledense_paper", "--blocks", 2, "--filters", 2,
        "--voxel_size", VOXEL_SIZE, "--output_dir", prepared / "run", "--epochs", 1, "--warmup_epochs", 0, "--batch_size", 4,
        "--num_workers", 0, "--device", "cpu", "--cache_folder", "",
    )  # fmt: skip
    with pytest.raises(InputError, match="holds other files"):
        write_dataset(data, made_scans(10), copy=False)


def test_scans_are_copied_if_asked_for(prepared) -> None:
    scans = label_scans(find_prepared_scans(prepared / "pre", include_doubtful=True), prepared / "labels.csv")
    write_dataset(prepared / "data", split_by_person(scans, (70, 15, 15), 0), copy=True)
    copies = list((prepared / "data").glob("*/*.nii.gz"))
    assert len(copies) == 20
    assert not any(path.is_symlink() for path in copies)


def test_scans_without_record_or_of_two_preprocessings_are_refused(prepared) -> None:
    record = prepared / "pre" / "qc" / "sub-03_ses-1.json"
    record.write_text(json.dumps({"verdict": "pass", "fingerprint": "b"}))
    with pytest.raises(InputError, match="preprocessed in 2 ways"):
        find_prepared_scans(prepared / "pre", False)
    record.unlink()
    with pytest.raises(InputError, match=r"sub-03_ses-1.nii.gz: has no record"):
        find_prepared_scans(prepared / "pre", False)


def test_a_column_tells_the_persons(prepared) -> None:
    table = prepared / "persons.csv"
    rows = (prepared / "labels.csv").read_text().splitlines()
    table.write_text("\n".join([rows[0] + ",who", *(f"{row},p{n // 4}" for n, row in enumerate(rows[1:]))]))
    scans = label_scans(find_prepared_scans(prepared / "pre", True), table, person_column="who")
    assert len({scan.person for scan in scans}) == 5


def test_scans_without_label_are_named_and_nothing_is_written(prepared) -> None:
    table = prepared / "short.csv"
    table.write_text("subject_id,age,sex\nsub-00_ses-1,20,F\nsub-01_ses-1,,F\n")
    flags = ["--preprocessed", prepared / "pre", "--label_table", table, "--output_dir", prepared / "data"]
    error = run_script("prepare_dataset.py", *flags, status=2).stderr
    assert "there is no row for sub-09" in error
    assert "short.csv, row 3: age '' of sub-01_ses-1 is not a number of years" in error
    assert "--skip_unlabelled" in error
    assert not (prepared / "data").exists()
    assert not [path for path in prepared.iterdir() if path.name.startswith(".")]
    with pytest.raises(InputError, match="has no column centre"):
        label_scans(find_prepared_scans(prepared / "pre", False), table, site_column="centre")


def test_two_files_of_one_scan_are_named(tmp_path) -> None:
    for name in ("sub-1.nii", "sub-1.nii.gz", "sub-2.NII.GZ"):
        save_scan(tmp_path / name.lower(), small_volume(np.random.default_rng(0), 50), model_grid(VOXEL_SIZE).affine)
        (tmp_path / name.lower()).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"sub-1\.nii\.gz: a second scan of sub-1 beside sub-1\.nii; keep one"):
        find_prepared_scans(tmp_path, False)
    (tmp_path / "sub-1.nii").unlink()
    assert list(find_prepared_scans(tmp_path, False)) == ["sub-1", "sub-2"]


def test_products_of_fsl_are_taken_as_they_are(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        save_scan(
            tmp_path / "fsl" / f"sub-{number}.anat" / "T1_to_MNI_nonlin_brain.nii.gz",
            small_volume(rng, 50).astype(np.float64), model_grid(VOXEL_SIZE).affine,
        )  # fmt: skip
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-0\t20\tF\nsub-1\t30\tM\nsub-2\t40\tF\n")
    scans = find_prepared_scans(tmp_path / "fsl", False)
    assert list(scans) == ["sub-0", "sub-1", "sub-2"]
    labelled = label_scans(scans, tmp_path / "participants.tsv")
    assert [scan.age for scan in labelled] == [20, 30, 40]
    assert [scan.person for scan in labelled] == ["sub-0", "sub-1", "sub-2"]


def test_cells_without_a_site_or_a_split_are_empty(prepared) -> None:
    table = prepared / "sites.csv"
    rows = (prepared / "labels.csv").read_text().splitlines()
    table.write_text("\n".join([rows[0] + ",site", rows[1] + ",Oslo", *(f"{row}," for row in rows[2:])]))
    scans = label_scans(find_prepared_scans(prepared / "pre", True), table, site_column="site")
    assert [scan.site for scan in scans[:2]] == ["Oslo", ""]
