"""Preprocessing of many scans: failures beside successes, second runs, shards, records and the page."""

import csv
import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pebble import ProcessExpired

import utils.preparation.records
from tests.conftest import ROOT, run_script
from utils.common.errors import InputError
from utils.common.provenance import software_version
from utils.data.images import MNI152_T1_2MM, read_image
from utils.preparation.overview import summarize
from utils.preparation.preprocessing_jobs import (
    Settings,
    _is_finished,
    _memory_needed,
    _result,
    preprocess_all,
    preprocess_file,
)
from utils.preparation.raw_scans import RawFile, UnusableScanError, find_raw_scans
from utils.preparation.records import read_record

FLAGS = ("--registration", "affine", "--device", "cpu", "--num_workers", 1)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(scope="module")
def run(simulated_head, simulated_brain, tmp_path_factory) -> Path:
    """A run over a good scan, a cut one, a file that is no image, and a brain without its skull."""
    folder = tmp_path_factory.mktemp("preprocessing")
    (folder / "raw").mkdir()
    nibabel.save(simulated_head, folder / "raw" / "sub-1_T1w.nii.gz")
    nibabel.save(simulated_head.slicer[:, :, :50], folder / "raw" / "sub-2_T1w.nii.gz")
    (folder / "raw" / "sub-3_T1w.nii.gz").write_bytes(b"no image")
    nibabel.save(nibabel.MGHImage(simulated_brain.dataobj, simulated_brain.affine), folder / "raw" / "sub-4.mgz")
    (folder / "raw" / "tail <b>.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    result = run_script(
        "preprocess.py", "--input", folder / "raw", "--output_dir", folder / "out", *FLAGS, "--save_masks", "true"
    )  # fmt: skip
    (folder / "log.txt").write_text(result.stdout)
    return folder


def test_failures_do_not_stop_the_others(run) -> None:
    out = run / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset_description.json", "index.html", "masks", "preprocess.log", "qc", "qc.csv", "sub-1.nii.gz",
        "sub-4.nii.gz",
    ]  # fmt: skip
    with (out / "qc.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "sub-1": "pass", "sub-2": "fail", "sub-3": "fail", "sub-4": "pass", "tail <b>": "fail",
    }  # fmt: skip
    assert "outside_field_of_view" in rows["sub-2"]["reasons"]
    assert "not a readable NIfTI or MGH image" in rows["sub-3"]["reasons"]
    assert float(rows["sub-1"]["dice"]) > 0.9
    assert "torch=2.13.0" in rows["sub-1"]["versions"]
    log = (run / "log.txt").read_text()
    assert "5 scans: 2 pass, 0 doubtful, 3 fail" in log
    assert "sub-3" in log
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def test_the_result_is_what_training_reads(run) -> None:
    image = nibabel.load(run / "out" / "sub-1.nii.gz")
    assert image.shape == MNI152_T1_2MM.shape
    np.testing.assert_array_equal(image.affine, MNI152_T1_2MM.affine)
    assert image.get_data_dtype() == np.int16
    assert (image.header["sform_code"], image.header["qform_code"]) == (4, 4)
    volume = read_image(run / "out" / "sub-1.nii.gz", 2)
    assert volume.min() == 0
    assert (run / "out" / "sub-1.nii.gz").stat().st_size < 1e6
    mask = nibabel.load(run / "out" / "masks" / "sub-1.nii.gz")
    raw = nibabel.load(run / "raw" / "sub-1_T1w.nii.gz")
    assert mask.shape == raw.shape
    np.testing.assert_allclose(mask.affine, raw.affine)


