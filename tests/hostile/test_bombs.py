"""Small files that claim to be large: they are refused before memory is taken for them.

What a process takes is measured by `tracemalloc`, which NumPy reports to, and by the sizes of torch's tensors.
"""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import torch

from model.building import load_network
from model.sorter import load_sorter
from tests.prediction.conftest import random_checkpoint
from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.data.cells import read_cells
from utils.data.discretized_ages import AGE_TABLE, read_discretized_ages
from utils.data.tables import read_label_table

LEAST = 2**27  # bytes; no reading of a small file needs as much


@pytest.fixture
def modest():
    """Fail where reading takes much memory."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < LEAST


def compress(path: Path, replaced: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> None:
    """Write an archive again, compressed, with other content of some of its files."""
    with zipfile.ZipFile(path) as source:
        content = {name: replaced.get(name.rpartition("/")[2], source.read(name)) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", kind) as target:
        for name, data in content.items():
            target.writestr(name, data)


def test_a_compressed_checkpoint(tmp_path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"state_dict": {"weight": torch.zeros(30_000_000)}}, path)
    compress(path, {})
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match="would expand to 1200"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="would expand to 1200"):
        load_sorter(path)
    assert tracemalloc.get_traced_memory()[1] < LEAST
    tracemalloc.stop()


def test_a_checkpoint_whose_parts_overlap(tmp_path) -> None:
    """As many names for one part as fit; together they are larger than the file."""
    path = tmp_path / "best.pt"
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
        for number in range(200):
            twin = zipfile.ZipInfo(f"archive/data/{number + 5}")
            twin.header_offset, twin.CRC, twin.file_size = part.header_offset, part.CRC, part.file_size
            twin.compress_size = part.compress_size
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(InputError, match="would expand"):
        load_checkpoint(path)


def test_a_checkpoint_whose_tensors_repeat_one_number(tmp_path) -> None:
    content = random_checkpoint(1, 0)
    content["state_dict"] = {name: torch.zeros(()).expand(v.shape) for name, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="claims more numbers than the file holds"):
        load_network(load_checkpoint(tmp_path / "best.pt"), 1)


@pytest.mark.parametrize("changes", [{"blocks": 10**12}, {"filters": 10**12}, {"filters": 10**30}])
def test_a_checkpoint_whose_network_would_be_huge(tmp_path, modest, changes) -> None:
    content = random_checkpoint(1, 0)
    torch.save({**content, "network": {**content["network"], **changes}}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="does not survive|do not fit|unknown way"):
        load_network(load_checkpoint(tmp_path / "best.pt"), 1)


def test_a_sorter_that_would_be_huge(tmp_path, modest) -> None:
    weights = {"conv1.weight": torch.zeros(2, 2, 256)}
    torch.save({"sorter": {"model_type": "lstm", "length": 10**6}, "state_dict": weights}, tmp_path / "sorter.pt")
    with pytest.raises(ValueError, match="do not fit a sorter of length 1000000"):
        load_sorter(tmp_path / "sorter.pt")


def test_a_legacy_checkpoint_that_claims_terabytes(tmp_path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"state_dict": {"weight": torch.zeros(123_456_789 % 1000)}}, path, _use_new_zipfile_serialization=False)
    size = pickle.dumps(789, 2)[2:-1]
    assert path.read_bytes().count(size)
    path.write_bytes(path.read_bytes().replace(size, pickle.dumps(10**9 + 7, 2)[2:-1]))
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(path)


def test_a_table_of_ages_that_claims_terabytes(tmp_path) -> None:
    path = tmp_path / "train_discretized_age.npy"
    header = io.BytesIO()
    dtype = [(name, "U8" if name == "subject_id" else kind) for name, kind in AGE_TABLE]
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": (10**11,)})
    path.write_bytes(header.getvalue() + bytes(1000))
    with pytest.raises(InputError, match="not a readable .npy table"):
        read_discretized_ages(path, ["a"], 5.0, "")


def workbook(path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["subject_id", "age", "sex"], ["a", 40, "F"]):
        book.active.append(row)
    book.save(path)


SHEET = b"""<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>%s</sheetData>%s
</worksheet>"""
LAUGHS = b'<!DOCTYPE a [<!ENTITY a0 "ha">%s]>' % b"".join(
    b'<!ENTITY a%d "%s">' % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 12)
)
CELL = b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>'
BOMBS = {
    "expands": SHEET % (b'<row r="1"><c r="A1" t="inlineStr"><is><t>%s</t></is></c></row>' % (b"a" * 300_000_000), b""),
    "cell in the last corner": SHEET % (CELL % (1_048_576, 1_048_576), b""),
    "cells in the last column": SHEET % (b"".join(CELL % (i, i) for i in range(1, 5000)), b""),
    "merged cells": SHEET % (b'<row r="1"><c r="A1"><v>1</v></c></row>',
                             b'<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'),
    "entities": LAUGHS + SHEET % (b'<row r="1"><c r="A1" t="str"><v>&a11;</v></c></row>', b""),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_workbook_that_expands(tmp_path, bomb) -> None:
    path = tmp_path / "labels.xlsx"
    workbook(path)
    compress(path, {"sheet1.xml": BOMBS[bomb]})
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=r"labels.xlsx: "):
        read_label_table(path)
    assert tracemalloc.get_traced_memory()[1] < LEAST
    tracemalloc.stop()


def test_an_empty_formatted_region_is_no_bomb(tmp_path) -> None:
    """Spreadsheets keep the format of empty rows and columns; a table with some of them is read."""
    book = openpyxl.Workbook()
    for row in (["subject_id", "age", "sex"], ["a", 40, "F"]):
        book.active.append(row)
    book.active["Z9000"].font = openpyxl.styles.Font(bold=True)
    book.save(tmp_path / "labels.xlsx")
    assert read_cells(tmp_path / "labels.xlsx").iloc[1, :3].tolist() == ["a", "40", "F"]
