"""Files that name other files: none of them reaches outside its folder."""

import json
import shutil
from pathlib import Path

import pytest

from utils.analysis.gap_report import check_analysis_folder
from utils.common.errors import InputError
from utils.prediction.weights import MANIFEST, load_weights


@pytest.mark.parametrize("name", ["../thesis.txt", "figures/../../thesis.txt", "/etc/hostname", 7])
def test_an_analysis_of_a_stranger_cannot_have_files_elsewhere_deleted(tmp_path, name) -> None:
    """`metrics.json` lists the files of an analysis, which the next one replaces."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"files": ["report.html", name]}))
    with pytest.raises(InputError, match="not an earlier analysis"):
        check_analysis_folder(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("members", "../../1"), ("networks", {"first_stage": [], "second_stage": []}), ("training_persons", [1]),
        ("preprocessing", [{"registration": "affine; rm"}]), ("age_range", [20, float("nan")]), ("sha256", []),
        ("unseen_site_gaps", {"A": ["x"]}), ("unseen_site_ages", [1]), ("out_of_fold_errors", ["x"] * 30),
    ],
)  # fmt: skip
def test_a_manifest_with_entries_of_other_kinds_is_refused(tmp_path, entry, value) -> None:
    shutil.copytree(Path(__file__).parents[2] / "weights", tmp_path / "weights")
    manifest = json.loads((tmp_path / "weights" / MANIFEST).read_text())
    (tmp_path / "weights" / MANIFEST).write_text(json.dumps({**manifest, entry: value}))
    with pytest.raises(InputError, match=f"lacks a usable {entry}"):
        load_weights(tmp_path / "weights")


def test_a_manifest_nested_without_end_is_refused(tmp_path) -> None:
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_weights(tmp_path)


def test_a_flipped_bit_in_any_file_of_weights_is_found(tmp_path) -> None:
    for path in sorted((Path(__file__).parents[2] / "weights").glob("member_*.safetensors")):
        shutil.copytree(path.parent, tmp_path / path.stem)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / path.stem / path.name).write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}: is not the file that {MANIFEST} describes"):
            load_weights(tmp_path / path.stem)