def test_the_description_holds_the_fingerprint(run) -> None:
    content = json.loads((run / "out" / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    made = content["GeneratedBy"][0]
    assert made["Version"] == software_version()
    assert made["Parameters"]["registration"] == "affine"
    assert "torch" in made["Parameters"]["versions"]
    record = json.loads((run / "out" / "qc" / "sub-1.json").read_text())
    assert record["fingerprint"] == made["Fingerprint"]


def test_the_page_shows_every_scan_and_trusts_no_name(run) -> None:
    page = (run / "out" / "index.html").read_text()
    assert page.count("<article") == 5
    assert 'src="qc/sub-1.png"' in page
    assert (run / "out" / "qc" / "sub-1.png").is_file()
    assert "tail &lt;b&gt;" in page
    assert "tail <b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_record_tells_whether_the_skull_was_off_already(run) -> None:
    records = {name: read_record(run / "out", name) for name in ("sub-1", "sub-3", "sub-4")}
    assert {name: record["extracted"] for name, record in records.items()} == {
        "sub-1": False, "sub-3": None, "sub-4": True,
    }  # fmt: skip
    assert {record["brain_extracted"] for record in records.values()} == {"auto"}


def settings_of(folder: Path, keep_failed: bool = False, brain_extracted: str = "auto") -> Settings:
    return Settings(folder, "affine", "cpu", keep_failed, True, brain_extracted)


def test_a_second_run_does_only_what_changed(run, capsys) -> None:
    out, scans = run / "out", find_raw_scans(run / "raw")
    shard = run_script("preprocess.py", "--input", run / "raw", "--output_dir", out, *FLAGS, "--shard", "2/2")
    assert "2 of 2 scans are already finished" in shard.stdout
    strict = ["--shard", "2/2", "--strict", "true"]
    run_script("preprocess.py", "--input", run / "raw", "--output_dir", out, *FLAGS, *strict, status=1)
    stamp = (out / "sub-1.nii.gz").stat().st_mtime_ns
    (run / "raw" / "sub-3_T1w.nii.gz").write_bytes(b"another file that is no image")
    records = preprocess_all(scans, settings_of(out), 1, 600)
    assert "4 of 5 scans are already finished" in capsys.readouterr().out
    assert [record["verdict"] for record in records] == ["pass", "fail", "fail", "pass", "fail"]
    assert (out / "sub-1.nii.gz").stat().st_mtime_ns == stamp


def test_a_finished_run_reads_each_record_once(run, monkeypatch) -> None:
    reads, read_json = [], utils.preparation.records.read_json
    preprocess_all(find_raw_scans(run / "raw"), settings_of(run / "out"), 1, 600)
    monkeypatch.setattr(
        utils.preparation.records, "read_json", lambda path: (reads.append(path.stem), read_json(path))[1]
    )
    records = preprocess_all(find_raw_scans(run / "raw"), settings_of(run / "out"), 1, 600)
    summarize(records, run / "out")
    assert sorted(reads) == sorted(record["name"] for record in records)


def test_a_scan_is_done_again_if_anything_about_it_differs(run) -> None:
    out, (scan, cut, *_) = run / "out", find_raw_scans(run / "raw")
    key = read_record(out, scan.name)["fingerprint"]

    def finished(scan: RawFile, key: str = key, **options) -> bool:
        return _is_finished(scan, read_record(out, scan.name), settings_of(out, **options), key)

    assert finished(scan)
    assert not finished(scan, "other parameters")
    assert not finished(scan, brain_extracted="false")
    assert finished(cut)
    assert not finished(cut, keep_failed=True)  # its brain was not written
    with pytest.raises(
        InputError, match="2 scans, such as sub-1, are finished, but with other parameters.*OVERWRITE=true"
    ):
        preprocess_all(find_raw_scans(run / "raw"), settings_of(out, brain_extracted="false"), 1, 600)
    for part in ("sub-1.nii.gz", "masks/sub-1.nii.gz"):
        (out / part).rename(run / "away")
        assert not finished(scan)
        (run / "away").rename(out / part)


@pytest.mark.parametrize(("flag", "meaning"), [("auto", None), ("true", True), ("false", False)])
def test_the_flag_decides_whether_the_skull_is_off(tmp_path, monkeypatch, run_here, flag, meaning) -> None:
    def stop(*given: object) -> None:
        raise UnusableScanError(f"extracted: {given[-1]}")

    def run_one(scans: list[RawFile], settings: Settings, *_: object) -> list[dict[str, object]]:
        return [preprocess_file(scans[0], settings, "key")]

    touch(tmp_path / "a.nii", tmp_path / "out/qc/x")
    monkeypatch.setattr("utils.preparation.preprocessing.preprocess_scan", stop)
    monkeypatch.setattr("utils.preparation.preprocessing_jobs.preprocess_all", run_one)
    with pytest.raises(SystemExit):
        run_here(
            "preprocess.py", "--input", tmp_path / "a.nii", "--output_dir", tmp_path / "out", "--brain_extracted", flag
        )
    record = read_record(tmp_path / "out", "a")
    assert (record["brain_extracted"], record["reasons"]) == (flag, [f"extracted: {meaning}"])


def test_finished_scans_are_found_without_slow_imports() -> None:
    imported = "import sys, utils.preparation.preprocessing_jobs; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, check=True, cwd=ROOT)
    slow = {"torch", "nilearn", "SimpleITK", "picsl_greedy", "sklearn", "matplotlib"}
    assert not slow.intersection(modules.stdout.split())


def test_a_scan_is_never_replaced_by_its_brain(run, tmp_path) -> None:
    scan = shutil.copy(run / "raw" / "sub-1_T1w.nii.gz", tmp_path / "sub-1.nii.gz")
    before = scan.read_bytes()
    for folder, complaint in ((tmp_path, "already exists and was not made here"), (run / "out", "was made from")):
        with pytest.raises(InputError, match=complaint):
            preprocess_all(find_raw_scans(tmp_path), settings_of(folder), 1, 600)
    assert scan.read_bytes() == before


def test_fewer_processes_run_where_scans_are_large(tmp_path) -> None:
    """A scan of 512x512x512 voxels needs 4.6 GiB, one of 160x255x255 1.4 GiB."""
    (tmp_path / "damaged.nii").write_bytes(b"no image")
    for name, shape in (("a.nii", (160, 255, 255)), ("b.nii", (512, 512, 512))):
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.uint8)
        header.set_data_shape(shape)
        header["magic"], header["vox_offset"] = b"n+1", 352
        with (tmp_path / name).open("wb") as file:
            file.write(header.binaryblock)
            file.truncate(352 + int(np.prod(shape)))
    small, both = ([RawFile(name, tmp_path / f"{name}.nii") for name in names] for names in (["damaged", "a"], "ab"))
    assert 1.4 < _memory_needed(small) / 2**30 < 2
    assert 4.6 < _memory_needed(both) / 2**30 < 7


def test_a_process_that_dies_is_only_one_failure(tmp_path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "out/qc/x")
    future: Future[None] = Future()
    future.set_exception(ProcessExpired("killed", code=-9))
    record = _result(future, RawFile("a", tmp_path / "a.nii"), settings_of(tmp_path / "out"), "key", 600)
    assert record["verdict"] == "fail"
    assert "died with exit code -9" in record["reasons"][0]
    assert not record["finished"]


def test_a_process_that_hangs_is_only_one_failure(tmp_path) -> None:
    """Importing what preprocessing needs takes longer than this limit on any machine."""
    touch(tmp_path / "a.nii")
    (record,) = preprocess_all([RawFile("a", tmp_path / "a.nii")], settings_of(tmp_path / "out"), 1, timeout=0.01)
    assert record["reasons"] == ["took more than 0.01 s; increase --timeout"]
    assert not record["finished"]  # so that a second run tries again


@pytest.mark.parametrize("flag", ["--shard 0/2", "--shard 3/2", "--shard x", "--registration rigid", "--timeout 0"])
def test_wrong_flags_end_with_status_2(flag) -> None:
    assert "error:" in run_script("preprocess.py", *flag.split(), status=2).stderr


def test_the_output_folder_is_checked_first(tmp_path) -> None:
    touch(tmp_path / "file", tmp_path / "a.nii")
    with pytest.raises(InputError, match="cannot be written"):
        preprocess_all(find_raw_scans(tmp_path / "a.nii"), settings_of(tmp_path / "file" / "out"), 1, 600)
