"""What is fuzzed: readers of files from strangers, which may refuse a file with a message, and do nothing else.

Each target takes bytes, makes a file of them, and reads it as the scripts do. The first byte chooses what kind of file
the rest is. `InputError` and the errors that an entry point turns into one are refusals; anything else is a defect.
"""

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import openpyxl
import pandas as pd
import torch
import xlwt

from model.building import load_network, make_network
from model.scaledense import NetworkConfig
from model.sorter import load_sorter
from utils.analysis.gap_tables import read_tables
from utils.common.checkpoints import age_interval_of, load_checkpoint, save_checkpoint
from utils.common.errors import InputError, user_errors
from utils.data.images import model_grid
from utils.data.scans import ScanStore, data_settings
from utils.data.subjects import Subject
from utils.data.tables import read_label_table
from utils.evaluation.predicting import seen_in_training
from utils.prediction.scan_preparation import check_scan
from utils.preparation.label_formats import open_labels
from utils.preparation.raw_scans import UnusableScanError, read_raw_scan
from utils.training.state import describe_checkpoint

VOXEL_SIZE = 8  # mm; the smallest grid makes the smallest files
_HELD = tempfile.TemporaryDirectory(prefix="fuzz-")  # until the interpreter ends
FOLDER = Path(_HELD.name)
SUBJECTS = [Subject("sub-1", Path("sub-1.nii"), 50.0, 0)]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Let a file be refused; nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(InputError, UnusableScanError):
        yield


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


# ---- scans ----


def fuzz_scan(data: bytes) -> None:
    """Read a scan: for training, by its tissues, as a prepared brain, and as a raw scan."""
    kind, content = data[:1], data[1:]
    path = _file("sub-1.nii.gz" if kind == b"\x01" else "sub-1.mgz" if kind == b"\x02" else "sub-1.nii", content)
    for normalization in ("brain", "tissue"):
        with _refusals():
            ScanStore(VOXEL_SIZE, normalization).read_file(path)
    with _refusals():
        check_scan(path)
    with _refusals():
        read_raw_scan(path)


def scan_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    grid = model_grid(VOXEL_SIZE)
    volume = np.where(np.indices(grid.shape).sum(0) % 40 > 15, rng.integers(40, 200, grid.shape), 0)
    for kind in (np.uint8, np.int16, np.float32):
        image = nibabel.Nifti1Image(volume.astype(kind), grid.affine)
        yield b"\x00" + image.to_bytes()
        image.header.set_slope_inter(0.5, 1)
        yield b"\x00" + image.to_bytes()
    yield b"\x00" + nibabel.Nifti1Image(volume.astype(">i2"), grid.affine).to_bytes()
    yield b"\x00" + nibabel.Nifti2Image(volume.astype(np.uint8), grid.affine).to_bytes()
    yield b"\x00" + nibabel.Nifti1Image(volume[..., None].astype(np.uint8), grid.affine).to_bytes()
    path = FOLDER / "seed.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.uint8), grid.affine), path)
    yield b"\x01" + path.read_bytes()
    nibabel.save(nibabel.MGHImage(volume.astype(np.uint8), grid.affine), path.with_suffix(".mgz"))
    yield b"\x02" + path.with_suffix(".mgz").read_bytes()


# ---- tables ----

TABLES = {0: ".csv", 1: ".tsv", 2: ".txt", 3: ".xlsx", 4: ".xls"}  # whole files; above, parts of an .xlsx
PARTS = {5: "xl/worksheets/sheet1.xml", 6: "xl/sharedStrings.xml", 7: "xl/styles.xml", 8: "xl/workbook.xml"}
CELLS = [["subject_id", "age", "sex", "site"], ["sub-1", 40.5, "F", "A"], ["sub-2", 61, "M", "B"]]


def fuzz_table(data: bytes) -> None:
    """Read a table: of labels, of a public data set, and of predictions."""
    kind, content = data[0] if data else 0, data[1:]
    path = _file(f"table{TABLES.get(kind, '.xlsx' if kind in PARTS else '.csv')}", content)
    if kind in PARTS:
        _replace_part(path, PARTS[kind], content)
    with _refusals():
        read_label_table(path).find("sub-1.nii.gz")
    with _refusals():
        read_label_table(path, "site")
    with _refusals():
        _, find, _ = open_labels(path)
        for name in (
            "sub-1",
            "sub-1_ses-2",
            "OAS1_0001_MR1",
            "OAS30001_MR_d0129",
            "002_S_0295_m12",
            "002_S_0295_20070319",
        ):
            find(name)
    with _refusals():
        read_tables({"test": [path]}, None, {})


