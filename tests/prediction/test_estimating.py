"""Estimation of many scans: each is read once, and a call that was stopped goes on."""

import json
import shutil
from pathlib import Path

import pytest

import utils.data.images
import utils.prediction.estimating
from tests.conftest import save_scan
from tests.prediction.conftest import prepared_scan
from utils.common.errors import InputError
from utils.common.interruption import Interruption
from utils.data.images import MNI152_T1_2MM, read_image
from utils.prediction.journal import Journal

SCANS = 5


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(SCANS):
        prepared_scan(tmp_path / "in" / f"sub-{number}.nii.gz", 28.0 + number)
    return tmp_path / "in"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the scans whose voxels are read in this process."""
    read, read_voxels = [], utils.data.images.read_voxels

    def count(image):
        read.append(Path(image.file_map["image"].fileobj.name).name)
        return read_voxels(image)

    monkeypatch.setattr(utils.data.images, "read_voxels", count)
    return read


@pytest.fixture
def predict(folder, weights, run_here):
    """Run ``predict.py`` into a folder beside that of the scans; return what it prints."""

    def run(name: str = "out", *flags: object, workers: int = 0, pictures: str = "false", status: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            run_here(
                "predict.py", "--input", folder, "--output_dir", folder.parent / name, "--weights_dir", weights,
                "--device", "cpu", "--batch_size", 2, "--num_workers", workers, "--pictures", pictures, *flags,
            )  # fmt: skip
        assert stop.value.code == status
        return (folder.parent / name / "predictions.csv").read_text()

    return run


@pytest.fixture
def stopped(monkeypatch, folder, weights, run_here):
    """Stop an estimation into ``out`` in its second batch."""

    def stop() -> None:
        batches, predict_batch = [], utils.prediction.estimating.predict_batch

        def interrupted(*given):
            batches.append(1)
            if len(batches) == 2:
                raise Interruption(15)
            return predict_batch(*given)

        with monkeypatch.context() as patched, pytest.raises(Interruption):
            patched.setattr(utils.prediction.estimating, "predict_batch", interrupted)
            run_here(
                "predict.py", "--input", folder, "--output_dir", folder.parent / "out", "--weights_dir", weights,
                "--device", "cpu", "--batch_size", 2, "--num_workers", 0,
            )  # fmt: skip

    return stop


def journal_of(folder: Path) -> Path:
    return folder.parent / "out" / "predictions.jsonl"


def test_each_scan_is_read_once(folder, predict, reads) -> None:
    predict()
    assert sorted(reads) == [path.name for path in sorted(folder.iterdir())]
    assert [path.name for path in (folder.parent / "out").iterdir()] == ["predictions.csv"]


def test_workers_find_the_same(folder, predict) -> None:
    save_scan(
        folder / "averaged.nii.gz", read_image(folder / "sub-1.nii.gz", 4), utils.data.images.model_grid(4).affine
    )
    alone = predict()
    assert predict("strict", "--strict", "true", status=1) == alone
    assert predict("workers", workers=2, pictures="true") == alone
    assert "is a prepared brain averaged to 4 mm" in alone
    pictures = folder.parent / "workers" / "pictures"
    assert sorted(path.name for path in pictures.iterdir()) == [f"sub-{number}.png" for number in range(SCANS)]


def test_a_call_that_was_stopped_goes_on(folder, predict, stopped, reads) -> None:
    whole = predict("whole")
    stopped()
    assert len(journal_of(folder).read_text().split()) > 0
    assert not (folder.parent / "out" / "predictions.csv").exists()
    with journal_of(folder).open("a") as file:
        file.write('\n{"key": "half of a li')  # as a killed process may leave it
    reads.clear()
    assert predict() == whole
    assert sorted(reads) == ["sub-2.nii.gz", "sub-3.nii.gz", "sub-4.nii.gz"]
    assert not journal_of(folder).exists()


def test_estimates_of_something_else_are_not_taken(folder, predict, stopped, reads, weights) -> None:
    stopped()
    prepared_scan(folder / "sub-0.nii.gz", 40.0)
    reads.clear()
    again = predict()
    assert "sub-0.nii.gz" in reads
    assert "sub-1.nii.gz" not in reads
    assert predict("anew") == again
    shutil.rmtree(folder.parent / "out")
    stopped()
    reads.clear()
    predict("out", "--sex", "F")
    assert len(reads) == SCANS
    shutil.rmtree(folder.parent / "out")
    stopped()
    other = shutil.copytree(weights, folder.parent / "weights")
    manifest = json.loads((other / "weights.json").read_text())
    (other / "weights.json").write_text(json.dumps({**manifest, "distance_limit": 999.0}))
    reads.clear()
    predict("out", "--weights_dir", other)
    assert len(reads) == SCANS


def test_two_calls_do_not_write_the_same_estimates(folder, predict, run_here) -> None:
    (folder.parent / "out").mkdir()
    with Journal(journal_of(folder), {}) as journal:
        journal.add("a", {})
        with pytest.raises(InputError, match="out: another call is estimating into it"):
            Journal(journal_of(folder), {}).__enter__()
    assert not journal_of(folder).exists()


def test_raw_scans_get_ages_once_they_are_prepared(folder, predict, reads, monkeypatch) -> None:
    volume = read_image(folder / "sub-1.nii.gz", 2)
    save_scan(folder / "raw.nii.gz", volume + 1, MNI152_T1_2MM.affine)  # with a background: no brain extraction

    def prepare(scans, settings, *_):
        for scan in scans:
            shutil.copy(folder / "sub-1.nii.gz", settings.output_dir / f"{scan.name}.nii.gz")
        return [{"name": scan.name, "verdict": "doubtful", "reasons": ["noise is 9"]} for scan in scans]

    monkeypatch.setattr("utils.prediction.scan_preparation.preprocess_all", prepare)
    (folder.parent / "out" / "preprocessed").mkdir(parents=True)
    reads.clear()
    raw, *prepared = predict().splitlines()[1:]
    assert raw.split(",")[4] == prepared[1].split(",")[4]
    assert "preprocessing is doubtful: noise is 9" in raw
    assert sorted(reads) == sorted([*(f"sub-{number}.nii.gz" for number in range(SCANS)), "raw.nii.gz", "raw.nii.gz"])
