"""Results as a derivative of BIDS: what a validator says of them, and that everything reads them back."""

import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.conftest import random_brain
from utils.common.errors import InputError
from utils.common.files import read_json, write_json
from utils.data.cohort import load_cohort
from utils.data.images import MNI152_T1_2MM
from utils.data.preparations import preparation_of
from utils.prediction.scan_preparation import check_scan, find_scans
from utils.preparation.labelling import label_scans
from utils.preparation.layouts import BIDS, FLAT, brain_path, named_for, remove_brain, save_brain, write_description
from utils.preparation.parameters import fingerprint
from utils.preparation.preprocessing_jobs import Settings, preprocess_all
from utils.preparation.raw_scans import RawFile
from utils.preparation.records import PARTS, record_of, record_path
from utils.preparation.splitting import find_prepared_scans, split_by_person, write_dataset

SCANS = ("sub-01_ses-1", "sub-01_ses-2", "sub-02", "sub-03_ses-1_run-2")
END = "space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.nii.gz"


@pytest.fixture(scope="module")
def derivative(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("derivative")
    rng = np.random.default_rng(0)
    write_description(folder, BIDS, fingerprint("affine"), "0123456789ab")
    for name in SCANS:
        save_brain(folder, name, BIDS, random_brain(rng).astype(np.float32))
        record = {part: kind() for part, kind in PARTS.items() if isinstance(kind, type)}
        record |= {"name": name, "fingerprint": "0123456789ab", "verdict": "doubtful" if name == "sub-02" else "pass"}
        write_json(record_path(folder, name), record)
    (folder / "qc.csv").write_text("name,verdict\n")
    (folder / "index.html").write_text("<html></html>\n")
    (folder.parent / "participants.tsv").write_text(
        "participant_id\tsession_id\tage\tsex\nsub-01\tses-1\t40\tF\nsub-01\tses-2\t42\tF\nsub-02\tn/a\t50\tM\n"
        "sub-03\tses-1\t60\tM\n"
    )
    return folder


def test_files_are_named_and_described_as_bids_asks(derivative) -> None:
    assert {path.relative_to(derivative).as_posix() for path in derivative.rglob("*_T1w.nii.gz")} == {
        f"sub-01/ses-1/anat/sub-01_ses-1_{END}", f"sub-01/ses-2/anat/sub-01_ses-2_{END}",
        f"sub-02/anat/sub-02_{END}", f"sub-03/ses-1/anat/sub-03_ses-1_run-2_{END}",
    }  # fmt: skip
    brain = brain_path(derivative, "sub-02", BIDS)
    mask = nibabel.load(str(brain).replace("preproc_T1w", "brain_mask"))
    np.testing.assert_array_equal(mask.affine, MNI152_T1_2MM.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, nibabel.load(brain).get_fdata() > 0)
    assert read_json(Path(str(brain).replace(".nii.gz", ".json")))["SkullStripped"] is True
    made = read_json(derivative / "dataset_description.json")["GeneratedBy"][0]
    assert made["Version"].count(".") == 2
    assert preparation_of(brain) == {"fingerprint": "0123456789ab", "registration": "affine"}


def test_the_validator_finds_no_error(derivative) -> None:
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if program is None:
        pytest.skip("bids-validator-deno is not installed (requirements-dev.txt)")
    result = subprocess.run([program, str(derivative)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[ERROR]" not in result.stdout
    broken = derivative.parent / "broken"
    shutil.copytree(derivative, broken, dirs_exist_ok=True)
    (broken / ".bidsignore").unlink()
    assert subprocess.run([program, str(broken)], capture_output=True, check=False).returncode != 0


def test_splitting_training_and_prediction_read_it_back(derivative, tmp_path, capsys) -> None:
    found = find_prepared_scans(derivative, include_doubtful=False)
    assert list(found) == ["sub-01_ses-1", "sub-01_ses-2", "sub-03_ses-1_run-2"]
    labelled = label_scans(found, derivative.parent / "participants.tsv")
    assert {(scan.subject_id, scan.person, scan.age) for scan in labelled} == {
        ("sub-01_ses-1", "sub-01", 40), ("sub-01_ses-2", "sub-01", 42), ("sub-03_ses-1_run-2", "sub-03", 60),
    }  # fmt: skip
    write_dataset(tmp_path / "data", split_by_person(labelled, (50, 50, 0), 0), copy=False)
    links = sorted((tmp_path / "data").rglob("*.nii.gz"))
    assert {record_of(link)["name"] for link in links} == set(found)
    assert {preparation_of(link)["fingerprint"] for link in links} == {"0123456789ab"}
    subjects = load_cohort({"train": derivative}, derivative.parent / "participants.tsv", None)["train"]
    assert [subject.subject_id for subject in subjects] == list(SCANS)
    scans = {scan.name: scan for scan in find_scans(derivative)}
    assert set(scans) == set(SCANS)
    assert check_scan(scans["sub-01_ses-1"].source).brain is not None
    assert "preprocessing is doubtful" in check_scan(scans["sub-02"].source).warnings[0]


def test_names_become_those_of_bids_and_may_not_collide() -> None:
    named = named_for(BIDS, [RawFile(name, Path(name)) for name in ("1000011_20252_3_0", "IXI012-HH-1211", "bert")])
    assert [scan.name for scan in named] == ["sub-1000011_ses-3", "sub-IXI012_ses-HH1211", "sub-bert"]
    with pytest.raises(InputError, match="a_b: has the same name in BIDS as a b, sub-ab"):
        named_for(BIDS, [RawFile(name, Path(name)) for name in ("a b", "a_b")])


def test_a_brain_is_removed_with_all_that_belongs_to_it(tmp_path) -> None:
    save_brain(tmp_path, "sub-1", BIDS, random_brain(np.random.default_rng(0)).astype(np.float32))
    assert len(list(tmp_path.rglob("sub-1_*"))) == 4
    remove_brain(tmp_path, "sub-1", BIDS)
    assert not list(tmp_path.rglob("sub-1_*"))


def test_one_folder_has_one_layout(tmp_path) -> None:
    (tmp_path / "raw.nii").touch()
    for layout, other in ((FLAT, BIDS), (BIDS, FLAT)):
        folder = tmp_path / layout
        save_brain(folder, "sub-1", layout, random_brain(np.random.default_rng(0)).astype(np.float32))
        settings = Settings(folder, "affine", "cpu", False, False, layout=other)
        with pytest.raises(InputError, match=f"is in another layout than {other}"):
            preprocess_all([RawFile("sub-1", tmp_path / "raw.nii")], settings, 1, 60)