def _workbook() -> bytes:
    book = openpyxl.Workbook()
    for row in CELLS:
        book.active.append(row)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def _replace_part(path: Path, name: str, part: bytes) -> None:
    """Make a workbook in which one file is another, so that checksums do not stop what is changed."""
    with zipfile.ZipFile(io.BytesIO(_workbook())) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, part if entry == name else source.read(entry))


def table_seeds() -> Iterator[bytes]:
    frame = pd.DataFrame(CELLS[1:], columns=CELLS[0])
    yield b"\x00" + frame.to_csv(index=False).encode()
    yield b"\x00" + frame.to_csv(index=False, sep=";", decimal=",").encode("utf-8-sig")
    yield b"\x01" + frame.to_csv(index=False, sep="\t").encode()
    yield b"\x00subject_id,age,brain_age,session,diagnosis\nsub-1,40,41,1,HC\nsub-2,50,55,2,AD\n"
    yield b"\x00PTID,VISCODE,AGE,PTGENDER,Years_bl,EXAMDATE\n002_S_0295,bl,84.8,Male,0,2006-04-18\n"
    yield b"\x00OASISID,AgeAtEntry,GENDER\nOAS30001,65.1,2\n"
    yield b"\x00ID,M/F,Age,CDR\nOAS1_0001_MR1,F,74,0\n"
    yield b"\x00IXI_ID,SEX_ID (1=m, 2=f),AGE\n2,2,35.8\n"
    workbook = _workbook()
    yield b"\x03" + workbook
    with zipfile.ZipFile(io.BytesIO(workbook)) as archive:
        for kind, name in PARTS.items():
            if name in archive.namelist():
                yield bytes([kind]) + archive.read(name)
    old = xlwt.Workbook()
    sheet = old.add_sheet("labels")
    for row, cells in enumerate(CELLS):
        for column, cell in enumerate(cells):
            sheet.write(row, column, cell)
    content = io.BytesIO()
    old.save(content)
    yield b"\x04" + content.getvalue()


# ---- checkpoints ----


def fuzz_checkpoint(data: bytes) -> None:
    """Read a checkpoint of either stage, and a sorter."""
    kind, content = data[:1], data[1:]
    path = _file("best.pt", content)
    if kind == b"\x01":
        _replace_pickle(path, content)
    for stage in (1, 2):
        with _refusals():
            checkpoint = load_checkpoint(path)
            with user_errors(str(path)):
                load_network(checkpoint, stage)
                data_settings(checkpoint, None)
                age_interval_of(checkpoint, None)
            seen_in_training(SUBJECTS, path, checkpoint)
    with _refusals(), user_errors():
        load_sorter(path)


def _contents() -> Iterator[dict[str, Any]]:
    """Yield what small checkpoints and a sorter hold."""
    for stage in (1, 2):
        config = NetworkConfig(stage, "scaledense_paper", True, model_grid(VOXEL_SIZE).shape, 1, 1)
        described = describe_checkpoint(config.to_dict(), VOXEL_SIZE, "brain", 5.0, SUBJECTS, SUBJECTS, "a" * 64)
        yield {**described, "state_dict": make_network(config, 0).state_dict()}
    yield {"sorter": {"model_type": "lstm", "length": 2}, "state_dict": {"conv1.weight": torch.zeros(2, 2, 256)}}


def _replace_pickle(path: Path, pickled: bytes) -> None:
    """Make a checkpoint with another pickle, so that checksums do not stop what is changed."""
    save_checkpoint(path, next(_contents()))
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in entries.items():
            target.writestr(name, pickled if name.endswith("/data.pkl") else content)


def checkpoint_seeds() -> Iterator[bytes]:
    path = FOLDER / "seed.pt"
    for content in _contents():
        save_checkpoint(path, content)
        yield b"\x00" + path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            yield b"\x01" + archive.read(pickled)
        torch.save(content, path, _use_new_zipfile_serialization=False)
        yield b"\x00" + path.read_bytes()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "scan": (fuzz_scan, scan_seeds),
    "table": (fuzz_table, table_seeds),
    "checkpoint": (fuzz_checkpoint, checkpoint_seeds),
}
